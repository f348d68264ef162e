//! The shared store: PostgreSQL behind a bounded pool. Everything lives in the schema `foregate`, so it never meets
//! the app's tables. Every call has one deadline for all that it does; a connection whose call did not end well is
//! closed, since nobody knows what it still waits for.

mod address;
pub(super) mod changed;
mod write;

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use deadpool_postgres::{Hook, HookError, Manager, Object, Pool, Runtime};
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{AUDIT_KEPT, AuditEntry, Block, Change, Changed, Error, PURGE_BATCH, Source};
use crate::secret::Secret;
use crate::telemetry::cause::chain;

mod migrations {
    refinery::embed_migrations!("src/store/migrations/postgres");
}

/// What a call may take altogether: waiting for a connection, making one, migrating, asking.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Reading everything may have to bring many megabytes over a slow link.
const READ_ALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The server's own limits, shorter than a call: it lets go of a statement that nobody waits for any more. A
/// transaction that is left open by a vanished client must not hold its locks.
const SESSION: &str = "SET statement_timeout = '4s'; SET lock_timeout = '2s';
                       SET idle_in_transaction_session_timeout = '10s'";
const READ_ALL_SESSION: &str = "BEGIN READ ONLY; SET LOCAL statement_timeout = '29s'";
/// An idle LISTEN connection is asked for a sign of life this often; a half-open one is silent for ever.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Any fixed number that no other program on this database uses: "foregate" in ASCII.
const MIGRATION_LOCK: i64 = 0x666f_7265_6761_7465;

const BLOCKS: &str = "SELECT network::text, reference, reason, source, created_by, created_at, expires_at
    FROM foregate.blocks";
const BLOCKS_OF: &str = "SELECT network::text, reference, reason, source, created_by, created_at, expires_at
    FROM foregate.blocks WHERE network IN (SELECT asked::cidr FROM unnest($1::text[]) AS asked)";

const HAS_SCHEMA: &str = "SELECT to_regnamespace('foregate') IS NOT NULL";

#[derive(Clone)]
pub(super) struct Postgres {
    pool: Pool,
    address: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    migrated: Arc<Mutex<bool>>,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").finish_non_exhaustive()
    }
}

/// A connection for one call.
struct Lease {
    object: Option<Object>,
    migrated: Arc<Mutex<bool>>,
}

impl Lease {
    fn client(&mut self) -> Result<&mut Client, Error> {
        let object = self.object.as_mut();
        object
            .map(|object| &mut ***object)
            .ok_or_else(|| Error::Unreachable("the connection was given back".into()))
    }

    /// The call has ended well: the connection may serve another one.
    fn give_back(mut self) {
        drop(self.object.take());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
            // The database may be another one by now, restored or made anew: the next call looks.
            if let Ok(mut migrated) = self.migrated.try_lock() {
                *migrated = false;
            }
        }
    }
}

fn unreachable(error: impl std::error::Error + 'static) -> Error {
    Error::Unreachable(chain(&error))
}

/// Only what the content itself causes is refused for good (PostgreSQL, appendix A): cardinality, data exception,
/// integrity constraint, program limit. All else, as missing rights or a full disk, an operator can mend meanwhile.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn failed(error: tokio_postgres::Error) -> Error {
    let class = error.code().map(SqlState::code).and_then(|code| code.get(..2));
    match class {
        Some("21" | "22" | "23" | "54") => Error::Refused(chain(&error)),
        _ => Error::Unreachable(chain(&error)),
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(limit, call).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::Unreachable(format!("no answer within {} s", limit.as_secs()))),
    }
}

impl Postgres {
    pub(super) fn new(address: &Secret, pool_size: usize) -> Result<Self, Error> {
        let (address, tls) = address::parse(address)?;
        let session = Hook::async_fn(|client: &mut deadpool_postgres::ClientWrapper, _| {
            Box::pin(async move { client.batch_execute(SESSION).await.map_err(HookError::Backend) })
        });
        let pool = Pool::builder(Manager::new(address.clone(), tls.clone()))
            .max_size(pool_size.max(1))
            .runtime(Runtime::Tokio1)
            .post_create(session)
            .build()
            .map_err(|error| Error::Address(error.to_string()))?;
        Ok(Self {
            pool,
            address,
            tls,
            migrated: Arc::default(),
        })
    }

