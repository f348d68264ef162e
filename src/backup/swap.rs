//! Putting the new database in the old one's place: both renames are one transaction.

use super::journal::Intent;
use super::milestone::{Step, reached};
use super::{Error, Vault};
use crate::postgres::Admin;
use crate::postgres::admin::identifier;

impl Vault {
    /// Puts the new database in the old one's place, or under its name where there is none. Returns the name of the old one.
    pub(super) async fn swap(&self, admin: &Admin, intent: &Intent, goal: &str) -> Result<Option<String>, Error> {
        drop(self.step("swap"));
        let [live, new, old] = [&intent.live, &intent.new, &intent.old].map(|name| identifier(name));
        // Nobody waits long behind us, and whoever ends this process waits for us.
        let _uninterrupted = self.swapping.lock().await;
        if !intent.replaces() {
            let rename = format!("ALTER DATABASE {new} RENAME TO {}", identifier(goal));
            admin.batch("naming the database", &rename).await?;
            reached(Step::Renamed).await;
            return Ok(None);
        }
        admin.batch("preparing the swap", "SET lock_timeout = '5s'").await?;
        let _held = (self.hold.0)().await;
        let close = allow_connections(&intent.live, false);
        admin.batch("closing the old database", &close).await?;
        reached(Step::Closed).await;
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1";
        let _: i64 = admin.value("ending sessions", end, &[&intent.live]).await?;
        reached(Step::Emptied).await;
        let renames =
            format!("BEGIN; ALTER DATABASE {live} RENAME TO {old}; ALTER DATABASE {new} RENAME TO {live}; COMMIT");
        admin.batch("swapping the databases", &renames).await?;
        reached(Step::Renamed).await;
        Ok(Some(intent.old.clone()))
    }
}

/// The statement that opens or closes a database; closed, it keeps out superusers too.
pub(super) fn allow_connections(database: &str, allowed: bool) -> String {
    format!(
        "ALTER DATABASE {} WITH ALLOW_CONNECTIONS {allowed}",
        identifier(database)
    )
}
