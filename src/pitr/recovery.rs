//! The handle of everything that recovers, and why it may not.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::base::{self, Bases};
use super::drill;
use super::plan::Refusal;
use super::survey::Marks;
use super::{archive, history};
use crate::postgres::{self, Target};
use crate::repository;
use crate::repository::layout::Cluster;

/// How this part recovers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `None`: that of the server, or the only one in the repository.
    pub cluster: Option<Cluster>,
    /// Where drills unpack.
    pub scratch: PathBuf,
    /// Under which account a server runs when we are root.
    pub account: String,
    /// The longest that one step may take.
    pub step_timeout: Duration,
    /// How often a transaction is made on an idle server: how far a recovered one may lag behind its target.
    pub heartbeat: Duration,
    /// Asked of every rehearsed recovery.
    pub checks: Vec<drill::Check>,
}

/// Plans, recovers and rehearses. One per process.
#[derive(Clone)]
pub struct Recovery {
    pub(super) config: Config,
    pub(super) bases: Bases,
    pub(super) marks: Marks,
}

impl std::fmt::Debug for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recovery")
            .field("bases", &self.bases)
            .finish_non_exhaustive()
    }
}

impl Recovery {
    #[must_use]
    pub fn new(config: Config, bases: Bases) -> Self {
        Self {
            config,
            bases,
            marks: Arc::default(),
        }
    }

    #[must_use]
    pub fn bases(&self) -> &Bases {
        &self.bases
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
    Refused(Refusal),
    #[error("the repository holds no base backup and no log")]
    Empty,
    #[error(transparent)]
    Base(#[from] base::Error),
    #[error(transparent)]
    Archive(#[from] archive::Error),
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error(transparent)]
    Repository(#[from] repository::Error),
    #[error("reading a timeline's history")]
    History(#[from] history::Error),
    #[error("{} cannot be named to PostgreSQL: it holds a quote, a backslash or a percent sign", .path.display())]
    Path { path: PathBuf },
    #[error("recovery did not stop where the plan says: {0}")]
    Astray(String),
    #[error("the drill found: {0}")]
    Drill(String),
    #[error("{act}")]
    Local {
        act: &'static str,
        #[source]
        source: std::io::Error,
    },
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

pub(crate) fn local(act: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Local { act, source }
}
