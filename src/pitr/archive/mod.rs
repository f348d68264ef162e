//! The log in the repository: one sealed object per file, written once, named by what it holds.
//!
//! `<cluster>/wal/<timeline>/<log>/<name>-<blake3>.zst.age`. The plaintext's hash in the name lets a file that
//! PostgreSQL sends again be compared without a key (what age writes differs each time), and lets every reader prove
//! what it got.

mod get;
mod push;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;

use super::beat::{self, Beat};
use super::name::{self, File};
use super::{header, history};
use crate::repository::layout::{self, Cluster};
use crate::repository::{self, Keys, Repository, Stored};

/// An hour of beats every second.
const BEATS_BYTES_MAX: u64 = 1024 * 1024;
/// A history has a line per promotion.
const HISTORY_BYTES_MAX: u64 = 1024 * 1024;

/// One cluster's archive; clones share it.
#[derive(Debug, Clone)]
pub struct Archive {
    repository: Repository,
    keys: Arc<Keys>,
    cluster: Cluster,
}

/// An archived file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    pub file: File,
    pub key: String,
    pub stored_bytes: u64,
    /// When it was stored, by the repository's clock.
    pub modified: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    New,
    /// The identical file was there, and is durable.
    Already,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Yes,
    /// The archive could be asked, and has no such file.
    No,
}

