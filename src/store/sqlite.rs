//! The embedded store: one thread owns the SQLite connection, because SQLite is synchronous and a worker must never
//! wait for a disk. WAL with `synchronous = FULL`: a committed block survives a power cut.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};
use tokio::sync::{mpsc, oneshot};

use super::{AUDIT_KEPT, AuditEntry, Block, Change, Error, PURGE_BATCH, Source};

mod migrations {
    refinery::embed_migrations!("src/store/migrations/sqlite");
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

const WAITING_JOBS: usize = 64;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(super) struct Sqlite {
    jobs: mpsc::Sender<Job>,
}

impl Sqlite {
    pub(super) async fn open(path: PathBuf) -> Result<Self, Error> {
        let (jobs, mut queue) = mpsc::channel::<Job>(WAITING_JOBS);
        let (ready, opened) = oneshot::channel();
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                let mut connection = match connect(&path) {
                    Ok(connection) => connection,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                drop(ready.send(Ok(())));
                while let Some(job) = queue.blocking_recv() {
                    job(&mut connection);
                }
            })
            .map_err(unreachable)?;
        opened.await.map_err(unreachable)??;
        Ok(Self { jobs })
    }

    /// Runs `job` on the store's thread.
    pub(super) async fn call<T, F>(&self, job: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| drop(answer.send(job(connection))));
        let outcome = tokio::time::timeout(ANSWER_TIMEOUT, async {
            self.jobs.send(job).await.map_err(unreachable)?;
            answered.await.map_err(unreachable)
        });
        outcome.await.map_err(unreachable)??.map_err(unreachable)
    }
}

fn unreachable(error: impl std::fmt::Display) -> Error {
    Error::Unreachable(error.to_string())
}

fn connect(path: &std::path::Path) -> Result<Connection, Error> {
    let mut connection = Connection::open(path).map_err(unreachable)?;
    connection.busy_timeout(Duration::from_secs(3)).map_err(unreachable)?;
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
        .map_err(unreachable)?;
    migrations::migrations::runner()
        .run(&mut connection)
        .map_err(unreachable)?;
    Ok(connection)
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

pub(super) fn blocks(connection: &mut Connection) -> rusqlite::Result<Vec<Block>> {
    let sql = "SELECT network, reference, reason, source, created_by, created_at, expires_at FROM blocks";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([], block)?;
    rows.filter_map(Result::transpose).collect()
}

pub(super) fn apply(connection: &mut Connection, changes: &[Change]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for change in changes {
        match change {
            Change::Block(block) => transaction
                .prepare_cached(
                    "INSERT INTO blocks (network, reference, reason, source, created_by, created_at, expires_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                     ON CONFLICT (network) DO UPDATE SET reference = excluded.reference, reason = excluded.reason,
                         source = excluded.source, created_by = excluded.created_by,
                         created_at = excluded.created_at, expires_at = excluded.expires_at
                     WHERE excluded.source = 'manual' AND excluded.created_at >= blocks.created_at
                        OR excluded.source = 'automatic' AND blocks.expires_at IS NOT NULL
                           AND (excluded.expires_at IS NULL OR excluded.expires_at > blocks.expires_at)",
                )?
                .execute(params![
                    block.network.to_string(),
                    block.reference.to_string(),
                    block.reason,
                    block.source.as_str(),
                    block.created_by,
                    block.created_at.as_microsecond(),
                    block.expires_at.map(Timestamp::as_microsecond),
                ])?,
            Change::Unblock { network, at } => transaction
                .prepare_cached("DELETE FROM blocks WHERE network = ?1 AND created_at <= ?2")?
                .execute(params![network.to_string(), at.as_microsecond()])?,
        };
    }
    transaction.commit()
}

pub(super) fn purge(connection: &mut Connection, now: Timestamp) -> rusqlite::Result<u64> {
    connection.execute(
        "DELETE FROM audit WHERE id <= (SELECT max(id) FROM audit) - ?1",
        params![AUDIT_KEPT],
    )?;
    let gone = connection.execute(
        "DELETE FROM blocks WHERE rowid IN (SELECT rowid FROM blocks WHERE expires_at <= ?1 LIMIT ?2)",
        params![now.as_microsecond(), PURGE_BATCH],
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

pub(super) fn audit(connection: &mut Connection, offset: i64, limit: i64) -> rusqlite::Result<Vec<AuditEntry>> {
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
    rows.collect()
}

pub(super) fn ping(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.query_row("SELECT 1", [], |_| Ok(()))
}
