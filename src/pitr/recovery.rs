//! The handle of everything that recovers, and why it may not.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::archiver::Archiver;
use super::base::{self, Bases, Progress};
use super::config::Check;
use super::drill::Records;
use super::plan::Refusal;
use super::recover::Place;
use super::retention::Policy;
use super::setup::Way;
use super::survey::Marks;
use super::{archive, history};
use crate::clock::Clock;
use crate::postgres::{self, Target};
use crate::repository::layout::Cluster;
use crate::repository::{self, Keys, Repository};

/// How this part recovers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub repository: repository::Config,
    /// Remembers which repository that is; `None`: it is only read, or the server's own.
    pub state_dir: Option<PathBuf>,
    /// `None`: that of the server, or the only one in the repository.
    pub cluster: Option<Cluster>,
    /// Where drills unpack.
    pub scratch: PathBuf,
    /// Under which account a server runs when we are root; `None`: whose the directory is, or `postgres`.
    pub account: Option<String>,
    /// The longest that one step may take.
    pub step_timeout: Duration,
    /// How the server's log comes in.
    pub wal: Way,
    /// How often a transaction is made on an idle server: how far a recovered one may lag behind its target.
    pub heartbeat: Duration,
    /// Asked of every rehearsed recovery.
    pub checks: Vec<Check>,
}

/// What the handle is made of.
pub struct Ground {
    pub config: Config,
    /// The server that is copied, and the application's database on it.
    pub target: Target,
    pub clock: Clock,
    pub progress: Progress,
    /// In the server: who knows which cluster is the server's own.
    pub archiver: Option<Arc<Archiver>>,
}

impl std::fmt::Debug for Ground {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ground")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Plans, recovers and rehearses. One per process.
#[derive(Clone)]
pub struct Recovery {
    pub(super) config: Config,
    pub(super) bases: Bases,
    pub(super) marks: Marks,
    pub(super) records: Records,
    pub(super) policy: Policy,
    archiver: Option<Arc<Archiver>>,
}

impl std::fmt::Debug for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recovery")
            .field("bases", &self.bases)
            .finish_non_exhaustive()
    }
}

impl Recovery {
    /// Opens the repository; nothing is connected to yet.
    ///
    /// # Errors
    /// An address or a key that cannot be used.
    pub fn open(ground: Ground) -> Result<Self, Error> {
        let config = ground.config;
        let stored = &config.repository;
        let bases = Bases {
            target: ground.target,
            // The server's own recognises its directory.
            repository: match (&ground.archiver, &config.state_dir) {
                (Some(archiver), _) => archiver.repository().clone(),
                (None, Some(state_dir)) => Repository::open_known(&stored.url, state_dir)?,
                (None, None) => Repository::open(&stored.url)?,
            },
            keys: Arc::new(Keys::new(&stored.recipients, stored.identity.as_ref())?),
            clock: ground.clock,
            progress: ground.progress,
            scratch: config.scratch.clone(),
            wal: config.wal,
            step_timeout: config.step_timeout,
        };
        Ok(Self {
            config,
            bases,
            marks: Arc::default(),
            records: Arc::default(),
            policy: Policy::default(),
            archiver: ground.archiver,
        })
    }

    /// By which retention thins out base backups and log, where that is not the usual one.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    #[must_use]
    pub fn bases(&self) -> &Bases {
        &self.bases
    }

    /// The cluster of the server itself, as far as that is known; nobody knows it on the command line.
    pub(super) fn own_cluster(&self) -> Option<Cluster> {
        self.archiver.as_ref()?.ours()
    }

    /// The application's database and the role we have there.
    pub(super) fn target(&self) -> &Target {
        &self.bases.target
    }
}

/// Why there is no plan, no recovery or no result of a drill.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("refused, nothing was started: {0}")]
    Refused(Box<Refusal>),
    #[error("the repository holds no base backup and no log")]
    Empty,
    #[error(transparent)]
    Base(Box<base::Error>),
    #[error(transparent)]
    Archive(Box<archive::Error>),
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error(transparent)]
    Repository(#[from] repository::Error),
    #[error("reading a timeline's history")]
    History(#[from] history::Error),
    #[error("{} cannot be named to PostgreSQL: it holds a quote, a backslash or a percent sign", .path.display())]
    Path { path: PathBuf },
    #[error("{} is too long a path for a socket: {bytes} bytes, {limit} can be", .path.display())]
    Long { path: PathBuf, bytes: usize, limit: usize },
    #[error("recovery did not stop where the plan says: {0}")]
    Astray(String),
    #[error(
        "interrupted: nothing of it runs any more, and {} is unfinished; remove it and what stands beside it ({}, {}), and begin anew",
        .place.data.display(), .place.run.display(), .place.tablespaces.display()
    )]
    Interrupted { place: Box<Place> },
    #[error("the drill found: {0}")]
    Drill(String),
    #[error("{act}")]
    Local {
        act: &'static str,
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Whether only a key is missing: the log is encrypted, and this server holds no identity.
    pub(super) fn lacks_identity(&self) -> bool {
        match self {
            Self::Archive(error) => error.lacks_identity(),
            Self::Base(error) => matches!(&**error, base::Error::Archive(error) if error.lacks_identity()),
            _ => false,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

impl From<base::Error> for Error {
    fn from(error: base::Error) -> Self {
        Self::Base(Box::new(error))
    }
}

impl From<archive::Error> for Error {
    fn from(error: archive::Error) -> Self {
        Self::Archive(Box::new(error))
    }
}

pub(crate) fn local(act: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Local { act, source }
}
