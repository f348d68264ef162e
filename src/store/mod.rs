//! Blocks and the audit trail: PostgreSQL, or embedded SQLite where no database is configured.

use std::path::PathBuf;

use ipnet::IpNet;
use jiff::Timestamp;
use ulid::Ulid;

use crate::secret::Secret;

/// The `[store]` section, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// A connection address; `None`: embedded SQLite in `state_dir`.
    pub postgres: Option<Secret>,
    pub pool_size: usize,
    /// Holds the embedded store and the snapshot of the last known blocks.
    pub state_dir: PathBuf,
}

/// A block as it is stored and shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What a blocked client is told, and what the operator looks up.
    pub reference: Ulid,
    pub network: IpNet,
    pub reason: String,
    pub source: Source,
    /// The admin token's name, or "foregate".
    pub created_by: String,
    pub created_at: Timestamp,
    /// `None`: permanent.
    pub expires_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Manual,
    Automatic,
}

/// One change made by an admin: who, what, from where, with what result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    pub at: Timestamp,
    /// The admin token's name.
    pub actor: String,
    /// The address the admin called from.
    pub from: std::net::IpAddr,
    /// A verb of the API: "block", "unblock".
    pub action: String,
    /// What it was done to.
    pub subject: String,
    /// "ok", or the error that the caller was told.
    pub result: String,
}

/// A handle on the store; clones share it. Calls fail fast when the store is unreachable.
#[derive(Debug, Clone, Default)]
pub struct Store;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
}

impl Store {
    /// Appends to the audit trail.
    pub async fn append_audit(&self, entry: AuditEntry) -> Result<(), Error> {
        let _ = entry;
        Ok(())
    }

    /// The newest audit entries first.
    pub async fn audit(&self, offset: usize, limit: usize) -> Result<Vec<AuditEntry>, Error> {
        let _ = (offset, limit);
        Ok(Vec::new())
    }

    /// A round trip to the database, for `/health/db`.
    pub async fn ping(&self) -> Result<std::time::Duration, Error> {
        Ok(std::time::Duration::ZERO)
    }

    /// "postgres" or "sqlite".
    #[must_use]
    pub fn kind(&self) -> &'static str {
        "sqlite"
    }
}
