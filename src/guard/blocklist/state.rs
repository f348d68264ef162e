//! What the clones of a [`super::Blocklist`] and its tasks share: the table in force, and how changes alter it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, watch};
use ulid::Ulid;

use super::metrics::Metrics;
use super::table::{Table, normal};
use super::waiting::{Taken, Waiting};
use super::{Block, Error, Order, Source};
use crate::clock::Clock;
use crate::guard::client::Networks;
use crate::store::Change;

/// So many blocks are in force at most, of which some are not written down.
const UNKEPT_MAX: usize = 100_000;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) table: ArcSwap<Table>,
    /// Taken for every change of the table, never for a lookup.
    waiting: Mutex<Waiting>,
    pub(super) generation: watch::Sender<u64>,
    protected: ArcSwap<Protected>,
    /// Rung when something waits for the store.
    pub(super) store_bell: Notify,
    /// Rung when something waits for the local files.
    pub(super) local_bell: Notify,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
}

/// Networks that no block may lie in.
#[derive(Debug, Default)]
struct Protected {
    all: Networks,
    /// To tell the caller which one, and why.
    named: Vec<(IpNet, &'static str)>,
}

impl Default for Shared {
    #[expect(clippy::expect_used, reason = "the names are constants; a test makes one")]
    fn default() -> Self {
        Self {
            table: ArcSwap::default(),
            waiting: Mutex::default(),
            generation: watch::Sender::new(0),
            protected: ArcSwap::default(),
            store_bell: Notify::new(),
            local_bell: Notify::new(),
            clock: Clock::system(),
            metrics: Metrics::new().expect("constant metric names are valid"),
        }
    }
}

/// Whether `new` may take the place of `old`, by the rule that the stores know as well: a manual block wins unless an
/// even newer one stands; an automatic one only makes a block last longer.
pub(super) fn supersedes(new: &Block, old: &Block) -> bool {
    let lasting = |block: &Block| block.expires_at.unwrap_or(Timestamp::MAX);
    lasting(old) <= new.created_at
        || match new.source {
            Source::Manual => new.created_at >= old.created_at,
            Source::Automatic => lasting(new) > lasting(old),
        }
}

/// PostgreSQL keeps microseconds.
fn round(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

/// Alters `table` as the store would its rows.
fn overlay(table: &mut Table, change: &Change, before: &Table) {
    let network = change.network();
    if let Some(until) = change.lifts_until()
        && table.get(network).is_some_and(|old| old.block.created_at <= until)
    {
        drop(table.remove(network));
    }
    if let Some(block) = change.block()
        && table.get(network).is_none_or(|old| supersedes(block, &old.block))
    {
        table.insert(block.clone(), before);
    }
}

fn live(block: &Block, now: Timestamp) -> bool {
    block.expires_at.is_none_or(|end| end > now)
}

/// The block in force after an order, and what its caller may wait for; nothing where another block stays.
pub(super) type Ordered = Result<(Block, Option<Taken>), Error>;

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that holds the lock can leave it half written.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_protected(&self, networks: Vec<(IpNet, &'static str)>) {
        let named: Vec<_> = networks.into_iter().map(|(net, why)| (normal(net), why)).collect();
        let all = Networks::new(named.iter().map(|(network, _)| network));
        self.protected.store(Arc::new(Protected { all, named }));
    }

    fn refuse_protected(&self, network: IpNet) -> Result<(), Error> {
        let protected = self.protected.load();
        if !protected.all.covers(network) {
            return Ok(());
        }
        match protected.named.iter().find(|(safe, _)| safe.contains(&network)) {
            Some((safe, why)) => Err(Error::Protected {
                network,
                protected: *safe,
                why,
            }),
            None => Ok(()),
        }
    }

    /// Swaps the table; the caller holds the lock.
    fn swap(&self, table: Table, waiting: &Waiting) {
        self.metrics.entries.set(i64::try_from(table.len()).unwrap_or(i64::MAX));
        self.table.store(Arc::new(table));
        self.generation
            .send_modify(|generation| *generation = generation.wrapping_add(1));
        self.count(waiting);
        self.local_bell.notify_one();
    }

    fn count(&self, waiting: &Waiting) {
        self.metrics
            .waiting
            .set(i64::try_from(waiting.len()).unwrap_or(i64::MAX));
    }

    pub(super) fn measure_lag(&self) {
        let oldest = self.lock().oldest();
        let lag = oldest.map_or(SignedDuration::ZERO, |since| self.clock.wall().duration_since(since));
        self.metrics.lag.set(lag.as_secs_f64().max(0.0));
    }

    /// Puts orders in force, all with one new table.
    pub(super) fn order(&self, orders: Vec<Order>) -> Vec<Ordered> {
        let mut waiting = self.lock();
        let before = self.table.load_full();
        let mut table = Table::clone(&before);
        let mut changed = false;
        let outcomes = orders
            .into_iter()
            .map(|order| self.order_one(&order, &mut table, &before, &mut waiting, &mut changed))
            .collect();
        if changed {
            self.swap(table, &waiting);
        }
        drop(waiting);
        self.store_bell.notify_one();
        outcomes
    }

    fn order_one(
        &self,
        order: &Order,
        table: &mut Table,
        before: &Table,
        waiting: &mut Waiting,
        changed: &mut bool,
    ) -> Ordered {
        let network = normal(order.network);
        self.refuse_protected(network)?;
        let is_kept = match waiting.room_for(network) {
            Ok(()) => true,
            // Who attacks while the store is away is shut out all the same, here and until it has been read again.
            Err(Error::QueueFull { .. }) if order.source == Source::Automatic && table.len() < UNKEPT_MAX => false,
            Err(error) => return Err(error),
        };
        let now = self.clock.wall();
        let old = table.get(network);
        // An order is newer than what it is to replace, whatever the clock of the instance that made that one said.
        let after = old.and_then(|old| old.block.created_at.checked_add(SignedDuration::from_micros(1)).ok());
        let block = Block {
            reference: Ulid::from_datetime(std::time::SystemTime::from(now)),
            network,
            reason: order.reason.replace('\0', ""),
            source: order.source,
            created_by: order.created_by.replace('\0', ""),
            created_at: after.map_or(round(now), |after| after.max(round(now))),
            // A duration beyond the end of time is permanent.
            expires_at: order
                .duration
                .and_then(|duration| now.checked_add(duration).ok())
                .map(round),
        };
        if let Some(old) = old
            && live(&old.block, now)
            && !supersedes(&block, &old.block)
        {
            return Ok((old.block.clone(), None));
        }
        table.insert(block.clone(), before);
        self.metrics.blocked.inc();
        *changed = true;
        let taken = is_kept.then(|| waiting.push(Change::Block(block.clone()), now));
        if taken.is_none() {
            self.metrics.dropped.inc();
        }
        Ok((block, taken))
    }

    pub(super) fn take_orders(&self, orders: Vec<Order>) {
        if orders.is_empty() {
            return;
        }
        for refused in self.order(orders).into_iter().filter_map(Result::err) {
            self.metrics.dropped.inc();
            tracing::warn!(error = %refused, "an automatic block is not taken");
        }
    }

    pub(super) fn lift(&self, network: IpNet) -> Result<Option<(Block, Taken)>, Error> {
        let mut waiting = self.lock();
        let mut table = Table::clone(&self.table.load());
        let Some(entry) = table.remove(network) else {
            return Ok(None);
        };
        waiting.room_for(network)?;
        let now = self.clock.wall();
        let at = round(now).max(entry.block.created_at);
        let taken = waiting.push(Change::Unblock { network, at }, now);
        self.metrics.unblocked.inc();
        self.swap(table, &waiting);
        drop(waiting);
        self.store_bell.notify_one();
        Ok(Some((entry.block.clone(), taken)))
    }

    /// Puts `blocks` in force in the place of all others, over them what the journal `recalls`, and over all what
    /// still waits for the store.
    pub(super) fn replace(&self, blocks: Vec<Block>, recalls: &[Change]) {
        let waiting = self.lock();
        let (before, now) = (self.table.load_full(), self.clock.wall());
        let mut table = Table::default();
        for mut block in blocks {
            block.network = normal(block.network);
            if live(&block, now) {
                table.insert(block, &before);
            }
        }
        for change in recalls.iter().chain(waiting.changes()) {
            overlay(&mut table, change, &before);
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

    /// The store holds `blocks`, and nothing else, for `networks`.
    pub(super) fn patch(&self, networks: &HashSet<IpNet>, blocks: Vec<Block>) {
        let waiting = self.lock();
        let (before, now) = (self.table.load_full(), self.clock.wall());
        let mut table = Table::clone(&before);
        for network in networks {
            drop(table.remove(normal(*network)));
        }
        for mut block in blocks {
            block.network = normal(block.network);
            if live(&block, now) {
                table.insert(block, &before);
            }
        }
        for change in waiting.changes() {
            if networks.contains(&change.network()) {
                overlay(&mut table, change, &before);
            }
        }
        let same = networks.iter().map(|network| normal(*network)).all(|network| {
            match (table.get(network), before.get(network)) {
                (Some(new), Some(old)) => Arc::ptr_eq(new, old),
                (None, None) => true,
                _ => false,
            }
        });
        if !same {
            self.swap(table, &waiting);
        }
    }

    pub(super) fn expire(&self) {
        let waiting = self.lock();
        let (before, now) = (self.table.load_full(), self.clock.wall());
        let gone: Vec<IpNet> = before
            .entries()
            .filter(|entry| !live(&entry.block, now))
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

    /// The store has `batch`, with `stay` in the place of some.
    pub(super) fn stored(&self, batch: &[(u64, Change)], stay: Vec<Block>) {
        let networks: HashSet<IpNet> = stay.iter().map(|block| block.network).collect();
        self.lock().stored(batch, &stay);
        if !stay.is_empty() {
            // Before the answers: who is told of another block finds it in force.
            self.patch(&networks, stay);
        }
        let mut waiting = self.lock();
        waiting.release();
        self.count(&waiting);
        drop(waiting);
        self.local_bell.notify_one();
    }

    /// The database wants this change never; the caller reads back what stands there.
    pub(super) fn refused(&self, change: &(u64, Change), why: &str) {
        self.metrics.refused.inc();
        let mut waiting = self.lock();
        waiting.refused(change, why);
        self.count(&waiting);
        drop(waiting);
        self.local_bell.notify_one();
    }

    pub(super) fn store_failed(&self) {
        self.lock().store_failed();
    }

    pub(super) fn store_works(&self) {
        self.lock().store_works();
    }
}
