//! The admin connection: what the client programs do not do.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use super::{Error, Target};

/// From the first packet to the session.
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);
/// For what the server answers out of its memory, or by a lock that it waits a minute for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(5);
const HOLDER: &str = "SELECT concat_ws(' ', NULLIF(a.application_name, ''), 'as', a.usename, 'from', \
    COALESCE(host(a.client_addr), 'the server itself'), 'since', to_char(a.backend_start, 'YYYY-MM-DD HH24:MI:SS TZ')) \
    FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted AND a.datid = l.database \
    AND a.datname = current_database() AND ((l.classid::int8 << 32) | l.objid::int8) = $1 AND l.objsubid = 1";
/// What the role or the database may have set for the app's sessions, and what would end ours: the one that holds the snapshot
/// has nothing to do for as long as `pg_dump` works. By way of the view, since not every version knows each of them.
const PREPARE: &str = "SELECT set_config(name, value, false) FROM pg_settings JOIN (VALUES ('statement_timeout', '0'), \
    ('lock_timeout', '60s'), ('idle_in_transaction_session_timeout', '0'), ('idle_session_timeout', '0'), \
    ('transaction_timeout', '0')) AS wanted (name, value) USING (name)";
/// What makes a server write statements into its log or keep them, and what ends that.
const SILENCE: [(&str, &str); 8] = [
    ("log_statement", "none"),
    ("log_min_error_statement", "panic"),
    // An error may quote what it refuses.
    ("log_min_messages", "panic"),
    ("log_min_duration_statement", "-1"),
    ("log_min_duration_sample", "-1"),
    ("log_transaction_sample_rate", "0"),
    ("pgaudit.log", "none"),
    ("pg_stat_statements.track", "none"),
];

