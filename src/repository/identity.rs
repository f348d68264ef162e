//! Whether a directory still holds the repository that it held. One whose disk is not mounted looks like a new one: what was
//! archived there would be missing in the real one, and lie hidden once the disk is back.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use ulid::Ulid;

use super::Error;

/// In the repository's directory; holds its identity, a line.
pub(super) const MARK: &str = "repository.id";
/// In the state directory: what each repository's directory held, by its address.
const MEMORY: &str = "repositories";
/// A line, and more than that is none.
const BYTES_MAX: u64 = 64;

/// A repository that was met: what its directory has to go on holding.
#[derive(Debug)]
pub(super) struct Identity {
    mark: PathBuf,
    /// `None`: any, since nobody can say which.
    id: Option<Ulid>,
    memory: PathBuf,
}

impl Identity {
    /// What is remembered in `state_dir` of the repository in `directory`; nothing where that cannot be read.
    pub(super) fn remembered(state_dir: &Path, directory: &Path) -> Option<Self> {
        let (mark, memory) = (directory.join(MARK), memory(state_dir, directory));
        let id = Some(read(&memory).ok()??);
        Some(Self { mark, id, memory })
    }

    /// As [`Self::remembered`], for whoever may not look into `state_dir`, as PostgreSQL's account may not: some identity has to
    /// be there, since its owner has made one.
    pub(super) fn expected(state_dir: &Path, directory: &Path) -> Option<Self> {
        let (mark, memory) = (directory.join(MARK), memory(state_dir, directory));
        let is_hidden = read(&memory).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
        match is_hidden {
            true => Some(Self { mark, id: None, memory }),
            false => Self::remembered(state_dir, directory),
        }
    }

    /// That of the repository in `directory`, which gets one where it has none; it is remembered in `state_dir`. Nothing
    /// where it can neither be read nor made: then nothing is guarded either, and nothing stopped.
    pub(super) fn meet(state_dir: &Path, directory: &Path) -> Option<Self> {
        let (mark, memory) = (directory.join(MARK), memory(state_dir, directory));
        let id = match read(&mark) {
            Ok(known) => known?,
            Err(error) if error.kind() == ErrorKind::NotFound => make(&mark)?,
            Err(_) => return None,
        };
        let is_known = read(&memory).is_ok_and(|known| known == Some(id));
        if !is_known && let Err(error) = remember(&memory, id) {
            tracing::warn!(path = %memory.display(), %error, "which repository is here cannot be remembered");
        }
        let id = Some(id);
        Some(Self { mark, id, memory })
    }

    /// # Errors
    /// Where the directory holds no repository any more, or another one. What cannot be read is no proof of that.
    pub(super) fn check(&self) -> Result<(), Error> {
        let may_be_it = match read(&self.mark) {
            Ok(found) => found.zip(self.id).is_none_or(|(found, id)| found == id),
            Err(error) => error.kind() != ErrorKind::NotFound,
        };
        if may_be_it {
            return Ok(());
        }
        let directory = self.mark.parent().unwrap_or(Path::new("/"));
        let directory = directory.display().to_string();
        Err(match self.id {
            Some(_) => Error::Elsewhere {
                directory,
                memory: self.memory.display().to_string(),
            },
            None => Error::Unmarked { directory },
        })
    }
}

fn memory(state_dir: &Path, directory: &Path) -> PathBuf {
    let name = hex::encode(Sha256::digest(directory.as_os_str().as_encoded_bytes()));
    state_dir.join(MEMORY).join(name)
}

/// `None`: what stands there is no identity.
fn read(path: &Path) -> io::Result<Option<Ulid>> {
    let mut text = String::new();
    File::open(path)?.take(BYTES_MAX).read_to_string(&mut text)?;
    Ok(Ulid::from_string(text.trim()).ok())
}

/// Of two that make one at once, the first counts for both.
fn make(mark: &Path) -> Option<Ulid> {
    let id = Ulid::generate();
    match write(mark, id) {
        Ok(()) => Some(id),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => read(mark).ok()?,
        Err(_) => None,
    }
}

fn remember(memory: &Path, id: Ulid) -> io::Result<()> {
    let directory = memory.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory)?;
    match std::fs::remove_file(memory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => write(memory, id),
    }
}

/// Into a new file, durably.
fn write(path: &Path, id: Ulid) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(format!("{id}\n").as_bytes())?;
    file.sync_all()?;
    path.parent()
        .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_that_lost_its_repository_is_told_from_one_that_has_it() {
        let (state, disk) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("one"));
        assert!(Identity::remembered(state.path(), disk.path()).is_none());
        let met = Identity::meet(state.path(), disk.path()).expect("made");
        assert!(met.check().is_ok());
        let again = Identity::remembered(state.path(), disk.path()).expect("remembered");
        assert!(again.id == met.id && again.check().is_ok());
        let mark = disk.path().join(MARK);
        let bytes = std::fs::read(&mark).expect("readable");
        std::fs::remove_file(&mark).expect("removable");
        let refused = again.check().expect_err("it is gone").to_string();
        assert!(refused.contains("mounted"), "{refused}");
        // Half a line is no proof of anything.
        std::fs::write(&mark, &bytes[..9]).expect("writable");
        assert!(again.check().is_ok());
        std::fs::write(&mark, Ulid::from_parts(1, 2).to_string()).expect("writable");
        assert!(again.check().is_err(), "another repository");
        std::fs::write(&mark, bytes).expect("writable");
        assert!(again.check().is_ok());
    }

    #[test]
    fn repository_is_recognised_by_whoever_comes_new() {
        let disk = tempfile::tempdir().expect("one");
        let ids: Vec<Option<Ulid>> = (0..2)
            .map(|_| {
                let state = tempfile::tempdir().expect("one");
                Identity::meet(state.path(), disk.path()).expect("met").id
            })
            .collect();
        assert_eq!(ids[0], ids[1]);
    }
}
