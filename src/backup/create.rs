//! Making a backup: one snapshot is dumped and counted, the parts are stored, read back, and only then named.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use ulid::Ulid;

use super::character::read;
use super::exclusion::{ADVISORY_LOCK, exclude};
use super::verify::to_json;
use super::{Error, Vault, rights};
use crate::postgres::admin::identifier;
use crate::postgres::child::Command;
use crate::postgres::program::Programs;
use crate::postgres::{self, Admin};
use crate::repository::Keys;
use crate::repository::frames::Compression;
use crate::repository::layout::{self, Cluster};
use crate::repository::manifest::{self, Content, Level, Manifest, PRIVATE, Part, Private};
use crate::telemetry::cause::chain;

/// Tables of extensions are left out, as pg_dump does; so are temporary ones.
const TABLES: &str = "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";

/// The server as it was found.
struct Server {
    cluster: Cluster,
    version: u32,
    superuser: bool,
    programs: Programs,
}

impl Vault {
    /// Makes one backup that carries `labels`. Nothing is published unless it was read back whole.
    ///
    /// # Errors
    /// Why there is no new backup.
    pub async fn create(&self, labels: Vec<String>, schedule_keys: Vec<String>) -> Result<Manifest, Error> {
        self.create_as(Ulid::generate(), labels, schedule_keys).await
    }

    /// As [`Vault::create`], with an id that the caller has told somebody already.
    ///
    /// # Errors
    /// Why there is no new backup.
    pub async fn create_as(
        &self,
        id: Ulid,
        labels: Vec<String>,
        schedule_keys: Vec<String>,
    ) -> Result<Manifest, Error> {
        let lock = self.lock()?;
        match self.recover_before(&lock).await {
            // It stands in nobody's way but the next restore's, and the note of it stays.
            Err(error @ Error::Undropped { .. }) => {
                tracing::warn!(error = chain(&error), "backing up all the same");
            }
            other => other?,
        }
        self.sweep_unfinished().await?;
        let application = format!("foregate backup {id}");
        let admin = Admin::connect(&self.target, self.target.database(), &application).await?;
        exclude(&admin).await?;
        let server = self.server(&admin).await?;
        let folder = layout::dump(&server.cluster, id);
        let made = self
            .make(&admin, &server, id, &folder, &application, labels, schedule_keys)
            .await;
        if made.is_err() {
            self.sweep(&folder).await;
        }
        admin.give_back(ADVISORY_LOCK).await;
        made.map_err(|error| self.explained(error, rights::OF_A_BACKUP))
    }

    async fn server(&self, admin: &Admin) -> Result<Server, Error> {
        let version = admin.server_version().await?;
        let superuser = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user";
        Ok(Server {
            cluster: Cluster {
                system_identifier: admin.system_identifier().await?,
                major: version / 10_000,
            },
            version,
            superuser: admin.value("reading our own role", superuser, &[]).await?,
            programs: Programs::find(version / 10_000)?,
        })
    }

    async fn make(
        &self,
        admin: &Admin,
        server: &Server,
        id: Ulid,
        folder: &str,
        application: &str,
        labels: Vec<String>,
        schedule_keys: Vec<String>,
    ) -> Result<Manifest, Error> {
        let started_at = self.clock.wall();
        let keys = Arc::new(self.keys.with_witness());
        admin
            .batch(
                "opening a snapshot",
                // One process of the server counts, and not three: others want its cores, and the dump takes longer anyway.
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off; \
                 SET LOCAL max_parallel_workers_per_gather = 0",
            )
            .await?;
        let snapshot: String = admin
            .value("exporting the snapshot", "SELECT pg_export_snapshot()", &[])
            .await?;
        let dump = self.dump_command(server, application, &snapshot)?;
        let (dump, tables) = tokio::try_join!(self.store_part("dump", folder, dump, &keys), self.count_rows(admin))?;
        let size = "SELECT pg_database_size(current_database())";
        let limit = self.config.step_timeout;
        // The server asks for the size of every file.
        let database_bytes: i64 = admin.value_within("measuring the database", size, &[], limit).await?;
        let character = read(admin, self.target.database()).await?;
        let mut character = character.map(|(_, character)| Box::new(character));
        admin.batch("closing the snapshot", "COMMIT").await?;
        let globals = self.globals_command(server, application)?;
        let mut parts = vec![dump, self.store_part("globals", folder, globals, &keys).await?];
        if let Some(private) = character.as_mut().and_then(|character| character.take_private()) {
            parts.push(self.store_private(folder, &private, &keys).await?);
        }
        let content = Content::Database {
            database: self.target.database().to_owned(),
            system_identifier: server.cluster.system_identifier.clone(),
            server_version: server.version,
            client_version: server.programs.major.to_string(),
            tables,
            database_bytes: u64::try_from(database_bytes).unwrap_or(0),
            character,
        };
        let mut manifest = self.describe(id, content, labels, schedule_keys, started_at);
        manifest.parts = parts;
        manifest.verified = self.prove(folder, &manifest, &keys).await?;
        manifest.finished_at = self.clock.wall();
        if !self
            .repository
            .create(&layout::manifest(folder), manifest.to_bytes())
            .await?
        {
            return Err(Error::Vanished { id });
        }
        Ok(manifest)
    }

