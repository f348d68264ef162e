//! One run at a time, also where runs are on different machines: a lock of the database server, and who holds it.

use super::{Error, Vault};
use crate::postgres::{self, Admin};
use crate::telemetry::cause::chain;

/// "foregate" as a number. A lock of the server is one of the database in which it is taken.
pub(super) const ADVISORY_LOCK: i64 = 0x666f_7265_6761;

/// Takes the lock of the database that `admin` is in, for as long as that session lasts.
pub(super) async fn exclude(admin: &Admin) -> Result<(), Error> {
    match admin.exclude(ADVISORY_LOCK).await? {
        None => Ok(()),
        Some(holder) => Err(Error::Busy(holder)),
    }
}

impl Vault {
    /// Keeps others from replacing the live database, and from backing up what is about to be replaced: the former look
    /// beside it, where `admin` is, since it may be lost; the latter in it, since their role may not be let in elsewhere.
    pub(super) async fn exclude_all(
        &self,
        admin: &Admin,
        application: &str,
        notes: &mut Vec<String>,
    ) -> Result<Option<Admin>, Error> {
        exclude(admin).await?;
        match Admin::connect(&self.target, self.target.database(), application).await {
            Ok(inside) => exclude(&inside).await.map(|()| Some(inside)),
            Err(error) if error.is_shut_out() => Ok(None),
            // An app that holds every connection may be why it is restored.
            Err(error @ postgres::Error::Connect { .. }) => {
                notes.push(format!(
                    "the database was not locked against backups from other machines: {}",
                    chain(&error)
                ));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}
