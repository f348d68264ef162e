//! Blocks: who is shut out, until when, why. Lookups read an immutable snapshot; changes go through [`Blocklist`].

mod disk;
mod sync;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use jiff::Timestamp;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ulid::Ulid;

use crate::clock::Clock;
pub use crate::store::{Block, Source};
use crate::store::{Change, Store};
use table::{Table, normal};

/// A block in force, with what is known only to this process.
#[derive(Debug)]
pub struct Entry {
    pub block: Block,
    /// Requests that were told why they are refused; after ten, connections are closed at accept.
    pub told: AtomicU32,
}

/// What somebody asks for; the blocklist adds reference and times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub network: IpNet,
    pub reason: String,
    pub source: Source,
    pub created_by: String,
    /// `None`: permanent.
    pub duration: Option<Duration>,
}

/// How far a change got before it was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// In the store: survives this machine's crash.
    Stored,
    /// The store cannot be reached: in force here and in the local snapshot, written to the store when it is back.
    Queued,
}

/// The blocks in force. Clones share them.
///
/// The default one is empty, keeps nothing and takes no change.
#[derive(Debug, Clone, Default)]
pub struct Blocklist {
    shared: Arc<Shared>,
    orders: Option<mpsc::Sender<Order>>,
}

/// Owns the background tasks of a [`Blocklist`].
#[derive(Debug)]
pub struct Keeper {
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Changes that may wait for the store; one network waits once.
const MAX_WAITING: usize = 10_000;
const MAX_ORDERS: usize = 4_096;

#[derive(Debug)]
struct Shared {
    table: ArcSwap<Table>,
    /// Taken for every change of the table, never for a lookup.
    waiting: Mutex<Waiting>,
    generation: watch::Sender<u64>,
    protected: ArcSwap<Vec<(IpNet, &'static str)>>,
    wake: Notify,
    clock: Clock,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Waiting {
    changes: HashMap<IpNet, (u64, Change)>,
    answers: Vec<(u64, oneshot::Sender<Durability>)>,
    last: u64,
}

#[derive(Debug)]
struct Metrics {
    entries: IntGauge,
    blocked: IntCounter,
    unblocked: IntCounter,
    expired: IntCounter,
    waiting: IntGauge,
    store_up: IntGauge,
    write_failures: IntCounter,
    dropped: IntCounter,
    changes: IntCounterVec,
}

impl Metrics {
    fn new() -> Result<Self, prometheus::Error> {
        let changes = IntCounterVec::new(
            Opts::new("foregate_blocklist_changes_total", "Changes of the blocks in force."),
            &["kind"],
        )?;
        Ok(Self {
            entries: IntGauge::new("foregate_blocklist_entries", "Blocks in force.")?,
            blocked: changes.with_label_values(&["block"]),
            unblocked: changes.with_label_values(&["unblock"]),
            expired: changes.with_label_values(&["expire"]),
            store_up: IntGauge::new("foregate_store_up", "Whether the last call reached the store.")?,
            waiting: IntGauge::new("foregate_store_queue_changes", "Changes that wait for the store.")?,
            write_failures: IntCounter::new("foregate_store_write_failures_total", "Writes the store did not take.")?,
            dropped: IntCounter::new("foregate_blocklist_dropped_orders_total", "Automatic blocks not taken.")?,
            changes,
        })
    }

    fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.entries.clone()))?;
        registry.register(Box::new(self.waiting.clone()))?;
        registry.register(Box::new(self.store_up.clone()))?;
        registry.register(Box::new(self.write_failures.clone()))?;
        registry.register(Box::new(self.dropped.clone()))?;
        registry.register(Box::new(self.changes.clone()))
    }
}

