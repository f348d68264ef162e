//! What is checked before a restore makes anything, so that it is refused with the reason instead of failing half way.

use super::journal::local;
use super::{Entry, Error, Swap, Vault};
use crate::postgres::Admin;
use crate::postgres::program::Programs;
use crate::repository::manifest::Content;

/// What the server is and has, as far as a restore needs to know.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) version: u32,
    pub(super) programs: Programs,
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
            let sql = "SELECT count(*) FROM pg_prepared_xacts WHERE database = $1";
            let live = self.target.database();
            let prepared: i64 = admin.value("looking for prepared transactions", sql, &[&live]).await?;
            if prepared > 0 {
                return refuse(format!("{prepared} prepared transactions would block the swap"));
            }
        }
        self.check_scratch(entry)?;
        let dumped_by = client_version.parse().unwrap_or(theirs);
        let programs = Programs::reading(dumped_by, ours).map_err(|error| Error::Refused(error.to_string()))?;
        Ok(Ground { version, programs })
    }

    fn check_scratch(&self, entry: &Entry) -> Result<(), Error> {
        let directory = &self.config.scratch;
        std::fs::create_dir_all(directory).map_err(local("making the scratch directory"))?;
        let scratch =
            rustix::fs::statvfs(directory).map_err(|error| local("measuring the scratch directory")(error.into()))?;
        let free = scratch.f_bavail.saturating_mul(scratch.f_frsize);
        let dump = entry.manifest.part("dump").map_or(0, |part| part.plain_bytes);
        let needed = dump.saturating_add(dump / 10);
        if free < needed {
            let directory = directory.display();
            return refuse(format!(
                "the scratch directory {directory} has {free} bytes free, {needed} are needed; backup.scratch or --scratch names another"
            ));
        }
        Ok(())
    }
}

fn refuse<T>(reason: String) -> Result<T, Error> {
    Err(Error::Refused(reason))
}
