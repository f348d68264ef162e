//! Recovery as it is kept possible in the server: base backups and drills when they are due or when asked, retention
//! after them, and a look at the window every minute. What it knows is read from memory.
//!
//! The repository says which periods have been served, so a restart neither forgets nor repeats one; the timer and the
//! button take the same path, and what is running is never queued behind itself.

mod metrics;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use prometheus::Registry;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::metrics::Metrics;
use super::base::{Base, Mode};
use super::drill::{self, Drill};
use super::recovery::{self, Ground, Recovery};
use super::retention::Policy;
use super::window::Window;
use super::{Error, config};
use crate::clock::Clock;
use crate::postgres::{self, Target};
use crate::repository;
use crate::tasks::calendar::Schedule;
use crate::telemetry::health::{Board, Condition};

/// How often the window is looked at, and whether something is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// After a failure the next try waits: what failed may need a person.
const RETRY_AFTER: Duration = Duration::from_secs(900);
/// The longest that one step of a run may take.
const STEP_TIMEOUT: Duration = Duration::from_hours(12);
/// The names on the health board.
const BASE: &str = "base backup";
const DRILL: &str = "drill";
const WINDOW: &str = "window";

/// What the routine is made of.
#[derive(Debug)]
pub struct Parts {
    pub config: config::Config,
    pub database: postgres::Config,
    pub repository: repository::Config,
    pub time_zone: TimeZone,
    pub clock: Clock,
    pub board: Board,
    pub registry: Registry,
}

/// One kind of run: its schedule, its button, and whether it is running.
#[derive(Debug)]
struct Kind {
    name: &'static str,
    schedule: Option<Schedule>,
    poke: Notify,
    busy: AtomicBool,
}

/// What is known without asking anybody.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub window: Window,
    pub bases: Vec<Base>,
    /// Newest first.
    pub drills: Vec<Drill>,
    /// When all this was read; `None`: not yet.
    pub looked_at: Option<Timestamp>,
    pub base_running: bool,
    pub drill_running: bool,
}

/// The handle; one per process.
#[derive(Debug)]
pub struct Routine {
    recovery: Recovery,
    time_zone: TimeZone,
    policy: Policy,
    base: Kind,
    drill: Kind,
    clock: Clock,
    board: Board,
    metrics: Metrics,
    known: Mutex<Known>,
}

impl Routine {
    /// Opens the repository; nothing is connected to yet.
    ///
    /// # Errors
    /// An address, a key or a metric that cannot be used.
    pub fn open(parts: Parts) -> Result<Arc<Self>, Error> {
        let metrics = Metrics::new().and_then(|metrics| metrics.register(&parts.registry).map(|()| metrics));
        let metrics = metrics.map_err(|error| Error::Drill(error.to_string()))?;
        let pitr = parts.config;
        let kind = |name, schedule| Kind {
            name,
            schedule,
            poke: Notify::new(),
            busy: AtomicBool::new(false),
        };
        let recovery = Recovery::open(Ground {
            target: Target::parse(&parts.database)?,
            clock: parts.clock,
            progress: Arc::new(|_, _| {}),
            config: recovery::Config {
                repository: parts.repository,
                cluster: None,
                scratch: pitr.scratch,
                account: None,
                step_timeout: STEP_TIMEOUT,
                heartbeat: pitr.heartbeat,
                checks: pitr.checks,
            },
        })?;
        Ok(Arc::new(Self {
            recovery,
            time_zone: parts.time_zone,
            policy: Policy {
                window: pitr.window,
                ..Policy::default()
            },
            base: kind(BASE, pitr.base_backup),
            drill: kind(DRILL, pitr.drill),
            clock: parts.clock,
            board: parts.board,
            metrics,
            known: Mutex::default(),
        }))
    }

