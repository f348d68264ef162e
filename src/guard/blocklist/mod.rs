//! Blocks: who is shut out, until when, why. Lookups read an immutable snapshot; changes go through [`Blocklist`].

mod local;
mod metrics;
mod state;
mod sync;
mod table;
#[cfg(test)]
mod tests;
mod waiting;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use prometheus::Registry;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::store::{Block, Source};
use crate::store::{Change, Changed, Store, What};
use state::Shared;
use table::normal;
use waiting::{Outcome, Taken};

/// A block in force, with what is known only to this process.
#[derive(Debug)]
pub struct Entry {
    pub block: Block,
    /// Requests that were told why they are refused; after ten, connections are closed at accept.
    pub told: AtomicU32,
    /// Connections that were let in nevertheless, to be told.
    pub met: AtomicU32,
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

/// Orders of automatic blocks that nobody has taken yet.
const MAX_ORDERS: usize = 4_096;
/// Nobody waits longer for the store than this; a change is then acknowledged as queued.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(2);
/// How much longer for the local disk.
const RECORD_WITHIN: Duration = Duration::from_secs(3);
/// How long a start waits for the stored blocks before it takes the snapshot.
const START_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{network} is never blocked: it lies in {protected}, which is {why}")]
    Protected {
        network: IpNet,
        protected: IpNet,
        why: &'static str,
    },
    #[error("the store is unreachable and {waiting} changes already wait for it; try again when it is back")]
    QueueFull { waiting: usize },
    #[error("the database refuses the change of {network}: {why}")]
    Refused { network: IpNet, why: String },
    #[error("neither the store nor the local disk has kept the change; at best it holds here until a restart")]
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
    /// Puts the stored blocks in force and starts to keep them in step with `store`. Where it cannot be reached, or had to be
    /// made anew, the blocks last seen are in force, from the local snapshot.
    pub async fn open(
        store: Store,
        state_dir: &Path,
        registry: &Registry,
    ) -> Result<(Self, Keeper), prometheus::Error> {
        let shared = Arc::new(Shared::default());
        shared.metrics.register(registry)?;
        let now = shared.clock.wall();
        let (journal, entries) = local::open_journal(state_dir);
        shared.lock().recall(&entries, now);
        let stored = tokio::time::timeout(START_TIMEOUT, store.blocks()).await;
        let what = match stored {
            Ok(Ok(blocks)) if !store.is_new() => {
                shared.replace(blocks, &[]);
                What::Nothing
            }
            _ => {
                // Of what the store had acknowledged, the snapshot may lack the latest.
                let recalls: Vec<Change> = entries.into_iter().map(|entry| entry.change).collect();
                shared.replace(local::recall(state_dir, now), &recalls);
                What::All
            }
        };
        shared.store_bell.notify_one();
        let (sender, orders) = mpsc::channel(MAX_ORDERS);
        let (stop, tasks, changed) = (
            CancellationToken::new(),
            TaskTracker::new(),
            Arc::new(Changed::default()),
        );
        // The tasks end one after another; if one dies, those after it end as well, and nobody waits for an answer.
        let (drained, synced) = (CancellationToken::new(), CancellationToken::new());
        tasks.spawn(sync::follow(store.clone(), Arc::clone(&changed), stop.clone()));
        tasks.spawn(sync::take(Arc::clone(&shared), orders, stop.clone(), drained.clone()));
        let (slot, journal) = journal.unzip();
        let local = local::Local {
            shared: Arc::clone(&shared),
            directory: state_dir.to_owned(),
            journal,
            slot,
            synced: synced.clone(),
        };
        tasks.spawn(local.run());
        let sync = sync::Sync {
            shared: Arc::clone(&shared),
            store,
            changed,
            what,
            backoff: sync::Backoff::default(),
            drained,
        };
        tasks.spawn(sync.run(synced));
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
        let ordered = self.shared.order(vec![order]).pop();
        let (block, taken) = ordered.unwrap_or(Err(Error::NotKept))?;
        let Some(taken) = taken else {
            let waits = self.shared.lock().holds(block.network);
            let durability = if waits { Durability::Queued } else { Durability::Stored };
            return Ok((block, durability));
        };
        let (stays, durability) = self.settled(taken).await?;
        Ok((stays.unwrap_or(block), durability))
    }

    /// Lifts the block of exactly this network; `None`: there was none.
    pub async fn unblock(&self, network: IpNet, by: &str) -> Result<Option<(Block, Durability)>, Error> {
        let Some((block, taken)) = self.shared.lift(normal(network))? else {
            return Ok(None);
        };
        tracing::info!(%network, by, "block lifted");
        let (_, durability) = self.settled(taken).await?;
        Ok(Some((block, durability)))
    }

    /// Waits until a change is kept somewhere, within bounds.
    async fn settled(&self, mut taken: Taken) -> Outcome {
        for patience in [ACKNOWLEDGE_WITHIN, RECORD_WITHIN] {
            match tokio::time::timeout(patience, &mut taken.answer).await {
                Ok(answer) => return answer.unwrap_or(Err(Error::NotKept)),
                Err(_) => {
                    let recorded = self.shared.lock().give_up(taken.number);
                    if let Some(outcome) = recorded {
                        return outcome;
                    }
                }
            }
        }
        Err(Error::NotKept)
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
        self.shared.set_protected(networks);
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