/// Why the archive did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Repository(#[from] repository::Error),
    #[error(transparent)]
    Name(#[from] name::Error),
    #[error("reading {file}")]
    Read {
        file: File,
        #[source]
        source: std::io::Error,
    },
    #[error("writing {file}")]
    Write {
        file: File,
        #[source]
        source: std::io::Error,
    },
    #[error("{file} is not a regular file of a sensible size")]
    Irregular { file: File },
    #[error("{file} cannot be a segment: {reason}")]
    Header { file: File, reason: header::Error },
    #[error("{file} has {found} bytes, its segments have {wanted}")]
    Length { file: File, found: u64, wanted: u64 },
    #[error("{file} says that it begins at {found}, which is not its place")]
    Place { file: File, found: name::Lsn },
    #[error("{file} belongs to cluster {found}, this archive to {wanted}")]
    Foreign { file: File, found: String, wanted: String },
    #[error("{file} is archived already, with other content; it was left as it is")]
    Different { file: File },
    #[error("two different files are archived as {file}: neither can be believed")]
    Disputed { file: File },
    #[error("the repository holds no log at all of cluster {0}: is it the right one, and mounted?")]
    Empty(String),
    #[error("{key} was there a moment ago and is not any more")]
    Vanished { key: String },
    #[error("{key} does not hold what its name says")]
    Damaged { key: String },
    #[error(transparent)]
    History(#[from] history::Error),
    #[error("{key} is not a list of heartbeats")]
    Beats { key: String },
    #[error("a worker thread ended early")]
    Worker,
}

impl Error {
    /// Whether only a key is missing: what is archived is encrypted, and no identity is configured.
    pub(super) fn lacks_identity(&self) -> bool {
        matches!(self, Self::Repository(repository::Error::NoIdentity { .. }))
    }
}

impl Archive {
    #[must_use]
    pub fn open(repository: Repository, keys: Arc<Keys>, cluster: Cluster) -> Self {
        Self {
            repository,
            keys,
            cluster,
        }
    }

    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    fn folder(&self, file: &File) -> String {
        let wal = layout::wal(&self.cluster);
        match file {
            File::History(_) => wal,
            File::Segment(stem) | File::Partial(stem) | File::Backup(stem, _) => {
                format!("{wal}/{:08X}/{:08X}", stem.timeline.0, stem.log)
            }
        }
    }

    fn key(&self, file: &File, hash: &str) -> String {
        let ending = if self.keys.encrypts() { ".zst.age" } else { ".zst" };
        format!("{}/{file}-{hash}{ending}", self.folder(file))
    }

    /// Every archived file, in no order. Objects that are none of ours are passed over.
    ///
    /// # Errors
    /// Of the repository.
    pub async fn list(&self) -> Result<Vec<Archived>, Error> {
        let stored = self.repository.list_stored(&layout::wal(&self.cluster)).await?;
        Ok(stored.into_iter().filter_map(Archived::of).collect())
    }

    /// What is archived as `file`.
    async fn find(&self, file: &File) -> Result<Vec<Archived>, Error> {
        let stored = self
            .repository
            .list_beginning(&self.folder(file), &format!("{file}-"))
            .await?;
        let mut found: Vec<Archived> = stored
            .into_iter()
            .filter_map(Archived::of)
            .filter(|archived| archived.file == *file)
            .collect();
        // One that was stored in the clear and again encrypted is the same file.
        found.sort_by(|a, b| a.key.cmp(&b.key));
        found.dedup_by(|a, b| a.hash() == b.hash());
        Ok(found)
    }

    /// The history of `timeline`; `None`: it is not archived.
    ///
    /// # Errors
    /// Of the repository, or a file that is no history.
    pub async fn history(&self, timeline: name::Timeline) -> Result<Option<history::History>, Error> {
        if timeline.0 == 1 {
            return Ok(Some(history::History::first()));
        }
        let Some(bytes) = self.read(File::History(timeline), HISTORY_BYTES_MAX).await? else {
            return Ok(None);
        };
        Ok(Some(history::History::parse(
            timeline,
            &String::from_utf8_lossy(&bytes),
        )?))
    }

    /// Keeps `beats`, which are sorted, beside the log.
    ///
    /// # Errors
    /// Of the repository.
    pub async fn put_beats(&self, beats: &[Beat]) -> Result<(), Error> {
        let Some(name) = beat::object_name(beats) else {
            return Ok(());
        };
        let key = format!("{}/{name}", layout::beats(&self.cluster));
        self.repository.create(&key, beat::write(beats).into_bytes()).await?;
        Ok(())
    }

    /// The beats since `from`, sorted.
    ///
    /// # Errors
    /// Of the repository, or an object that holds none.
    pub async fn beats(&self, from: Timestamp) -> Result<Vec<Beat>, Error> {
        let mut beats = Vec::new();
        for stored in self.repository.list_folder(&layout::beats(&self.cluster)).await? {
            let name = stored.key.rsplit('/').next().unwrap_or_default();
            if beat::span_of_object(name).is_none_or(|(_, last)| last < from) {
                continue;
            }
            let Some(bytes) = self.repository.read(&stored.key, BEATS_BYTES_MAX).await? else {
                continue;
            };
            let read = std::str::from_utf8(&bytes).ok().and_then(beat::read);
            beats.extend(read.ok_or(Error::Beats { key: stored.key })?);
        }
        beats.retain(|beat| beat.at >= from);
        beats.sort();
        beats.dedup();
        Ok(beats)
    }

    /// Deletes the beats of before `from`, which belong to no instant that can be reached any more.
    ///
    /// # Errors
    /// Of the repository.
    pub async fn delete_beats(&self, from: Timestamp) -> Result<(), Error> {
        for stored in self.repository.list_folder(&layout::beats(&self.cluster)).await? {
            let name = stored.key.rsplit('/').next().unwrap_or_default();
            if beat::span_of_object(name).is_some_and(|(_, last)| last < from) {
                self.repository.delete(&stored.key).await?;
            }
        }
        Ok(())
    }
}

impl Archived {
    fn of(stored: Stored) -> Option<Self> {
        let name = stored.key.rsplit('/').next()?;
        let (file, rest) = name.split_once('-')?;
        let hash = rest.strip_suffix(".zst.age").or_else(|| rest.strip_suffix(".zst"))?;
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(Self {
            file: file.parse().ok().filter(|_| is_hash)?,
            key: stored.key,
            stored_bytes: stored.bytes,
            modified: stored.modified,
        })
    }

    /// Of what it holds, in hexadecimal: see [`crate::repository::fingerprint`].
    #[must_use]
    pub fn hash(&self) -> &str {
        let name = self.key.rsplit('/').next().unwrap_or_default();
        let hash = name.split_once('-').map_or("", |(_, rest)| rest);
        hash.split('.').next().unwrap_or_default()
    }
}
