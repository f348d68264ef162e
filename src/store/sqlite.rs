//! The embedded store: one thread owns the SQLite connection, because SQLite is synchronous and a worker must never
//! wait for a disk. WAL with `synchronous = FULL`: a committed block survives a power cut. A file that cannot be opened (a
//! full disk, a damaged file) is an outage like PostgreSQL's: calls fail, and each tries again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};
use tokio::sync::{mpsc, oneshot};

use super::{AUDIT_KEPT, AuditEntry, Block, Change, Error, PURGE_BATCH, Source};

mod migrations {
    refinery::embed_migrations!("src/store/migrations/sqlite");
}

type Job = Box<dyn FnOnce(&mut Database) + Send>;

const WAITING_JOBS: usize = 64;
/// How long a call may wait for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a job is: once it runs, only its own answer says how it ended.
const WAITS: u8 = 0;
const RUNS: u8 = 1;
const GIVEN_UP: u8 = 2;

#[derive(Debug, Clone)]
pub(super) struct Sqlite {
    jobs: mpsc::Sender<Job>,
    turn_timeout: Duration,
    is_new: Arc<AtomicBool>,
}

impl Sqlite {
    /// Starts the thread; the first call opens the file.
    pub(super) fn new(path: PathBuf) -> Result<Self, Error> {
        let (jobs, mut queue) = mpsc::channel::<Job>(WAITING_JOBS);
        let is_new = Arc::<AtomicBool>::default();
        let mut database = Database {
            path,
            connection: None,
            is_new: Arc::clone(&is_new),
        };
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    job(&mut database);
                }
            })
            .map_err(unreachable)?;
        Ok(Self {
            jobs,
            turn_timeout: TURN_TIMEOUT,
            is_new,
        })
    }

    /// Whether a call has made the file, and it was not [`Sqlite::filled`] since.
    pub(super) fn is_new(&self) -> bool {
        self.is_new.load(Ordering::Acquire)
    }

    pub(super) fn filled(&self) {
        self.is_new.store(false, Ordering::Release);
    }

    /// Runs `job` on the store's thread. A job that does not get its turn in time never runs; one that has begun is
    /// waited for, so an error always means that nothing was written.
    pub(super) async fn call<T, F>(&self, job: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (answer, mut answered) = oneshot::channel();
        let state = Arc::new(AtomicU8::new(WAITS));
        let turn = Arc::clone(&state);
        let job: Job = Box::new(move |database| {
            let begins = turn.compare_exchange(WAITS, RUNS, Ordering::AcqRel, Ordering::Acquire);
            if begins.is_ok() {
                drop(answer.send(database.run(job)));
            }
        });
        let in_turn = tokio::time::timeout(self.turn_timeout, async {
            self.jobs.send(job).await.map_err(unreachable)?;
            (&mut answered).await.map_err(unreachable)
        });
        match in_turn.await {
            Ok(outcome) => outcome?,
            Err(_) => {
                let waits = state.compare_exchange(WAITS, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire);
                if waits.is_ok() {
                    return Err(Error::Unreachable("too many calls wait for the disk".into()));
                }
                answered.await.map_err(unreachable)?
            }
        }
    }
}

/// The file, opened by the first call that needs it. Lives on the store's thread.
struct Database {
    path: PathBuf,
    connection: Option<Connection>,
    is_new: Arc<AtomicBool>,
}

impl Database {
    /// A connection whose call failed is closed: the file may have been opened for reading alone, or be another one by now,
    /// mended or made anew.
    fn run<T>(&mut self, job: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let (connection, is_new) = connect(&self.path)?;
                self.is_new.fetch_or(is_new, Ordering::AcqRel);
                connection
            }
        };
        let outcome = job(&mut connection).map_err(failed);
        if !matches!(outcome, Err(Error::Unreachable(_))) {
            self.connection = Some(connection);
        }
        outcome
    }
}

fn unreachable(error: impl std::fmt::Display) -> Error {
    Error::Unreachable(error.to_string())
}

/// Only what the content itself causes is refused for good.
fn failed(error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch) => {
            Error::Refused(error.to_string())
        }
        _ => unreachable(error),
    }
}

