//! What is checked before a restore makes anything, so that it is refused with the reason instead of failing half way.

use super::{Entry, Error, Swap, Vault, rights};
use crate::postgres::Admin;
use crate::postgres::program::Programs;
use crate::repository::manifest::Content;

/// PostgreSQL cuts off what is beyond (`NAMEDATALEN`).
const NAME_BYTES_MAX: usize = 63;

/// What the server is and has, as far as a restore needs to know.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) version: u32,
    pub(super) programs: Programs,
    /// What whoever restores has to see to: sentences.
    pub(super) notes: Vec<String>,
}

impl Vault {
    /// Everything that can be refused is refused before anything is made.
    pub(super) async fn preflight(&self, entry: &Entry, admin: &Admin, swap: &Swap) -> Result<Ground, Error> {
        let Content::Database {
            server_version,
            client_version,
            ..
        } = &entry.manifest.content
        else {
            return refuse("this is not a backup of a database; a file set is restored --into a directory".to_owned());
        };
        let version = admin.server_version().await?;
        let (theirs, ours) = (server_version / 10_000, version / 10_000);
        if theirs > ours {
            return refuse(format!("the backup is of PostgreSQL {theirs}, the server is {ours}"));
        }
        self.keys.check(&entry.manifest.recipients).map_err(Error::Refused)?;
        if let Swap::Keep(name) = swap {
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                let bytes = name.len();
                return refuse(format!(
                    "{name:?} cannot be the name of a database: it has {bytes} bytes, and 1 to {NAME_BYTES_MAX} are possible"
                ));
            }
            let exists = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
            if admin.value("looking for the name", exists, &[name]).await? {
                return refuse(format!(
                    "there is a database {name:?} already: choose another name, or drop it first"
                ));
            }
        }
        let mut notes = Vec::from_iter(self.check_role(admin).await?);
        if *swap == Swap::Live {
            let sql = "SELECT count(*) FROM pg_prepared_xacts WHERE database = $1";
            let live = self.target.database();
            let prepared: i64 = admin.value("looking for prepared transactions", sql, &[&live]).await?;
            if prepared > 0 {
                return refuse(format!("{prepared} prepared transactions would block the swap"));
            }
            notes.extend(self.slots(admin).await?);
        }
        self.check_room(entry, admin, &mut notes).await?;
        let dumped_by = client_version.parse().unwrap_or(theirs);
        let programs = Programs::reading(dumped_by, ours).map_err(|error| Error::Refused(error.to_string()))?;
        Ok(Ground {
            version,
            programs,
            notes,
        })
    }

    /// Who is no superuser may find out half way what he lacks.
    async fn check_role(&self, admin: &Admin) -> Result<Option<String>, Error> {
        let sql = "SELECT rolsuper, rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user";
        let rows = admin.query("reading our own role", sql, &[]).await?;
        let may = |column| rows.first().is_some_and(|row| row.get(column));
        let role = self.target.role();
        match (may(0), may(1)) {
            (true, _) => Ok(None),
            (_, true) => Ok(Some(format!("role {role:?} is no superuser: {}", rights::OF_A_RESTORE))),
            _ => refuse(format!("role {role:?} may make no database: {}", rights::OF_A_RESTORE)),
        }
    }

    /// Logical slots follow the database that is replaced, and hold the log of the whole server for a reader that will find
    /// nothing new there.
    async fn slots(&self, admin: &Admin) -> Result<Vec<String>, Error> {
        let sql = "SELECT slot_name::text FROM pg_replication_slots WHERE database = $1 ORDER BY 1";
        let live = self.target.database();
        let rows = admin.query("looking for replication slots", sql, &[&live]).await?;
        let note = |slot: String| {
            format!(
                "replication slot {slot:?} belongs to the replaced database: drop it there, and make it again in the new one, or the server keeps all its log for it"
            )
        };
        Ok(rows.iter().map(|row| note(row.get(0))).collect())
    }
}

fn refuse<T>(reason: String) -> Result<T, Error> {
    Err(Error::Refused(reason))
}
