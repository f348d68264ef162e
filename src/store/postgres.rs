//! The shared store: PostgreSQL behind a bounded pool. Everything lives in the schema `foregate`, so it never meets
//! the app's tables. Every call has a deadline.
//!
//! TLS is used when the address says `sslmode=require`, `verify-ca` or `verify-full`; all three verify the server's
//! certificate and name (rustls knows no less), against the web's roots and those in `sslrootcert`. Without them,
//! and with `prefer`, the connection is plain: a preference that an attacker can veto protects nothing.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use deadpool_postgres::{Manager, Pool, Runtime, Timeouts};
use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::sync::{Mutex, Notify};
use tokio_postgres::config::SslMode;
use tokio_postgres::{AsyncMessage, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{AUDIT_KEPT, AuditEntry, Block, Change, Error, PURGE_BATCH, Source};
use crate::secret::Secret;

mod migrations {
    refinery::embed_migrations!("src/store/migrations/postgres");
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle LISTEN connection is asked for a sign of life this often; a half-open one is silent for ever.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Any fixed number that no other program on this database uses: "foregate" in ASCII.
const MIGRATION_LOCK: i64 = 0x666f_7265_6761_7465;

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

fn unreachable(error: impl std::error::Error) -> Error {
    let mut text = error.to_string();
    if let Some(source) = error.source() {
        text = format!("{text}: {source}");
    }
    Error::Unreachable(text)
}

async fn within<T, E: std::error::Error>(call: impl Future<Output = Result<T, E>>) -> Result<T, Error> {
    tokio::time::timeout(CALL_TIMEOUT, call)
        .await
        .map_err(unreachable)?
        .map_err(unreachable)
}

/// Takes the parameters out of a connection address that tokio-postgres does not know.
fn split_tls(address: &str) -> (String, Option<String>, Option<String>) {
    let (mut mode, mut root) = (None, None);
    let mut keep = |pair: &str| match pair.split_once('=') {
        Some(("sslmode", value)) => {
            mode = Some(value.to_owned());
            false
        }
        Some(("sslrootcert", value)) => {
            root = Some(value.to_owned());
            false
        }
        _ => true,
    };
    let rest = if address.starts_with("postgres://") || address.starts_with("postgresql://") {
        match address.split_once('?') {
            Some((base, query)) => {
                let kept: Vec<&str> = query.split('&').filter(|pair| keep(pair)).collect();
                format!("{base}?{}", kept.join("&")).trim_end_matches('?').to_owned()
            }
            None => address.to_owned(),
        }
    } else {
        let kept: Vec<&str> = address.split(' ').filter(|pair| keep(pair)).collect();
        kept.join(" ")
    };
    (rest, mode, root)
}

fn tls(root: Option<&str>) -> Result<MakeRustlsConnect, Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(path) = root {
        let refuse = |error: String| Error::Address(format!("sslrootcert {path}: {error}"));
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| refuse(error.to_string()))? {
            let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
            roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Address(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

impl Postgres {
    pub(super) fn new(address: &Secret, pool_size: usize) -> Result<Self, Error> {
        let (rest, mode, root) = split_tls(address.reveal());
        let mut address: tokio_postgres::Config = rest
            .parse()
            .map_err(|error: tokio_postgres::Error| Error::Address(error.to_string()))?;
        address.ssl_mode(match mode.as_deref() {
            None | Some("disable" | "allow" | "prefer") => SslMode::Disable,
            Some("require" | "verify-ca" | "verify-full") => SslMode::Require,
            Some(other) => return Err(Error::Address(format!("unknown sslmode {other}"))),
        });
        address.connect_timeout(CONNECT_TIMEOUT).application_name("foregate");
        address
            .keepalives_idle(Duration::from_secs(10))
            .tcp_user_timeout(Duration::from_secs(10));
        let tls = tls(root.as_deref())?;
        let pool = Pool::builder(Manager::new(address.clone(), tls.clone()))
            .max_size(pool_size.max(1))
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(CONNECT_TIMEOUT),
                create: Some(CONNECT_TIMEOUT),
                recycle: Some(CONNECT_TIMEOUT),
            })
            .build()
            .map_err(|error| Error::Address(error.to_string()))?;
        Ok(Self {
            pool,
            address,
            tls,
            migrated: Arc::default(),
        })
    }

    /// A connection to a migrated database.
    async fn client(&self) -> Result<deadpool_postgres::Object, Error> {
        let mut client = self.pool.get().await.map_err(unreachable)?;
        let mut migrated = tokio::time::timeout(CALL_TIMEOUT, self.migrated.lock())
            .await
            .map_err(unreachable)?;
        if !*migrated {
            let outcome = tokio::time::timeout(CALL_TIMEOUT, migrate(&mut client)).await;
            if let Err(error) = outcome.map_err(unreachable).flatten() {
                // This session may still hold the lock, or wait for it: it must end, not go back to the pool.
                drop(deadpool_postgres::Object::take(client));
                return Err(error);
            }
            *migrated = true;
        }
        Ok(client)
    }

    pub(super) async fn blocks(&self) -> Result<Vec<Block>, Error> {
        let client = self.client().await?;
        let sql = "SELECT network::text, reference, reason, source, created_by, created_at, expires_at
                   FROM foregate.blocks";
        Ok(within(client.query(sql, &[])).await?.iter().filter_map(block).collect())
    }

    pub(super) async fn apply(&self, changes: &[Change]) -> Result<(), Error> {
        let mut client = self.client().await?;
        within(write(&mut client, changes)).await
    }

    pub(super) async fn purge(&self, now: Timestamp) -> Result<u64, Error> {
        let client = self.client().await?;
        let audit = "DELETE FROM foregate.audit WHERE id <= (SELECT max(id) FROM foregate.audit) - $1";
        within(client.execute(audit, &[&AUDIT_KEPT])).await?;
        // SKIP LOCKED: two instances that purge at once do not wait for each other.
        let blocks = "DELETE FROM foregate.blocks WHERE network IN (SELECT network FROM foregate.blocks
                      WHERE expires_at <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)";
        within(client.execute(blocks, &[&SystemTime::from(now), &PURGE_BATCH])).await
    }

    pub(super) async fn append_audit(&self, entry: &AuditEntry) -> Result<(), Error> {
        let client = self.client().await?;
        let sql = "INSERT INTO foregate.audit (at, actor, origin, action, subject, result)
                   VALUES ($1, $2, $3, $4, $5, $6)";
        let (at, from) = (SystemTime::from(entry.at), entry.from.to_string());
        within(client.execute(
            sql,
            &[&at, &entry.actor, &from, &entry.action, &entry.subject, &entry.result],
        ))
        .await?;
        Ok(())
    }

    pub(super) async fn audit(&self, offset: i64, limit: i64) -> Result<Vec<AuditEntry>, Error> {
        let client = self.client().await?;
        let sql = "SELECT at, actor, origin, action, subject, result FROM foregate.audit
                   ORDER BY id DESC LIMIT $1 OFFSET $2";
        let rows = within(client.query(sql, &[&limit, &offset])).await?;
        Ok(rows.iter().filter_map(audit_entry).collect())
    }

    pub(super) async fn ping(&self) -> Result<(), Error> {
        let client = self.client().await?;
        within(client.simple_query("SELECT 1")).await?;
        Ok(())
    }

    pub(super) async fn listen(&self, changed: &Notify) -> Result<(), Error> {
        let (client, mut connection) = within(self.address.connect(self.tls.clone())).await?;
        let messages = async {
            while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(_) = message.map_err(unreachable)? {
                    changed.notify_one();
                }
            }
            Err(Error::Unreachable("the server closed the listening connection".into()))
        };
        let beats = async {
            within(client.batch_execute("LISTEN foregate_blocks")).await?;
            // What changed before LISTEN took effect has sent no notification.
            changed.notify_one();
            loop {
                tokio::time::sleep(HEARTBEAT).await;
                within(client.simple_query("SELECT 1")).await?;
            }
        };
        tokio::select! {
            outcome = messages => outcome,
            outcome = beats => outcome,
        }
    }
}

