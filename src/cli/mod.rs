//! The command line: one file per command. What a command prints is for people; errors go to standard error with their
//! whole chain, and the exit code says what kind they were.

mod backup;
mod check;
mod demo;
mod pitr;
mod recovery;
mod run;
mod setup;
mod token;
mod vault;
mod wal;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use comfy_table::{ContentArrangement, Table};
use tokio::signal::unix::{SignalKind, signal};

use crate::telemetry::cause::chain;

/// The configuration or the command line is wrong (EX_USAGE of sysexits).
const EXIT_USAGE: u8 = 64;
/// Something failed while running.
const EXIT_FAILURE: u8 = 1;
/// Nothing failed, and something outside has to happen first (EX_TEMPFAIL of sysexits).
const EXIT_WAITS: u8 = 75;

/// In columns.
const TABLE_WIDTH: u16 = 100;

/// The gate that stands in front of the gate: TLS, limits, blocks and backups for one web app.
#[derive(Debug, Parser)]
#[command(name = "foregate", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: the gate in front of the app, and the admin listener.
    Run(Source),
    /// Check the configuration: print every error, or the effective configuration with secrets masked.
    Check(Source),
    /// Try it: a sample app (or your own), the gate on https://localhost:8443, the admin page on http://127.0.0.1:8444.
    Demo(demo::Options),
    /// Backups of the app's PostgreSQL: make, list, prove, restore, prune. Works while the server is down.
    Backup(backup::Options),
    /// Point-in-time recovery: setup, base backups, the window, plans, recovery, drills. Works while the server is down.
    Pitr(Box<pitr::Options>),
    /// The log's archive, as PostgreSQL's archive_command and restore_command use it.
    Wal(wal::Options),
    /// Make an admin token: prints it once, with the line for the configuration.
    Token(token::Options),
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
struct Source {
    /// The configuration file.
    #[arg(long, value_name = "FILE", required_unless_present = "upstream")]
    config: Option<PathBuf>,
    /// The app's address, e.g. http://127.0.0.1:3000; replaces `upstream.servers`.
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
}

/// Why a command ended without doing what it was asked.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Already complete sentences for the user.
    #[error("{0}")]
    Usage(String),
    /// What it waits for.
    #[error("{0}")]
    Waits(String),
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl Error {
    /// The command line or the configuration is to blame.
    fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::Usage(format!("foregate: {:#}\n", error.into()))
    }
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" too; clap knows which stream and code they want.
            let code = match error.use_stderr() {
                false => 0,
                true if wal::is_get(std::env::args_os()) => wal::EXIT_FAULT,
                true => EXIT_USAGE,
            };
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let done = match cli.command {
        Command::Run(source) => run::run(&source),
        Command::Check(source) => check::run(&source),
        Command::Demo(options) => demo::run(&options),
        Command::Backup(options) => backup::run(&options),
        Command::Pitr(options) => pitr::run(&options),
        Command::Wal(options) => return wal::run(&options),
        Command::Token(options) => token::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Usage(text)) => {
            complain(&text);
            ExitCode::from(EXIT_USAGE)
        }
        Err(Error::Waits(text)) => {
            complain(&format!("foregate: {text}\n"));
            ExitCode::from(EXIT_WAITS)
        }
        Err(Error::Failed(error)) => {
            complain(&format!("foregate: {}\n", chain(error.as_ref())));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// A table as wide as a terminal at most: long texts go on in the next line.
fn fitted_table() -> Table {
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(TABLE_WIDTH);
    table
}

fn complain(text: &str) {
    drop(io::stderr().lock().write_all(text.as_bytes()));
}

/// Ends at ctrl-C or SIGTERM, which end nothing by themselves from then on.
fn interruption() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_can_be_parsed() {
        Cli::command().debug_assert();
    }
}
