//! All workers together: their threads, and what they listen on. Their owner alone can end them, however many others hold the
//! gate at that moment (a reload that waits for a disk does).

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

use super::connection::Kind;
use super::shared::{Phase, Shared};
use super::snapshot::Snapshot;
use super::worker::{Watches, Worker};
use super::{Error, Listener, Sockets, listener};

/// How long workers have to notice that the drain is over.
const ENDING: Duration = Duration::from_secs(2);
const POLL_ENDED: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub struct Workers {
    threads: Vec<thread::JoinHandle<()>>,
    /// Copies of all listening sockets, for a successor; closed when the drain begins.
    sockets: Sockets,
    phase: watch::Sender<Phase>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    shared: Arc<Shared>,
}

impl Workers {
    /// For each address its `listeners`, which are dealt out to the workers.
    pub(super) fn start(
        listeners: Vec<Vec<Listener>>,
        shared: &Arc<Shared>,
        snapshot: watch::Receiver<Arc<Snapshot>>,
    ) -> Result<Self, Error> {
        let (phase, phases) = watch::channel(Phase::Serving);
        let mut workers = Self {
            threads: Vec::new(),
            sockets: copies(&listeners).map_err(Error::Copy)?,
            phase,
            snapshot: snapshot.clone(),
            shared: Arc::clone(shared),
        };
        let watches = Watches {
            snapshot,
            blocks: shared.guard.blocklist().changes(),
            phase: phases,
        };
        for (number, share) in deal(listeners, shared.rounds.len()).into_iter().enumerate() {
            let thread = spawn(number, share, Arc::clone(shared), watches.clone())?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// The listening sockets, for a successor.
    #[must_use]
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Stops accepting, finishes what is in flight, and ends everything that is left after `drain_timeout`.
    pub async fn drain(self) {
        let timeout = self.snapshot.borrow().config.server.drain_timeout;
        drop(self.sockets);
        self.phase.send_replace(Phase::Draining);
        let ended = || self.threads.iter().all(thread::JoinHandle::is_finished);
        if !wait_for(ended, timeout).await {
            tracing::warn!(
                connections = self.shared.census.total(),
                "drain timeout: closing what is left"
            );
            self.phase.send_replace(Phase::Ending);
            if !wait_for(ended, ENDING).await {
                tracing::error!("a worker did not end");
                return;
            }
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker ended by a panic");
            }
        }
    }
}

async fn wait_for(condition: impl Fn() -> bool, limit: Duration) -> bool {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(POLL_ENDED).await;
        }
    };
    tokio::time::timeout(limit, waiting).await.is_ok()
}

fn copies(listeners: &[Vec<Listener>]) -> std::io::Result<Sockets> {
    let mut sockets = Sockets::default();
    for (kind, socket) in listeners.iter().flatten() {
        let pool = if *kind == Kind::Redirect {
            &mut sockets.redirects
        } else {
            &mut sockets.gates
        };
        pool.push(socket.try_clone()?);
    }
    Ok(sockets)
}

/// Deals the sockets of every address out to the workers in turn; inherited ones may be more or fewer than workers.
fn deal(listeners: Vec<Vec<Listener>>, workers: usize) -> Vec<Vec<Listener>> {
    let mut shares: Vec<Vec<Listener>> = (0..workers).map(|_| Vec::new()).collect();
    for sockets in listeners {
        for (number, socket) in sockets.into_iter().enumerate() {
            if let Some(share) = shares.get_mut(number % workers.max(1)) {
                share.push(socket);
            }
        }
    }
    shares
}

fn spawn(
    number: usize,
    listeners: Vec<Listener>,
    shared: Arc<Shared>,
    watches: Watches,
) -> Result<thread::JoinHandle<()>, Error> {
    let seed = getrandom::u64()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Thread)?;
    let work = move || {
        let local = tokio::task::LocalSet::new();
        let serving = local.run_until(async move {
            let snapshot = Arc::clone(&watches.snapshot.borrow());
            let worker = Worker::new(number, shared, snapshot, seed);
            for (kind, listener) in listeners {
                let accepting = listener::accept(std::rc::Rc::clone(&worker), listener, kind, watches.phase.clone());
                drop(tokio::task::spawn_local(async move {
                    if let Err(error) = accepting.await {
                        tracing::error!(%error, "a listener ended");
                    }
                }));
            }
            worker.sweep(watches).await;
        });
        runtime.block_on(serving);
    };
    thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(work)
        .map_err(Error::Thread)
}
