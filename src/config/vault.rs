//! The vault's part of the file, for its commands: they run in shells and on days where the secrets of other sections are
//! not at hand, and must not be refused for those.

use std::path::Path;

use super::{Config, Errors, Findings, read, resolve, understand};
use crate::{backup, pitr};

/// What a command needs of the file, besides what stands in it in the clear. What a command has been told by an option is
/// not looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// `database.url`.
    pub database: bool,
    /// `backup.identity`.
    pub identity: bool,
    /// All of `[pitr]`.
    pub pitr: bool,
}

/// `[database]` and `[backup]`, and `[pitr]` where it is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Vault {
    pub backup: backup::Settings,
    pub pitr: Option<pitr::config::Config>,
    pub warnings: Findings,
}

impl Wanted {
    pub const ALL: Self = Self {
        database: true,
        identity: true,
        pitr: true,
    };
}

impl Config {
    /// As [`Config::load`], but of the vault's sections alone: the others may hold mistakes and name secrets that are not
    /// there. A section that no configuration has is a mistake all the same: it may have been meant to be one of these.
    pub fn load_vault(path: Option<&Path>, wanted: Wanted) -> Result<Vault, Errors> {
        let (bytes, origin) = match path {
            Some(path) => (read(path)?, path),
            None => (Vec::new(), Path::new("defaults")),
        };
        let resolve = |root: super::Section<'_>, base: &Path| resolve::vault(root, base, wanted);
        let ((backup, pitr), warnings, _) = understand(&bytes, origin, resolve)?;
        Ok(Vault { backup, pitr, warnings })
    }
}
