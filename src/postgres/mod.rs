//! PostgreSQL from outside: its client programs as child processes, and an admin connection. Secrets go by a password
//! file in a private directory, never by argv.

pub mod admin;
pub mod child;
pub mod program;
pub mod secrets;
pub mod server;

use std::net::IpAddr;
use std::time::Duration;

use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;

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

    /// Host and port, or the socket, of each server that the address names.
    #[must_use]
    pub fn server(&self) -> String {
        let ports = self.address.config.get_ports();
        let hosts = self.address.config.get_hosts().iter().enumerate();
        let places = hosts.map(|(index, host)| {
            // One stands for all.
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) if name.contains(':') => format!("[{name}]:{port}"),
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(directory) => format!("{}/.s.PGSQL.{port}", directory.display()),
            }
        });
        places.collect::<Vec<_>>().join(" or ")
    }

    /// Whether the server is on this machine, as far as its address tells.
    #[must_use]
    pub fn is_here(&self) -> bool {
        let is_here = |host: &Host| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback()),
        };
        self.address.config.get_hosts().iter().all(is_here)
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
    #[error("connecting to {place}{}", advice(source))]
    Connect {
        /// Database, server and role.
        place: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("{act}")]
    Query {
        act: String,
        #[source]
        source: tokio_postgres::Error,
    },
    /// Of the server, whose own words quote what it refuses: a secret.
    #[error("{act}: SQLSTATE {code} ({})", meaning(code))]
    Withheld { act: String, code: String },
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

/// What the server's words do not say: what to do.
fn advice(source: &tokio_postgres::Error) -> &'static str {
    match source.code() {
        Some(code) if *code == SqlState::INVALID_PASSWORD => " (the password in the address is not the role's)",
        Some(code) if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
            " (the server's pg_hba.conf must let this role in from here, and the role must exist and have LOGIN)"
        }
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => " (the role needs CONNECT on it)",
        _ => "",
    }
}

fn meaning(code: &str) -> &'static str {
    match code {
        "22023" => "the value is none that this server takes",
        "42501" => "our role may not do that",
        "42704" => "this server does not know its name",
        "55P02" => "it cannot be changed in this way",
        _ => "see appendix A of PostgreSQL's manual",
    }
}

impl Error {
    /// Whether the server would do it for someone with more rights.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Query { source, .. } => source.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE),
            // The programs tell no code, only the server's words, which may be in another language.
            Self::Failed { stderr, .. } => ["permission denied", "row-level security policy"]
                .iter()
                .any(|words| stderr.contains(words)),
            _ => false,
        }
    }

    /// Whether the server is there, and it is this database that is not, or that lets nobody or not us in.
    #[must_use]
    pub fn is_shut_out(&self) -> bool {
        let codes = [
            SqlState::INVALID_CATALOG_NAME,
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            SqlState::INSUFFICIENT_PRIVILEGE,
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        ];
        matches!(self, Self::Connect { source, .. } if source.code().is_some_and(|code| codes.contains(code)))
    }

    /// Whether something still needs what was to be dropped.
    #[must_use]
    pub fn is_depended_on(&self) -> bool {
        let needed = &SqlState::DEPENDENT_OBJECTS_STILL_EXIST;
        matches!(self, Self::Query { source, .. } if source.code() == Some(needed))
    }

    /// The same without the server's words, where a statement holds a secret.
    #[must_use]
    pub fn withheld(self) -> Self {
        match self {
            Self::Query { act, source } if source.code().is_some() => Self::Withheld {
                act,
                code: source.code().map_or_else(String::new, |code| code.code().to_owned()),
            },
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_is_named_as_the_address_names_it_and_without_the_password() {
        for (url, named) in [
            ("postgres://ops:secret@db/app", "db:5432"),
            (
                "postgres://ops:secret@10.0.0.5:6000,[fd00::1]:6001/app",
                "10.0.0.5:6000 or [fd00::1]:6001",
            ),
            (
                "postgres://ops@%2Frun%2Fpostgresql:5433/app",
                "/run/postgresql/.s.PGSQL.5433",
            ),
            (
                "host=a,b port=6000 user=ops password=secret dbname=app",
                "a:6000 or b:6000",
            ),
        ] {
            let config = Config { url: Secret::new(url) };
            let target = Target::parse(&config).expect("an address");
            assert_eq!(target.server(), named, "{url}");
        }
    }
}