    /// A connection to a migrated database; the caller's deadline bounds it.
    async fn lease(&self) -> Result<Lease, Error> {
        let mut lease = Lease {
            object: Some(self.pool.get().await.map_err(unreachable)?),
            migrated: Arc::clone(&self.migrated),
        };
        let mut migrated = self.migrated.lock().await;
        if !*migrated {
            migrate(lease.client()?).await?;
            *migrated = true;
        }
        Ok(lease)
    }

    pub(super) async fn blocks(&self) -> Result<Vec<Block>, Error> {
        within(READ_ALL_TIMEOUT, async {
            let mut lease = self.lease().await?;
            let client = lease.client()?;
            client.batch_execute(READ_ALL_SESSION).await.map_err(failed)?;
            let rows = client.query_typed(BLOCKS, &[]).await.map_err(failed)?;
            client.batch_execute("COMMIT").await.map_err(failed)?;
            lease.give_back();
            Ok(rows.iter().filter_map(block).collect())
        })
        .await
    }

    pub(super) async fn blocks_of(&self, networks: &[IpNet]) -> Result<Vec<Block>, Error> {
        let networks: Vec<String> = networks.iter().map(IpNet::to_string).collect();
        within(CALL_TIMEOUT, async {
            let mut lease = self.lease().await?;
            let asked = &[(&networks as _, Type::TEXT_ARRAY)];
            let rows = lease.client()?.query_typed(BLOCKS_OF, asked).await.map_err(failed)?;
            lease.give_back();
            Ok(rows.iter().filter_map(block).collect())
        })
        .await
    }

    pub(super) async fn apply(&self, changes: &[Change]) -> Result<Vec<Block>, Error> {
        within(CALL_TIMEOUT, async {
            let mut lease = self.lease().await?;
            let stay = write::write(lease.client()?, changes).await?;
            lease.give_back();
            Ok(stay)
        })
        .await
    }

    pub(super) async fn purge(&self, now: Timestamp) -> Result<u64, Error> {
        within(CALL_TIMEOUT, async {
            let mut lease = self.lease().await?;
            let client = lease.client()?;
            let audit = "DELETE FROM foregate.audit WHERE id <= (SELECT max(id) FROM foregate.audit) - $1";
            client.execute(audit, &[&AUDIT_KEPT]).await.map_err(failed)?;
            // SKIP LOCKED: two instances that purge at once do not wait for each other.
            let blocks = "DELETE FROM foregate.blocks WHERE network IN (SELECT network FROM foregate.blocks
                          WHERE expires_at <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)";
            let batch = i64::try_from(PURGE_BATCH).unwrap_or(i64::MAX);
            let gone = client.execute(blocks, &[&SystemTime::from(now), &batch]).await;
            let gone = gone.map_err(failed)?;
            lease.give_back();
            Ok(gone)
        })
        .await
    }

    pub(super) async fn append_audit(&self, entry: &AuditEntry) -> Result<(), Error> {
        let sql = "INSERT INTO foregate.audit (at, actor, origin, action, subject, result)
                   VALUES ($1, $2, $3, $4, $5, $6)";
        let (at, from) = (SystemTime::from(entry.at), entry.from.to_string());
        let text = |text: &str| text.replace('\0', "");
        let (actor, action) = (text(&entry.actor), text(&entry.action));
        let (subject, result) = (text(&entry.subject), text(&entry.result));
        within(CALL_TIMEOUT, async {
            let mut lease = self.lease().await?;
            let client = lease.client()?;
            client
                .execute(sql, &[&at, &actor, &from, &action, &subject, &result])
                .await
                .map_err(failed)?;
            lease.give_back();
            Ok(())
        })
        .await
    }

    pub(super) async fn audit(&self, offset: i64, limit: i64) -> Result<(Vec<AuditEntry>, u64), Error> {
        within(CALL_TIMEOUT, async {
            let mut lease = self.lease().await?;
            let sql = "SELECT at, actor, origin, action, subject, result FROM foregate.audit
                       ORDER BY id DESC LIMIT $1 OFFSET $2";
            let client = lease.client()?;
            let rows = client.query(sql, &[&limit, &offset]).await.map_err(failed)?;
            let total = client.query_one("SELECT count(*) FROM foregate.audit", &[]).await;
            let total: i64 = total.map_err(failed)?.get(0);
            lease.give_back();
            let entries = rows.iter().filter_map(audit_entry).collect();
            Ok((entries, total.unsigned_abs()))
        })
        .await
    }

    pub(super) async fn ping(&self) -> Result<(), Error> {
        within(CALL_TIMEOUT, async {
            let mut lease = self.lease().await?;
            lease.client()?.batch_execute("SELECT 1").await.map_err(failed)?;
            lease.give_back();
            Ok(())
        })
        .await
    }

    pub(super) async fn listen(&self, changed: &Changed) -> Result<(), Error> {
        let connecting = async { self.address.connect(self.tls.clone()).await.map_err(failed) };
        let (client, mut connection) = within(CALL_TIMEOUT, connecting).await?;
        let messages = async {
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(notification) = message.map_err(failed)? {
                    changed.payload(notification.payload());
                }
            }
            Err(Error::Unreachable("the server closed the listening connection".into()))
        };
        let ask = async |sql| within(CALL_TIMEOUT, async { client.batch_execute(sql).await.map_err(failed) }).await;
        let beats = async {
            ask("LISTEN foregate_blocks").await?;
            // What changed before LISTEN took effect has sent no notification.
            changed.all();
            loop {
                tokio::time::sleep(HEARTBEAT).await;
                ask("SELECT 1").await?;
            }
        };
        tokio::select! {
            outcome = messages => outcome,
            outcome = beats => outcome,
        }
    }
}