/// The file, and whether it had to be made.
fn connect(path: &Path) -> Result<(Connection, bool), Error> {
    let open = || {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(3))?;
        connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")?;
        Ok(connection)
    };
    let mut connection = open().map_err(|error: rusqlite::Error| {
        let is_damaged = matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
        );
        let help = if is_damaged {
            "; move it away and a new one is made"
        } else {
            ""
        };
        unreachable(format!("{}: {error}{help}", path.display()))
    })?;
    // That of a newer version is refused here.
    let migrated = migrations::migrations::runner().run(&mut connection);
    let migrated = migrated.map_err(|error| unreachable(format!("{}: {error}", path.display())))?;
    let is_new = migrated.applied_migrations().iter().any(|step| step.version() == 1);
    Ok((connection, is_new))
}

/// A row that no version of Foregate wrote is left out, with a warning: one odd row must not lift all blocks.
fn block(row: &Row<'_>) -> rusqlite::Result<Option<Block>> {
    let (network, reference): (String, String) = (row.get(0)?, row.get(1)?);
    let (created_at, expires_at): (i64, Option<i64>) = (row.get(5)?, row.get(6)?);
    let parsed = (|| {
        Some(Block {
            network: network.parse().ok()?,
            reference: reference.parse().ok()?,
            reason: row.get(2).ok()?,
            source: Source::parse(&row.get::<_, String>(3).ok()?),
            created_by: row.get(4).ok()?,
            created_at: Timestamp::from_microsecond(created_at).ok()?,
            expires_at: expires_at.map(Timestamp::from_microsecond).transpose().ok()?,
        })
    })();
    if parsed.is_none() {
        tracing::warn!(network, "a stored block cannot be read and is left out");
    }
    Ok(parsed)
}

const BLOCKS: &str = "SELECT network, reference, reason, source, created_by, created_at, expires_at FROM blocks";
const BLOCK_OF: &str = "SELECT network, reference, reason, source, created_by, created_at, expires_at FROM blocks
    WHERE network = ?1";

pub(super) fn blocks(connection: &mut Connection) -> rusqlite::Result<Vec<Block>> {
    let mut statement = connection.prepare_cached(BLOCKS)?;
    let rows = statement.query_map([], block)?;
    rows.filter_map(Result::transpose).collect()
}

pub(super) fn blocks_of(connection: &mut Connection, networks: &[IpNet]) -> rusqlite::Result<Vec<Block>> {
    let mut found = Vec::new();
    for network in networks {
        found.extend(block_of(connection, *network)?);
    }
    Ok(found)
}

fn block_of(connection: &Connection, network: IpNet) -> rusqlite::Result<Option<Block>> {
    let mut statement = connection.prepare_cached(BLOCK_OF)?;
    let row = statement.query_row(params![network.to_string()], block).optional()?;
    Ok(row.flatten())
}

const UPSERT: &str = "INSERT INTO blocks (network, reference, reason, source, created_by, created_at, expires_at)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
    ON CONFLICT (network) DO UPDATE SET reference = excluded.reference, reason = excluded.reason,
        source = excluded.source, created_by = excluded.created_by,
        created_at = excluded.created_at, expires_at = excluded.expires_at
    WHERE excluded.source = 'manual' AND excluded.created_at >= blocks.created_at
        OR blocks.expires_at <= excluded.created_at
        OR excluded.source = 'automatic' AND blocks.expires_at IS NOT NULL
            AND (excluded.expires_at IS NULL OR excluded.expires_at > blocks.expires_at)";

/// Answers with the blocks that stay where the store had a newer or a longer one.
pub(super) fn apply(connection: &mut Connection, changes: &[Change]) -> rusqlite::Result<Vec<Block>> {
    let transaction = connection.transaction()?;
    let mut stay = Vec::new();
    for change in changes {
        if let Some(until) = change.lifts_until() {
            transaction
                .prepare_cached("DELETE FROM blocks WHERE network = ?1 AND created_at <= ?2")?
                .execute(params![change.network().to_string(), until.as_microsecond()])?;
        }
        let Some(block) = change.block() else { continue };
        let written = transaction.prepare_cached(UPSERT)?.execute(params![
            block.network.to_string(),
            block.reference.to_string(),
            block.reason,
            block.source.as_str(),
            block.created_by,
            block.created_at.as_microsecond(),
            block.expires_at.map(Timestamp::as_microsecond),
        ])?;
        if written == 0 {
            stay.extend(block_of(&transaction, block.network)?);
        }
    }
    transaction.commit()?;
    Ok(stay)
}

pub(super) fn purge(connection: &mut Connection, now: Timestamp) -> rusqlite::Result<u64> {
    connection.execute(
        "DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?1",
        params![AUDIT_KEPT],
    )?;
    let batch = i64::try_from(PURGE_BATCH).unwrap_or(i64::MAX);
    let gone = connection.execute(
        "DELETE FROM blocks WHERE rowid IN (SELECT rowid FROM blocks WHERE expires_at <= ?1 LIMIT ?2)",
        params![now.as_microsecond(), batch],
    )?;
    Ok(gone as u64)
}

