//! The admin connection: what the client programs do not do.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use super::{Error, Target};

/// From the first packet to the session.
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection; its driver ends with it.
#[derive(Debug)]
pub struct Admin {
    client: Client,
    _driver: JoinSet<()>,
}

impl Admin {
    /// Connects to `database` on the target's server.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn connect(target: &Target, database: &str, application: &str) -> Result<Self, Error> {
        if target.address.config.get_hosts().is_empty() {
            return Err(Error::NoDatabase);
        }
        let mut config = target.address.config.clone();
        config.dbname(database).application_name(application);
        let connecting = config.connect(target.address.connector()?);
        // The address's own limit is one for the socket: a server that is stopped takes connections all the same.
        let connected = tokio::time::timeout(GREETING_TIMEOUT, connecting).await;
        let connected = connected.map_err(|_| Error::Slow {
            act: format!("connecting to database {database:?}"),
            seconds: GREETING_TIMEOUT.as_secs(),
        })?;
        let (client, connection) = connected.map_err(|source| Error::Connect {
            database: database.to_owned(),
            source,
        })?;
        let mut driver = JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        let admin = Self {
            client,
            _driver: driver,
        };
        admin
            .batch(
                "preparing the session",
                "SET statement_timeout = 0; SET lock_timeout = '60s'",
            )
            .await?;
        Ok(admin)
    }

    /// # Errors
    /// Of the server.
    pub async fn query(&self, act: &str, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        self.client.query(sql, params).await.map_err(|source| Error::Query {
            act: act.to_owned(),
            source,
        })
    }

    /// Gives an advisory lock back. The server would, once it notices that we are gone, which may be after the next run has asked.
    pub async fn give_back(&self, lock: i64) {
        let asked = async {
            let sql = "SELECT pg_advisory_unlock($1)";
            self.value::<bool>("giving the lock back", sql, &[&lock]).await
        };
        // It ends with the session at the latest.
        drop(tokio::time::timeout(GIVE_BACK_TIMEOUT, asked).await);
    }

    /// One value of one row.
    ///
    /// # Errors
    /// Of the server, or another shape than expected.
    pub async fn value<T>(&self, act: &str, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<T, Error>
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        let failed = |source| Error::Query {
            act: act.to_owned(),
            source,
        };
        let row = self.client.query_one(sql, params).await.map_err(failed)?;
        row.try_get(0).map_err(failed)
    }

    /// The first column of the first row as text, whatever its type; the last statement's, if there are several.
    ///
    /// # Errors
    /// Of the server, or after a minute and a half.
    pub async fn text(&self, act: &str, sql: &str) -> Result<Option<String>, Error> {
        use tokio_postgres::SimpleQueryMessage;
        let limit = Duration::from_secs(90);
        let Ok(done) = tokio::time::timeout(limit, self.client.simple_query(sql)).await else {
            return Err(Error::Slow {
                act: act.to_owned(),
                seconds: limit.as_secs(),
            });
        };
        let messages = done.map_err(|source| Error::Query {
            act: act.to_owned(),
            source,
        })?;
        Ok(messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.try_get(0).ok().flatten().map(str::to_owned),
            _ => None,
        }))
    }

    /// Statements without results. A transaction must stand in `sql` itself.
    ///
    /// # Errors
    /// Of the server, or after a minute and a half.
    pub async fn batch(&self, act: &str, sql: &str) -> Result<(), Error> {
        self.batch_within(act, sql, Duration::from_secs(90)).await
    }

    /// # Errors
    /// Of the server, or after `limit`.
    pub async fn batch_within(&self, act: &str, sql: &str, limit: Duration) -> Result<(), Error> {
        match tokio::time::timeout(limit, self.client.batch_execute(sql)).await {
            Ok(done) => done.map_err(|source| Error::Query {
                act: act.to_owned(),
                source,
            }),
            Err(_) => Err(Error::Slow {
                act: act.to_owned(),
                seconds: limit.as_secs(),
            }),
        }
    }

    /// `server_version_num`, as 150018.
    ///
    /// # Errors
    /// Of the server.
    pub async fn server_version(&self) -> Result<u32, Error> {
        let text: String = self
            .value(
                "reading the server's version",
                "SELECT current_setting('server_version_num')",
                &[],
            )
            .await?;
        Ok(text.parse().unwrap_or(0))
    }

    /// # Errors
    /// Of the server.
    pub async fn system_identifier(&self) -> Result<String, Error> {
        let sql = "SELECT system_identifier::text FROM pg_control_system()";
        self.value("reading the system identifier", sql, &[]).await
    }
}

/// `name` as an SQL identifier.
#[must_use]
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as an SQL literal. A backslash needs the `E` form, whatever `standard_conforming_strings` says.
#[must_use]
pub fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
