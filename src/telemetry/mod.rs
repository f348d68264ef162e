//! What Foregate tells about itself: logs, the access log, metrics, health.

pub mod access_log;
pub mod alert;
pub mod cause;
pub mod certificates;
pub mod health;
pub mod logging;
mod outlet;

use std::path::PathBuf;

/// The `[log]` section, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub format: Format,
    pub access_log: AccessLog,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    Text,
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    Off,
    Stdout,
    /// Appended to; reopened on SIGHUP.
    File(PathBuf),
}
