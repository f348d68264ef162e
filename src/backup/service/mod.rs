//! The vault inside the server: runs one thing at a time, by schedule or because somebody asked, and tells how it goes
//! by status, metrics, health and alerts. See `schedule` for what runs when.

mod ending;
mod history;
mod metrics;
mod orders;
mod run;
mod schedule;
mod since;
pub mod stats;
#[cfg(test)]
pub(crate) mod tests;
mod trouble;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use prometheus::Registry;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use ulid::Ulid;

pub use self::run::{Act, Run, State, Status, Step};
pub use self::stats::KindStats;
use super::choice::newest_sealed;
use super::{Entry, Error, Hold, Recovered, Settings, Subject, Unreadable, Vault};
use crate::clock::{Clock, Now};
use crate::telemetry::alert::Alerts;
use crate::telemetry::cause::chain;
use crate::telemetry::health::Board;
use ending::{Ending, files_subject};
use history::History;
use metrics::Metrics;
use since::Since;

/// The name under which the vault stands on the health board.
const PART: &str = "backup";
/// A catalogue that was read this long ago is shown without asking the repository again.
const FRESH: Duration = Duration::from_secs(10);
/// What the end of the process may wait for a restore to be undone.
const RECOVER_MAX: Duration = Duration::from_secs(10);

/// What the service uses of other parts.
#[derive(Debug, Clone)]
pub struct Parts {
    pub clock: Clock,
    pub alerts: Alerts,
    pub board: Board,
    pub registry: Registry,
    pub hold: Hold,
    /// Where runs are at work: behind the gate.
    pub runtime: tokio::runtime::Handle,
}

/// Why a request was not taken up.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the vault is off: [database] url is not set in the configuration")]
    Off,
    #[error("the vault cannot be used: {0}")]
    Unusable(String),
    #[error("run {0} is under way; one at a time")]
    Busy(Ulid),
    #[error(transparent)]
    Domain(#[from] Error),
}

/// The handle; clones share it.
#[derive(Debug, Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    parts: Parts,
    settings: ArcSwap<Settings>,
    /// `None` while it is off or cannot be opened.
    vault: ArcSwapOption<Vault>,
    unusable: Mutex<Option<String>>,
    metrics: Metrics,
    /// When this process began.
    started_at: Timestamp,
    since: Mutex<Since>,
    /// Of the cluster that the database is in, once it was asked.
    cluster: Mutex<Option<String>>,
    /// That the repository is on the disk of the database, if it is, once the server was asked.
    same_disk: Mutex<Option<String>>,
    troubles: Mutex<BTreeMap<String, String>>,
    runs: Mutex<Runs>,
    starting: tokio::sync::Mutex<()>,
    catalogue: tokio::sync::Mutex<Catalogue>,
    /// Something has changed since the catalogue was read.
    is_stale: AtomicBool,
    poke: Notify,
    tasks: Mutex<JoinSet<()>>,
    /// Held by whichever vault exchanges databases, also one that a reload has replaced.
    swapping: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Runs {
    current: Option<Arc<Run>>,
    history: History,
}

/// The list of backups as it was last read.
#[derive(Debug, Clone, Default)]
struct Catalogue {
    /// When, and by which vault: another one may have another repository.
    read: Option<(Duration, Arc<Vault>)>,
    entries: Arc<Vec<Entry>>,
    /// Why others are not among them.
    unreadable: Arc<Vec<Unreadable>>,
}

impl Service {
    /// Prepares the vault; [`Service::run`] makes it live.
    ///
    /// # Errors
    /// A metric's name is taken. A vault that cannot be opened is no error here: it is shown, and tried again.
    pub fn new(settings: Settings, parts: Parts) -> Result<Self, prometheus::Error> {
        let metrics = Metrics::register(&parts.registry)?;
        let history = History::open(&settings.state_dir);
        let shared = Shared {
            started_at: parts.clock.wall(),
            since: Mutex::new(Since::open(&settings.state_dir)),
            cluster: Mutex::default(),
            same_disk: Mutex::default(),
            troubles: Mutex::default(),
            settings: ArcSwap::from_pointee(settings),
            vault: ArcSwapOption::empty(),
            unusable: Mutex::default(),
            metrics,
            runs: Mutex::new(Runs { current: None, history }),
            starting: tokio::sync::Mutex::default(),
            catalogue: tokio::sync::Mutex::default(),
            is_stale: AtomicBool::new(false),
            poke: Notify::new(),
            tasks: Mutex::default(),
            swapping: Arc::default(),
            parts,
        };
        let service = Self {
            shared: Arc::new(shared),
        };
        service.open();
        Ok(service)
    }