impl Default for Shared {
    #[expect(clippy::expect_used, reason = "the names are constants; a test makes one")]
    fn default() -> Self {
        Self {
            table: ArcSwap::default(),
            waiting: Mutex::default(),
            generation: watch::Sender::new(0),
            protected: ArcSwap::default(),
            wake: Notify::new(),
            clock: Clock::system(),
            metrics: Metrics::new().expect("constant metric names are valid"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{network} is never blocked: it overlaps {protected}, which is {why}")]
    Protected {
        network: IpNet,
        protected: IpNet,
        why: &'static str,
    },
    #[error("the store is unreachable and {waiting} changes already wait for it; try again when it is back")]
    QueueFull { waiting: usize },
    #[error("the change is in force here, but neither the store nor the local disk has kept it")]
    NotKept,
}

/// One page of blocks, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub blocks: Vec<Block>,
    /// All blocks in force.
    pub total: usize,
}

impl Blocklist {
    /// Puts the stored blocks in force and starts to keep them in step with `store`. Where it cannot be reached, the
    /// blocks last seen are in force, from the local snapshot.
    pub async fn open(
        store: Store,
        state_dir: &Path,
        registry: &Registry,
    ) -> Result<(Self, Keeper), prometheus::Error> {
        let shared = Arc::new(Shared::default());
        shared.metrics.register(registry)?;
        let now = shared.clock.wall();
        let queue = sync::recall(&state_dir.join("blocks-queue.jsonl"), now);
        let queued = !queue.is_empty();
        for change in queue {
            shared.lock().push(change);
        }
        let blocks = match store.blocks().await {
            Ok(blocks) => blocks,
            Err(_) => sync::recall(&state_dir.join("blocks-snapshot.jsonl"), now)
                .into_iter()
                .filter_map(|change| {
                    if let Change::Block(block) = change {
                        Some(block)
                    } else {
                        None
                    }
                })
                .collect(),
        };
        shared.replace(blocks);
        shared.wake.notify_one();
        let (sender, orders) = mpsc::channel(MAX_ORDERS);
        let (stop, tasks, changed) = (CancellationToken::new(), TaskTracker::new(), Arc::new(Notify::new()));
        tasks.spawn(sync::follow(store.clone(), Arc::clone(&changed), stop.clone()));
        let sync = sync::Sync {
            shared: Arc::clone(&shared),
            store,
            directory: state_dir.to_owned(),
            orders,
            changed,
            stop: stop.clone(),
            queued,
            saved: 0,
        };
        tasks.spawn(sync.run());
        tasks.close();
        let blocklist = Self {
            shared,
            orders: Some(sender),
        };
        Ok((blocklist, Keeper { stop, tasks }))
    }

    /// The block that shuts `address` out: the longest matching prefix that has not expired. Hot path: no lock, no
    /// allocation.
    #[must_use]
    pub fn find(&self, address: IpAddr, now: Timestamp) -> Option<Arc<Entry>> {
        self.shared.table.load().find(address, now).map(Arc::clone)
    }

    /// Adds or replaces the block of exactly this network; answers once it is in force and stored (or queued). An
    /// automatic block does not replace one that lasts as long: the answer is then the block that stays.
    pub async fn block(&self, order: Order) -> Result<(Block, Durability), Error> {
        if self.orders.is_none() {
            return Err(Error::NotKept);
        }
        let (block, answer) = self.shared.order(vec![order]).pop().unwrap_or(Err(Error::NotKept))?;
        let Some(answer) = answer else {
            return Ok((block, Durability::Stored));
        };
        let durability = answer.await.map_err(|_| Error::NotKept)?;
        Ok((block, durability))
    }

    /// Lifts the block of exactly this network; `None`: there was none.
    pub async fn unblock(&self, network: IpNet, by: &str) -> Result<Option<(Block, Durability)>, Error> {
        let Some((block, answer)) = self.shared.lift(normal(network))? else {
            return Ok(None);
        };
        tracing::info!(%network, by, "block lifted");
        let durability = answer.await.map_err(|_| Error::NotKept)?;
        Ok(Some((block, durability)))
    }

    /// For the guard: orders an automatic block without ever waiting. `false`: the queue was full.
    #[must_use]
    pub fn block_soon(&self, order: Order) -> bool {
        let taken = self
            .orders
            .as_ref()
            .is_some_and(|orders| orders.try_send(order).is_ok());
        if !taken {
            self.shared.metrics.dropped.inc();
        }
        taken
    }

    /// Networks that no block may lie in, and why. A wider block that merely contains one is allowed: the guard asks
    /// for exempt clients before it asks for blocks, so they pass still.
    pub fn set_protected(&self, networks: Vec<(IpNet, &'static str)>) {
        let networks = networks
            .into_iter()
            .map(|(network, why)| (normal(network), why))
            .collect();
        self.shared.protected.store(Arc::new(networks));
    }

    /// A number that grows with every change of the blocks in force.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    #[must_use]
    pub fn page(&self, offset: usize, limit: usize) -> Page {
        let (table, now) = (self.shared.table.load(), self.shared.clock.wall());
        let mut live: Vec<_> = table
            .entries()
            .filter(|entry| entry.block.expires_at.is_none_or(|end| end > now))
            .collect();
        live.sort_unstable_by_key(|entry| std::cmp::Reverse((entry.block.created_at, entry.block.reference)));
        Page {
            total: live.len(),
            blocks: live
                .into_iter()
                .skip(offset)
                .take(limit)
                .map(|entry| entry.block.clone())
                .collect(),
        }
    }
}

impl Keeper {
    /// Writes what waits and stops; `false`: not within `deadline`.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        self.stop.cancel();
        tokio::time::timeout(deadline, self.tasks.wait()).await.is_ok()
    }
}

impl Waiting {
    fn push(&mut self, change: Change) -> oneshot::Receiver<Durability> {
        self.last += 1;
        let (answer, answered) = oneshot::channel();
        self.answers.push((self.last, answer));
        self.changes.insert(change.network(), (self.last, change));
        answered
    }

    fn room_for(&self, network: IpNet) -> Result<(), Error> {
        if self.changes.len() >= MAX_WAITING && !self.changes.contains_key(&network) {
            return Err(Error::QueueFull {
                waiting: self.changes.len(),
            });
        }
        Ok(())
    }
}

/// Whether `new` may take the place of `old`: an automatic block only makes a block last longer.
fn supersedes(new: &Block, old: &Block, now: Timestamp) -> bool {
    let lasting = |block: &Block| block.expires_at.unwrap_or(Timestamp::MAX);
    new.source == Source::Manual || lasting(old) <= now || lasting(new) > lasting(old)
}

type Ordered = Result<(Block, Option<oneshot::Receiver<Durability>>), Error>;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that holds the lock can leave the map half written.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Swaps the table; the caller holds the lock.
    fn swap(&self, table: Table, waiting: &Waiting) {
        self.metrics.entries.set(i64::try_from(table.len()).unwrap_or(i64::MAX));
        self.metrics
            .waiting
            .set(i64::try_from(waiting.changes.len()).unwrap_or(i64::MAX));
        self.table.store(Arc::new(table));
        self.generation
            .send_modify(|generation| *generation = generation.wrapping_add(1));
    }

    /// Puts orders in force, all with one new table.
    fn order(&self, orders: Vec<Order>) -> Vec<Ordered> {
        let mut waiting = self.lock();
        let before = self.table.load_full();
        let mut table = Table::clone(&before);
        let outcomes = orders
            .into_iter()
            .map(|order| self.order_one(&order, &mut table, &before, &mut waiting))
            .collect();
        self.swap(table, &waiting);
        drop(waiting);
        self.wake.notify_one();
        outcomes
    }

    fn order_one(&self, order: &Order, table: &mut Table, before: &Table, waiting: &mut Waiting) -> Ordered {
        let network = normal(order.network);
        if let Some((protected, why)) = self.protected.load().iter().find(|(safe, _)| safe.contains(&network)) {
            return Err(Error::Protected {
                network,
                protected: *protected,
                why,
            });
        }
        waiting.room_for(network)?;
        let now = self.clock.wall();
        // PostgreSQL keeps microseconds.
        let round = |time: Timestamp| Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time);
        let block = Block {
            reference: Ulid::from_datetime(std::time::SystemTime::from(now)),
            network,
            reason: order.reason.replace('\0', ""),
            source: order.source,
            created_by: order.created_by.replace('\0', ""),
            created_at: round(now),
            // A duration beyond the end of time is permanent.
            expires_at: order
                .duration
                .and_then(|duration| now.checked_add(duration).ok())
                .map(round),
        };
        if let Some(old) = table.get(network)
            && !supersedes(&block, &old.block, now)
        {
            return Ok((old.block.clone(), None));
        }
        table.insert(block.clone(), before);
        self.metrics.blocked.inc();
        let answer = waiting.push(Change::Block(block.clone()));
        Ok((block, Some(answer)))
    }

