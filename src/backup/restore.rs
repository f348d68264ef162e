//! Restoring: into a new database, proven there, and only then in the place of the old one. Never `--clean`.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ulid::Ulid;

use super::create::{connection_name, count_rows};
use super::journal::{Intent, local};
use super::replaced::dated_name;
use super::verify::{compare, to_json};
use super::{Entry, Error, Vault};
use crate::postgres::Admin;
use crate::postgres::admin::identifier;
use crate::postgres::child::Command;
use crate::postgres::program::Programs;
use crate::postgres::secrets::PrivateDirectory;
use crate::repository::layout;
use crate::repository::manifest::{Content, Lease};

/// A lease outlives the longest restore; one that was left behind must not hold a backup for ever.
const LEASE: Duration = Duration::from_hours(24);

/// What happens once the new database is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// It takes the place of the configured one.
    Live,
    /// It stays beside, under this name.
    Keep(String),
    /// It is dropped: the restore was a proof.
    Drop,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub id: Ulid,
    /// Where the data is now; empty when it was only a proof.
    pub database: String,
    /// The name under which the replaced database is kept.
    pub replaced: Option<String>,
    pub rows: u64,
}

impl Vault {
    /// Restores `id` (or `latest`).
    ///
    /// # Errors
    /// Why the old database still serves.
    pub async fn restore(&self, id: &str, swap: &Swap) -> Result<Restored, Error> {
        let _lock = self.lock()?;
        self.recover().await?;
        let entry = self.show_to_restore(id, swap).await?;
        let admin = Admin::connect(&self.target, "postgres", "foregate restore").await?;
        let programs = self.preflight(&entry, &admin, swap).await?;
        let lease = self.lease(entry.manifest.id).await?;
        let restored = self.restore_leased(&entry, &admin, &programs, swap).await;
        self.repository.delete(&lease).await?;
        restored
    }

    /// Checks what [`Vault::restore`] checks first, and touches nothing.
    ///
    /// # Errors
    /// Why it would be refused.
    pub async fn check_restore(&self, id: &str, swap: &Swap) -> Result<Entry, Error> {
        let entry = self.show_to_restore(id, swap).await?;
        let admin = Admin::connect(&self.target, "postgres", "foregate restore").await?;
        drop(self.preflight(&entry, &admin, swap).await?);
        Ok(entry)
    }

    /// Everything that can be refused is refused before anything is made.
    async fn preflight(&self, entry: &Entry, admin: &Admin, swap: &Swap) -> Result<Programs, Error> {
        let refuse = |reason: String| Err(Error::Refused(reason));
        let Content::Database { server_version, .. } = &entry.manifest.content else {
            return refuse("this is a file set, not a database".to_owned());
        };
        let major = admin.server_version().await? / 10_000;
        if server_version / 10_000 > major {
            return refuse(format!(
                "the backup is of PostgreSQL {}, the server is {major}",
                server_version / 10_000
            ));
        }
        if !entry.manifest.recipients.is_empty() && !self.keys.decrypts() {
            return refuse("the backup is encrypted, and no age identity is configured".to_owned());
        }
        if let Swap::Keep(name) = swap {
            let exists = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
            if name.is_empty() || name.len() > 63 || admin.value("looking for the name", exists, &[name]).await? {
                return refuse(format!(
                    "there is a database {name:?} already, or the name is not usable"
                ));
            }
        }
        if *swap == Swap::Live {
            let prepared = "SELECT count(*) FROM pg_prepared_xacts WHERE database = $1";
            let prepared: i64 = admin
                .value(
                    "looking for prepared transactions",
                    prepared,
                    &[&self.target.database()],
                )
                .await?;
            if prepared > 0 {
                return refuse(format!("{prepared} prepared transactions would block the swap"));
            }
        }
        let scratch = rustix::fs::statvfs(std::env::temp_dir())
            .map_err(|error| local("measuring the scratch directory")(error.into()))?;
        let free = scratch.f_bavail.saturating_mul(scratch.f_frsize);
        let needed = entry
            .manifest
            .part("dump")
            .map_or(0, |part| part.plain_bytes)
            .saturating_mul(11)
            / 10;
        if free < needed {
            return refuse(format!(
                "the scratch directory has {free} bytes free, {needed} are needed"
            ));
        }
        Ok(Programs::find(major)?)
    }

    pub(super) async fn lease(&self, id: Ulid) -> Result<String, Error> {
        let holder = Ulid::generate();
        let expires_at = self.clock.wall().saturating_add(LEASE).unwrap_or(jiff::Timestamp::MAX);
        let key = layout::lease(id, holder);
        self.repository
            .create(&key, to_json(&Lease { id, holder, expires_at }))
            .await?;
        Ok(key)
    }

