//! One file per command.

pub mod backup;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The gate that stands in front of the gate.
#[derive(Debug, Parser)]
#[command(name = "foregate", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Backups: make, list, verify, restore, prune.
    Backup(backup::Options),
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { 64 } else { 0 };
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let Command::Backup(options) = cli.command;
    match backup::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(
                std::io::stderr()
                    .lock()
                    .write_all(format!("foregate: {error:#}\n").as_bytes()),
            );
            ExitCode::FAILURE
        }
    }
}