/// The lock ends with the session where this fails, since a lease that was not given back is closed.
async fn migrate(client: &mut Client) -> Result<(), Error> {
    let lock = "SELECT pg_advisory_lock($1)";
    client.execute(lock, &[&MIGRATION_LOCK]).await.map_err(failed)?;
    // Asked first: `CREATE SCHEMA IF NOT EXISTS` wants its right even where the schema is there.
    let asked = client.query_typed(HAS_SCHEMA, &[]).await.map_err(failed)?;
    if !asked.iter().any(|row| row.try_get(0).unwrap_or(false)) {
        client
            .batch_execute("CREATE SCHEMA IF NOT EXISTS foregate")
            .await
            .map_err(failed)?;
    }
    let mut runner = migrations::migrations::runner();
    runner.set_migration_table_name("foregate.migrations");
    runner.run_async(client).await.map_err(unreachable)?;
    let unlock = "SELECT pg_advisory_unlock($1)";
    client.execute(unlock, &[&MIGRATION_LOCK]).await.map_err(failed)?;
    Ok(())
}

/// A row that no version of Foregate wrote is left out, with a warning: one odd row must not lift all blocks.
fn block(row: &Row) -> Option<Block> {
    let network: String = row.try_get(0).ok()?;
    let parsed = (|| {
        Some(Block {
            network: network.parse().ok()?,
            reference: row.try_get::<_, String>(1).ok()?.parse().ok()?,
            reason: row.try_get(2).ok()?,
            source: Source::parse(row.try_get(3).ok()?),
            created_by: row.try_get(4).ok()?,
            created_at: Timestamp::try_from(row.try_get::<_, SystemTime>(5).ok()?).ok()?,
            expires_at: match row.try_get::<_, Option<SystemTime>>(6).ok()? {
                Some(time) => Some(Timestamp::try_from(time).ok()?),
                None => None,
            },
        })
    })();
    if parsed.is_none() {
        tracing::warn!(network, "a stored block cannot be read and is left out");
    }
    parsed
}

fn audit_entry(row: &Row) -> Option<AuditEntry> {
    Some(AuditEntry {
        at: Timestamp::try_from(row.try_get::<_, SystemTime>(0).ok()?).ok()?,
        actor: row.try_get(1).ok()?,
        from: row.try_get::<_, String>(2).ok()?.parse().ok()?,
        action: row.try_get(3).ok()?,
        subject: row.try_get(4).ok()?,
        result: row.try_get(5).ok()?,
    })
}
