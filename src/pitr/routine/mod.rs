//! Recovery as it is kept possible in the server: base backups and drills when they are due or when asked, retention
//! after them, and a look at the window now and then, whatever else is running. What it knows is
//! read from memory.
//!
//! The repository says which periods have been served, so a restart neither forgets nor repeats one; the timer and the
//! button take the same path, and what is running is never queued behind itself.

mod kind;
mod metrics;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use prometheus::Registry;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::kind::Kind;
pub use self::kind::{Ended, Run};
use self::metrics::Metrics;
use super::archiver::Archiver;
use super::base::{Base, Mode};
use super::drill::Drill;
use super::recovery::{self, Ground, Recovery};
use super::retention::Policy;
use super::window::Window;
use super::{Error, config};
use crate::clock::Clock;
use crate::postgres::{self, Target};
use crate::repository;
use crate::repository::layout::Cluster;
use crate::telemetry::cause::chain;
use crate::telemetry::health::{Board, Condition};

/// How often the window is looked at: what a look takes is at most this share of the time, within these bounds.
const LOOK_PAUSES: u32 = 60;
const LOOK_EVERY_MIN: Duration = Duration::from_secs(5);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(60);
/// How often it is asked whether something is due, when no look says so earlier.
const DUE_EVERY: Duration = Duration::from_secs(60);
/// After a failure the next try waits: what failed may need a person.
const RETRY_AFTER: Duration = Duration::from_secs(900);
/// The longest that one step of a run may take.
const STEP_TIMEOUT: Duration = Duration::from_hours(12);
/// The names on the health board.
const BASE: &str = "base backup";
const DRILL: &str = "drill";
const WINDOW: &str = "window";

/// What the routine is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    pub config: config::Config,
    pub database: postgres::Config,
    pub repository: repository::Config,
    pub time_zone: TimeZone,
    pub clock: Clock,
    pub board: Board,
    pub registry: Registry,
    pub archiver: Option<Arc<Archiver>>,
}

/// What is known without asking anybody.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub window: Window,
    /// When window and drills were read last; `None`: not yet, so that nobody can say what could be recovered.
    pub window_at: Option<Timestamp>,
    pub bases: Vec<Base>,
    /// They are those of the server itself, not of whoever is in its repository.
    pub are_own: bool,
    /// Newest first.
    pub drills: Vec<Drill>,
    /// When the base backups were read last; `None`: not yet.
    pub looked_at: Option<Timestamp>,
    pub base_run: Run,
    pub drill_run: Run,
}

/// The handle; one per process.
#[derive(Debug)]
pub struct Routine {
    recovery: Recovery,
    time_zone: TimeZone,
    policy: Policy,
    base: Arc<Kind>,
    drill: Arc<Kind>,
    clock: Clock,
    board: Board,
    metrics: Metrics,
    known: Mutex<Known>,
    /// One look after the other: the later begun is the later told.
    looking: tokio::sync::Mutex<()>,
    /// Told after each look.
    looked: Notify,
}

impl Routine {
    /// Opens the repository; nothing is connected to yet.
    ///
    /// # Errors
    /// An address, a key or a metric that cannot be used.
    pub fn open(parts: Parts) -> Result<Arc<Self>, Error> {
        let pitr = parts.config;
        let policy = Policy::new(pitr.window, pitr.base_backup);
        let recovery = Recovery::open(Ground {
            target: Target::parse(&parts.database)?,
            clock: parts.clock,
            progress: Arc::new(|_, _| {}),
            archiver: parts.archiver,
            config: recovery::Config {
                repository: parts.repository,
                state_dir: None,
                cluster: None,
                scratch: pitr.scratch,
                wal: pitr.wal,
                account: None,
                step_timeout: STEP_TIMEOUT,
                heartbeat: pitr.heartbeat,
                checks: pitr.checks,
            },
        })?;
        // Last, so that what failed can be tried again: a name is taken but once.
        let metrics = Metrics::new(parts.clock).and_then(|metrics| metrics.register(&parts.registry).map(|()| metrics));
        let metrics = metrics.map_err(|error| Error::Drill(error.to_string()))?;
        Ok(Arc::new(Self {
            recovery: recovery.with_policy(policy),
            time_zone: parts.time_zone,
            policy,
            base: Arc::new(Kind::new(BASE, pitr.base_backup)),
            drill: Arc::new(Kind::new(DRILL, pitr.drill)),
            clock: parts.clock,
            board: parts.board,
            metrics,
            known: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            looked: Notify::new(),
        }))
    }

