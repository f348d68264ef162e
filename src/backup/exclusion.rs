//! One run at a time, also where runs are on different machines: a lock of the database server, and who holds it.

use super::{Error, Vault};
use crate::postgres::{self, Admin};
use crate::telemetry::cause::chain;

/// "foregate" as a number. A lock of the server is one of the database in which it is taken.
pub(super) const ADVISORY_LOCK: i64 = 0x666f_7265_6761;
const HOLDER: &str = "SELECT concat_ws(' ', NULLIF(a.application_name, ''), 'as', a.usename, 'from', \
    COALESCE(host(a.client_addr), 'the server itself'), 'since', to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SS TZ')) \
    FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted AND a.datid = l.database \
    AND a.datname = current_database() AND ((l.classid::int8 << 32) | l.objid::int8) = $1 AND l.objsubid = 1";

/// Takes the lock of the database that `admin` is in, for as long as that session lasts.
pub(super) async fn exclude(admin: &Admin) -> Result<(), Error> {
    let lock = "SELECT pg_try_advisory_lock($1)";
    if admin.value("taking the lock", lock, &[&ADVISORY_LOCK]).await? {
        return Ok(());
    }
    // It may have ended by now.
    let holder = admin
        .query("asking who holds the lock", HOLDER, &[&ADVISORY_LOCK])
        .await;
    let holder = holder.ok().and_then(|rows| rows.first()?.try_get(0).ok());
    Err(Error::Busy(
        holder.map_or_else(String::new, |holder: String| format!(": {holder}")),
    ))
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