    pub(super) fn describe(
        &self,
        id: Ulid,
        content: Content,
        labels: Vec<String>,
        schedule_keys: Vec<String>,
        started_at: Timestamp,
    ) -> Manifest {
        Manifest {
            format: manifest::FORMAT,
            id,
            content,
            labels,
            schedule_keys,
            started_at,
            finished_at: started_at,
            verified: Level::L0,
            parts: Vec::new(),
            recipients: self.keys.recipients(),
            foregate: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn dump_command(&self, server: &Server, application: &str, snapshot: &str) -> Result<Command, Error> {
        let command = pg_dump(&server.programs, self.target.database())
            .arg(format!("--snapshot={snapshot}"))
            .stdout_piped();
        Ok(command.target(&self.target, application)?)
    }

    fn globals_command(&self, server: &Server, application: &str) -> Result<Command, Error> {
        let mut command = Command::new(server.programs.path("pg_dumpall"))
            .arg("--globals-only")
            .arg("--encoding=UTF8")
            .arg("--no-password")
            .arg("--database")
            .arg(self.target.database())
            .stdout_piped();
        if !server.superuser {
            command = command.arg("--no-role-passwords");
        }
        Ok(command.target(&self.target, application)?)
    }

    async fn store_part(
        &self,
        name: &'static str,
        folder: &str,
        command: Command,
        keys: &Arc<Keys>,
    ) -> Result<Part, Error> {
        let mut child = command.start()?;
        let source = child.take_stdout()?;
        let (exited, confirm) = oneshot::channel::<()>();
        let confirm = move || {
            confirm
                .blocking_recv()
                .map_err(|_| io::Error::other("the program failed"))
        };
        let key = layout::part(folder, name, keys.encrypts());
        let progress = self.step(name);
        let put = self
            .repository
            .put_sealed(&key, source, Arc::clone(keys), Compression::DEFAULT, confirm, progress);
        let finish = async {
            let done = child.finish(self.config.step_timeout).await;
            if done.is_ok() {
                // The receiver is gone only when sealing failed already, which `put` reports.
                exited.send(()).ok();
            } else {
                drop(exited);
            }
            done
        };
        // The store's failure must end the program, and the program's failure names the cause.
        tokio::pin!(put);
        tokio::pin!(finish);
        let sealed = tokio::select! {
            done = &mut finish => { let stored = put.await; done?; stored? }
            stored = &mut put => match stored {
                Ok(sealed) => sealed,
                Err(error @ crate::repository::Error::Seal { .. }) => { finish.await?; return Err(error.into()) }
                Err(error) => return Err(error.into()),
            },
        };
        Ok(Part::new(name, &key, sealed))
    }

    async fn store_private(&self, folder: &str, private: &Private, keys: &Arc<Keys>) -> Result<Part, Error> {
        let key = layout::part(folder, PRIVATE, keys.encrypts());
        let source = io::Cursor::new(to_json(private));
        let (keys, progress) = (Arc::clone(keys), self.step(PRIVATE));
        let put = self
            .repository
            .put_sealed(&key, source, keys, Compression::DEFAULT, || Ok(()), progress);
        Ok(Part::new(PRIVATE, &key, put.await?))
    }

    async fn count_rows(&self, admin: &Admin) -> Result<BTreeMap<String, u64>, Error> {
        Ok(count_rows(admin, self.config.step_timeout).await?)
    }

    /// Removes what a failed run stored; what remains is no backup, since it has no manifest.
    pub(super) async fn sweep(&self, folder: &str) {
        drop(self.repository.remove_folder(folder).await);
    }
}

/// Rows per table, in the session's own snapshot. One table takes at most `limit`.
pub(super) async fn count_rows(admin: &Admin, limit: Duration) -> Result<BTreeMap<String, u64>, postgres::Error> {
    let mut counts = BTreeMap::new();
    for row in admin.query("listing tables", TABLES, &[]).await? {
        let (schema, table): (String, String) = (row.get(0), row.get(1));
        let name = format!("{}.{}", identifier(&schema), identifier(&table));
        let sql = format!("SELECT count(*) FROM {name}");
        let count: i64 = admin.value_within("counting rows", &sql, &[], limit).await?;
        counts.insert(name, u64::try_from(count).unwrap_or(0));
    }
    Ok(counts)
}

/// Uncompressed: our own zstd has several cores, and checksums, and its output is hashed on the way.
pub(super) fn pg_dump(programs: &Programs, database: &str) -> Command {
    Command::new(programs.path("pg_dump"))
        .arg("--format=custom")
        .arg("--compress=0")
        .arg("--no-password")
        .arg("--lock-wait-timeout=60s")
        .arg("--dbname")
        .arg(connection_name(database))
}

/// A database name for `--dbname`, which would read `=` or a scheme in it as a connection string.
pub(super) fn connection_name(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}
