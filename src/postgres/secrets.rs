//! A directory that only we may enter, with a password file or a decrypted dump in it; gone when dropped, or swept by a
//! later start where the process was killed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use ulid::Ulid;

/// Those that hold secrets; what else is named so has an owner who looks after it.
const SWEPT: [&str; 3] = ["foregate-restore-", "foregate-pass-", "foregate-base-"];
/// Held locked by whoever made the directory: the system lets go when the process dies.
const LOCK: &str = ".lock";
const TRIES: usize = 5;

/// A private directory (0700).
#[derive(Debug)]
pub struct PrivateDirectory {
    path: PathBuf,
    _lock: File,
}

impl PrivateDirectory {
    /// # Errors
    /// When `parent` does not let us.
    pub fn new(parent: &Path, stem: &str) -> io::Result<Self> {
        for _ in 0..TRIES {
            let path = parent.join(format!("foregate-{stem}-{}", Ulid::generate()));
            std::fs::DirBuilder::new().mode(0o700).create(&path)?;
            if let Some(lock) = locked(&path, true) {
                return Ok(Self { path, _lock: lock });
            }
            // Swept in the moment before it was locked.
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the password of every host and database: the directory lives as long as one program.
    pub(super) fn write_passfile(&self, password: &str) -> io::Result<PathBuf> {
        let path = self.path.join("pgpass");
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
        writeln!(file, "*:*:*:*:{escaped}")?;
        Ok(path)
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        // Nothing can be done here about a failure; the sweep at the next start tries again.
        drop(std::fs::remove_dir_all(&self.path));
    }
}

/// Makes a directory that only we may enter (0700), with those above it, where it is missing.
///
/// # Errors
/// When it cannot be made.
pub fn make_private(directory: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// The lock of `directory`, if nobody holds it and it is still there.
fn locked(directory: &Path, creates: bool) -> Option<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(creates)
        .truncate(false)
        .mode(0o600)
        .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).ok()?)
        .open(directory.join(LOCK))
        .ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    let is_there = file.metadata().is_ok_and(|metadata| metadata.nlink() > 0);
    is_there.then_some(file)
}

/// Removes from `parent` what processes that were killed have left: only directories of ours, by name, owner and mode,
/// whose lock nobody holds.
pub fn sweep(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let id = SWEPT.iter().find_map(|stem| name.strip_prefix(stem));
        let is_named_so = id.is_some_and(|id| Ulid::from_string(id).is_ok());
        // Not followed, should it be a link.
        let is_ours = is_named_so
            && entry.metadata().is_ok_and(|metadata| {
                metadata.is_dir()
                    && metadata.uid() == rustix::process::geteuid().as_raw()
                    && metadata.mode() & 0o777 == 0o700
            });
        if !is_ours {
            continue;
        }
        if let Some(lock) = locked(&entry.path(), false) {
            // What remains is tried again at the next start.
            drop(std::fs::remove_dir_all(entry.path()));
            drop(lock);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_dead_process_left_is_swept() {
        let parent = tempfile::tempdir().expect("a directory");
        let left = |name: &str, mode: u32, has_lock: bool| {
            let path = parent.path().join(name);
            std::fs::DirBuilder::new()
                .mode(mode)
                .create(&path)
                .expect("a directory");
            std::fs::write(path.join("dump"), "plain").expect("writable");
            if has_lock {
                std::fs::write(path.join(LOCK), "").expect("writable");
            }
            path
        };
        let id = Ulid::generate();
        let dead = left(&format!("foregate-restore-{id}"), 0o700, true);
        let kept = [
            left(&format!("foregate-restore-{}", Ulid::generate()), 0o755, true),
            left(&format!("foregate-drill-{id}"), 0o700, true),
            left("foregate-pass-mine", 0o700, true),
            left(&format!("foregate-pass-{id}"), 0o700, false),
        ];
        let alive = PrivateDirectory::new(parent.path(), "restore").expect("a directory");
        std::os::unix::fs::symlink(
            &kept[1],
            parent.path().join(format!("foregate-pass-{}", Ulid::generate())),
        )
        .expect("a link");
        sweep(parent.path());
        assert!(!dead.exists());
        assert!(kept.iter().all(|path| path.join("dump").exists()));
        assert!(alive.path().exists());
    }
}
