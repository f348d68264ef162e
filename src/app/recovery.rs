//! Point-in-time recovery in the server: begun at the start, or else as soon as what it needs is there.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::build::Running;
use crate::config::Config;
use crate::pitr::keeper::Ground;
use crate::pitr::routine::Parts;
use crate::pitr::{Handles, Keeper, Routine};
use crate::telemetry::health::{Board, Condition};

/// Between two tries; the pauses grow.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a start waits for the first try: a repository that does not answer must not hold the gate up.
const FIRST_TRY: Duration = Duration::from_secs(5);

/// Begins if it is wanted; whatever stands in its way is shown, tried again, and stops no traffic. The tasks end, with what
/// was heard written down, when `stop` is cancelled.
pub(super) async fn start(
    config: &Config,
    running: &Running,
    stop: &CancellationToken,
    behind: &Handle,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let Some(database) = config.backup.database.clone().filter(|_| config.pitr.enabled) else {
        return tasks;
    };
    let tried = CancellationToken::new();
    let beginning = Beginning {
        keeper: Ground {
            config: config.pitr.clone(),
            database: database.clone(),
            repository: config.backup.repository.clone(),
            state_dir: config.state_dir.clone(),
            clock: running.clock,
            board: running.board.clone(),
            registry: running.registry.clone(),
        },
        routine: Parts {
            config: config.pitr.clone(),
            database,
            repository: config.backup.repository.clone(),
            time_zone: config.backup.plan.zone.clone(),
            clock: running.clock,
            board: running.board.clone(),
            registry: running.registry.clone(),
            archiver: None,
        },
        handles: running.recovery.clone(),
        opening: Opening {
            board: running.board.clone(),
            tried: Some(tried.clone().drop_guard()),
        },
    };
    tasks.spawn(beginning.run(stop.clone(), behind.clone()));
    drop(tokio::time::timeout(FIRST_TRY, tried.cancelled()).await);
    tasks
}

struct Beginning {
    keeper: Ground,
    routine: Parts,
    handles: Handles,
    opening: Opening,
}

impl Beginning {
    async fn run(self, stop: CancellationToken, behind: Handle) {
        let mut tasks = Vec::new();
        let beginning = Box::pin(self.begin(&mut tasks, &stop, &behind));
        // `None`: it was cancelled, and what has begun ends as well.
        stop.run_until_cancelled(beginning).await.unwrap_or_default();
        for mut of_part in tasks {
            while of_part.join_next().await.is_some() {}
        }
    }

    async fn begin(self, tasks: &mut Vec<JoinSet<()>>, stop: &CancellationToken, behind: &Handle) {
        let Self {
            keeper: ground,
            routine: mut parts,
            handles,
            mut opening,
        } = self;
        let keeper = opening.open("pitr", move || Keeper::open(ground.clone())).await;
        tasks.push(keeper.start(stop));
        parts.archiver = Some(Arc::clone(keeper.archiver()));
        handles.set_keeper(keeper);
        let routine = opening.open("recovery", move || Routine::open(parts.clone())).await;
        tasks.push(routine.start(stop, behind));
        handles.set_routine(routine);
    }
}

struct Opening {
    board: Board,
    /// Dropped after the first try.
    tried: Option<DropGuard>,
}

impl Opening {
    /// Tries until it works.
    async fn open<T, E>(&mut self, part: &'static str, open: impl Fn() -> Result<T, E> + Clone + Send + 'static) -> T
    where
        T: Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let mut pause = PAUSE;
        let mut told = None;
        loop {
            // The repository may lie on a disk that does not answer.
            let mut trying = tokio::task::spawn_blocking(open.clone());
            let tried = match tokio::time::timeout(FIRST_TRY, &mut trying).await {
                Ok(tried) => tried,
                Err(_) => {
                    self.tell(part, "the repository does not answer".to_owned(), &mut told);
                    trying.await
                }
            };
            let why = match tried {
                Ok(Ok(opened)) => {
                    if told.is_some() {
                        tracing::info!(part, "point-in-time recovery has begun");
                        self.board.set(part, Condition::Healthy);
                    }
                    return opened;
                }
                Ok(Err(error)) => format!("{:#}", anyhow::Error::from(error)),
                Err(ended) => ended.to_string(),
            };
            self.tell(part, why, &mut told);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Once to the log for each reason.
    fn tell(&mut self, part: &'static str, why: String, told: &mut Option<String>) {
        if told.as_ref() != Some(&why) {
            tracing::error!(part, why, "point-in-time recovery cannot begin yet; it is tried again");
            let text = format!("not running, and tried again by itself: {why}");
            self.board.set(part, Condition::Degraded(text));
            *told = Some(why);
        }
        drop(self.tried.take());
    }
}
