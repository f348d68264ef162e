//! `foregate token`

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::{Error, say};
use crate::admin;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Whose token it is; the audit trail shows this name.
    #[arg(long)]
    name: String,
    #[arg(long, value_enum)]
    role: Role,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    /// May look.
    Viewer,
    /// May also block and unblock, and order backups, verifications, base backups, drills and recovery plans: nothing that
    /// replaces or deletes data.
    Operator,
    /// May do everything: also restore, delete backups and clean them up.
    Admin,
}

pub(super) fn run(options: &Options) -> Result<(), Error> {
    let role = match options.role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    };
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_.@".contains(character);
    if options.name.is_empty() || options.name.len() > 64 || !options.name.chars().all(is_plain) {
        return Err(Error::Usage(
            "foregate: --name takes up to 64 letters, digits and -_.@\n".to_owned(),
        ));
    }
    let token = admin::token::generate().context("no randomness is available")?;
    say(&format!(
        "token (shown once): {}\n\nfor [admin] tokens in config.toml:\n  {{ name = \"{}\", role = \"{role}\", sha256 = \"{}\" }},\n",
        token.secret.reveal(),
        options.name,
        hex::encode(token.sha256),
    ));
    Ok(())
}
