//! Dropping a database that a restore made or replaced.

use super::swap::allow_connections;
use super::{Error, Vault};
use crate::postgres::admin::identifier;
use crate::postgres::{self, Admin};

impl Vault {
    /// Drops `database`, whoever is in it. `admin` is a session in another one.
    pub(super) async fn discard(&self, admin: &Admin, database: &str) -> Result<(), Error> {
        let discarded = async {
            self.drop_subscriptions(admin, database).await?;
            let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(database));
            admin.batch("dropping it", &drop).await
        };
        discarded.await.map_err(|source| Error::Undropped {
            database: database.to_owned(),
            source,
        })
    }

    /// The server drops no database with a subscription in it, not even by force; and a subscription is dropped only from
    /// within. Its slot stays with the publisher: the database that serves may have the same one, and go on from it.
    async fn drop_subscriptions(&self, admin: &Admin, database: &str) -> Result<(), postgres::Error> {
        let sql = "SELECT s.subname::text, d.datallowconn FROM pg_subscription s \
            JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = $1";
        let found = admin.query("looking for its subscriptions", sql, &[&database]).await?;
        if found.is_empty() {
            return Ok(());
        }
        let is_closed = found.iter().any(|row| !row.get::<_, bool>(1));
        let allow = async |allowed: bool| {
            let sql = allow_connections(database, allowed);
            admin.batch("letting us in, and nobody afterwards", &sql).await
        };
        if is_closed {
            allow(true).await?;
        }
        let dropped = async {
            let inside = Admin::connect(&self.target, database, "foregate clean-up").await?;
            for row in &found {
                let name = identifier(row.get(0));
                let drop = format!(
                    "ALTER SUBSCRIPTION {name} DISABLE; ALTER SUBSCRIPTION {name} SET (slot_name = NONE); \
                     DROP SUBSCRIPTION {name}"
                );
                inside.batch("dropping a subscription", &drop).await?;
            }
            Ok(())
        };
        let dropped = dropped.await;
        if is_closed {
            // Were the drop to fail, it must not stand open.
            allow(false).await?;
        }
        dropped
    }
}
