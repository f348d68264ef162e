//! `foregate pitr`, the half that recovers: works without the server and without a configuration, for the day that the
//! machine burned.

mod act;
mod show;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use jiff::tz::TimeZone;

use super::backup::{progress, secret};
use crate::clock::Clock;
use crate::pitr::config::Check;
use crate::pitr::name::{Lsn, Timeline};
use crate::pitr::plan::{Goal, Request};
use crate::pitr::recovery::{Config, Ground};
use crate::pitr::retention::Policy;
use crate::pitr::{Recovery, instant};
use crate::postgres::{self, Target};
use crate::repository::layout::Cluster;
use crate::secret::Secret;
use crate::{config, repository};

/// Where everything is.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The configuration file: repository, keys, database and checks stand there. What is given besides outweighs it.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where backups live: file:///directory or s3://bucket/prefix; file:///var/lib/foregate/backups without --config.
    #[arg(long, global = true, value_name = "URL")]
    repository: Option<String>,
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
    /// Under which account the recovered server runs when we are root; else whose the directory is, or postgres.
    #[arg(long, global = true, value_name = "NAME")]
    account: Option<String>,
    /// In which a time without one is read; UTC unless the configuration says otherwise.
    #[arg(long, global = true, value_name = "ZONE")]
    time_zone: Option<String>,
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
    /// The log, the base backups, the window and the last drill, in numbers.
    Stats,
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
        /// How long every instant stays reachable, in days; without it, `pitr.window`, or 7 without --config.
        #[arg(long, value_name = "DAYS")]
        window: Option<u64>,
        /// Only say what would go, and why each kept one is kept.
        #[arg(long)]
        dry_run: bool,
    },
}

/// # Errors
/// Why it did not do what it was asked.
pub(super) fn run(verb: &Verb, place: &Place) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(Box::pin(act::act(verb, place)))
}

impl Place {
    fn url(&self) -> anyhow::Result<Option<Secret>> {
        match &self.database_url_file {
            Some(path) => secret(path).map(Some),
            None => Ok(std::env::var("DATABASE_URL").ok().map(Secret::new)),
        }
    }

    /// What stands in the file, if there is one.
    fn file(&self) -> anyhow::Result<Option<config::Config>> {
        let Some(path) = &self.config else {
            return Ok(None);
        };
        let origin = crate::app::Origin {
            path: Some(path.clone()),
            overrides: config::Overrides::default(),
        };
        let loaded = super::check::load(&origin).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Some(loaded.config))
    }

    /// What talks to the server must know where it is.
    fn needs_server(&self) -> anyhow::Result<()> {
        let known = self.url()?.is_some() || self.file()?.is_some_and(|file| file.backup.database.is_some());
        anyhow::ensure!(
            known,
            "neither --config, --database-url-file nor DATABASE_URL says where the database is"
        );
        Ok(())
    }

    fn zone(&self) -> anyhow::Result<TimeZone> {
        match &self.time_zone {
            Some(name) => TimeZone::get(name).with_context(|| format!("{name:?} is not a time zone")),
            None => Ok(self.file()?.map_or(TimeZone::UTC, |file| file.backup.plan.zone)),
        }
    }

    /// What may be deleted: as the configuration says, unless told otherwise.
    fn policy(&self, days: Option<u64>) -> anyhow::Result<Policy> {
        let pitr = self.file()?.map(|file| file.pitr);
        let schedule = pitr.as_ref().and_then(|pitr| pitr.base_backup);
        let day = Duration::from_hours(24);
        let given = days.map(|days| day.saturating_mul(u32::try_from(days).unwrap_or(u32::MAX)));
        let window = given.or(pitr.map(|pitr| pitr.window));
        Ok(Policy::new(window.unwrap_or(Policy::default().window), schedule))
    }

    fn recovery(&self, mut checks: Vec<Check>) -> anyhow::Result<Recovery> {
        let file = self.file()?;
        let url = self.url()?.map(|url| postgres::Config { url });
        let target = match url.or_else(|| file.as_ref().and_then(|file| file.backup.database.clone())) {
            Some(database) => Target::parse(&database)?,
            // The server is gone; what is recovered has its usual superuser.
            None => Target::local(
                std::path::Path::new("/var/run/postgresql"),
                5432,
                "postgres",
                "postgres",
            )?,
        };
        let mut stored = match &file {
            Some(file) => file.backup.repository.clone(),
            None => repository::Config {
                url: "file:///var/lib/foregate/backups".to_owned(),
                recipients: Vec::new(),
                identity: None,
            },
        };
        if let Some(url) = &self.repository {
            stored.url.clone_from(url);
        }
        if !self.recipients.is_empty() {
            stored.recipients.clone_from(&self.recipients);
        }
        if let Some(identity) = &self.identity {
            stored.identity = Some(secret(identity)?);
        }
        let cluster = match &self.cluster {
            Some(text) => Some(Cluster::parse(text).with_context(|| format!("{text:?} is not a cluster"))?),
            None => None,
        };
        let pitr = file.map(|file| file.pitr);
        checks.extend(pitr.iter().flat_map(|pitr| pitr.checks.clone()));
        let scratch = self
            .scratch
            .clone()
            .or_else(|| pitr.as_ref().map(|pitr| pitr.scratch.clone()));
        let scratch = scratch.unwrap_or_else(std::env::temp_dir);
        let ground = Ground {
            target,
            clock: Clock::system(),
            progress: progress(self.json),
            archiver: None,
            config: Config {
                repository: stored,
                cluster,
                scratch,
                account: self.account.clone(),
                step_timeout: Duration::from_hours(12),
                // Without a configuration nobody says that there is one.
                heartbeat: pitr.map_or(Duration::ZERO, |pitr| pitr.heartbeat),
                checks,
            },
        };
        Ok(Recovery::open(ground)?)
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