    fn take_orders(&self, orders: Vec<Order>) {
        if orders.is_empty() {
            return;
        }
        for refused in self.order(orders).into_iter().filter_map(Result::err) {
            self.metrics.dropped.inc();
            tracing::warn!(error = %refused, "an automatic block is not taken");
        }
    }

    fn lift(&self, network: IpNet) -> Result<Option<(Block, oneshot::Receiver<Durability>)>, Error> {
        let mut waiting = self.lock();
        let mut table = Table::clone(&self.table.load());
        let Some(entry) = table.remove(network) else {
            return Ok(None);
        };
        waiting.room_for(network)?;
        let at = self.clock.wall().max(entry.block.created_at);
        let answer = waiting.push(Change::Unblock { network, at });
        self.metrics.unblocked.inc();
        self.swap(table, &waiting);
        drop(waiting);
        self.wake.notify_one();
        Ok(Some((entry.block.clone(), answer)))
    }

    /// Puts `blocks` in force in the place of all others, and what still waits for the store over them.
    fn replace(&self, blocks: Vec<Block>) {
        let waiting = self.lock();
        let (before, now) = (self.table.load_full(), self.clock.wall());
        let mut table = Table::default();
        for mut block in blocks {
            block.network = normal(block.network);
            if block.expires_at.is_none_or(|end| end > now) {
                table.insert(block, &before);
            }
        }
        for (_, change) in waiting.changes.values() {
            match change {
                Change::Block(block) => {
                    if table
                        .get(block.network)
                        .is_none_or(|old| supersedes(block, &old.block, now))
                    {
                        table.insert(block.clone(), &before);
                    }
                }
                Change::Unblock { network, at } => {
                    if table.get(*network).is_some_and(|old| old.block.created_at <= *at) {
                        drop(table.remove(*network));
                    }
                }
            }
        }
        let same = table.len() == before.len()
            && table.entries().all(|entry| {
                before
                    .get(entry.block.network)
                    .is_some_and(|old| Arc::ptr_eq(old, entry))
            });
        if !same {
            self.swap(table, &waiting);
        }
    }

