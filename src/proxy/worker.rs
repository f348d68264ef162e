//! One worker: a thread with its own runtime, listeners, connections and upstream pool. Nothing of it leaves the thread.
//!
//! Instead of a timer per connection and request there is one sweeper per worker, which looks at the deadlines of all
//! flights ten times a second and of all connections once a second.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use jiff::Timestamp;
use slab::Slab;
use smallvec::SmallVec;
use tokio::sync::watch;

use super::account;
use super::connection::Connection;
use super::flight::{Ended, Flight};
use super::metrics::{Local, Metrics, Outcome};
use super::shared::{Phase, Shared};
use super::snapshot::{Held, Snapshot};
use super::tls;
use super::upstream::Upstreams;
use crate::clock::{Clock, Now};

/// How often flights are looked at: the precision of request time-outs.
const SWEEP: Duration = Duration::from_millis(100);
/// Connections are looked at, metrics flushed and the log handed over at every this many sweeps.
const SWEEPS_PER_ROUND: u32 = 10;

pub(super) struct Worker {
    number: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) local: Local,
    pub(super) upstreams: Upstreams,
    pub(super) flights: RefCell<Slab<Rc<Flight>>>,
    pub(super) connections: RefCell<Slab<Rc<Connection>>>,
    pub(super) log_buffer: RefCell<Vec<u8>>,
    snapshot: RefCell<Rc<Held>>,
    phase: Cell<Phase>,
    drain_start: Cell<Option<Duration>>,
    coarse_tick: Cell<Duration>,
    /// Wall clock minus tick, refreshed each round, so that a request reads one clock only.
    wall_offset: Cell<(Duration, Timestamp)>,
    random: Cell<u64>,
    /// A write buffer that no connection needs right now; connections are polled one at a time, so one is enough.
    spare: Cell<Option<Vec<u8>>>,
    in_flight_shown: Cell<i64>,
    /// What is left of requests that are over.
    unwanted: RefCell<Vec<Incoming>>,
    /// Requests that wait here until a hold is over.
    pub(super) held: Cell<usize>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl Worker {
    pub(super) fn new(number: usize, shared: Arc<Shared>, snapshot: Arc<Snapshot>, seed: u64) -> Rc<Self> {
        let clock = shared.clock;
        let now = clock.now();
        let worker = Self {
            number,
            clock,
            metrics: shared.metrics.clone(),
            local: shared.metrics.local(),
            upstreams: Upstreams::default(),
            flights: RefCell::default(),
            connections: RefCell::default(),
            log_buffer: RefCell::default(),
            snapshot: RefCell::new(Rc::new(Held(snapshot))),
            phase: Cell::new(Phase::Serving),
            drain_start: Cell::new(None),
            coarse_tick: Cell::new(now.tick),
            wall_offset: Cell::new((now.tick, now.wall)),
            random: Cell::new(seed),
            spare: Cell::new(None),
            in_flight_shown: Cell::new(0),
            unwanted: RefCell::default(),
            held: Cell::new(0),
            shared,
        };
        worker.upstreams.reload(&worker.snapshot().servers, now.tick);
        Rc::new(worker)
    }

    /// The configuration for one request or connection; it does not change under its holder.
    pub(super) fn snapshot(&self) -> Rc<Held> {
        Rc::clone(&self.snapshot.borrow())
    }

    /// A fresh reading of the clock; also refreshes [`Worker::coarse_tick`].
    pub(super) fn now(&self) -> Now {
        let tick = self.clock.tick();
        self.coarse_tick.set(tick);
        let (then, wall) = self.wall_offset.get();
        Now {
            tick,
            wall: wall.checked_add(tick.saturating_sub(then)).unwrap_or(wall),
        }
    }

    /// The time of the last request or sweep: at most [`SWEEP`] old, and free.
    pub(super) fn coarse_tick(&self) -> Duration {
        self.coarse_tick.get()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.phase.get() != Phase::Serving
    }

    /// An empty buffer, for as long as something waits in it.
    pub(super) fn lend_buffer(&self, capacity: usize) -> Vec<u8> {
        self.spare.take().unwrap_or_else(|| Vec::with_capacity(capacity))
    }

    pub(super) fn return_buffer(&self, buffer: Vec<u8>) {
        self.spare.set(Some(buffer));
    }

    /// Drops a request's body at the next sweep.
    pub(super) fn drop_soon(&self, body: Option<Incoming>) {
        self.unwanted.borrow_mut().extend(body);
    }

    /// The tick at which the drain began.
    pub(super) fn drains_since(&self) -> Option<Duration> {
        self.drain_start.get()
    }

    /// The next of a sequence that is fast and well spread; not for secrets (splitmix64).
    pub(super) fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn chance(&self) -> usize {
        usize::try_from(self.random() >> 33).unwrap_or(0)
    }

    /// Writes the account of a request that ended.
    pub(super) fn account(&self, flight: &Flight) {
        account::write(self, flight);
    }

    /// Wakes, ten times a second, whatever is past its deadline; takes reloads, new blocks and the drain as they come.
    pub(super) async fn sweep(self: Rc<Self>, mut watches: Watches) {
        let mut ticker = tokio::time::interval(SWEEP);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sweeps: u32 = 0;
        loop {
            tokio::select! {
                _ = ticker.tick() => {
                    self.sweep_flights();
                    sweeps = sweeps.wrapping_add(1);
                    if sweeps.is_multiple_of(SWEEPS_PER_ROUND) {
                        self.round();
                    }
                    if self.is_draining() && self.connections.borrow().is_empty() {
                        break;
                    }
                }
                Ok(()) = watches.snapshot.changed() => {
                    let next = Arc::clone(&watches.snapshot.borrow_and_update());
                    self.upstreams.reload(&next.servers, self.clock.tick());
                    let before = self.snapshot.replace(Rc::new(Held(next)));
                    if tls::is_narrower(before.tls.as_ref(), self.snapshot().tls.as_ref()) {
                        self.end_unproven();
                    }
                }
                Ok(()) = watches.blocks.changed() => {
                    watches.blocks.mark_unchanged();
                    self.end_blocked();
                }
                Ok(()) = watches.phase.changed() => {
                    let phase = *watches.phase.borrow_and_update();
                    self.phase.set(phase);
                    self.drain_start.set(Some(self.clock.tick()));
                    self.drain(phase);
                    if phase == Phase::Ending {
                        break;
                    }
                }
                else => break,
            }
        }
        self.round();
    }

    fn sweep_flights(&self) {
        let now = self.clock.tick();
        self.coarse_tick.set(now);
        let mut stuck: SmallVec<[Rc<Flight>; 4]> = SmallVec::new();
        for (_, flight) in self.flights.borrow().iter() {
            if flight.check(now) {
                stuck.push(Rc::clone(flight));
            }
        }
        for flight in stuck {
            flight.give_up();
        }
        drop(self.unwanted.take());
        if self.shared.hold.is_on() {
            let flights = self.flights.borrow();
            let at_app = flights
                .iter()
                .filter(|(_, flight)| flight.outcome.get() != Outcome::Tunnel);
            self.shared
                .hold
                .note_busy(self.number, at_app.count().saturating_sub(self.held.get()));
        }
    }

    /// What needs doing once a second.
    pub(super) fn round(&self) {
        let now = self.clock.now();
        self.wall_offset.set((now.tick, now.wall));
        self.shared.note_round(self.number, now.tick);
        let snapshot = self.snapshot();
        for (_, connection) in self.connections.borrow().iter() {
            connection.check(now.tick, &snapshot.config.server.timeouts);
        }
        self.upstreams.round(now.tick);
        self.local.flush();
        self.shared.access_log.submit(&mut self.log_buffer.borrow_mut());
        let in_flight = i64::try_from(self.flights.borrow().len()).unwrap_or(i64::MAX);
        self.metrics
            .in_flight
            .add(in_flight - self.in_flight_shown.replace(in_flight));
    }

    /// Ends what blocked clients have under way. Their idle connections stay: the next request is told why.
    fn end_blocked(&self) {
        let now = self.now();
        for (_, flight) in self.flights.borrow().iter() {
            if self.shared.guard.is_blocked(flight.client, now) {
                flight.end(Ended::Blocked);
            }
        }
    }

    /// Ends connections whose client was let in under rules that have become stricter.
    fn end_unproven(&self) {
        for (_, connection) in self.connections.borrow().iter() {
            connection.end_unproven();
        }
        for (_, flight) in self.flights.borrow().iter() {
            if flight.outcome.get() == Outcome::Tunnel && flight.is_over_tls() {
                flight.end(Ended::Late);
            }
        }
    }

    fn drain(&self, phase: Phase) {
        for (_, connection) in self.connections.borrow().iter() {
            connection.drain(phase);
        }
    }
}

/// What tells a worker of changes.
#[derive(Debug, Clone)]
pub(super) struct Watches {
    pub(super) snapshot: watch::Receiver<Arc<Snapshot>>,
    /// The blocklist's generation.
    pub(super) blocks: watch::Receiver<u64>,
    pub(super) phase: watch::Receiver<Phase>,
}
