//! PostgreSQL from outside: its client programs as child processes, and an admin connection. Secrets go by a password
//! file in a private directory, never by argv.

pub mod admin;
pub mod child;
pub mod program;
pub mod secrets;
pub mod server;

use std::time::Duration;

use crate::libpq::{self, Address};
use crate::secret::Secret;

pub use self::admin::Admin;
pub use self::child::Child;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that is silent for this long is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The `[database]` section, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `postgres://user:password@host:port/database`.
    pub url: Secret,
}

/// Where the server is and who we are there.
#[derive(Debug, Clone)]
pub struct Target {
    address: Address,
}

impl Target {
    /// # Errors
    /// An address that names no user, host or database.
    pub fn parse(config: &Config) -> Result<Self, Error> {
        if config.url.reveal().is_empty() {
            // Files are kept and given back without one; [`Admin::connect`] refuses.
            let address = Address::plain(tokio_postgres::Config::new());
            return Ok(Self { address });
        }
        let mut address = Address::parse(&config.url)?;
        let config = &mut address.config;
        if config.get_hosts().is_empty() || config.get_user().is_none() || config.get_dbname().is_none() {
            return Err(libpq::Error::Address.into());
        }
        config
            .connect_timeout(CONNECT_TIMEOUT)
            // A session waits for hours while pg_restore works; whatever lies between must not take it for dead, nor we the server
            // for alive.
            .keepalives_idle(KEEPALIVE)
            .keepalives_interval(KEEPALIVE)
            .keepalives_retries(3)
            .tcp_user_timeout(KEEPALIVE * 4);
        Ok(Self { address })
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
            .connect_timeout(CONNECT_TIMEOUT);
        let address = Address::plain(config);
        Ok(Self { address })
    }

    #[must_use]
    pub fn role(&self) -> &str {
        self.address.config.get_user().unwrap_or_default()
    }

    #[must_use]
    pub fn database(&self) -> &str {
        self.address.config.get_dbname().unwrap_or_default()
    }

    fn password(&self) -> Option<String> {
        let password = self.address.config.get_password();
        password.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// The environment of a client program, without the secret.
    fn environment(&self, application: &str) -> Vec<(&'static str, String)> {
        let mut environment = self.address.environment();
        // pg_dump resets statement_timeout itself, pg_dumpall and pg_restore do not.
        let options = "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0";
        let own = self.address.config.get_options().unwrap_or_default();
        environment.extend([
            ("PGAPPNAME", application.to_owned()),
            ("PGCONNECT_TIMEOUT", CONNECT_TIMEOUT.as_secs().to_string()),
            ("PGOPTIONS", format!("{own} {options}").trim().to_owned()),
            ("LC_ALL", "C".to_owned()),
        ]);
        environment
    }
}

/// Why PostgreSQL could not be used. Texts carry no secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Address(#[from] libpq::Error),
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
}

impl Error {
    /// Whether the server would do it for someone with more rights.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        let denied = &tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE;
        matches!(self, Self::Query { source, .. } if source.code() == Some(denied))
    }

    /// Whether something still needs what was to be dropped.
    #[must_use]
    pub fn is_depended_on(&self) -> bool {
        let needed = &tokio_postgres::error::SqlState::DEPENDENT_OBJECTS_STILL_EXIST;
        matches!(self, Self::Query { source, .. } if source.code() == Some(needed))
    }
}
