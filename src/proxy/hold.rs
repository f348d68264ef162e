//! Holding requests back for a moment, while a restore swaps the app's databases: better a second late than an error.
//!
//! A request costs one relaxed load while nothing is held. Requests that were passed on before are given time to end;
//! tunnels are not waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::error::Error;
use super::flight::Ticket;
use super::shared::Shared;
use super::worker::Worker;

/// A held request gets its 503 after this.
const HELD_FOR_MAX: Duration = Duration::from_secs(5);
/// Requests that were passed on before the hold get this long to end.
const QUIET_WITHIN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);
/// More than this at a time are refused at once.
const HELD_MAX: usize = 10_000;

#[derive(Debug)]
pub(super) struct Hold {
    /// The fast answer to what `state` says.
    is_on: AtomicBool,
    state: watch::Sender<bool>,
    held: AtomicUsize,
    /// Requests at the app, per worker, as of its last sweep; `usize::MAX` until it has swept during this hold.
    busy: Vec<AtomicUsize>,
}

impl Hold {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            is_on: AtomicBool::new(false),
            state: watch::Sender::new(false),
            held: AtomicUsize::new(0),
            busy: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// What a worker's sweep saw; asked for only while a hold is on.
    pub(super) fn note_busy(&self, worker: usize, requests: usize) {
        if let Some(busy) = self.busy.get(worker) {
            busy.store(requests, Ordering::Release);
        }
    }

    fn is_quiet(&self) -> bool {
        self.busy.iter().all(|busy| busy.load(Ordering::Acquire) == 0)
    }

    fn set(&self, on: bool) {
        if on {
            for busy in &self.busy {
                busy.store(usize::MAX, Ordering::Release);
            }
        }
        self.is_on.store(on, Ordering::Release);
        let _before: bool = self.state.send_replace(on);
    }
}

/// Holds the requests of all workers; clones share it.
#[derive(Debug, Clone)]
pub struct Holder(Arc<Shared>);

/// Requests are held until it is dropped.
#[derive(Debug)]
pub struct Held(Arc<Shared>);

impl Holder {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self(Arc::clone(shared))
    }

    /// From now on no request is passed on; returns when those that were have ended, or after two seconds.
    pub async fn hold(&self) -> Held {
        let held = Held(Arc::clone(&self.0));
        let hold = &self.0.hold;
        hold.set(true);
        let quiet = async {
            while !hold.is_quiet() {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(QUIET_WITHIN, quiet).await.is_err() {
            tracing::warn!("requests at the app did not end within {QUIET_WITHIN:?}; going on without them");
        }
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.hold.set(false);
    }
}

/// Counts a held request for as long as it is held, also when its client leaves.
struct Place<'a> {
    hold: &'a Hold,
    worker: &'a Worker,
}

impl<'a> Place<'a> {
    fn take(worker: &'a Worker) -> Option<Self> {
        let hold = &worker.shared.hold;
        if hold.held.fetch_add(1, Ordering::Relaxed) >= HELD_MAX {
            hold.held.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        worker.held.set(worker.held.get() + 1);
        Some(Self { hold, worker })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.hold.held.fetch_sub(1, Ordering::Relaxed);
        self.worker.held.set(self.worker.held.get().saturating_sub(1));
    }
}

/// Waits until requests may pass again.
pub(super) async fn wait(worker: &Worker, ticket: &Ticket) -> Result<(), Error> {
    let _place = Place::take(worker).ok_or(Error::Held)?;
    let mut state = worker.shared.hold.state.subscribe();
    ticket.deadline.set(worker.clock.tick() + HELD_FOR_MAX);
    match ticket.guard(state.wait_for(|on| !on)).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Held),
    }
}
