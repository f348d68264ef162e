//! `foregate pitr`, the half that recovers: works without the server and without a configuration, for the day that the
//! machine burned.

mod act;
mod show;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use jiff::tz::TimeZone;

use super::backup::{progress, secret};
use crate::clock::Clock;
use crate::pitr::name::{Lsn, Timeline};
use crate::pitr::plan::{Goal, Request};
use crate::pitr::{Bases, Config, Recovery, instant};
use crate::postgres::{self, Target};
use crate::repository::layout::Cluster;
use crate::repository::{Keys, Repository};
use crate::secret::Secret;

/// Where everything is.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// Where backups live: file:///directory or s3://bucket/prefix.
    #[arg(
        long,
        global = true,
        default_value = "file:///var/lib/foregate/backups",
        value_name = "URL"
    )]
    repository: String,
    /// An age public key that can open new base backups; may be repeated.
    #[arg(long = "recipient", global = true, value_name = "AGE1...")]
    recipients: Vec<String>,
    /// The age identity file that opens base backups and the log.
    #[arg(long, global = true, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// A file with the database's address; without it, the environment's DATABASE_URL.
    #[arg(long, global = true, value_name = "FILE")]
    database_url_file: Option<PathBuf>,
    /// The cluster meant, as 7566000000000000000-15; without it, the one with the newest base backup.
    #[arg(long = "of", global = true, value_name = "CLUSTER")]
    cluster: Option<String>,
    /// Where drills unpack.
    #[arg(long, global = true, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Under which account the recovered server runs when we are root.
    #[arg(long, global = true, default_value = "postgres", value_name = "NAME")]
    account: String,
    /// In which a time without one is read.
    #[arg(long, global = true, default_value = "UTC", value_name = "ZONE")]
    time_zone: String,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

/// Where recovery shall stop: exactly one.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Aim {
    /// With every transaction that had committed by this instant: 2024-01-15T14:30:00Z, or without a zone.
    #[arg(long, value_name = "TIME")]
    target: Option<String>,
    /// Behind the record at this position of the log.
    #[arg(long, value_name = "LSN")]
    lsn: Option<Lsn>,
    /// At the restore point of this name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Behind this transaction.
    #[arg(long, value_name = "XID")]
    xid: Option<u32>,
    /// At the latest instant that can be reached.
    #[arg(long)]
    latest: bool,
}

#[derive(Debug, Args)]
pub(super) struct Wish {
    #[command(flatten)]
    aim: Aim,
    /// From this base backup; without it, the plan chooses.
    #[arg(long, value_name = "ID")]
    base: Option<ulid::Ulid>,
    /// Along this timeline; without it, the newest.
    #[arg(long, value_name = "NUMBER")]
    timeline: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Take a base backup now, read it back, prove its log, publish it.
    BaseBackup {
        /// `pinned` keeps it until it is deleted by hand.
        #[arg(long = "label", default_value = "manual", value_parser = ["manual", "pinned"])]
        labels: Vec<String>,
    },
    /// The base backups, oldest first.
    BaseBackups,
    /// Which instants can be reached, and which cannot.
    Window,
    /// How a target would be reached; every segment on the way is read and proven.
    Plan {
        #[command(flatten)]
        wish: Wish,
        /// Write the script that carries the plan out.
        #[arg(long, value_name = "FILE")]
        script: Option<PathBuf>,
        /// The data directory that the script replaces.
        #[arg(long, value_name = "DIR")]
        data: Option<String>,
    },
    /// Recover into a new data directory and wait there, paused at the target.
    Recover {
        #[command(flatten)]
        wish: Wish,
        /// The new data directory: it must not exist, or be empty.
        #[arg(long, value_name = "DIR")]
        into: PathBuf,
        /// Promote at once, without a look.
        #[arg(long)]
        promote: bool,
    },
    /// Make a recovered server writable, once you have looked at it.
    Promote { directory: PathBuf },
    /// Only unpack a base backup and let PostgreSQL verify it.
    Unpack {
        base: ulid::Ulid,
        #[arg(long, value_name = "DIR")]
        into: PathBuf,
    },
    /// Rehearse: recover a random instant into a scratch directory and prove that it is that instant.
    Drill {
        /// This instant instead.
        #[arg(long, value_name = "TIME")]
        target: Option<String>,
        /// A question for the recovered database and its answer, as `SELECT count(*) FROM t=20000`; may be repeated.
        #[arg(long = "check", value_name = "SQL=ANSWER")]
        checks: Vec<String>,
    },
    /// Past drills, newest first.
    Drills,
    /// Apply retention to base backups and the log.
    Prune {
        /// How long every instant stays reachable, in days.
        #[arg(long, default_value_t = 7, value_name = "DAYS")]
        window: u64,
        /// Only say what would go, and why each kept one is kept.
        #[arg(long)]
        dry_run: bool,
    },
}