    fn expire(&self) {
        let waiting = self.lock();
        let (before, now) = (self.table.load_full(), self.clock.wall());
        let over = |end: Option<Timestamp>| end.is_some_and(|end| end <= now);
        let gone: Vec<IpNet> = before
            .entries()
            .filter(|entry| over(entry.block.expires_at))
            .map(|entry| entry.block.network)
            .collect();
        if gone.is_empty() {
            return;
        }
        let mut table = Table::clone(&before);
        for network in gone {
            drop(table.remove(network));
            self.metrics.expired.inc();
        }
        self.swap(table, &waiting);
    }

    fn waiting(&self) -> Vec<(u64, Change)> {
        self.lock().changes.values().cloned().collect()
    }

    fn has_waiters(&self) -> bool {
        !self.lock().answers.is_empty()
    }

    /// The store has `batch`; changes that came later for the same networks still wait.
    fn written(&self, batch: &[(u64, Change)]) {
        let mut waiting = self.lock();
        for (number, change) in batch {
            if waiting
                .changes
                .get(&change.network())
                .is_some_and(|(now, _)| now == number)
            {
                waiting.changes.remove(&change.network());
            }
        }
        self.metrics
            .waiting
            .set(i64::try_from(waiting.changes.len()).unwrap_or(i64::MAX));
        drop(waiting);
        self.acknowledge(batch, Durability::Stored);
    }

    /// Answers those whose change, or a later one for the same network, is in `batch`.
    fn acknowledge(&self, batch: &[(u64, Change)], durability: Durability) {
        let last = batch.iter().map(|(number, _)| *number).max().unwrap_or(0);
        let mut waiting = self.lock();
        let (kept, open): (Vec<_>, Vec<_>) = std::mem::take(&mut waiting.answers)
            .into_iter()
            .partition(|(number, _)| *number <= last);
        waiting.answers = open;
        drop(waiting);
        for (_, answer) in kept {
            // Nobody waits for the answer of an automatic block.
            answer.send(durability).ok();
        }
    }

    /// Tells those who wait that nothing keeps their change.
    fn refuse(&self) {
        self.lock().answers.clear();
    }
}
