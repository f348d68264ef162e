//! `foregate wal`: what PostgreSQL's `archive_command` and `restore_command` start, once for each file.
//!
//! The exit codes are PostgreSQL's language. `push`: 0 is "durable", anything up to 125 is "again later"; more would end
//! its archiver. `get`: 0 is "here it is", 1 is "there is none", and anything else must be 126 or more: below that it is
//! taken for the end of the log, and the database is promoted without what follows.

mod alone;
mod place;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::complain;
use crate::pitr::archive::Found;
use crate::pitr::name::File;
use crate::pitr::socket::client::{Asked, ask};
use crate::pitr::socket::{Act, Answer, Request};
use crate::repository::layout::Cluster;
use crate::telemetry::cause::chain;

/// `push`: PostgreSQL keeps the segment and tries again.
const EXIT_AGAIN: u8 = 1;
/// `get`: the archive was asked and has no such file.
const EXIT_ABSENT: u8 = 1;
/// `get`: nothing is known about the file; recovery must stop here.
pub(super) const EXIT_FAULT: u8 = 126;
const VERBS: [&str; 4] = ["push", "get", "check", "feed"];
/// Where the server listens, unless told: as the package sets it up, and by default.
const SOCKETS: [&str; 2] = ["/run/foregate/wal.sock", "/var/lib/foregate/wal.sock"];

/// The log's archive, as PostgreSQL uses it.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
    /// The running server's socket.
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    alone: alone::Alone,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Archive a file: `archive_command = 'foregate wal push %p'`.
    Push {
        /// The file, as PostgreSQL's %p names it.
        path: PathBuf,
    },
    /// Fetch a file: `restore_command = 'foregate wal get %f "%p"'`.
    Get {
        /// The file's name, PostgreSQL's %f.
        name: String,
        /// Where to put it, PostgreSQL's %p.
        path: PathBuf,
    },
    /// Would a push from here be taken? Run in the data directory, as PostgreSQL runs its commands.
    Check,
    /// Fetch ahead for a recovery while the server is down; `get` starts it by itself, and it ends by itself.
    #[command(hide = true)]
    Feed,
}

