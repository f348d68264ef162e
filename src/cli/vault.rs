//! What the commands of the vault share: where backups, keys and the database are, and whose word counts. They work without
//! the server and without a configuration, for the day that the machine burned.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::{Error, check, complain};
use crate::backup::Settings;
use crate::config::{self, Config, Wanted};
use crate::pitr;
use crate::postgres;
use crate::secret::Secret;

/// What the package installs.
const USUAL_CONFIG: &str = "/etc/foregate/config.toml";
/// A key or an address is a few lines.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Where everything is. An option outweighs the file, and the file the environment.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The configuration; without it /etc/foregate/config.toml, if that exists. It outweighs the environment's DATABASE_URL,
    /// and each option outweighs its key. Only [database], [backup] and [pitr] are read: what is wrong elsewhere does not matter.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Leave /etc/foregate/config.toml aside.
    #[arg(long, global = true, conflicts_with = "config")]
    no_config: bool,
    /// Where backups live: file:///directory or s3://bucket/prefix; file:///var/lib/foregate/backups if nothing says.
    #[arg(long, global = true, value_name = "URL")]
    repository: Option<String>,
    /// An age public key that can open what is stored from now on; may be repeated.
    #[arg(long = "recipient", global = true, value_name = "AGE1...")]
    recipients: Vec<String>,
    /// The age identity file that opens what is stored.
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) identity: Option<PathBuf>,
    /// A file with the database's address; without it `database.url`, and without that the environment's DATABASE_URL.
    #[arg(long, global = true, value_name = "FILE")]
    database_url_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(super) json: bool,
}

/// Whether a command can do without the database's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Database {
    Needed,
    /// It is had where one is named; what the command finds then decides whether it can do without.
    Wanted,
    /// It goes on without, and says so where the configuration names one that cannot be had.
    IfKnown,
}

/// What a command asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) database: Database,
    pub(super) identity: bool,
    pub(super) pitr: bool,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) backup: Settings,
    /// `None` where there is no file that could say.
    pub(super) pitr: Option<pitr::config::Config>,
}

impl Place {
    /// # Errors
    /// What is wrong with the file or with an option.
    pub(super) fn find(&self, need: Need) -> Result<Found, Error> {
        let path = self.file()?;
        let wanted = Wanted {
            database: self.database_url_file.is_none(),
            identity: need.identity && self.identity.is_none(),
            pitr: need.pitr && path.is_some(),
        };
        let (vault, is_complete) = load(path.as_deref(), wanted, need.database)?;
        complain(&vault.warnings.render(config::Severity::Warning, check::style()));
        let mut backup = vault.backup;
        if let Some(url) = &self.repository {
            backup.repository.url.clone_from(url);
        }
        if !self.recipients.is_empty() {
            backup.repository.recipients.clone_from(&self.recipients);
        }
        if let Some(file) = &self.identity {
            backup.repository.identity = Some(secret(file).map_err(Error::usage)?);
        }
        if let Some(file) = &self.database_url_file {
            let url = secret(file).map_err(Error::usage)?;
            backup.database = Some(postgres::Config { url });
        } else if is_complete && backup.database.is_none() {
            backup.database = from_environment();
        }
        if need.database == Database::Needed && backup.database.is_none() {
            return Err(Error::usage(postgres::Error::NoDatabase));
        }
        Ok(Found {
            backup,
            pitr: vault.pitr,
        })
    }

    /// The configuration file that counts.
    fn file(&self) -> Result<Option<PathBuf>, Error> {
        if self.no_config || self.config.is_some() {
            return Ok(self.config.clone());
        }
        let usual = Path::new(USUAL_CONFIG);
        match usual.try_exists() {
            Ok(exists) => Ok(exists.then(|| usual.to_owned())),
            // Whoever may not look there has to say what he means, lest a default be taken for what the file says.
            Err(_) if self.repository.is_some() => Ok(None),
            Err(error) => Err(Error::usage(anyhow::anyhow!(
                "{USUAL_CONFIG} cannot be looked at ({error}): run this as the service's user, or say --config or --no-config"
            ))),
        }
    }
}

/// And whether nothing had to be left out. An address that is named and cannot be had is not replaced by that of the
/// environment, which may be of another server.
fn load(path: Option<&Path>, wanted: Wanted, database: Database) -> Result<(config::Vault, bool), Error> {
    let errors = match Config::load_vault(path, wanted) {
        Ok(vault) => return Ok((vault, true)),
        Err(errors) => errors,
    };
    let without = Wanted {
        database: false,
        ..wanted
    };
    if database == Database::IfKnown
        && wanted.database
        && let Ok(vault) = Config::load_vault(path, without)
    {
        complain(&format!("note: going on without the database: {errors}\n"));
        return Ok((vault, false));
    }
    Err(Error::Usage(config::report(&errors, check::style())))
}

fn from_environment() -> Option<postgres::Config> {
    let url = std::env::var("DATABASE_URL").ok()?;
    let url = Secret::new(url.trim());
    (!url.reveal().is_empty()).then_some(postgres::Config { url })
}

/// The secret in the file at `path`.
pub(super) fn secret(path: &Path) -> anyhow::Result<Secret> {
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    file.take(SECRET_BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(Secret::of_file(text.trim(), path))
}
