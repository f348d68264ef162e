//! The control-plane task that keeps table, store and local files in step. It alone writes to the store, one batch
//! after another, and it alone reads all blocks back; so a reading never misses a change that it has written itself,
//! and changes that still wait are laid over each reading.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{Durability, Order, Shared, disk};
use crate::store::{Change, Store};

/// Changes that come close together are read back once.
const COALESCE: Duration = Duration::from_millis(20);
const TICK: Duration = Duration::from_secs(1);
/// In ticks: the safety net under NOTIFY, and the forgetting of expired blocks.
const REREAD_EVERY: u64 = 60;
const EXPIRE_EVERY: u64 = 5;
const ORDERS_AT_ONCE: usize = 1_000;

pub(super) struct Sync {
    pub(super) shared: Arc<Shared>,
    pub(super) store: Store,
    pub(super) directory: PathBuf,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) changed: Arc<Notify>,
    pub(super) stop: CancellationToken,
    /// Whether the queue file holds changes.
    pub(super) queued: bool,
    /// The generation that the snapshot file holds.
    pub(super) saved: u64,
}

/// Follows the other instances for ever.
pub(super) async fn follow(store: Store, changed: Arc<Notify>, stop: CancellationToken) {
    let following = async {
        loop {
            if let Err(error) = store.listen(&changed).await {
                tracing::debug!(%error, "cannot follow the other instances; trying again");
            }
            tokio::time::sleep(TICK).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = following => {}
    }
}

impl Sync {
    pub(super) async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut tick, mut orders, mut reread) = (0_u64, Vec::new(), !*self.store.up().borrow());
        let shared = Arc::clone(&self.shared);
        loop {
            let stopping = tokio::select! {
                () = self.stop.cancelled() => true,
                () = shared.wake.notified() => false,
                _ = self.orders.recv_many(&mut orders, ORDERS_AT_ONCE) => false,
                () = self.changed.notified() => {
                    tokio::time::sleep(COALESCE).await;
                    reread = true;
                    false
                }
                _ = ticks.tick() => {
                    tick = tick.wrapping_add(1);
                    reread |= tick.is_multiple_of(REREAD_EVERY) || !*self.store.up().borrow();
                    if tick.is_multiple_of(EXPIRE_EVERY) {
                        shared.expire();
                    }
                    if tick.is_multiple_of(REREAD_EVERY) {
                        drop(self.store.purge(shared.clock.wall()).await);
                    }
                    self.save_snapshot().await;
                    false
                }
            };
            while let Ok(order) = self.orders.try_recv() {
                orders.push(order);
            }
            shared.take_orders(std::mem::take(&mut orders));
            self.write().await;
            if reread
                && !stopping
                && let Ok(blocks) = self.store.blocks().await
            {
                shared.replace(blocks);
                reread = false;
            }
            shared.metrics.store_up.set(i64::from(*self.store.up().borrow()));
            if stopping {
                self.save_snapshot().await;
                return;
            }
        }
    }

    /// Writes what waits; where the store is away, to the local queue file.
    async fn write(&mut self) {
        let waiting: Vec<(u64, Change)> = self.shared.waiting();
        if waiting.is_empty() {
            return;
        }
        let changes: Vec<Change> = waiting.iter().map(|(_, change)| change.clone()).collect();
        match self.store.apply(changes.clone()).await {
            Ok(()) => {
                self.shared.written(&waiting);
                if self.queued {
                    self.queued = !self.keep("blocks-queue.jsonl", Vec::new()).await;
                }
            }
            Err(error) => {
                self.shared.metrics.write_failures.inc();
                // Only new changes need the disk; those that wait from before are in the file already.
                if self.shared.has_waiters() && self.keep("blocks-queue.jsonl", changes).await {
                    self.queued = true;
                    self.shared.acknowledge(&waiting, Durability::Queued);
                } else if self.shared.has_waiters() {
                    tracing::error!(%error, "neither the store nor the local disk can keep a block");
                    self.shared.refuse();
                }
            }
        }
    }

    /// The embedded store is local itself and needs no snapshot.
    async fn save_snapshot(&mut self) {
        let generation = *self.shared.generation.borrow();
        if self.store.kind() == "sqlite" || generation == self.saved {
            return;
        }
        let blocks: Vec<Change> = self
            .shared
            .table
            .load()
            .entries()
            .map(|entry| Change::Block(entry.block.clone()))
            .collect();
        if self.keep("blocks-snapshot.jsonl", blocks).await {
            self.saved = generation;
        }
    }

    async fn keep(&self, name: &str, changes: Vec<Change>) -> bool {
        let path = self.directory.join(name);
        let shown = path.display().to_string();
        match tokio::task::spawn_blocking(move || disk::write(&path, &changes)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::error!(%error, file = shown, "cannot write blocks to the local disk");
                false
            }
            Err(_) => false,
        }
    }
}

/// What a local file holds; a file that cannot be trusted counts as empty.
pub(super) fn recall(path: &std::path::Path, now: Timestamp) -> Vec<Change> {
    let mut changes = disk::read(path).unwrap_or_else(|error| {
        tracing::error!(%error, file = %path.display(), "a local file of blocks is refused");
        Vec::new()
    });
    changes.retain(|change| !matches!(change, Change::Block(block) if block.expires_at.is_some_and(|end| end <= now)));
    changes
}
