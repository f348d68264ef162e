//! Blocks and the audit trail: PostgreSQL, or embedded SQLite where no database is configured. Beside them the two
//! local files that bridge the time without a store: `journal` and `snapshot`.

mod change;
pub(crate) mod journal;
mod postgres;
mod record;
pub(crate) mod snapshot;
mod sqlite;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::watch;
use ulid::Ulid;

use crate::clock::Clock;
use crate::secret::Secret;
use crate::telemetry::health::{Board, Condition};
pub use change::Change;
pub(crate) use postgres::changed::{Changed, What};

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

/// Audit entries beyond this many are forgotten, oldest first.
pub const AUDIT_KEPT: i64 = 100_000;

/// Rows that one purge removes at most, so that it never holds locks for long.
pub(crate) const PURGE_BATCH: u64 = 1_000;

/// A handle on the store; clones share it. Calls fail fast when the store is unreachable.
#[derive(Debug, Clone)]
pub struct Store {
    backend: Backend,
    /// Since when calls fail; `None`: the last one reached the store.
    down_since: watch::Sender<Option<Timestamp>>,
    up: watch::Sender<bool>,
    health: Board,
    clock: Clock,
}

#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "one process makes one handle, and clones it seldom"
)]
enum Backend {
    Postgres(postgres::Postgres),
    Sqlite(sqlite::Sqlite),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Worth another try later: the connection, the server or its state is at fault, not what was asked.
    #[error("the store is not available: {0}")]
    Unreachable(String),
    /// The database was reached and refuses this very content; another try would end the same way.
    #[error("the store refuses it: {0}")]
    Refused(String),
    #[error("the store's connection address cannot be used: {0}")]
    Address(String),
}

impl Store {
    /// Prepares the store. That it cannot be reached or opened is no error: calls fail until it can.
    pub fn open(config: &Config, health: Board) -> Result<Self, Error> {
        let backend = match &config.postgres {
            Some(address) => Backend::Postgres(postgres::Postgres::new(address, config.pool_size)?),
            None => Backend::Sqlite(sqlite::Sqlite::new(config.state_dir.join("foregate.db"))?),
        };
        Ok(Self {
            backend,
            down_since: watch::Sender::new(None),
            up: watch::Sender::new(true),
            health,
            clock: Clock::system(),
        })
    }

    /// Whether the last call reached the store.
    #[must_use]
    pub fn up(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }

    /// All blocks, expired ones too.
    pub async fn blocks(&self) -> Result<Vec<Block>, Error> {
        self.noted(match &self.backend {
            Backend::Postgres(postgres) => postgres.blocks().await,
            Backend::Sqlite(sqlite) => sqlite.call(sqlite::blocks).await,
        })
    }

    /// The blocks of exactly these networks.
    pub(crate) async fn blocks_of(&self, networks: Vec<IpNet>) -> Result<Vec<Block>, Error> {
        self.noted(match &self.backend {
            Backend::Postgres(postgres) => postgres.blocks_of(&networks).await,
            Backend::Sqlite(sqlite) => {
                sqlite
                    .call(move |connection| sqlite::blocks_of(connection, &networks))
                    .await
            }
        })
    }

    /// Writes all `changes` or none, and tells the other instances. Answers with the blocks that stay where another
    /// instance had made a newer or a longer one.
    pub async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Block>, Error> {
        let mut merged = std::collections::BTreeMap::new();
        for change in changes {
            let network = change.network();
            let change = match merged.remove(&network) {
                Some(earlier) => Change::then(earlier, change),
                None => change,
            };
            merged.insert(network, change);
        }
        let changes: Vec<Change> = merged.into_values().collect();
        self.noted(match &self.backend {
            Backend::Postgres(postgres) => postgres.apply(&changes).await,
            Backend::Sqlite(sqlite) => sqlite.call(move |connection| sqlite::apply(connection, &changes)).await,
        })
    }