    /// Puts new settings into force; a run that is under way ends with the old ones.
    pub fn reload(&self, settings: Settings) {
        if **self.shared.settings.load() == settings {
            return;
        }
        self.shared.settings.store(Arc::new(settings));
        *lock(&self.shared.cluster) = None;
        *lock(&self.shared.same_disk) = None;
        self.shared.is_stale.store(true, Ordering::Release);
        self.open();
        self.shared.forget_unplanned();
        self.shared.poke.notify_one();
    }

    fn open(&self) {
        let shared = &self.shared;
        let Some(config) = shared.settings.load().vault() else {
            shared.vault.store(None);
            *lock(&shared.unusable) = None;
            shared.forget_troubles(|_| true);
            return;
        };
        let doubt = shared.settings.load().in_the_clear();
        match Vault::open(config, shared.parts.clock, super::silent()) {
            Ok(vault) => {
                let vault = vault.with_hold(shared.parts.hold.clone(), Arc::clone(&shared.swapping));
                shared.vault.store(Some(Arc::new(vault)));
                *lock(&shared.unusable) = None;
                shared.well("unusable", "the vault can be used again");
                if let Some(doubt) = doubt {
                    tracing::warn!("{doubt}");
                }
            }
            Err(error) => {
                let reason = chain(&error);
                shared.vault.store(None);
                shared.trouble("unusable", &format!("the vault cannot be used: {reason}"));
                *lock(&shared.unusable) = Some(reason);
            }
        }
    }

