//! The `[pitr]` section, resolved.

use std::path::PathBuf;
use std::time::Duration;

use super::setup::Way;
use crate::tasks::calendar::Schedule;

/// What is archived, how far back it reaches, and how it is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub enabled: bool,
    pub wal: Way,
    /// Where `foregate wal` finds the server.
    pub socket: PathBuf,
    /// The user id as whom PostgreSQL runs, who may use the socket besides ourselves and root.
    pub user: Option<u32>,
    /// The replication slot of `wal = "stream"`.
    pub slot: String,
    /// The most that may wait on our disk between the stream and the repository.
    pub spool_max_bytes: u64,
    /// `None`: by hand only.
    pub base_backup: Option<Schedule>,
    /// Every instant since then can be restored.
    pub window: Duration,
    /// Between two heartbeats; zero: none.
    pub heartbeat: Duration,
    /// How long a finished segment may wait before it is an alert.
    pub patience: Duration,
    /// `None`: by hand only.
    pub drill: Option<Schedule>,
    /// Where drills recover to.
    pub scratch: PathBuf,
    /// What a recovered database must answer.
    pub checks: Vec<Check>,
}

/// A query and what it must answer: the first column of its first row, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub sql: String,
    pub expect: String,
}