    /// Forgets one batch of blocks that expired before `now`, and audit entries beyond [`AUDIT_KEPT`]; answers with
    /// the number of blocks.
    pub async fn purge(&self, now: Timestamp) -> Result<u64, Error> {
        self.noted(match &self.backend {
            Backend::Postgres(postgres) => postgres.purge(now).await,
            Backend::Sqlite(sqlite) => sqlite.call(move |connection| sqlite::purge(connection, now)).await,
        })
    }

    /// Appends to the audit trail.
    pub async fn append_audit(&self, entry: AuditEntry) -> Result<(), Error> {
        self.noted(match &self.backend {
            Backend::Postgres(postgres) => postgres.append_audit(&entry).await,
            Backend::Sqlite(sqlite) => {
                sqlite
                    .call(move |connection| sqlite::append_audit(connection, &entry))
                    .await
            }
        })
    }

    /// The newest audit entries first, and how many there are in all.
    pub async fn audit(&self, offset: usize, limit: usize) -> Result<(Vec<AuditEntry>, u64), Error> {
        let (offset, limit) = (
            i64::try_from(offset).unwrap_or(i64::MAX),
            i64::try_from(limit).unwrap_or(i64::MAX),
        );
        self.noted(match &self.backend {
            Backend::Postgres(postgres) => postgres.audit(offset, limit).await,
            Backend::Sqlite(sqlite) => {
                sqlite
                    .call(move |connection| sqlite::audit(connection, offset, limit))
                    .await
            }
        })
    }

    /// A round trip to the database, for `/health/db`.
    pub async fn ping(&self) -> Result<Duration, Error> {
        let clock = Clock::system();
        self.noted(match &self.backend {
            Backend::Postgres(postgres) => postgres.ping().await,
            Backend::Sqlite(sqlite) => sqlite.call(sqlite::ping).await,
        })?;
        Ok(clock.tick())
    }

    /// Follows changes that other instances make and notes them in `changed`. Returns when the connection breaks;
    /// never returns for the embedded store, which one process has to itself.
    pub(crate) async fn listen(&self, changed: &Changed) -> Result<(), Error> {
        match &self.backend {
            Backend::Postgres(postgres) => postgres.listen(changed).await,
            Backend::Sqlite(_) => std::future::pending().await,
        }
    }

    /// Whether this process has made the embedded store anew, and has not [`Store::filled`] it yet: that it holds no block does
    /// not mean that none is in force. PostgreSQL is others' as well, who know what they took from it.
    pub(crate) fn is_new(&self) -> bool {
        match &self.backend {
            Backend::Postgres(_) => false,
            Backend::Sqlite(sqlite) => sqlite.is_new(),
        }
    }

    /// It holds what is in force.
    pub(crate) fn filled(&self) {
        if let Backend::Sqlite(sqlite) = &self.backend {
            sqlite.filled();
        }
    }

    /// "postgres" or "sqlite".
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.backend {
            Backend::Postgres(_) => "postgres",
            Backend::Sqlite(_) => "sqlite",
        }
    }

    /// Writes on the board how the call went, and passes it on. A refusal is an answer: the store is there.
    fn noted<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        let failure = match &result {
            Err(error @ (Error::Unreachable(_) | Error::Address(_))) => Some(error),
            Ok(_) | Err(Error::Refused(_)) => None,
        };
        let mut since = None;
        self.down_since.send_modify(|down| {
            *down = failure.is_some().then(|| down.unwrap_or_else(|| self.clock.wall()));
            since = *down;
        });
        let up = failure.is_none();
        if self.up.send_if_modified(|was| std::mem::replace(was, up) != up) {
            match failure {
                Some(error) => tracing::warn!(store = self.kind(), %error, "the store is down; changes wait for it"),
                None => tracing::info!(store = self.kind(), "the store is back"),
            }
        }
        let condition = match (failure, since) {
            (Some(error), Some(since)) => {
                Condition::Degraded(format!("down since {since:.0}: {error}; changes of blocks wait for it"))
            }
            _ => Condition::Healthy,
        };
        self.health.set("store", condition);
        result
    }
}

impl Source {
    fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Automatic => "automatic",
        }
    }

    fn parse(text: &str) -> Self {
        if text == "manual" {
            Self::Manual
        } else {
            Self::Automatic
        }
    }
}
