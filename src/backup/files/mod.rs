//! File sets: directories of the app that are kept beside its database, as tar streams sealed like dumps.
//!
//! What changes or goes away while it is read is noted in the manifest; what cannot be read fails the run, since a backup
//! that silently lacks files is worse than none.

mod archive;
mod extract;
mod names;
mod restore;
mod sparse;
mod stream;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use tokio::sync::oneshot;
use ulid::Ulid;

use self::archive::Report;
use self::names::Names;
use super::journal::local;
use super::verify::Draining;
use super::{Error, Vault};
use crate::repository::frames::Compression;
use crate::repository::manifest::{Content, Manifest, Part};
use crate::repository::{self, Keys, layout};

pub use self::restore::FilesRestored;

/// The part's name, and the stem of its object.
const PART: &str = "files";

/// One `[[backup.files]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSet {
    pub name: String,
    /// Absolute.
    pub paths: Vec<PathBuf>,
    pub keep_days: u32,
}

impl Vault {
    /// Makes one backup of `set`. Nothing is published unless it was read back whole.
    ///
    /// # Errors
    /// Why there is no new backup.
    pub async fn create_files(&self, set: &FileSet) -> Result<Manifest, Error> {
        self.create_files_as(Ulid::generate(), set, Vec::new()).await
    }

    /// As [`Vault::create_files`], with an id that the caller has told somebody already and the periods that it serves.
    ///
    /// # Errors
    /// Why there is no new backup.
    pub async fn create_files_as(
        &self,
        id: Ulid,
        set: &FileSet,
        schedule_keys: Vec<String>,
    ) -> Result<Manifest, Error> {
        let roots = roots(set).map_err(Error::Refused)?;
        let _lock = self.lock()?;
        self.sweep_unfinished().await?;
        let folder = layout::files(id);
        let made = self.make_files(id, &folder, set, roots, schedule_keys).await;
        if made.is_err() {
            self.sweep(&folder).await;
        }
        made
    }

    async fn make_files(
        &self,
        id: Ulid,
        folder: &str,
        set: &FileSet,
        roots: Vec<PathBuf>,
        schedule_keys: Vec<String>,
    ) -> Result<Manifest, Error> {
        let started_at = self.clock.wall();
        let keys = Arc::new(self.keys.with_witness());
        let (part, report) = self.store_files(folder, roots, &keys).await?;
        let content = Content::Files {
            name: set.name.clone(),
            paths: set
                .paths
                .iter()
                .map(|path| path.to_string_lossy().into_owned())
                .collect(),
            entries: report.entries,
            keep_days: set.keep_days,
            notes: report.notes,
            more_notes: report.more_notes,
        };
        let mut manifest = self.describe(id, content, vec![PART.to_owned()], schedule_keys, started_at);
        manifest.parts = vec![part];
        manifest.verified = self.prove(folder, &manifest, &keys).await?;
        manifest.finished_at = self.clock.wall();
        let published = self
            .repository
            .create(&layout::manifest(folder), manifest.to_bytes())
            .await?;
        if published {
            Ok(manifest)
        } else {
            Err(Error::Vanished { id })
        }
    }

