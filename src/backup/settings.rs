//! `[database]`, `[backup]` and `[[backup.files]]`, resolved: what is backed up, to where, when, and how long it is kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;

use super::files::FileSet;
use super::task::Kind;
use super::{Config, retention};
use crate::tasks::calendar::Schedule;
use crate::{postgres, repository};

/// The longest that one step of a run may take.
const STEP_TIMEOUT: Duration = Duration::from_hours(12);

#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `None`: the vault is off.
    pub database: Option<postgres::Config>,
    pub repository: repository::Config,
    pub retention: retention::Policy,
    pub keep_replaced: Duration,
    /// `None`: the environment's TMPDIR, or the state directory.
    pub scratch: Option<PathBuf>,
    pub plan: Plan,
    pub state_dir: PathBuf,
}

/// What is done when.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub zone: TimeZone,
    /// `daily`, `weekly`, `monthly`: those that are on.
    pub kinds: Vec<Kind>,
    pub cleanup: Option<Schedule>,
    /// When old backups are read back again.
    pub verify: Option<Schedule>,
    pub files: Vec<FilePlan>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct FilePlan {
    pub set: FileSet,
    pub schedule: Schedule,
}

impl Settings {
    /// Where backups go if nothing is said.
    #[must_use]
    pub fn default_repository(state_dir: &Path) -> String {
        format!("file://{}/backups", state_dir.display())
    }

    /// Not /tmp by itself: what goes there is as large as the database, and /tmp is often memory.
    fn scratch(&self) -> PathBuf {
        let environment = || {
            std::env::var_os("TMPDIR")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        };
        let own = self.scratch.clone().or_else(environment);
        own.unwrap_or_else(|| self.state_dir.clone())
    }

    /// Worth a word wherever backups are made: whoever reads the repository then reads the data.
    #[must_use]
    pub fn in_the_clear(&self) -> Option<&'static str> {
        let is_clear = self.repository.recipients.is_empty();
        is_clear.then_some("backups are stored in the clear: backup.recipients names no age public key")
    }

    /// What the vault needs; `None`: there is no database, and so no vault.
    #[must_use]
    pub fn vault(&self) -> Option<Config> {
        Some(Config {
            database: self.database.clone()?,
            repository: self.repository.clone(),
            retention: self.retention,
            state_dir: self.state_dir.clone(),
            scratch: self.scratch(),
            keep_replaced: self.keep_replaced,
            step_timeout: STEP_TIMEOUT,
        })
    }
}
