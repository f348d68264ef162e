//! Base backups: a physical copy of the cluster by `pg_basebackup`, streamed into the repository, every file of what is
//! stored proven against `backup_manifest`, and its log proven to be in the archive, before it counts.

pub mod backup_manifest;
mod catalogue;
pub mod check;
mod prune;
mod take;
mod waiting;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use ulid::Ulid;

use super::archive::Archive;
use super::name::{Lsn, SegmentSize, Timeline};
use super::setup::Way;
use crate::clock::Clock;
use crate::postgres::{self, Target};
use crate::repository::layout::Cluster;
use crate::repository::manifest::{Manifest, Part, Tablespace};
use crate::repository::{self, Keys, Repository};

pub(super) use self::catalogue::list;
pub(super) use self::prune::histories;
pub use self::prune::{Mode, Pruned};

/// Hears how far a run is: the step, and the bytes of it so far.
pub type Progress = Arc<dyn Fn(&'static str, u64) + Send + Sync>;

/// The base backups of a repository.
#[derive(Clone)]
pub struct Bases {
    pub(super) target: Target,
    pub(super) repository: Repository,
    pub(super) keys: Arc<Keys>,
    pub(super) clock: Clock,
    pub(super) progress: Progress,
    /// Where several tablespaces are spooled.
    pub(super) scratch: PathBuf,
    /// How the log comes in.
    pub(super) wal: Way,
    pub(super) step_timeout: Duration,
}

impl std::fmt::Debug for Bases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bases")
            .field("repository", &self.repository)
            .finish_non_exhaustive()
    }
}

/// A base backup as the repository tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    pub id: Ulid,
    pub cluster: Cluster,
    pub folder: String,
    pub timeline: Timeline,
    pub start: Lsn,
    pub stop: Lsn,
    pub started_at: Timestamp,
    /// The earliest instant that can be reached from it.
    pub stopped_at: Timestamp,
    pub segment_size: SegmentSize,
    pub server_version: u32,
    pub tablespaces: Vec<Tablespace>,
    pub labels: Vec<String>,
    pub schedule_keys: Vec<String>,
    pub parts: Vec<Part>,
    pub encrypted: bool,
    /// Marked for deletion at this instant.
    pub deleted_at: Option<Timestamp>,
    /// What is missing of it, in words: it stands for nothing, and nobody recovers from it.
    pub incomplete: Option<String>,
    /// In use until this instant.
    pub leased_until: Option<Timestamp>,
}

impl Base {
    fn plain_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.plain_bytes).sum()
    }

    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.stored_bytes).sum()
    }

    /// What it takes up once unpacked.
    #[must_use]
    pub fn unpacked_bytes(&self) -> u64 {
        self.plain_bytes()
    }

    #[must_use]
    pub fn is_leased(&self, now: Timestamp) -> bool {
        self.leased_until.is_some_and(|until| until > now)
    }
}

/// How many of `bases`, the oldest first, an operator may count on, and the newest of those: whole, and not marked for
/// deletion.
#[must_use]
pub fn counted(bases: &[Base]) -> (usize, Option<&Base>) {
    let counts = |base: &&Base| base.incomplete.is_none() && base.deleted_at.is_none();
    (bases.iter().filter(counts).count(), bases.iter().rfind(counts))
}

impl Bases {
    /// The log of `cluster`.
    pub(super) fn archive(&self, cluster: &Cluster) -> Archive {
        Archive::open(self.repository.clone(), Arc::clone(&self.keys), cluster.clone())
    }

    pub(super) fn step(&self, name: &'static str) -> impl Fn(u64) + Send + 'static + use<> {
        let progress = Arc::clone(&self.progress);
        progress(name, 0);
        move |bytes| progress(name, bytes)
    }
}

/// Refuses when `directory` has less room than `bytes` and a tenth.
pub(super) fn room(directory: &Path, bytes: u64) -> Result<(), Error> {
    let found = rustix::fs::statvfs(directory).map_err(|source| Error::Local {
        act: "measuring the free space",
        source: source.into(),
    })?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let needed = bytes.saturating_add(bytes / 10);
    if free < needed {
        return Err(Error::Room {
            directory: directory.to_owned(),
            free,
            needed,
        });
    }
    Ok(())
}

/// Why a base backup was not taken, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error(transparent)]
    Repository(#[from] repository::Error),
    #[error(transparent)]
    Archive(#[from] super::archive::Error),
    /// With a colon and who holds the lock, if that is known.
    #[error("another base backup of this server is running{0}")]
    Busy(String),
    #[error("the server sent nothing for {minutes} minutes: it waits for its log to be archived")]
    Stalled { minutes: u64 },
    #[error("the server cannot archive {segment}, and a base backup needs its log; its own log says why")]
    Archiver { segment: String },
    #[error(
        "the server hands its log to nobody (archive_mode is off, and no slot streams it), and a base backup needs its log: \
         `foregate pitr setup` says what to set"
    )]
    Unarchived,
    #[error("base backup {id} is not proven: {reason}")]
    Unproven { id: Ulid, reason: String },
    #[error("base backup {id} needs {missing} of the log, and the archive has no such segment")]
    LogMissing { id: Ulid, missing: String },
    #[error("base backup {id} does not exist any more where it was just written")]
    Vanished { id: Ulid },
    #[error("there is no base backup {0:?} in the repository")]
    Unknown(String),
    #[error("{} has {free} bytes free, {needed} are needed", .directory.display())]
    Room { directory: PathBuf, free: u64, needed: u64 },
    #[error("{act}")]
    Local {
        act: &'static str,
        #[source]
        source: std::io::Error,
    },
}

impl Bases {
    /// The manifest's facts in the words of this part. `None`: it is no base backup, or holds what cannot be.
    pub(super) fn describe(folder: &str, manifest: Manifest) -> Option<Base> {
        use crate::repository::manifest::Content;
        let Content::Base {
            system_identifier,
            server_version,
            timeline,
            start_lsn,
            stop_lsn,
            stopped_at,
            segment_bytes,
            tablespaces,
            ..
        } = manifest.content
        else {
            return None;
        };
        Some(Base {
            id: manifest.id,
            cluster: Cluster {
                system_identifier,
                major: server_version / 10_000,
            },
            folder: folder.to_owned(),
            timeline: Timeline(timeline),
            start: start_lsn.parse().ok()?,
            stop: stop_lsn.parse().ok()?,
            started_at: manifest.started_at,
            stopped_at,
            segment_size: SegmentSize::new(segment_bytes).ok()?,
            server_version,
            tablespaces,
            labels: manifest.labels,
            schedule_keys: manifest.schedule_keys,
            parts: manifest.parts,
            encrypted: !manifest.recipients.is_empty(),
            deleted_at: None,
            incomplete: None,
            leased_until: None,
        })
    }
}
