//! Backups of the app's database: made, proven, kept, restored. A backup exists once its manifest does, and the
//! manifest is written only after the stored bytes have been read back whole (level 2).
//!
//! The catalogue is the repository itself, never the database that a restore rewinds.

mod catalogue;
mod character;
mod choice;
mod create;
mod discard;
mod entry;
mod exclusion;
pub mod files;
mod globals;
mod journal;
mod milestone;
mod own;
mod places;
mod preflight;
mod prune;
mod recover;
mod replaced;
mod restore;
pub mod retention;
mod rights;
mod room;
mod script;
pub mod service;
mod settings;
mod swap;
mod sweep;
pub mod task;
#[cfg(test)]
mod tests;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use ulid::Ulid;

use crate::clock::Clock;
use crate::postgres::{self, Target};
use crate::repository::{self, Keys, Repository};
use crate::telemetry::cause::chain;

pub use self::entry::{Entry, Subject, Unreadable, is_of};
pub use self::prune::Pruned;
pub use self::recover::Recovered;
pub use self::replaced::Replaced;
pub use self::restore::{Restored, Swap};
pub use self::service::Service;
pub use self::settings::{FilePlan, Plan, Settings};
pub use self::verify::Proven;

/// Longer than all that a swap waits for.
const SWAP_MAX: Duration = Duration::from_secs(20);

/// What is backed up, to where, and how long it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub database: postgres::Config,
    pub repository: repository::Config,
    pub retention: retention::Policy,
    /// Holds the lock and the journal of a restore.
    pub state_dir: PathBuf,
    /// Where a restore puts the decrypted dump for as long as it runs.
    pub scratch: PathBuf,
    /// How long a database that a restore replaced is kept under its dated name.
    pub keep_replaced: Duration,
    /// The longest that one step of a run may take.
    pub step_timeout: Duration,
}

/// Hears how far a run is: the step, and the bytes of it so far.
pub type Progress = Arc<dyn Fn(&'static str, u64) + Send + Sync>;

/// An error with its causes, in one line.
#[must_use]
pub fn explain(error: &Error) -> String {
    chain(error)
}

/// Progress that nobody hears.
#[must_use]
pub fn silent() -> Progress {
    Arc::new(|_, _| {})
}

/// Holds the app's traffic back for the moment of a swap, until what it returns is dropped.
#[derive(Clone)]
pub struct Hold(pub Arc<dyn Fn() -> BoxFuture<'static, Box<dyn Send>> + Send + Sync>);

impl Hold {
    /// Where nothing stands before the app, as on the command line.
    #[must_use]
    pub fn nothing() -> Self {
        Self(Arc::new(|| Box::pin(async { Box::new(()) as Box<dyn Send> })))
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hold")
    }
}

/// The handle: one per process.
#[derive(Clone)]
pub struct Vault {
    config: Config,
    target: Target,
    repository: Repository,
    keys: Arc<Keys>,
    clock: Clock,
    progress: Progress,
    hold: Hold,
    /// The other database whose backup may take the place of the configured one.
    foreign: Option<String>,
    /// Held while databases exchange their names.
    swapping: Arc<Mutex<()>>,
    /// Held while a lock is taken on a disk that may hang.
    locking: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault")
            .field("repository", &self.repository)
            .finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens the repository; nothing is connected to yet.
    ///
    /// # Errors
    /// An address or a key that cannot be used.
    pub fn open(config: Config, clock: Clock, progress: Progress) -> Result<Self, Error> {
        let target = Target::parse(&config.database)?;
        let repository = Repository::open_known(&config.repository.url, &config.state_dir)?;
        let keys = Keys::new(&config.repository.recipients, config.repository.identity.as_ref())?;
        Ok(Self {
            config,
            target,
            repository,
            keys: Arc::new(keys),
            clock,
            progress,
            hold: Hold::nothing(),
            foreign: None,
            swapping: Arc::default(),
            locking: Arc::default(),
        })
    }

    /// As [`Vault::open`], of a directory that has to hold a repository: whoever looks for backups makes none.
    ///
    /// # Errors
    /// As [`Vault::open`], or there is no repository.
    pub fn open_existing(config: Config, clock: Clock, progress: Progress) -> Result<Self, Error> {
        if Repository::is_missing(&config.repository.url) {
            return Err(Error::NoRepository(config.repository.url));
        }
        Self::open(config, clock, progress)
    }

    /// The same vault, heard by somebody else.
    #[must_use]
    pub fn with_progress(&self, progress: Progress) -> Self {
        Self {
            progress,
            ..self.clone()
        }
    }

    /// The same vault, which holds traffic back while it swaps databases, one at a time with all that share `swapping`.
    #[must_use]
    pub fn with_hold(self, hold: Hold, swapping: Arc<Mutex<()>>) -> Self {
        Self { hold, swapping, ..self }
    }

    /// Returns once no swap is under way, and lets none begin while what it returns is kept; waits a bounded time.
    pub async fn no_swap(&self) -> Option<impl Drop + use<>> {
        let free = Arc::clone(&self.swapping).lock_owned();
        tokio::time::timeout(SWAP_MAX, free).await.ok()
    }

    /// The same vault, which puts a backup of the database `foreign` in the place of its own when asked to.
    #[must_use]
    pub fn with_foreign(&self, foreign: Option<String>) -> Self {
        Self {
            foreign,
            ..self.clone()
        }
    }

    #[must_use]
    pub fn database(&self) -> &str {
        self.target.database()
    }

    fn step(&self, name: &'static str) -> impl Fn(u64) + Send + 'static + use<> {
        let progress = Arc::clone(&self.progress);
        progress(name, 0);
        move |bytes| progress(name, bytes)
    }
}

/// Why a run did not do what it was asked. Texts are for an operator and carry no secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error(transparent)]
    Repository(#[from] repository::Error),
    #[error(
        "there is no repository at {0}: is its disk mounted, and is that where it is? A new one is made by `foregate backup create`"
    )]
    NoRepository(String),
    #[error("there is no backup {0:?} in the repository")]
    Unknown(String),
    /// With a colon and who holds the lock, if that is known.
    #[error("another backup, restore or clean-up is running{0}")]
    Busy(String),
    #[error("refused, nothing was touched: {0}")]
    Refused(String),
    #[error("backup {id} failed verification: {reason}")]
    Unproven { id: Ulid, reason: String },
    /// A restore met damage, which was seen again. With the backup that there is instead.
    #[error("backup {id} is damaged; {instead}")]
    Condemned {
        id: Ulid,
        instead: String,
        #[source]
        source: Box<Self>,
    },
    #[error("backup {id} does not exist any more where it was just written")]
    Vanished { id: Ulid },
    /// What was met besides, and what it was about.
    #[error("{notes}")]
    Noted {
        notes: String,
        #[source]
        source: Box<Self>,
    },
    #[error("database {database:?}, which a restore has left, cannot be dropped")]
    Undropped {
        database: String,
        #[source]
        source: postgres::Error,
    },
    #[error("role {role:?} lacks the rights for it: {needs}")]
    Rights {
        role: String,
        needs: &'static str,
        #[source]
        source: Box<postgres::Error>,
    },
    #[error("{act}")]
    Local {
        act: String,
        #[source]
        source: std::io::Error,
    },
}