    /// The vault, for what only reads.
    ///
    /// # Errors
    /// It is off or cannot be used.
    fn vault(&self) -> Result<Arc<Vault>, Refusal> {
        if let Some(vault) = self.shared.vault.load_full() {
            return Ok(vault);
        }
        match lock(&self.shared.unusable).clone() {
            Some(reason) => Err(Refusal::Unusable(reason)),
            None => Err(Refusal::Off),
        }
    }

    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.shared.settings.load_full()
    }

    /// What is worth a look, for people: sentences.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let settings = self.settings();
        if settings.database.is_none() {
            return Vec::new();
        }
        let clear = settings.in_the_clear().map(str::to_owned);
        clear.into_iter().chain(lock(&self.shared.same_disk).clone()).collect()
    }

    /// All backups, oldest first, at most some seconds old.
    ///
    /// # Errors
    /// Of the repository.
    pub async fn list(&self) -> Result<Arc<Vec<Entry>>, Refusal> {
        Ok(self.catalogue(self.shared.parts.clock.now()).await?.entries)
    }

    /// Those whose manifest cannot be read, any of which may be the newest.
    ///
    /// # Errors
    /// Of the repository.
    pub async fn unreadable(&self) -> Result<Arc<Vec<Unreadable>>, Refusal> {
        Ok(self.catalogue(self.shared.parts.clock.now()).await?.unreadable)
    }

    async fn catalogue(&self, now: Now) -> Result<Catalogue, Refusal> {
        let vault = self.vault()?;
        let shared = &self.shared;
        let mut catalogue = shared.catalogue.lock().await;
        let is_stale = shared.is_stale.swap(false, Ordering::AcqRel);
        let read = catalogue.read.as_ref().filter(|(_, by)| Arc::ptr_eq(by, &vault));
        if !is_stale && read.is_some_and(|(at, _)| now.tick.saturating_sub(*at) < FRESH) {
            return Ok(catalogue.clone());
        }
        let is_known = read.is_some();
        let (entries, unreadable) = match vault.list().await {
            Ok(listed) => listed,
            Err(error) => {
                shared.is_stale.store(true, Ordering::Release);
                // Time passes although nothing can be read: what is overdue is told from what was known last.
                if is_known {
                    shared.show(&catalogue.entries, now.wall);
                }
                return Err(error.into());
            }
        };
        *catalogue = Catalogue {
            read: Some((now.tick, vault)),
            entries: Arc::new(entries),
            unreadable: Arc::new(unreadable),
        };
        shared.show(&catalogue.entries, now.wall);
        shared.show_unreadable(&catalogue.unreadable);
        if catalogue.unreadable.is_empty() {
            shared.forget_deleted(&catalogue.entries);
        }
        Ok(catalogue.clone())
    }

    /// The run of this id, running or past.
    #[must_use]
    pub fn find_run(&self, id: Ulid) -> Option<Arc<Run>> {
        let runs = lock(&self.shared.runs);
        let mut all = runs.current.iter().chain(runs.history.runs());
        all.find(|run| run.id == id).map(Arc::clone)
    }

    #[must_use]
    pub fn current(&self) -> Option<Arc<Run>> {
        lock(&self.shared.runs).current.clone()
    }

    /// Past runs, the newest first.
    #[must_use]
    pub fn past(&self) -> Vec<Arc<Run>> {
        lock(&self.shared.runs).history.runs().map(Arc::clone).collect()
    }

    /// A line per kind, and the bytes of the whole repository.
    ///
    /// # Errors
    /// Of the repository.
    pub async fn stats(&self) -> Result<(Vec<KindStats>, u64), Refusal> {
        let entries = self.list().await?;
        let mut kinds = self.shared.kinds(&entries, self.shared.parts.clock.wall());
        let past = self.past();
        for kind in &mut kinds {
            kind.count_runs(&past);
        }
        Ok((kinds, stats::stored_bytes(&*entries)))
    }

    /// Begins a run in a task of its own, if nothing else is under way.
    async fn start<F, W>(&self, act: Act, id: Ulid, subjects: Vec<String>, work: W) -> Result<Arc<Run>, Refusal>
    where
        W: FnOnce(Vault, Self, Arc<Run>) -> F + Send + 'static,
        F: Future<Output = Result<String, Error>> + Send + 'static,
    {
        let vault = self.vault()?;
        let clock = self.shared.parts.clock;
        // One after the other: a look at the lock must not be in the way of a run that has just begun.
        let _starting = self.shared.starting.lock().await;
        if let Some(current) = self.current() {
            return Err(Refusal::Busy(current.id));
        }
        nobody_else(Arc::clone(&vault)).await?;
        let run = Arc::new(Run::new(id, act, subjects, clock.wall(), self.shared.expected(act)));
        {
            let mut runs = lock(&self.shared.runs);
            runs.current = Some(Arc::clone(&run));
            // At once, so that one that never ends is known as interrupted.
            runs.history.add(Arc::clone(&run));
        }
        self.shared.metrics.began();
        let (service, watched) = (self.clone(), Arc::clone(&run));
        let vault = vault.with_progress(Arc::new(move |step, bytes| watched.progress(step, bytes, clock.wall())));
        let working = Arc::clone(&run);
        let mut tasks = lock(&self.shared.tasks);
        while tasks.try_join_next().is_some() {}
        let at_work = async move {
            let ending = Ending {
                service: service.clone(),
                run: Arc::clone(&working),
            };
            let result = work(vault, service, working).await;
            ending.end(result);
        };
        drop(tasks.spawn_on(at_work, &self.shared.parts.runtime));
        Ok(run)
    }

    /// Stops what is under way. A swap is let finish, and all else that a restore left half done is undone; if that takes
    /// too long, the next start does it.
    pub async fn shutdown(&self) {
        let vault = self.shared.vault.load_full();
        let _no_swap = match &vault {
            Some(vault) => vault.no_swap().await,
            None => None,
        };
        let mut tasks = std::mem::take(&mut *lock(&self.shared.tasks));
        tasks.shutdown().await;
        if let Some(vault) = vault {
            match tokio::time::timeout(RECOVER_MAX, vault.recover()).await {
                Ok(Ok(Recovered::Nothing) | Err(Error::Busy(_))) => {}
                Ok(Ok(_)) => tracing::info!("a restore was stopped, and nothing of it is left half done"),
                Ok(Err(error)) => tracing::warn!(error = chain(&error), "a restore was stopped half way"),
                Err(_) => tracing::warn!("a restore was stopped half way; the next start sees to it"),
            }
        }
    }
}

impl Shared {
    /// The database that is looked after, as far as it is known.
    fn subject(&self) -> Subject {
        let vault = self.vault.load();
        let database = vault.as_ref().map_or("", |vault| vault.database());
        Subject {
            database: database.to_owned(),
            cluster: lock(&self.cluster).clone(),
        }
    }