    /// Begins to work, until `stop` is cancelled; what runs then is ended with its programs. Base backups run on `behind`;
    /// drills do not, since a recovery whose time they measure would not either.
    #[must_use]
    pub fn start(self: &Arc<Self>, stop: &CancellationToken, behind: &Handle) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for (name, runtime) in [(BASE, behind), (DRILL, &Handle::current())] {
            let (routine, stop) = (Arc::clone(self), stop.clone());
            let serving = async move {
                // `None`: it was cancelled.
                stop.run_until_cancelled(Box::pin(routine.serve(name)))
                    .await
                    .unwrap_or_default();
            };
            tasks.spawn_on(serving, runtime);
        }
        let (routine, stop) = (Arc::clone(self), stop.clone());
        tasks.spawn(async move {
            stop.run_until_cancelled(Box::pin(routine.watch()))
                .await
                .unwrap_or_default();
        });
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
            base_run: self.base.run(),
            drill_run: self.drill.run(),
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

    /// Looks for ever. A task of its own, so that a base backup of hours does not hide what is lost meanwhile.
    async fn watch(self: Arc<Self>) {
        loop {
            let begun = self.clock.tick();
            self.look().await;
            let took = self.clock.tick().saturating_sub(begun);
            let pause = took.saturating_mul(LOOK_PAUSES);
            tokio::time::sleep(pause.clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX)).await;
        }
    }

    async fn serve(self: Arc<Self>, name: &'static str) {
        let kind = if name == BASE { &self.base } else { &self.drill };
        // What runs tells how far it is.
        let mut recovery = self.recovery.clone();
        let told = Arc::clone(kind);
        recovery.bases.progress = Arc::new(move |step, bytes| told.progress(step, bytes));
        if name == DRILL {
            // Here and not beside it: a drill that begins must not be swept before it holds its lock.
            recovery.sweep_scratch().await;
        }
        let (mut rest_until, mut ordered) = (Duration::ZERO, false);
        loop {
            let due = self.due(kind);
            if ordered || (due.is_some() && self.clock.tick() >= rest_until) {
                kind.begin();
                let done = if name == BASE {
                    // What somebody ordered is no scheduled one, whatever is due meanwhile.
                    self.take(&recovery, due.filter(|_| !ordered)).await
                } else {
                    self.rehearse(&recovery).await
                };
                let rest = if done { Duration::ZERO } else { RETRY_AFTER };
                rest_until = self.clock.tick().saturating_add(rest);
                // Before it is asked again what is due.
                self.look().await;
            }
            ordered = tokio::select! {
                () = kind.poke.notified() => true,
                () = self.looked.notified() => false,
                () = tokio::time::sleep(DUE_EVERY) => false,
            };
        }
    }

    /// The period that is due. Nothing is, until the repository has been read, and no base backup until it is known whose
    /// it has: another server's serve no period of ours.
    fn due(&self, kind: &Kind) -> Option<String> {
        let known = self.lock();
        known.looked_at?;
        let now = self.clock.wall();
        let period = kind.schedule?.current(&self.time_zone, now)?;
        // What a clock that was wrong dated ahead serves nothing.
        let is_within = |at: Timestamp| (period.begins..=now).contains(&at);
        let served = match kind.name {
            BASE if !known.are_own => true,
            BASE => {
                // One of the period serves it, whoever took it.
                let is_of_period = |base: &Base| is_within(base.started_at) || base.schedule_keys.contains(&period.key);
                let serves = |base: &Base| base.incomplete.is_none() && is_of_period(base);
                kind.has_served(&period.key) || known.bases.iter().any(serves)
            }
            // Without a window of its own there is nothing to rehearse.
            _ if !known.are_own => true,
            _ => known.window.latest().is_none() || known.drills.iter().any(|drill| is_within(drill.at)),
        };
        (!served).then_some(period.key)
    }

    async fn take(&self, recovery: &Recovery, due: Option<String>) -> bool {
        let labels = vec![due.as_ref().map_or("manual", |_| "scheduled").to_owned()];
        let taken = recovery.bases().take(labels, due.iter().cloned().collect()).await;
        if let Err(busy @ super::base::Error::Busy(_)) = taken {
            tracing::info!("{busy}");
            self.base.leave();
            return true;
        }
        self.metrics.base_taken(taken.is_ok());
        match taken {
            Ok(manifest) => {
                tracing::info!(id = %manifest.id, bytes = manifest.stored_bytes(), "a base backup was taken and proven");
                self.base.end(self.clock.wall(), None);
                self.base.note_served(due);
                if let Some(cluster) = manifest.content.cluster() {
                    self.prune(&cluster).await;
                }
                true
            }
            Err(error) => {
                let text = format!("no base backup could be taken: {}", chain(&error));
                self.base.end(self.clock.wall(), Some(text.clone()));
                self.report(BASE, &text);
                false
            }
        }
    }

    async fn prune(&self, cluster: &Cluster) {
        match self.recovery.bases().prune(cluster, &self.policy, Mode::Act).await {
            Ok(pruned) => tracing::info!(
                marked = pruned.marked.len(),
                deleted = pruned.deleted.len(),
                segments = pruned.segments,
                frozen = pruned.frozen,
                "retention was applied to base backups and log"
            ),
            Err(error) => {
                let text = format!("retention could not be applied: {}", chain(&Error::from(error)));
                self.base.trouble(self.clock.wall(), text.clone());
                self.report(BASE, &text);
            }
        }
    }

    async fn rehearse(&self, recovery: &Recovery) -> bool {
        let is_early = {
            let known = self.lock();
            known.looked_at.is_some() && known.bases.is_empty()
        };
        if is_early {
            let why = "there is no base backup yet, so nothing to rehearse";
            self.drill.decline(self.clock.wall(), why.to_owned());
            return true;
        }
        let failure = match Box::pin(recovery.drill(None)).await {
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
            Err(error) => Some(chain(&error)),
        };
        let failure = failure.map(|failure| failed_drill(&failure));
        if let Some(failure) = &failure {
            self.report(DRILL, failure);
        }
        let passed = failure.is_none();
        self.drill.end(self.clock.wall(), failure);
        passed
    }

    /// Reads the repository anew. What is due depends on the base backups alone: whatever else cannot be read must neither
    /// have one taken over and over, nor none at all.
    async fn look(&self) {
        let _one_at_a_time = self.looking.lock().await;
        let now = self.clock.wall();
        let looked = match self.look_at_bases(now).await {
            Ok(()) => {
                let looked = self.look_further(now).await;
                self.judge(now);
                looked
            }
            // A new repository: the first base backup is due.
            Err(Error::Empty) => {
                let mut known = self.lock();
                (known.looked_at, known.are_own) = (Some(now), true);
                // That there is nothing is known as well. But what was there before is not gone for good: it may be a
                // disk that is not mounted.
                if known.bases.is_empty() {
                    known.window_at = Some(now);
                }
                Ok(())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = looked {
            self.report(WINDOW, &unseen(&error));
        }
        self.looked.notify_waiters();
    }

    async fn look_at_bases(&self, now: Timestamp) -> Result<(), Error> {
        let cluster = self.recovery.cluster().await?;
        let bases = self.recovery.bases().list(&cluster).await?;
        let are_own = self.recovery.own_cluster().as_ref() == Some(&cluster);
        self.metrics.listed(&bases);
        let mut known = self.lock();
        if known.bases.is_empty() && !bases.is_empty() {
            // What was said of an empty repository says nothing of these.
            known.window_at = None;
        }
        (known.bases, known.are_own, known.looked_at) = (bases, are_own, Some(now));
        Ok(())
    }

    async fn look_further(&self, now: Timestamp) -> Result<(), Error> {
        let window = self.recovery.window().await?;
        let drills = self.recovery.drills().await?;
        self.metrics.looked(&window, &drills);
        let mut known = self.lock();
        let gap = window.ends_because.clone().filter(|_| !known.bases.is_empty());
        (known.window, known.drills, known.window_at) = (window, drills, Some(now));
        drop(known);
        self.board.set(
            WINDOW,
            gap.map_or(Condition::Healthy, |gap| {
                Condition::Degraded(format!("later instants cannot be reached: {gap}; take a base backup"))
            }),
        );
        Ok(())
    }

    /// Puts on the board what went wrong last, and what is overdue.
    fn judge(&self, now: Timestamp) {
        let known = self.lock();
        let whole = known.bases.iter().rfind(|base| base.incomplete.is_none());
        let last_base = whole.map(|base| base.stopped_at);
        if let Some(at) = last_base.filter(|_| known.are_own) {
            self.base.heard(at, None);
        }
        let broken = known.bases.iter().find_map(|base| base.incomplete.clone());
        let broken = broken.map(|what| format!("a base backup cannot be used: {what}; it is not counted on"));
        if let Some(last) = known.drills.first() {
            self.drill.heard(last.at, last.failure.as_deref().map(failed_drill));
        }
        let passed = known.drills.iter().find(|drill| drill.passed()).map(|drill| drill.at);
        let last_drill = passed.or(known.window.earliest());
        drop(known);
        for (kind, last) in [(&self.base, last_base), (&self.drill, last_drill)] {
            let broken = broken.clone().filter(|_| kind.name == BASE);
            match kind.wrong(last, now).or(broken) {
                Some(text) => self.board.set(kind.name, Condition::Degraded(text)),
                // What has never been done is not called well.
                None if last.is_none() => {}
                None => self.board.set(kind.name, Condition::Healthy),
            }
        }
    }

    /// Tells the log and the board; the log only of what the board does not say already.
    fn report(&self, part: &'static str, text: &str) {
        let condition = Condition::Degraded(text.to_owned());
        if self.board.read().get(part) != Some(&condition) {
            tracing::error!("{part}: {text}");
        }
        self.board.set(part, condition);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the window is not known, as a sentence.
fn unseen(error: &Error) -> String {
    if error.lacks_identity() {
        return "the window is not known and no recovery can be rehearsed: the log is encrypted, and no age identity is \
                configured; base backups and retention go on"
            .to_owned();
    }
    format!("the repository cannot be read: {}", chain(error))
}

fn failed_drill(failure: &str) -> String {
    format!("the last drill failed: {failure}")
}