pub(super) fn append_audit(connection: &mut Connection, entry: &AuditEntry) -> rusqlite::Result<()> {
    connection.execute(
        "INSERT INTO audit (at, actor, origin, action, subject, result) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            entry.at.as_microsecond(),
            entry.actor,
            entry.from.to_string(),
            entry.action,
            entry.subject,
            entry.result
        ],
    )?;
    Ok(())
}

pub(super) fn audit(connection: &mut Connection, offset: i64, limit: i64) -> rusqlite::Result<(Vec<AuditEntry>, u64)> {
    let total: i64 = connection.query_row("SELECT count(*) FROM audit", [], |row| row.get(0))?;
    let sql = "SELECT at, actor, origin, action, subject, result FROM audit ORDER BY id DESC LIMIT ?1 OFFSET ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(params![limit, offset], |row| {
        Ok(AuditEntry {
            at: Timestamp::from_microsecond(row.get(0)?).unwrap_or(Timestamp::UNIX_EPOCH),
            actor: row.get(1)?,
            from: row
                .get::<_, String>(2)?
                .parse()
                .unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()),
            action: row.get(3)?,
            subject: row.get(4)?,
            result: row.get(5)?,
        })
    })?;
    let entries: rusqlite::Result<Vec<AuditEntry>> = rows.collect();
    Ok((entries?, total.unsigned_abs()))
}

pub(super) fn ping(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.query_row("SELECT 1", [], |_| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(connection: &mut Connection) -> rusqlite::Result<usize> {
        let sql = "INSERT INTO audit (at, actor, origin, action, subject, result) VALUES (1, '', '', '', '', '')";
        connection.execute(sql, [])
    }

    fn count(connection: &mut Connection) -> rusqlite::Result<i64> {
        connection.query_row("SELECT count(*) FROM audit", [], |row| row.get(0))
    }

    #[tokio::test]
    async fn call_that_failed_for_lack_of_time_never_runs_and_one_that_runs_never_fails_for_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = Sqlite::new(directory.path().join("db")).expect("a store");
        // Longer than a busy machine takes to begin a call that is to succeed.
        store.turn_timeout = Duration::from_secs(2);
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let (begun, begins) = oneshot::channel();
        let slow = store.call(move |connection| {
            begun.send(()).expect("somebody waits");
            gate.recv().expect_err("the gate opens by its end");
            insert(connection)
        });
        let late = async {
            begins.await.expect("the slow call begins");
            let outcome = store.call(insert).await;
            drop(go);
            outcome
        };
        let (slow, late) = tokio::join!(slow, late);
        assert_eq!(slow.expect("waited for"), 1);
        assert!(matches!(late, Err(Error::Unreachable(_))), "{late:?}");
        assert_eq!(store.call(count).await.expect("counted"), 1);
    }

    #[tokio::test]
    async fn file_that_cannot_be_opened_is_tried_again_by_each_call() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("db");
        std::fs::create_dir(&path).expect("something is in the way");
        let store = Sqlite::new(path.clone()).expect("a thread");
        for _ in 0..2 {
            let failed = store.call(count).await;
            assert!(matches!(failed, Err(Error::Unreachable(_))), "{failed:?}");
        }
        std::fs::remove_dir(&path).expect("it is out of the way");
        assert_eq!(store.call(insert).await.expect("written"), 1);
    }

    #[tokio::test]
    async fn store_of_a_newer_version_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("db");
        let store = Sqlite::new(path.clone()).expect("a thread");
        assert_eq!(store.call(insert).await.expect("written"), 1);
        let later = "INSERT INTO refinery_schema_history SELECT version + 1000, 'later', applied_on, checksum
                     FROM refinery_schema_history ORDER BY version DESC LIMIT 1";
        drop(store);
        let connection = Connection::open(&path).expect("the file");
        connection.execute(later, []).expect("a migration from the future");
        let older = Sqlite::new(path.clone()).expect("a thread");
        let refused = older.call(count).await;
        assert!(matches!(refused, Err(Error::Unreachable(_))), "{refused:?}");
        let sql = "DELETE FROM refinery_schema_history WHERE name = 'later'";
        connection.execute(sql, []).expect("the newer version has gone");
        assert_eq!(older.call(count).await.expect("read"), 1);
    }
}
