//! `foregate pitr`: the verbs of point-in-time recovery.

use clap::{Args, Subcommand};

use super::{Error, recovery, setup};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    place: recovery::Means,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check the database server's settings, print the lines to add, or apply them.
    Setup(setup::Wish),
    #[command(flatten)]
    Recovery(recovery::Verb),
}

pub(super) fn run(options: &Options) -> Result<(), Error> {
    match &options.verb {
        Verb::Setup(wish) => setup::run(wish, options.place.shared()),
        Verb::Recovery(verb) => recovery::run(verb, &options.place),
    }
}
