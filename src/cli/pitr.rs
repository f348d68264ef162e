//! `foregate pitr`: the verbs of point-in-time recovery.

use clap::{Args, Subcommand};

use super::{Error, setup};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check the database server's settings, print the lines to add, or apply them.
    Setup(setup::Wish),
}

pub(super) fn run(options: &Options) -> Result<(), Error> {
    match &options.verb {
        Verb::Setup(wish) => setup::run(wish),
    }
}
