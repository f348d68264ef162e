//! Point-in-time recovery as it runs in the server: the archive's socket or the stream, the heartbeat, the watch. It
//! talks to nobody but the database and the repository, and what it knows is read from memory.

mod beating;
mod streaming;
mod watching;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::archive::Archive;
use super::archiver::{Archiver, Parts};
use super::beat::Beat;
use super::config::Config;
use super::inventory::Inventory;
use super::metrics::Metrics;
use super::setup::{self, Check, Way};
use super::socket::server::{self, Listener};
use super::watch::Seen;
use crate::clock::Clock;
use crate::postgres::{self, Admin, Target};
use crate::repository::{self, Keys, Repository};
use crate::telemetry::cause::chain;
use crate::telemetry::health::{Board, Condition};

/// As this the keeper's connections are known to the server.
const APPLICATION: &str = "foregate pitr";
/// The name under which all this stands on the health board.
const PART: &str = "pitr";
/// A database that does not answer by then is asked anew, over a new connection.
const ASK_TIMEOUT: Duration = Duration::from_secs(45);
/// After so long it is asked anew who answers at the address: the server that did before may run on elsewhere. Never longer than
/// `pitr.patience`.
const SESSION_AGE_MAX: Duration = Duration::from_secs(60);
/// How often feeds that nobody asks any more are looked for.
const REST_EVERY: Duration = Duration::from_secs(10);
/// Who has not answered for so long is missed; a server that restarts is not. Never longer than `pitr.patience`.
const ABSENCE_MAX: Duration = Duration::from_secs(60);
/// Until a socket that could not be made is tried again.
const SOCKET_PAUSE: Duration = Duration::from_secs(5);

