//! Drills: a random instant of the window is recovered into a scratch directory and proven to be that instant.
//!
//! That a server starts proves little. What counts: the transaction at which it stopped is the one that the log has
//! there, the newest heartbeat in it is the one of that instant, every table and index is sound, and the questions that
//! the operator wrote down have their answers.

mod heartbeat;
mod record;

pub(super) use self::record::Records;

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use ulid::Ulid;

use super::config::Check;
use super::plan::{Goal, Plan, Rates, Request};
use super::recover::{Phases, Place, Running};
use super::{Error, Recovery, local, version};
use crate::postgres::child::Command;
use crate::postgres::program::Programs;
use crate::postgres::secrets::PrivateDirectory;
use crate::postgres::server::hand_over;
use crate::telemetry::cause::chain;

/// What a drill looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub what: String,
    pub passed: bool,
    pub found: String,
}

/// The result of one drill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drill {
    pub id: Ulid,
    pub at: Timestamp,
    /// The instant that was recovered; `None`: there was no plan.
    pub target: Option<Timestamp>,
    pub base: Option<Ulid>,
    pub phases: Phases,
    /// Heartbeat, `pg_amcheck` and the questions.
    pub check: Duration,
    pub unpacked_bytes: u64,
    pub replayed_bytes: u64,
    /// What would have been lost, had the server burned when the drill began.
    pub recovery_point: Option<Duration>,
    pub findings: Vec<Finding>,
    /// Why it failed; `None`: it passed.
    pub failure: Option<String>,
}

impl Drill {
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failure.is_none()
    }

    /// From the order to a server that takes writes; what was checked besides is not part of it.
    #[must_use]
    pub fn recovery_time(&self) -> Duration {
        self.phases.total()
    }
}

impl Recovery {
    /// Rehearses the recovery of a random instant, or of `target`, and keeps the result, whatever it is.
    ///
    /// # Errors
    /// The result could not be kept. A recovery that failed is a result.
    pub async fn drill(&self, target: Option<Timestamp>) -> Result<Drill, Error> {
        let began = self.bases.clock.wall();
        let mut drill = Drill {
            id: Ulid::generate(),
            at: began,
            target,
            base: None,
            phases: Phases::default(),
            check: Duration::ZERO,
            unpacked_bytes: 0,
            replayed_bytes: 0,
            recovery_point: None,
            findings: Vec::new(),
            failure: None,
        };
        if let Err(error) = Box::pin(self.rehearse(&mut drill)).await {
            drill.failure = Some(chain(&error));
        } else if let Some(failed) = drill.findings.iter().find(|finding| !finding.passed) {
            drill.failure = Some(format!("{}: {}", failed.what, failed.found));
        }
        if let Ok(cluster) = self.cluster().await {
            self.keep(&cluster, &drill).await?;
        }
        Ok(drill)
    }

    async fn rehearse(&self, drill: &mut Drill) -> Result<(), Error> {
        let (clock, began) = (self.bases.clock, self.bases.clock.tick());
        let window = self.window().await?;
        let point = window.recovery_point(drill.at);
        drill.recovery_point = point.and_then(|point| Duration::try_from(point).ok());
        if drill.target.is_none() {
            drill.target = window.at_share(random_share());
        }
        let goal = drill.target.map_or(Goal::Latest, Goal::Time);
        let plan = self
            .plan(&Request {
                goal,
                base: None,
                timeline: None,
            })
            .await?;
        let planned = clock.tick().saturating_sub(began);
        drill.phases.plan = planned;
        drill.base = Some(plan.base.id);
        drill.unpacked_bytes = plan.base.unpacked_bytes();
        drill.replayed_bytes = plan.replay_bytes;
        self.sweep_scratch().await;
        let user = self.account(&self.config.scratch)?;
        let made = std::fs::DirBuilder::new().recursive(true).create(&self.config.scratch);
        made.map_err(local("making the scratch directory"))?;
        // Gone, with all that is in it, when this returns.
        let scratch =
            PrivateDirectory::new(&self.config.scratch, SCRATCH).map_err(local("making the scratch directory"))?;
        let _held = hold(scratch.path()).map_err(local("locking the scratch directory"))?;
        hand_over(scratch.path(), user).map_err(local("making the scratch directory"))?;
        let place = Place::beside(&scratch.path().join("data"), user);
        let mut running = self.recover(&plan, &place, std::future::pending()).await?;
        drill.phases = Phases {
            plan: planned,
            ..running.phases
        };
        let checked = self.examine(drill, &plan, &mut running).await;
        running.stop().await;
        checked
    }

