//! What there is to see in a recovered server before anyone decides to promote it.

use std::time::Duration;

use super::Running;
use crate::pitr::Error;
use crate::postgres::admin::identifier;

/// Tables whose rows are counted: the largest.
const TABLES_MAX: i64 = 50;
const COUNT_LIMIT: Duration = Duration::from_secs(60);

/// A table and how much it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `"schema"."table"`.
    pub name: String,
    /// `None`: counting took too long.
    pub rows: Option<u64>,
}

/// A recovered database at its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub database: String,
    /// The largest first.
    pub tables: Vec<Table>,
}

impl Running {
    /// Counts the rows of the application's database, if it exists at the target.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub async fn look(&mut self) -> Result<Option<Shown>, Error> {
        let database = self.database().to_owned();
        let admin = self.connect("postgres").await?;
        let exists = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1 AND datallowconn)";
        if !admin
            .value::<bool>("looking for the database", exists, &[&database])
            .await?
        {
            return Ok(None);
        }
        let admin = self.connect(&database).await?;
        let limit = format!("SET statement_timeout = {}", COUNT_LIMIT.as_millis());
        admin.batch("limiting the count", &limit).await?;
        let largest = "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
            WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
            ORDER BY c.relpages DESC, 1, 2 LIMIT $1";
        let mut tables = Vec::new();
        for row in admin.query("listing tables", largest, &[&TABLES_MAX]).await? {
            let (schema, table): (String, String) = (row.get(0), row.get(1));
            let name = format!("{}.{}", identifier(&schema), identifier(&table));
            let count = admin
                .value::<i64>("counting rows", &format!("SELECT count(*) FROM {name}"), &[])
                .await;
            tables.push(Table {
                name,
                rows: count.ok().and_then(|count| u64::try_from(count).ok()),
            });
        }
        Ok(Some(Shown { database, tables }))
    }
}