async fn migrate(client: &mut tokio_postgres::Client) -> Result<(), Error> {
    client
        .execute("SELECT pg_advisory_lock($1)", &[&MIGRATION_LOCK])
        .await
        .map_err(unreachable)?;
    client
        .batch_execute("CREATE SCHEMA IF NOT EXISTS foregate")
        .await
        .map_err(unreachable)?;
    let mut runner = migrations::migrations::runner();
    runner.set_migration_table_name("foregate.migrations");
    runner.run_async(client).await.map_err(unreachable)?;
    client
        .execute("SELECT pg_advisory_unlock($1)", &[&MIGRATION_LOCK])
        .await
        .map_err(unreachable)?;
    Ok(())
}

async fn write(client: &mut tokio_postgres::Client, changes: &[Change]) -> Result<(), tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    let upsert = transaction
        .prepare(
            "INSERT INTO foregate.blocks AS blocks
                 (network, reference, reason, source, created_by, created_at, expires_at)
             VALUES ($1::text::cidr, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (network) DO UPDATE SET reference = excluded.reference, reason = excluded.reason,
                 source = excluded.source, created_by = excluded.created_by,
                 created_at = excluded.created_at, expires_at = excluded.expires_at
             WHERE excluded.source = 'manual' AND excluded.created_at >= blocks.created_at
                OR excluded.source = 'automatic' AND blocks.expires_at IS NOT NULL
                   AND (excluded.expires_at IS NULL OR excluded.expires_at > blocks.expires_at)",
        )
        .await?;
    let delete = transaction
        .prepare("DELETE FROM foregate.blocks WHERE network = $1::text::cidr AND created_at <= $2")
        .await?;
    for change in changes {
        let network = change.network().to_string();
        match change {
            Change::Block(block) => {
                let (reference, source) = (block.reference.to_string(), block.source.as_str());
                let created_at = SystemTime::from(block.created_at);
                let expires_at = block.expires_at.map(SystemTime::from);
                transaction
                    .execute(
                        &upsert,
                        &[
                            &network,
                            &reference,
                            &block.reason,
                            &source,
                            &block.created_by,
                            &created_at,
                            &expires_at,
                        ],
                    )
                    .await?;
            }
            Change::Unblock { at, .. } => {
                transaction
                    .execute(&delete, &[&network, &SystemTime::from(*at)])
                    .await?;
            }
        }
    }
    transaction.batch_execute("NOTIFY foregate_blocks").await?;
    transaction.commit().await
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