/// `foregate pitr`.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    place: Place,
}

/// # Errors
/// Why it did not do what it was asked.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(Box::pin(act::act(&options.verb, &options.place)))
}

impl Place {
    fn url(&self) -> anyhow::Result<Option<Secret>> {
        match &self.database_url_file {
            Some(path) => secret(path).map(Some),
            None => Ok(std::env::var("DATABASE_URL").ok().map(Secret::new)),
        }
    }

    /// What talks to the server must know where it is.
    fn needs_server(&self) -> anyhow::Result<()> {
        self.url()?
            .map(drop)
            .context("neither --database-url-file nor DATABASE_URL is set")
    }

    fn zone(&self) -> anyhow::Result<TimeZone> {
        TimeZone::get(&self.time_zone).with_context(|| format!("{:?} is not a time zone", self.time_zone))
    }

    fn recovery(&self, checks: Vec<crate::pitr::drill::Check>) -> anyhow::Result<Recovery> {
        let target = match self.url()? {
            Some(url) => Target::parse(&postgres::Config { url })?,
            // The server is gone; what is recovered has its usual superuser.
            None => Target::local(
                std::path::Path::new("/var/run/postgresql"),
                5432,
                "postgres",
                "postgres",
            )?,
        };
        let identity = self.identity.as_deref().map(secret).transpose()?;
        let keys = Keys::new(&self.recipients, identity.as_ref())?;
        let cluster = match &self.cluster {
            Some(text) => Some(Cluster::parse(text).with_context(|| format!("{text:?} is not a cluster"))?),
            None => None,
        };
        let scratch = self.scratch.clone().unwrap_or_else(std::env::temp_dir);
        let step_timeout = Duration::from_hours(12);
        let bases = Bases::new(
            target,
            Repository::open(&self.repository)?,
            Arc::new(keys),
            Clock::system(),
            progress(self.json),
            scratch.clone(),
            step_timeout,
        );
        let config = Config {
            cluster,
            scratch,
            account: self.account.clone(),
            step_timeout,
            heartbeat: Duration::from_secs(15),
            checks,
        };
        Ok(Recovery::new(config, bases))
    }

    fn time(&self, text: &str) -> anyhow::Result<jiff::Timestamp> {
        let understood = instant::read(text, &self.zone()?).map_err(anyhow::Error::msg)?;
        if let Some(note) = understood.note {
            super::complain(&format!("note: {note}\n"));
        }
        Ok(understood.at)
    }
}

impl Wish {
    fn request(&self, place: &Place) -> anyhow::Result<Request> {
        let aim = &self.aim;
        let goal = match (&aim.target, aim.lsn, &aim.name, aim.xid) {
            (Some(text), ..) => Goal::Time(place.time(text)?),
            (_, Some(lsn), ..) => Goal::Lsn(lsn),
            (_, _, Some(name), _) => Goal::Name(name.clone()),
            (.., Some(xid)) => Goal::Transaction(xid),
            _ => Goal::Latest,
        };
        Ok(Request {
            goal,
            base: self.base,
            timeline: self.timeline.map(Timeline),
        })
    }
}