/// A connection; its driver ends with it.
#[derive(Debug)]
pub struct Admin {
    client: Client,
    /// For an answer of which nothing else is said.
    patience: Duration,
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
        let place = || format!("database {database:?} at {} as {:?}", target.server(), target.role());
        let connected = connected.map_err(|_| Error::Slow {
            act: format!("connecting to {}", place()),
            seconds: GREETING_TIMEOUT.as_secs(),
        })?;
        let (client, connection) = connected.map_err(|source| Error::Connect { place: place(), source })?;
        let mut driver = JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        let admin = Self {
            client,
            patience: ANSWER_TIMEOUT,
            _driver: driver,
        };
        admin.batch("preparing the session", PREPARE).await?;
        Ok(admin)
    }

    /// Connects to another database than the target's own, for what is done to that one from outside: as PostgreSQL's own
    /// `createdb` does to `postgres`, or to `template1` where that is missing, lets nobody in, or is the target's own.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn beside(target: &Target, application: &str) -> Result<Self, Error> {
        let mut others = vec!["postgres", "template1"];
        others.retain(|database| *database != target.database());
        Self::connect_first(target, &others, application).await
    }

    /// Connects to the first of `databases` that is there and lets us in.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn connect_first(target: &Target, databases: &[&str], application: &str) -> Result<Self, Error> {
        let mut refused = None;
        for database in databases {
            match Self::connect(target, database, application).await {
                Err(error) if error.is_shut_out() => drop(refused.get_or_insert(error)),
                other => return other,
            }
        }
        Err(refused.unwrap_or(Error::NoDatabase))
    }

    /// # Errors
    /// Of the server, or after a minute and a half.
    pub async fn query(&self, act: &str, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        within(act, self.patience, self.client.query(sql, params)).await
    }

    /// Takes the advisory lock of the database that this session is in, for as long as it lasts. `Some`: another one has it, with a
    /// colon and who that is, if it is known.
    ///
    /// # Errors
    /// Of the server.
    pub async fn exclude(&self, lock: i64) -> Result<Option<String>, Error> {
        let take = "SELECT pg_try_advisory_lock($1)";
        if self.value("taking the lock", take, &[&lock]).await? {
            return Ok(None);
        }
        // It may have ended by now.
        let holder = self
            .value::<String>("asking who holds the lock", HOLDER, &[&lock])
            .await;
        Ok(Some(
            holder.map_or_else(|_| String::new(), |holder| format!(": {holder}")),
        ))
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
    /// Of the server, another shape than expected, or after a minute and a half.
    pub async fn value<T>(&self, act: &str, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<T, Error>
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        self.value_within(act, sql, params, self.patience).await
    }

    /// # Errors
    /// As [`Admin::value`], but after `limit`.
    pub async fn value_within<T>(
        &self,
        act: &str,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        limit: Duration,
    ) -> Result<T, Error>
    where
        T: for<'a> tokio_postgres::types::FromSql<'a>,
    {
        let asked = async { self.client.query_one(sql, params).await?.try_get(0) };
        within(act, limit, asked).await
    }

    /// The first column of the first row as text, whatever its type; the last statement's, if there are several.
    ///
    /// # Errors
    /// Of the server, or after a minute and a half.
    pub async fn text(&self, act: &str, sql: &str) -> Result<Option<String>, Error> {
        use tokio_postgres::SimpleQueryMessage;
        let messages = within(act, self.patience, self.client.simple_query(sql)).await?;
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
        self.batch_within(act, sql, self.patience).await
    }

    /// # Errors
    /// Of the server, or after `limit`.
    pub async fn batch_within(&self, act: &str, sql: &str, limit: Duration) -> Result<(), Error> {
        within(act, limit, self.client.batch_execute(sql)).await
    }

    /// Does `work`, whose statements hold secrets, so that the server writes none of them down. Whoever may not say so has a
    /// log that is not ours to spare.
    pub async fn unlogged<T>(&self, work: impl Future<Output = T>) -> T {
        for (name, value) in SILENCE {
            let set = format!("SET {name} = '{value}'");
            self.batch("sparing the log", &set).await.ok();
        }
        let done = work.await;
        for (name, _) in SILENCE {
            self.batch("sparing the log", &format!("RESET {name}")).await.ok();
        }
        done
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

/// A server that is stopped, or a machine that is gone, answers nothing, and says nothing of that either.
fn within<T>(
    act: &str,
    limit: Duration,
    asked: impl Future<Output = Result<T, tokio_postgres::Error>> + Send,
) -> impl Future<Output = Result<T, Error>> + Send {
    // Those of the client are large, and stand in every future that asks.
    let asked = tokio::time::timeout(limit, Box::pin(asked));
    async move {
        let slow = |_| Error::Slow {
            act: act.to_owned(),
            seconds: limit.as_secs(),
        };
        asked.await.map_err(slow)?.map_err(|source| Error::Query {
            act: act.to_owned(),
            source,
        })
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::Config;
    use super::*;
    use crate::secret::Secret;

    /// Greets, takes the first statement, and then is as a server whose processes were stopped.
    async fn stopped(listener: TcpListener) {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let length = stream.read_u32().await.expect("its greeting");
        let mut greeting = vec![0; usize::try_from(length).expect("short") - 4];
        stream.read_exact(&mut greeting).await.expect("its greeting");
        let welcome = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
        stream.write_all(welcome).await.expect("it listens");
        let mut statement = [0; 4096];
        let read = stream.read(&mut statement).await.expect("a statement");
        assert!(read > 0);
        let done = b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
        stream.write_all(done).await.expect("it listens");
        std::future::pending::<()>().await;
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_for_a_server_that_stands_still() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut server = JoinSet::new();
        server.spawn(stopped(listener));
        let url = Secret::new(format!("postgres://ops@{address}/app?sslmode=disable"));
        let target = Target::parse(&Config { url }).expect("an address");
        let mut admin = Admin::connect(&target, "app", "test").await.expect("greeted");
        admin.patience = Duration::from_millis(50);
        for asked in [
            admin.query("asking", "SELECT 1", &[]).await.map(drop),
            admin.value::<i64>("asking", "SELECT 1", &[]).await.map(drop),
            admin.server_version().await.map(drop),
            admin.text("asking", "SELECT 1").await.map(drop),
            admin.batch("asking", "SELECT 1").await,
        ] {
            assert!(matches!(asked, Err(Error::Slow { .. })), "{asked:?}");
        }
    }
}
