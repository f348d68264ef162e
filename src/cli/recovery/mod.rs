//! `foregate pitr`, the half that recovers: works without the server and without a configuration, for the day that the
//! machine burned.

mod act;
mod show;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use jiff::tz::TimeZone;

use super::Error;
use super::backup::{END_MAX, progress};
use super::vault::{Database, Found, Need, Place};
use crate::clock::Clock;
use crate::pitr::config::Check;
use crate::pitr::name::{Lsn, Timeline};
use crate::pitr::plan::{Goal, Request};
use crate::pitr::recovery::{Config, Ground};
use crate::pitr::retention::Policy;
use crate::pitr::setup::Way;
use crate::pitr::{Recovery, instant};
use crate::postgres::Target;
use crate::repository::layout::Cluster;

/// Where everything is, and what recovery needs besides.
#[derive(Debug, Args)]
pub(super) struct Means {
    #[command(flatten)]
    place: Place,
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
pub(super) fn run(verb: &Verb, means: &Means) -> Result<(), Error> {
    let site = Site::find(verb, means)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let done = runtime.block_on(Box::pin(act::act(verb, &site)));
    runtime.shutdown_timeout(END_MAX);
    Ok(done?)
}

impl Means {
    pub(super) fn shared(&self) -> &Place {
        &self.place
    }
}

/// The longest that one step may take which somebody waits for, and can end: the largest cluster has to come back.
const STEP_MAX: Duration = Duration::from_hours(7 * 24);

/// What the command line and the configuration say, read once.
#[derive(Debug)]
struct Site<'a> {
    means: &'a Means,
    json: bool,
    /// Whether the verb writes into the repository.
    writes: bool,
    found: Found,
    target: Target,
    cluster: Option<Cluster>,
    zone: TimeZone,
}

impl<'a> Site<'a> {
    fn find(verb: &Verb, means: &'a Means) -> Result<Self, Error> {
        let database = match verb {
            Verb::BaseBackup { .. } => Database::Needed,
            _ => Database::IfKnown,
        };
        let found = means.place.find(Need {
            database,
            // What is promoted has left the repository behind.
            identity: !matches!(verb, Verb::Promote { .. }),
            pitr: true,
        })?;
        let target = match &found.backup.database {
            Some(database) => Target::parse(database),
            // The server is gone; what is recovered has its usual superuser.
            None => Target::local(Path::new("/var/run/postgresql"), 5432, "postgres", "postgres"),
        };
        let cluster = means.cluster.as_deref().map(|text| {
            let cluster = Cluster::parse(text).with_context(|| format!("{text:?} is not a cluster"));
            cluster.map_err(Error::usage)
        });
        let zone = means.time_zone.as_deref().map(|name| {
            let zone = TimeZone::get(name).with_context(|| format!("{name:?} is not a time zone"));
            zone.map_err(Error::usage)
        });
        Ok(Self {
            means,
            json: means.place.json,
            writes: matches!(verb, Verb::BaseBackup { .. } | Verb::Drill { .. } | Verb::Prune { .. }),
            target: target.map_err(Error::usage)?,
            cluster: cluster.transpose()?,
            zone: zone.transpose()?.unwrap_or_else(|| found.backup.plan.zone.clone()),
            found,
        })
    }

    /// What may be deleted: as the configuration says, unless told otherwise.
    fn policy(&self, days: Option<u64>) -> Policy {
        let pitr = self.found.pitr.as_ref();
        let schedule = pitr.and_then(|pitr| pitr.base_backup);
        let day = Duration::from_hours(24);
        let given = days.map(|days| day.saturating_mul(u32::try_from(days).unwrap_or(u32::MAX)));
        let window = given.or(pitr.map(|pitr| pitr.window));
        Policy::new(window.unwrap_or(Policy::default().window), schedule)
    }

    fn recovery(&self, mut checks: Vec<Check>) -> anyhow::Result<Recovery> {
        let pitr = self.found.pitr.as_ref();
        checks.extend(pitr.iter().flat_map(|pitr| pitr.checks.clone()));
        let scratch = self.means.scratch.clone();
        let scratch = scratch.or_else(|| Some(pitr?.scratch.clone()));
        let ground = Ground {
            target: self.target.clone(),
            clock: Clock::system(),
            progress: progress(self.json),
            archiver: None,
            config: Config {
                repository: self.found.backup.repository.clone(),
                // Without a file nobody says whose state counts.
                state_dir: (self.writes && pitr.is_some()).then(|| self.found.backup.state_dir.clone()),
                cluster: self.cluster.clone(),
                scratch: scratch.unwrap_or_else(std::env::temp_dir),
                account: self.means.account.clone(),
                step_timeout: STEP_MAX,
                wal: pitr.map_or(Way::ArchiveCommand, |pitr| pitr.wal),
                // Without a configuration nobody says that there is one.
                heartbeat: pitr.map_or(Duration::ZERO, |pitr| pitr.heartbeat),
                checks,
            },
        };
        // By the configuration's window, not the usual one.
        Ok(Recovery::open(ground)?.with_policy(self.policy(None)))
    }

    fn time(&self, text: &str) -> anyhow::Result<jiff::Timestamp> {
        let understood = instant::read(text, &self.zone).map_err(anyhow::Error::msg)?;
        if let Some(note) = understood.note {
            super::complain(&format!("note: {note}\n"));
        }
        Ok(understood.at)
    }
}

impl Wish {
    fn request(&self, site: &Site<'_>) -> anyhow::Result<Request> {
        let aim = &self.aim;
        let goal = match (&aim.target, aim.lsn, &aim.name, aim.xid) {
            (Some(text), ..) => Goal::Time(site.time(text)?),
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