    /// Begins to work, until `stop` is cancelled; what runs then is ended with its programs.
    #[must_use]
    pub fn start(self: &Arc<Self>, stop: &CancellationToken) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for kind in [BASE, DRILL] {
            let (routine, stop) = (Arc::clone(self), stop.clone());
            tasks.spawn(async move {
                // `None`: it was cancelled.
                stop.run_until_cancelled(Box::pin(routine.serve(kind)))
                    .await
                    .unwrap_or_default();
            });
        }
        tasks
    }

    #[must_use]
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    #[must_use]
    pub fn time_zone(&self) -> &TimeZone {
        &self.time_zone
    }

    /// What is known now.
    #[must_use]
    pub fn known(&self) -> Known {
        Known {
            base_running: self.base.busy.load(Ordering::Relaxed),
            drill_running: self.drill.busy.load(Ordering::Relaxed),
            ..self.lock().clone()
        }
    }

    /// Orders a base backup; `false`: one is running already.
    #[must_use]
    pub fn order_base_backup(&self) -> bool {
        self.base.order()
    }

    /// Orders a drill; `false`: one is running already.
    #[must_use]
    pub fn order_drill(&self) -> bool {
        self.drill.order()
    }

    async fn serve(self: Arc<Self>, name: &'static str) {
        let kind = if name == BASE { &self.base } else { &self.drill };
        let (mut rest, mut ordered) = (Duration::ZERO, false);
        loop {
            if name == BASE {
                self.look().await;
            }
            let due = self.due(kind);
            if ordered || (due.is_some() && rest.is_zero()) {
                kind.busy.store(true, Ordering::Relaxed);
                let done = if name == BASE {
                    self.take(due).await
                } else {
                    self.rehearse().await
                };
                kind.busy.store(false, Ordering::Relaxed);
                rest = if done { Duration::ZERO } else { RETRY_AFTER };
                self.look().await;
            }
            ordered = tokio::select! {
                () = kind.poke.notified() => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            rest = rest.saturating_sub(LOOK_EVERY);
        }
    }

    /// The period that is due. Nothing is, until the repository has been read.
    fn due(&self, kind: &Kind) -> Option<String> {
        let known = self.lock();
        known.looked_at?;
        let now = self.clock.wall();
        let period = kind.schedule?.current(&self.time_zone, now)?;
        let served = match kind.name {
            BASE => known.bases.iter().any(|base| base.schedule_keys.contains(&period.key)),
            // Without a window there is nothing to rehearse.
            _ => known.window.latest().is_none() || known.drills.iter().any(|drill| drill.at >= period.begins),
        };
        (!served).then_some(period.key)
    }

    async fn take(&self, due: Option<String>) -> bool {
        let labels = vec![due.as_ref().map_or("manual", |_| "scheduled").to_owned()];
        let taken = self.recovery.bases().take(labels, due.into_iter().collect()).await;
        self.metrics.base_taken(taken.is_ok());
        match taken {
            Ok(manifest) => {
                tracing::info!(id = %manifest.id, bytes = manifest.stored_bytes(), "a base backup was taken and proven");
                self.board.set(BASE, Condition::Healthy);
                self.prune().await;
                true
            }
            Err(super::base::Error::Busy) => {
                tracing::info!("another base backup of this server is running");
                true
            }
            Err(error) => {
                self.report(
                    BASE,
                    &format!("no base backup could be taken: {}", drill::chain(&error)),
                );
                false
            }
        }
    }

    async fn prune(&self) {
        let pruned = async {
            let cluster = self.recovery.cluster().await?;
            let pruned = self.recovery.bases().prune(&cluster, &self.policy, Mode::Act).await?;
            Ok::<_, Error>(pruned)
        };
        match pruned.await {
            Ok(pruned) => tracing::info!(
                marked = pruned.marked.len(),
                deleted = pruned.deleted.len(),
                segments = pruned.segments,
                "retention was applied to base backups and log"
            ),
            Err(error) => self.report(
                BASE,
                &format!("retention could not be applied: {}", drill::chain(&error)),
            ),
        }
    }

    async fn rehearse(&self) -> bool {
        let failure = match Box::pin(self.recovery.drill(None)).await {
            Ok(drill) => {
                self.metrics.drilled(&drill);
                tracing::info!(
                    id = %drill.id,
                    passed = drill.passed(),
                    recovery_time_seconds = drill.recovery_time().as_secs_f64(),
                    "a recovery was rehearsed"
                );
                drill.failure
            }
            Err(error) => Some(drill::chain(&error)),
        };
        match failure {
            None => {
                self.board.set(DRILL, Condition::Healthy);
                true
            }
            Some(failure) => {
                self.report(DRILL, &format!("the last drill failed: {failure}"));
                false
            }
        }
    }

    /// Reads the repository anew.
    async fn look(&self) {
        let looked = async {
            let cluster = self.recovery.cluster().await?;
            let bases = self.recovery.bases().list(&cluster).await?;
            let window = self.recovery.window().await?;
            let drills = self.recovery.drills().await?;
            Ok::<_, Error>((window, bases, drills))
        };
        let now = self.clock.wall();
        match looked.await {
            Ok((window, bases, drills)) => {
                self.metrics.looked(&window, &bases, &drills, now);
                let gap = window.ends_because.clone().filter(|_| !bases.is_empty());
                self.board.set(
                    WINDOW,
                    gap.map_or(Condition::Healthy, |gap| {
                        Condition::Degraded(format!("later instants cannot be reached: {gap}; take a base backup"))
                    }),
                );
                let mut known = self.lock();
                known.window = window;
                known.bases = bases;
                known.drills = drills;
                known.looked_at = Some(now);
            }
            // A new repository: the first base backup is due.
            Err(Error::Empty) => self.lock().looked_at = Some(now),
            Err(error) => self.report(
                WINDOW,
                &format!("the repository cannot be read: {}", drill::chain(&error)),
            ),
        }
    }

    fn report(&self, part: &'static str, text: &str) {
        tracing::error!("{part}: {text}");
        self.board.set(part, Condition::Degraded(text.to_owned()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kind {
    fn order(&self) -> bool {
        let free = !self.busy.load(Ordering::Relaxed);
        if free {
            self.poke.notify_one();
        }
        free
    }
}
