//! Giving a file set back: into an empty directory, and only once all of it has been proven.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ulid::Ulid;

use super::extract::{self, Extracted};
use super::names::Names;
use super::{PART, Vault};
use crate::backup::catalogue::all_read;
use crate::backup::choice::{LATEST, from_the_future, none_good, passed_over, stands};
use crate::backup::journal::local;
use crate::backup::restore::patience;
use crate::backup::verify::Draining;
use crate::backup::{Entry, Error};
use crate::repository;
use crate::repository::manifest::Content;

/// Where a restore works until it is proven: left behind by a crash, it is removed by the next one.
const PARTIAL: &str = ".foregate-partial-";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesRestored {
    pub id: Ulid,
    pub name: String,
    pub into: PathBuf,
    pub entries: u64,
    /// What could not be given back as it was, such as owners without the right to set them.
    pub notes: Vec<String>,
}

impl Vault {
    /// Restores the file set `id` (or `latest`, where the repository holds only one set) into the directory `into`, which is
    /// made where it is missing and refused unless it is empty. One that turns out to be damaged is recorded as such.
    ///
    /// # Errors
    /// Why nothing was restored.
    pub async fn restore_files(&self, id: &str, into: &Path) -> Result<FilesRestored, Error> {
        let (entry, told) = self.show_files(id).await?;
        match self.restore_set(&entry, into, told).await {
            Err(error) => Err(self.judged(&entry, error).await),
            restored => restored,
        }
    }

    async fn restore_set(&self, entry: &Entry, into: &Path, told: Option<String>) -> Result<FilesRestored, Error> {
        let (_lock, unlocked) = self.lock_to_read()?;
        let mut notes: Vec<String> = told.into_iter().chain(unlocked).collect();
        let Content::Files { name, entries, .. } = &entry.manifest.content else {
            return Err(Error::Refused("this is a database backup, not a file set".to_owned()));
        };
        self.keys.check(&entry.manifest.recipients).map_err(Error::Refused)?;
        let into = prepare(into, entry.manifest.part(PART).map_or(0, |part| part.plain_bytes))?;
        let partial = into.join(format!("{PARTIAL}{}", Ulid::generate()));
        let lasts = patience(self.config.step_timeout, false).saturating_mul(2);
        let lease = self
            .repository
            .lease(entry.manifest.id, self.clock.wall(), lasts, &mut notes)
            .await?;
        let unpacked = self.unpack(entry, &partial).await.and_then(|extracted| {
            if extracted.entries != *entries {
                let reason = format!("{} of {entries} entries came back", extracted.entries);
                return Err(Error::Unproven {
                    id: entry.manifest.id,
                    reason,
                });
            }
            publish(&partial, &into).map_err(local("moving the files into place"))?;
            Ok(extracted)
        });
        if unpacked.is_err() {
            // Its own failure would only hide the cause; the next restore removes it as well.
            drop(std::fs::remove_dir_all(&partial));
        }
        let held = self.repository.end_lease(lease).await;
        let extracted = unpacked?;
        notes.extend(extracted.notes.into_iter().chain(held));
        Ok(FilesRestored {
            id: entry.manifest.id,
            name: name.clone(),
            into,
            entries: extracted.entries,
            notes,
        })
    }

    /// And what whoever asks for the latest has to know of others.
    async fn show_files(&self, id: &str) -> Result<(Entry, Option<String>), Error> {
        if id != LATEST {
            return Ok((self.show(id).await?, None));
        }
        let (entries, unreadable) = self.list().await?;
        all_read(&unreadable)?;
        let mut newest: Option<&Entry> = None;
        for entry in entries.iter().filter(stands) {
            let Content::Files { name, .. } = &entry.manifest.content else {
                continue;
            };
            match newest.map(|newest| &newest.manifest.content) {
                Some(Content::Files { name: other, .. }) if other != name => {
                    let reason = format!("there are several file sets ({other:?}, {name:?}): name a backup's id");
                    return Err(Error::Refused(reason));
                }
                _ => newest = Some(entry),
            }
        }
        let sets: Vec<&Entry> = entries.iter().filter(|entry| entry.is_files()).collect();
        let newest = newest.ok_or_else(|| match sets.iter().rfind(|entry| entry.is_good()) {
            Some(ahead) => from_the_future(ahead),
            None if sets.is_empty() => Error::Unknown(id.to_owned()),
            None => none_good("files", &sets),
        })?;
        Ok((newest.clone(), passed_over(&entries, newest)))
    }

    async fn unpack(&self, entry: &Entry, partial: &Path) -> Result<Extracted, Error> {
        use std::os::unix::fs::DirBuilderExt as _;
        let missing = || Error::Refused("the backup has no files".to_owned());
        let part = entry.manifest.part(PART).ok_or_else(missing)?;
        let making = local("making the directory");
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(partial)
            .map_err(&making)?;
        let root = extract::open_directory(partial).map_err(&making)?;
        let (reader, writer) = std::io::pipe().map_err(local("making a pipe"))?;
        let writing = tokio::task::spawn_blocking(move || {
            let reader = std::io::BufReader::with_capacity(256 * 1024, reader);
            extract::extract(reader, root, &Names::of_this_machine())
        });
        let sink = Draining {
            inner: Some(File::from(OwnedFd::from(writer))),
        };
        let key = format!("{}/{}", entry.folder, part.object);
        let progress = self.step("restore");
        let fetched = self
            .repository
            .get_sealed(&key, sink, Arc::clone(&self.keys), progress)
            .await
            .map(|(sealed, sink)| {
                drop(sink);
                sealed
            });
        // Waited for in either case: what it writes must have ended before the directory is removed.
        let written = writing.await.map_err(|_| repository::Error::Worker)?;
        part.check(&key, &fetched?)?;
        written.map_err(local("writing the files"))
    }
}

/// An empty directory with room in it. Nothing but what an earlier restore left half done is touched.
fn prepare(into: &Path, bytes: u64) -> Result<PathBuf, Error> {
    let refuse = |reason: String| Err(Error::Refused(format!("{}: {reason}", into.display())));
    match std::fs::symlink_metadata(into) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(into).map_err(local("making the directory"))?;
        }
        Err(error) => return refuse(error.to_string()),
        Ok(found) if !found.is_dir() => return refuse("it is not a directory".to_owned()),
        Ok(_) => {}
    }
    let reading = local("reading the directory");
    let mut left_over = Vec::new();
    for entry in std::fs::read_dir(into).map_err(&reading)? {
        let entry = entry.map_err(&reading)?;
        if !entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            return refuse("the directory is not empty".to_owned());
        }
        left_over.push(entry.path());
    }
    for path in left_over {
        std::fs::remove_dir_all(path).map_err(local("removing what an earlier restore left"))?;
    }
    let into = into.canonicalize().map_err(&reading)?;
    let disk = rustix::fs::statvfs(&into).map_err(|error| local("measuring the disk")(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < bytes {
        return refuse(format!("it has {free} bytes free, {bytes} are needed"));
    }
    Ok(into)
}

fn publish(partial: &Path, into: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(partial)? {
        let entry = entry?;
        std::fs::rename(entry.path(), into.join(entry.file_name()))?;
    }
    std::fs::remove_dir(partial)?;
    File::open(into)?.sync_all()
}