    async fn restore_leased(
        &self,
        entry: &Entry,
        admin: &Admin,
        programs: &Programs,
        swap: &Swap,
    ) -> Result<Restored, Error> {
        let scratch =
            PrivateDirectory::new(&std::env::temp_dir(), "restore").map_err(local("making the scratch directory"))?;
        let spool = scratch.path().join("dump");
        self.spool(entry, &spool).await?;
        let live = self.target.database().to_owned();
        let new = match swap {
            Swap::Keep(name) => name.clone(),
            Swap::Live | Swap::Drop => format!("foregate_{}", entry_name(entry.manifest.id)),
        };
        // The identity of what serves now, before anything is made. A lost server has no such database.
        let oid = admin
            .query(
                "looking for the live database",
                "SELECT oid FROM pg_database WHERE datname = $1",
                &[&live],
            )
            .await?;
        let oid: Option<u32> = oid.first().and_then(|row| row.try_get(0).ok());
        let intent = Intent {
            old: dated_name(&live, self.clock.wall()),
            live,
            new: new.clone(),
            live_oid: oid.unwrap_or(0),
        };
        if !matches!(swap, Swap::Keep(_)) && oid.is_some() {
            self.write_intent(&intent)?;
        }
        let filled = self.fill(entry, admin, programs, &intent, &spool).await;
        let done = match (filled, swap) {
            (Ok(rows), Swap::Keep(name)) => Ok((name.clone(), None, rows)),
            (Ok(rows), Swap::Live) => self
                .swap(admin, &intent, oid.is_some())
                .await
                .map(|replaced| (intent.live.clone(), replaced, rows)),
            (Ok(rows), Swap::Drop) => self
                .drop_database(admin, &new)
                .await
                .map(|()| (String::new(), None, rows)),
            (Err(error), _) => {
                // Its own failure would only hide the cause.
                drop(self.drop_database(admin, &new).await);
                Err(error)
            }
        };
        // After a failed swap the note decides what holds, as after a crash.
        self.recover().await?;
        let (database, replaced, rows) = done?;
        Ok(Restored {
            id: entry.manifest.id,
            database,
            replaced,
            rows,
        })
    }

    pub(super) async fn drop_database(&self, admin: &Admin, name: &str) -> Result<(), Error> {
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(name));
        Ok(admin.batch("dropping the scratch database", &drop).await?)
    }

    /// The decrypted dump in a private file: `pg_restore -j` must seek.
    async fn spool(&self, entry: &Entry, path: &Path) -> Result<(), Error> {
        let unproven = || Error::Refused("the backup has no dump".to_owned());
        let part = entry.manifest.part("dump").ok_or_else(unproven)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(local("making the spool"))?;
        let key = format!("{}/{}", entry.folder, part.object);
        let progress = self.step("fetch");
        let (sealed, _) = self
            .repository
            .get_sealed(&key, file, Arc::clone(&self.keys), progress)
            .await?;
        compare(&key, part, &sealed)
    }

    /// Makes and proves the new database. Returns the rows in it.
    async fn fill(
        &self,
        entry: &Entry,
        admin: &Admin,
        programs: &Programs,
        intent: &Intent,
        spool: &Path,
    ) -> Result<u64, Error> {
        drop(self.step("restore"));
        self.make_database(admin, intent).await?;
        let command = Command::new(programs.path("pg_restore"))
            .arg("--exit-on-error")
            .arg("--no-password")
            .arg("--jobs=2")
            .arg("--dbname")
            .arg(connection_name(&intent.new))
            .arg(spool)
            .target(&self.target, "foregate restore")?;
        command.start()?.finish(self.config.step_timeout).await?;
        let inside = Admin::connect(&self.target, &intent.new, "foregate restore").await?;
        // Rows that a policy hides from our role would be taken for lost: better an error that blames the role.
        inside
            .batch("counting without policies", "SET row_security = off")
            .await?;
        let found = count_rows(&inside).await?;
        let Content::Database { tables, .. } = &entry.manifest.content else {
            return Err(Error::Refused("this is a file set, not a database".to_owned()));
        };
        if let Some(reason) = difference(tables, &found) {
            return Err(Error::Unproven {
                id: entry.manifest.id,
                reason,
            });
        }
        inside
            .batch_within("analyzing", "ANALYZE", self.config.step_timeout)
            .await?;
        Ok(found.values().sum())
    }
}

fn difference(
    recorded: &std::collections::BTreeMap<String, u64>,
    found: &std::collections::BTreeMap<String, u64>,
) -> Option<String> {
    let missing = recorded.iter().find(|(table, rows)| found.get(*table) != Some(rows));
    if let Some((table, rows)) = missing {
        return Some(format!("{table} had {rows} rows and has {:?} now", found.get(table)));
    }
    let surplus = found.keys().find(|table| !recorded.contains_key(*table));
    surplus.map(|table| format!("{table} was not in the backup"))
}

/// An id in a database's name: lower case, so that nobody has to quote it.
fn entry_name(id: Ulid) -> String {
    id.to_string().to_lowercase()
}