    async fn store_files(&self, folder: &str, roots: Vec<PathBuf>, keys: &Arc<Keys>) -> Result<(Part, Report), Error> {
        let key = layout::part(folder, PART, keys.encrypts());
        let (reader, writer) = std::io::pipe().map_err(local("making a pipe"))?;
        let (ended, confirm) = oneshot::channel::<()>();
        let confirm = move || {
            let ended = confirm.blocking_recv();
            ended.map_err(|_| std::io::Error::other("the files could not be read"))
        };
        let excluded = self.repository.directory().and_then(archive::place);
        let reading = tokio::task::spawn_blocking(move || {
            let report = archive::write(&roots, writer, &Names::of_this_machine(), excluded)?;
            // The receiver is gone only when sealing failed already, which `put_sealed` reports.
            ended.send(()).ok();
            Ok::<_, std::io::Error>(report)
        });
        let progress = self.step(PART);
        let put = self
            .repository
            .put_sealed(&key, reader, Arc::clone(keys), Compression::DEFAULT, confirm, progress);
        let both = async { (put.await, reading.await) };
        let slow = |_| repository::Error::Slow {
            act: "storing",
            key: key.clone(),
            seconds: self.config.step_timeout.as_secs(),
        };
        let (stored, read) = tokio::time::timeout(self.config.step_timeout, both)
            .await
            .map_err(slow)?;
        let read = read.map_err(|_| repository::Error::Worker)?;
        let sealed = match (stored, read) {
            (Ok(sealed), Ok(report)) => (sealed, report),
            // Sealing fails when reading does, and reading when storing does: the cause is reported, not its effect.
            (Err(repository::Error::Seal { .. }) | Ok(_), Err(error)) => return Err(local("reading the files")(error)),
            (Err(error), _) => return Err(error.into()),
        };
        let (sealed, report) = sealed;
        Ok((Part::new(PART, &key, sealed), report))
    }

    /// Level 2 of a file set: decrypted, decompressed, and walked to its end.
    pub(super) async fn prove_files(
        &self,
        key: &str,
        part: &Part,
        manifest: &Manifest,
        keys: &Arc<Keys>,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<(), Error> {
        let Content::Files { entries, .. } = &manifest.content else {
            return Err(Error::Refused("a database backup holds no files".to_owned()));
        };
        let (reader, writer) = std::io::pipe().map_err(local("making a pipe"))?;
        let walking = tokio::task::spawn_blocking(move || extract::walk(std::io::BufReader::new(reader)));
        let sink = Draining {
            inner: Some(File::from(OwnedFd::from(writer))),
        };
        self.read_back(key, part, keys, sink, progress).await?;
        let walked = walking.await.map_err(|_| repository::Error::Worker)?;
        let reason = match walked {
            Ok(found) if found == *entries => return Ok(()),
            Ok(found) => format!("the archive has {found} entries, and {entries} were written"),
            Err(error) => format!("the archive cannot be read: {error}"),
        };
        Err(Error::Unproven {
            id: manifest.id,
            reason,
        })
    }
}

impl FileSet {
    /// Why no backup of it could be made now, as far as its paths tell.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        roots(self).err()
    }
}

/// The trees of a set, each once. What is not there or is a link is refused: an archive of nothing would look good.
fn roots(set: &FileSet) -> Result<Vec<PathBuf>, String> {
    let refuse = |reason: String| Err(format!("file set {:?}: {reason}", set.name));
    if set.paths.is_empty() {
        return refuse("it names no path".to_owned());
    }
    let mut roots: Vec<PathBuf> = Vec::new();
    for path in &set.paths {
        let shown = path.display();
        let is_plain = path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !path.is_absolute() || !is_plain || path.file_name().is_none() {
            return refuse(format!("{shown} is not an absolute path below /"));
        }
        match std::fs::symlink_metadata(path) {
            Err(error) => return refuse(format!("{shown}: {error}")),
            Ok(found) if found.is_symlink() => {
                return refuse(format!("{shown} is a symbolic link; name what it leads to"));
            }
            Ok(found) => {
                let asked = match found.is_dir() {
                    true => Access::READ_OK | Access::EXEC_OK,
                    false => Access::READ_OK,
                };
                // Any other error is of the question, which a sandbox may forbid: the reading itself will tell.
                if let Err(error @ Errno::ACCESS) = accessat(CWD, path, asked, AtFlags::EACCESS) {
                    return refuse(format!("{shown} cannot be read: {}", std::io::Error::from(error)));
                }
            }
        }
        let clean: PathBuf = path.components().collect();
        roots.push(clean);
    }
    let all = roots.clone();
    let is_inside = |path: &Path| all.iter().any(|other| other != path && path.starts_with(other));
    roots.retain(|path| !is_inside(path));
    roots.sort();
    roots.dedup();
    Ok(roots)
}