/// What the keeper is made of.
#[derive(Debug, Clone)]
pub struct Ground {
    pub config: Config,
    pub database: postgres::Config,
    pub repository: repository::Config,
    pub state_dir: PathBuf,
    pub clock: Clock,
    pub board: Board,
    pub registry: Registry,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error(transparent)]
    Repository(#[from] repository::Error),
    #[error("a metric cannot be registered")]
    Metric(#[from] prometheus::Error),
    #[error("the archive's socket {path} cannot be made")]
    Socket {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What goes over one connection, and since when.
type Session<T> = Option<(T, Duration)>;

/// The handle; one per process.
#[derive(Debug)]
pub struct Keeper {
    config: Config,
    target: Target,
    state_dir: PathBuf,
    clock: Clock,
    board: Board,
    archiver: Arc<Archiver>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    seen: Option<Seen>,
    inventory: Option<Inventory>,
    /// Not yet in the repository.
    beats: Vec<Beat>,
    last_beat: Option<Beat>,
    problems: BTreeMap<&'static str, String>,
    /// Since when what may pass by itself has lasted.
    absent: BTreeMap<&'static str, Duration>,
}

/// What is known, without asking anybody.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    pub seen: Option<Seen>,
    pub inventory: Option<Inventory>,
    pub last_beat: Option<Beat>,
    /// The file that was archived last, and when; after a start, the newest segment.
    pub last_archived: Option<(String, Timestamp)>,
    pub problems: Vec<String>,
}

impl Keeper {
    /// Opens the repository; nothing is connected to yet.
    ///
    /// # Errors
    /// An address, a key or a metric that cannot be used.
    pub fn open(ground: Ground) -> Result<Arc<Self>, Error> {
        let target = Target::parse(&ground.database)?;
        let repository = &ground.repository;
        let parts = Parts {
            repository: Repository::open_known(&repository.url, &ground.state_dir)?,
            keys: Arc::new(Keys::new(&repository.recipients, repository.identity.as_ref())?),
            target: Some(target.clone()),
            state_dir: ground.state_dir.clone(),
            clock: ground.clock,
            metrics: Metrics::new()?,
        };
        // Last, so that what failed can be tried again: a name is taken but once.
        parts.metrics.register(&ground.registry)?;
        Ok(Arc::new(Self {
            config: ground.config,
            target,
            state_dir: ground.state_dir,
            clock: ground.clock,
            board: ground.board,
            archiver: Arc::new(Archiver::new(parts)),
            state: Mutex::default(),
        }))
    }

    /// Who archives, and knows whose log it is.
    #[must_use]
    pub fn archiver(&self) -> &Arc<Archiver> {
        &self.archiver
    }

    /// Begins to work; ends, with what was heard written down, when `stop` is cancelled.
    #[must_use]
    pub fn start(self: &Arc<Self>, stop: &CancellationToken) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let until = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let stop = stop.clone();
            async move {
                // `None`: it was cancelled.
                stop.run_until_cancelled(task).await.unwrap_or_default();
            }
        };
        tasks.spawn(until(Box::pin(Arc::clone(self).serve(self.listen()))));
        tasks.spawn(until(Box::pin(Arc::clone(self).watch())));
        tasks.spawn(until(Box::pin(Arc::clone(self).count())));
        let resting = Arc::clone(&self.archiver);
        tasks.spawn(until(Box::pin(async move {
            loop {
                tokio::time::sleep(REST_EVERY).await;
                resting.rest();
            }
        })));
        if self.config.wal == Way::Stream {
            tasks.spawn(until(Box::pin(Arc::clone(self).stream())));
        }
        if !self.config.heartbeat.is_zero() {
            let (beating, stop) = (Arc::clone(self), stop.clone());
            tasks.spawn(async move {
                stop.run_until_cancelled(Box::pin(beating.beat()))
                    .await
                    .unwrap_or_default();
                beating.write_beats().await;
            });
        }
        tasks
    }

    /// Answers PostgreSQL for ever. A socket that cannot be made is told, and tried again.
    async fn serve(self: Arc<Self>, mut listener: Result<Listener, Error>) {
        loop {
            match listener {
                Ok(listener) => {
                    self.note("socket", None);
                    let archiver = Arc::clone(&self.archiver);
                    let answer = move |request, file| {
                        let archiver = Arc::clone(&archiver);
                        async move { archiver.answer(request, file).await }
                    };
                    return listener.serve(answer).await;
                }
                Err(error) => self.note("socket", Some(chain(&error))),
            }
            tokio::time::sleep(SOCKET_PAUSE).await;
            listener = self.listen();
        }
    }

    fn listen(&self) -> Result<Listener, Error> {
        let config = server::Config {
            path: self.config.socket.clone(),
            user: self.config.user,
        };
        Listener::bind(&config).map_err(|source| Error::Socket {
            path: config.path,
            source,
        })
    }

    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The archive of the cluster that `[database]` is; `None`: that is not known yet.
    #[must_use]
    pub fn archive(&self) -> Option<Archive> {
        Some(self.archiver.archive(self.archiver.ours()?))
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.lock();
        let newest = state.inventory.as_ref().and_then(|inventory| inventory.newest.as_ref());
        let newest = newest.map(|archived| (archived.file.to_string(), archived.modified));
        let last = self.archiver.last().map(|last| (last.file.to_string(), last.at));
        Stats {
            seen: state.seen.clone(),
            inventory: state.inventory.clone(),
            last_beat: state.last_beat,
            last_archived: last.or(newest),
            problems: state.problems.values().cloned().collect(),
        }
    }

    /// The server's settings against what is needed, asked now.
    ///
    /// # Errors
    /// Of the server.
    pub async fn checks(&self) -> Result<Vec<Check>, postgres::Error> {
        let admin = self.connect().await?;
        let settings = setup::read(&admin).await?;
        let command = setup::archive_command(Some(&self.config.socket));
        let client = setup::client(&admin, &settings).await;
        Ok(setup::judge(&settings, self.config.wal, &command, &client))
    }

    /// `ask`, but not for ever: a server that is frozen or cut off says nothing at all.
    async fn within<T>(&self, ask: impl Future<Output = Result<T, postgres::Error>>) -> Result<T, postgres::Error> {
        let slow = |_| postgres::Error::Slow {
            act: "asking the database".to_owned(),
            seconds: ASK_TIMEOUT.as_secs(),
        };
        tokio::time::timeout(ASK_TIMEOUT, ask).await.map_err(slow)?
    }

    async fn connect(&self) -> Result<Admin, postgres::Error> {
        Admin::connect(&self.target, self.target.database(), APPLICATION).await
    }

    /// Takes the session out where it is not too old to be asked; else it ends.
    fn still_young<T>(&self, session: &mut Session<T>) -> Session<T> {
        let age_max = SESSION_AGE_MAX.min(self.config.patience);
        let is_young = |(_, since): &(T, Duration)| self.clock.tick().saturating_sub(*since) < age_max;
        session.take().filter(is_young)
    }

    /// As [`Self::note`], of what may pass by itself: once it has lasted.
    fn note_absence(&self, what: &'static str, problem: String) {
        let now = self.clock.tick();
        let since = *self.lock().absent.entry(what).or_insert(now);
        if now.saturating_sub(since) >= ABSENCE_MAX.min(self.config.patience) {
            self.note(what, Some(problem));
        }
    }

    /// Notes that `what` goes wrong, or, with `None`, that it is well again; the board shows all that does.
    fn note(&self, what: &'static str, problem: Option<String>) {
        let mut state = self.lock();
        let was_well = !state.problems.contains_key(what);
        if problem.is_none() {
            state.absent.remove(what);
        }
        match problem {
            Some(problem) => {
                if was_well {
                    tracing::warn!(what, %problem, "point-in-time recovery is at risk");
                }
                state.problems.insert(what, problem);
            }
            None if was_well => {}
            None => {
                state.problems.remove(what);
                tracing::info!(what, "well again");
            }
        }
        let all: Vec<&str> = state.problems.values().map(String::as_str).collect();
        self.board.set(
            PART,
            match all.is_empty() {
                true => Condition::Healthy,
                false => Condition::Degraded(all.join("; ")),
            },
        );
    }

    fn metrics(&self) -> &Metrics {
        self.archiver.metrics()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