/// Whether the arguments ask for `wal get`, whose exit codes differ even where they are wrong.
pub(super) fn is_get(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> bool {
    let is_verb = |argument: &std::ffi::OsString| VERBS.iter().any(|verb| argument == verb);
    // The first verb is the one that counts: what follows may be a file of any name.
    arguments.any(|argument| argument == "wal") && arguments.find(is_verb).is_some_and(|verb| verb == "get")
}

/// Runs the command. Nothing leaves here but the codes above, panics included.
pub(super) fn run(options: &Options) -> ExitCode {
    // The complaint as well: an error's text comes from many hands.
    let done = catch_unwind(AssertUnwindSafe(|| {
        carry_out(options).map_err(|error| complain(&format!("foregate: {}\n", chain(error.as_ref()))))
    }));
    let fault = match options.command {
        Command::Push { .. } | Command::Check => EXIT_AGAIN,
        _ => EXIT_FAULT,
    };
    match done {
        Ok(Ok(code)) => ExitCode::from(code),
        // A panic has been reported by its hook.
        Ok(Err(())) | Err(_) => ExitCode::from(fault),
    }
}

fn carry_out(options: &Options) -> anyhow::Result<u8> {
    match &options.command {
        Command::Push { path } => push(options, path)?,
        Command::Get { name, path } => {
            if get(options, name, path)? == Found::No {
                return Ok(EXIT_ABSENT);
            }
        }
        Command::Check => check(options)?,
        Command::Feed => alone::feed(options.socket.as_deref(), &options.alone)?,
    }
    Ok(0)
}

fn push(options: &Options, path: &Path) -> anyhow::Result<()> {
    let source = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let file = file_of(path)?;
    let cluster = place::cluster(path, options.alone.cluster.as_deref(), Some(&source))?;
    let request = Request {
        act: Act::Push,
        file,
        cluster,
    };
    match server(options, &request, &source) {
        Asked::Answered(Answer::Done) => Ok(()),
        Asked::Answered(Answer::Failed(why)) => anyhow::bail!("{file} was not archived: {why}"),
        Asked::Answered(Answer::Absent) => anyhow::bail!("{file} was not archived"),
        Asked::Broken(error) => {
            Err(error).with_context(|| format!("the server did not say whether {file} is archived"))
        }
        Asked::Unreachable(error) => {
            if !options.alone.is_given() {
                return Err(error)
                    .context("the server is not there, and no --repository or --config to archive to without it");
            }
            alone::push(&options.alone, &request, source)
        }
    }
}

/// What `foregate pitr setup` lets PostgreSQL itself run, to see that its archiver can.
fn check(options: &Options) -> anyhow::Result<()> {
    let cluster = place::cluster(Path::new("pg_wal/x"), options.alone.cluster.as_deref(), None)?;
    let any = std::fs::File::open(std::env::current_exe()?)?;
    let request = Request {
        act: Act::Check,
        file: File::History(crate::pitr::name::Timeline(1)),
        cluster,
    };
    match server(options, &request, &any) {
        Asked::Answered(Answer::Failed(why)) => anyhow::bail!("the server would not archive: {why}"),
        Asked::Answered(_) => Ok(()),
        Asked::Broken(error) => Err(error).context("the server did not answer"),
        Asked::Unreachable(_) if options.alone.is_given() => alone::check(&options.alone, &request),
        Asked::Unreachable(error) => Err(error).context("the server is not there"),
    }
}

fn get(options: &Options, name: &str, path: &Path) -> anyhow::Result<Found> {
    let file: File = name.parse()?;
    let cluster = place::cluster(path, options.alone.cluster.as_deref(), None)?;
    let request = Request {
        act: Act::Get,
        file,
        cluster,
    };
    let sink = place::Unfinished::beside(path)?;
    let found = if options.alone.is_given() {
        // A server may hold public keys only; whoever names a repository has brought the key.
        alone::get(&options.alone, &request, &sink)?
    } else {
        match server(options, &request, sink.file()) {
            Asked::Answered(Answer::Done) => Found::Yes,
            Asked::Answered(Answer::Absent) => Found::No,
            Asked::Answered(Answer::Failed(why)) => anyhow::bail!("{file} cannot be fetched: {why}"),
            Asked::Broken(error) => return Err(error).context("the server did not answer"),
            Asked::Unreachable(error) => {
                return Err(error).context("the server is not there, and neither --repository nor --config is given");
            }
        }
    };
    if found == Found::Yes {
        sink.publish()?;
    }
    Ok(found)
}

fn server(options: &Options, request: &Request, file: &std::fs::File) -> Asked {
    if let Some(socket) = &options.socket {
        return ask(socket, request, file);
    }
    let mut asked = Asked::Unreachable(std::io::ErrorKind::NotFound.into());
    for socket in SOCKETS {
        asked = ask(Path::new(socket), request, file);
        if !matches!(asked, Asked::Unreachable(_)) {
            break;
        }
    }
    asked
}

fn file_of(path: &Path) -> anyhow::Result<File> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    Ok(name.parse()?)
}

/// As the server's socket names a cluster.
fn named_cluster(text: &str) -> anyhow::Result<Cluster> {
    crate::pitr::socket::parse_cluster(text)
        .with_context(|| format!("{text:?} is not a cluster as 7566000000000000000-15"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_wrong_get_ends_with_the_code_that_would_kill_the_archiver() {
        let asked = |line: &str| is_get(line.split(' ').map(Into::into));
        assert!(asked("foregate wal get"));
        assert!(asked("foregate wal --socket x get %f %p"));
        for line in [
            "foregate wal push --bad get",
            "foregate wal push",
            "foregate get",
            "foregate wal",
            "foregate",
        ] {
            assert!(!asked(line), "{line}");
        }
    }
}
