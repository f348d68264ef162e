//! PostgreSQL from outside: its client programs as child processes, and an admin connection. Secrets go by a password
//! file in a private directory, never by argv.

pub mod admin;
pub mod child;
pub mod program;
pub mod secrets;
pub mod server;

use std::time::Duration;

use crate::secret::Secret;

pub use self::admin::Admin;
pub use self::child::Child;

/// The `[database]` section, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `postgres://user:password@host:port/database`.
    pub url: Secret,
}

/// Where the server is and who we are there.
#[derive(Debug, Clone)]
pub struct Target {
    config: tokio_postgres::Config,
}

impl Target {
    /// # Errors
    /// An address that names no user, host or database.
    pub fn parse(config: &Config) -> Result<Self, Error> {
        if config.url.reveal().is_empty() {
            // Files are kept and given back without one; [`Admin::connect`] refuses.
            let config = tokio_postgres::Config::new();
            return Ok(Self { config });
        }
        let mut parsed: tokio_postgres::Config = config.url.reveal().parse().map_err(|_| Error::Address)?;
        if parsed.get_hosts().is_empty() || parsed.get_user().is_none() || parsed.get_dbname().is_none() {
            return Err(Error::Address);
        }
        parsed.connect_timeout(Duration::from_secs(10));
        Ok(Self { config: parsed })
    }

    /// A server of our own, by the directory of its socket.
    ///
    /// # Errors
    /// A directory that no address can hold.
    pub fn local(socket: &std::path::Path, port: u16, role: &str, database: &str) -> Result<Self, Error> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(socket)
            .port(port)
            .user(role)
            .dbname(database)
            .connect_timeout(Duration::from_secs(10));
        Ok(Self { config })
    }

    #[must_use]
    pub fn role(&self) -> &str {
        self.config.get_user().unwrap_or_default()
    }

    #[must_use]
    pub fn database(&self) -> &str {
        self.config.get_dbname().unwrap_or_default()
    }

    fn password(&self) -> Option<String> {
        self.config
            .get_password()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// The environment of a client program, without the secret.
    fn environment(&self, application: &str) -> Vec<(&'static str, String)> {
        use tokio_postgres::config::{Host, SslMode};
        let host = self
            .config
            .get_hosts()
            .first()
            .map_or_else(String::new, |host| match host {
                Host::Tcp(name) => name.clone(),
                Host::Unix(path) => path.to_string_lossy().into_owned(),
            });
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        let ssl = match self.config.get_ssl_mode() {
            SslMode::Disable => "disable",
            SslMode::Require => "require",
            _ => "prefer",
        };
        vec![
            ("PGHOST", host),
            ("PGPORT", port.to_string()),
            ("PGUSER", self.config.get_user().unwrap_or_default().to_owned()),
            ("PGSSLMODE", ssl.to_owned()),
            ("PGAPPNAME", application.to_owned()),
            ("PGCONNECT_TIMEOUT", "10".to_owned()),
            // pg_dump resets statement_timeout itself, pg_dumpall and pg_restore do not.
            (
                "PGOPTIONS",
                "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0".to_owned(),
            ),
            ("LC_ALL", "C".to_owned()),
        ]
    }
}

/// Why PostgreSQL could not be used. Texts carry no secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database address must be postgres://user:password@host:port/database")]
    Address,
    #[error("which database? Set [database] url in the configuration, DATABASE_URL, or --database-url-file")]
    NoDatabase,
    #[error("connecting to database {database:?}")]
    Connect {
        database: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("{act}")]
    Query {
        act: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("{act} took longer than {seconds} s")]
    Slow { act: String, seconds: u64 },
    #[error("no {program} of version {major} or newer was found; install postgresql-client-{major}")]
    NoProgram { program: &'static str, major: u32 },
    #[error("starting {program}")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        program: String,
        status: String,
        stderr: String,
    },
    #[error("PostgreSQL's server does not run as root, and there is no account {name:?} to run it as")]
    Account { name: String },
    #[error("preparing a private directory")]
    Private(#[source] std::io::Error),
    #[error("the server's TLS cannot be used: {0}")]
    Tls(String),
}

impl Error {
    /// Whether the server would do it for someone with more rights.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        let denied = &tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE;
        matches!(self, Self::Query { source, .. } if source.code() == Some(denied))
    }
}