    async fn examine(&self, drill: &mut Drill, plan: &Plan, running: &mut Running) -> Result<(), Error> {
        let clock = self.bases.clock;
        drill.findings.push(Finding {
            what: "stopped at the planned transaction".to_owned(),
            passed: true,
            found: running.reached.said.clone(),
        });
        let began = clock.tick();
        let heartbeat = self.heartbeat(drill.target, plan, running).await?;
        drill.findings.push(heartbeat);
        drill.check = clock.tick().saturating_sub(began);
        let began = clock.tick();
        running.promote().await?;
        drill.phases.promote = clock.tick().saturating_sub(began);
        let began = clock.tick();
        if version::has_amcheck(plan.cluster.major) {
            drill.findings.push(self.amcheck(plan, running).await?);
        }
        for check in &self.config.checks {
            drill.findings.push(ask(check, running).await?);
        }
        drill.check = drill.check.saturating_add(clock.tick().saturating_sub(began));
        Ok(())
    }

    async fn amcheck(&self, plan: &Plan, running: &Running) -> Result<Finding, Error> {
        drop(self.bases.step("pg_amcheck"));
        let programs = Programs::server(plan.cluster.major)?;
        let command = Command::new(programs.path("pg_amcheck"))
            .arg("--all")
            .arg("--install-missing")
            .arg("--no-password")
            .arg("--jobs=2");
        let target = running.layout().target(running.role(), "postgres")?;
        let done = command
            .target(&target, "foregate drill")?
            .start()?
            .finish(self.config.step_timeout)
            .await;
        Ok(Finding {
            what: "pg_amcheck of every database".to_owned(),
            passed: done.is_ok(),
            found: done.map_or_else(|error| error.to_string(), |()| "sound".to_owned()),
        })
    }

    /// What past drills took, averaged over the newest that passed.
    pub(super) async fn rates(&self, cluster: &crate::repository::layout::Cluster) -> Result<Option<Rates>, Error> {
        let drills = self.drills_of(cluster, RATES_OF).await?;
        Ok(rates(&drills))
    }

    /// Removes what killed drills left, which may be as large as the database.
    pub(super) async fn sweep_scratch(&self) {
        let scratch = self.config.scratch.clone();
        // Of a sweep that panics, as of what it cannot remove, the next drill takes care.
        drop(tokio::task::spawn_blocking(move || sweep(&scratch)).await);
    }
}

/// The servers of killed drills died with them; a drill that runs holds a lock.
fn sweep(scratch: &Path) {
    for entry in std::fs::read_dir(scratch).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let id = name
            .to_str()
            .and_then(|name| name.strip_prefix("foregate-")?.strip_prefix(SCRATCH)?.strip_prefix('-'));
        if id.is_none_or(|id| Ulid::from_string(id).is_err()) {
            continue;
        }
        if let Ok(_held) = hold(&entry.path()) {
            match std::fs::remove_dir_all(entry.path()) {
                Ok(()) => tracing::info!(directory = %entry.path().display(), "removed what a killed drill left"),
                Err(error) => {
                    tracing::warn!(directory = %entry.path().display(), %error, "what a killed drill left stays");
                }
            }
        }
    }
}

/// Locks a scratch directory for as long as the result lives; fails where another process holds it.
fn hold(directory: &Path) -> std::io::Result<std::fs::File> {
    let file = std::fs::File::open(directory)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// The scratch directories' stem.
const SCRATCH: &str = "drill";
const RATES_OF: usize = 5;

fn rates(drills: &[Drill]) -> Option<Rates> {
    let good: Vec<&Drill> = drills.iter().filter(|drill| drill.passed()).collect();
    let last = good.first()?;
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let rate = |bytes: fn(&Drill) -> u64, time: fn(&Drill) -> Duration| {
        let bytes: u64 = good.iter().map(|drill| bytes(drill)).sum();
        let time: Duration = good.iter().map(|drill| time(drill)).sum();
        bytes as f64 / time.as_secs_f64().max(0.001)
    };
    Some(Rates {
        unpack: rate(
            |drill| drill.unpacked_bytes,
            |drill| drill.phases.unpack + drill.phases.verify,
        ),
        replay: rate(|drill| drill.replayed_bytes, |drill| drill.phases.replay),
        rest: last.phases.plan + last.phases.promote,
    })
}

async fn ask(check: &Check, running: &mut Running) -> Result<Finding, Error> {
    let database = running.database().to_owned();
    let admin = running.connect(&database).await?;
    let answer = admin.text(&format!("asking {:?}", check.sql), &check.sql).await;
    Ok(match answer {
        Ok(answer) => {
            let answer = answer.unwrap_or_default();
            Finding {
                what: check.sql.clone(),
                passed: answer == check.expect,
                found: if answer == check.expect {
                    answer
                } else {
                    format!("{answer:?} instead of {:?}", check.expect)
                },
            }
        }
        Err(error) => Finding {
            what: check.sql.clone(),
            passed: false,
            found: chain(&error),
        },
    })
}

/// Between 0 and 1, from the system's generator.
fn random_share() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness the end is rehearsed, which is the likeliest in need.
    if getrandom::fill(&mut bytes).is_err() {
        return 1.0;
    }
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}