    fn kinds(&self, entries: &[Entry], now: Timestamp) -> Vec<KindStats> {
        let settings = self.settings.load();
        let scheduled = stats::scheduled(&settings.plan).into_iter().map(|(kind, _)| kind);
        let since = lock(&self.since).of(scheduled, now);
        stats::kinds(entries, &self.subject(), &settings.plan, &since, now)
    }

    /// Metrics, and what is told of a fresh catalogue.
    fn show(&self, entries: &[Entry], now: Timestamp) {
        // Also what a run told that began before its set was taken out.
        self.forget_unplanned();
        let kinds = self.kinds(entries, now);
        self.metrics.show(&kinds, stats::stored_bytes(entries));
        for kind in &kinds {
            let key = format!("backup-overdue-{}", kind.kind);
            if kind.is_overdue {
                let text = format!("there is no proven {} backup of the last two intervals", kind.kind);
                self.parts.alerts.raise(&key, &text);
            } else {
                self.parts
                    .alerts
                    .resolve(&key, &format!("{} backups are up to date again", kind.kind));
            }
        }
        let unmarked = || entries.iter().filter(|entry| entry.tombstone.is_none());
        match unmarked().find_map(|entry| entry.incomplete.as_ref().map(|what| (entry.manifest.id, what))) {
            Some((id, what)) => self.trouble("incomplete", &format!("backup {id} is not all there: {what}")),
            None => self.well("incomplete", "all backups are all there again"),
        }
        match unmarked().find(|entry| entry.is_ahead) {
            Some(entry) => {
                let (id, at) = (entry.manifest.id, entry.manifest.started_at);
                let text = format!(
                    "backup {id} is from the future ({at}): the clock is wrong, or was; it is not the latest, and nothing is cleaned \
                     up until then or until it is deleted"
                );
                self.trouble("clock", &text);
            }
            None => self.well("clock", "no backup is from the future any more"),
        }
        self.show_sealing(entries);
    }

    /// A backup in the clear is worth more than none, and a configuration that lost its keys is told: what goes elsewhere can be
    /// read there. Only what is made here counts, and which dumps are ours the name alone does not tell: until the server has
    /// said its cluster, what was told of them stands.
    fn show_sealing(&self, entries: &[Entry]) {
        let (settings, subject) = (self.settings.load(), self.subject());
        let has_dumps = !settings.plan.kinds.is_empty();
        let is_known = subject.cluster.is_some();
        let is_planned = |entry: &Entry| settings.plan.files.iter().any(|file| entry.is_of_set(&file.set.name));
        let is_ours = |entry: &Entry| is_planned(entry) || (has_dumps && is_known && subject.owns(entry));
        match (settings.in_the_clear(), newest_sealed(entries, is_ours)) {
            (Some(clear), Some(sealed)) => {
                let id = sealed.manifest.id;
                self.trouble("clear", &format!("{clear}, and earlier ones such as {id} are sealed"));
            }
            (Some(_), None) if has_dumps && !is_known => {}
            _ => self.well("clear", "backups are sealed again"),
        }
    }

    fn show_unreadable(&self, unreadable: &[Unreadable]) {
        match unreadable.first() {
            Some(Unreadable { why: error, .. }) => {
                let count = unreadable.len();
                let text =
                    format!("{count} backups have a manifest that cannot be read, so nothing is cleaned up: {error}");
                self.trouble("manifest", &text);
            }
            None => self.well("manifest", "every manifest can be read again"),
        }
    }

    /// What a run of this act will read, as far as the last one tells.
    fn expected(&self, act: Act) -> Option<u64> {
        let catalogue = self.catalogue.try_lock().ok()?;
        let subject = self.subject();
        let dumps = catalogue.entries.iter().rev().filter(|entry| subject.owns(entry));
        let mut parts = dumps.filter_map(|entry| entry.manifest.part("dump"));
        matches!(act, Act::Create | Act::Verify | Act::Restore)
            .then(|| parts.next().map(|part| part.plain_bytes))
            .flatten()
    }
}

/// A command beside us may be at work: whoever asks is told now, and not by a run that fails. Where the disk of the lock hangs,
/// the run finds that out by itself.
async fn nobody_else(vault: Arc<Vault>) -> Result<(), Refusal> {
    match vault.lock_to_read_soon().await {
        Err(busy @ Error::Busy(_)) => Err(busy.into()),
        _ => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is replaced as a whole, so a panic leaves nothing half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
