//! The task that keeps table and store in step. It alone writes to the store, one batch after another, and it alone
//! reads blocks back; so a reading never misses a change that it has written itself, and changes that still wait are
//! laid over each reading.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::state::Shared;
use super::{Block, Order};
use crate::store::{Change, Changed, Error, PURGE_BATCH, Store, What};

/// Changes that come close together are read back once.
const COALESCE: Duration = Duration::from_millis(20);
const TICK: Duration = Duration::from_secs(1);
/// In ticks: the safety net under NOTIFY, and the forgetting of expired blocks.
const REREAD_EVERY: u64 = 60;
const EXPIRE_EVERY: u64 = 5;
const ORDERS_AT_ONCE: usize = 1_000;
/// Changes in one transaction: one that a slow link carries within a call's deadline.
const WRITE_BATCH: usize = 500;
/// Batches of one purge: with its batch of rows, more than expire between two purges.
const PURGES: u32 = 100;

pub(super) struct Sync {
    pub(super) shared: Arc<Shared>,
    pub(super) store: Store,
    pub(super) changed: Arc<Changed>,
    /// What must be read again.
    pub(super) what: What,
    pub(super) backoff: Backoff,
    /// All orders have been taken: after the next write there is no other.
    pub(super) drained: CancellationToken,
}

/// Growing pauses between tries, each with a random part, so that many instances do not come back at the same time.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
    /// No try before this reading of the clock.
    until: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(250);
    const LONGEST: Duration = Duration::from_secs(10);

    pub(super) fn pause(&mut self) -> Duration {
        let whole = Self::FIRST.saturating_mul(1 << self.tries.min(16)).min(Self::LONGEST);
        self.tries = self.tries.saturating_add(1);
        let mut random = [0_u8; 2];
        // Without random numbers the pause is whole.
        let part = getrandom::fill(&mut random).map_or(u16::MAX, |()| u16::from_le_bytes(random));
        whole / 2 + (whole / 2).mul_f64(f64::from(part) / f64::from(u16::MAX))
    }

    fn failed(&mut self, now: Duration) {
        self.until = now.saturating_add(self.pause());
    }
}

/// Follows the other instances for ever.
pub(super) async fn follow(store: Store, changed: Arc<Changed>, stop: CancellationToken) {
    let following = async {
        let clock = crate::clock::Clock::system();
        let mut backoff = Backoff::default();
        loop {
            let before = clock.tick();
            if let Err(error) = store.listen(&changed).await {
                tracing::debug!(%error, "cannot follow the other instances; trying again");
            }
            if clock.tick().saturating_sub(before) > Backoff::LONGEST {
                backoff = Backoff::default();
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = following => {}
    }
}

/// Puts automatic blocks in force: a task of its own, which waits for neither disk nor store.
pub(super) async fn take(
    shared: Arc<Shared>,
    mut orders: mpsc::Receiver<Order>,
    stop: CancellationToken,
    drained: CancellationToken,
) {
    let drained = drained.drop_guard();
    let mut taken = Vec::new();
    loop {
        let stopping = tokio::select! {
            () = stop.cancelled() => true,
            count = orders.recv_many(&mut taken, ORDERS_AT_ONCE) => count == 0,
        };
        if stopping {
            orders.close();
            while let Ok(order) = orders.try_recv() {
                taken.push(order);
            }
        }
        shared.take_orders(std::mem::take(&mut taken));
        if stopping {
            break;
        }
    }
    drop(drained);
}

impl Sync {
    pub(super) async fn run(mut self, synced: CancellationToken) {
        let synced = synced.drop_guard();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut tick, mut up, shared) = (0_u64, self.store.up(), Arc::clone(&self.shared));
        let mut stopping = false;
        while !stopping {
            tokio::select! {
                () = self.drained.cancelled() => stopping = true,
                () = shared.store_bell.notified() => {}
                () = self.changed.notified() => tokio::time::sleep(COALESCE).await,
                // Another caller has reached the store again.
                Ok(()) = up.changed() => if *up.borrow_and_update() { self.backoff = Backoff::default() },
                _ = ticks.tick() => {
                    tick = tick.wrapping_add(1);
                    self.each(tick).await;
                }
            }
            self.what.add(self.changed.take());
            if stopping || self.backoff.until <= shared.clock.tick() {
                self.write().await;
            }
            if !stopping && self.backoff.until <= shared.clock.tick() {
                self.read().await;
            }
            shared.measure_lag();
            shared.metrics.store_up.set(i64::from(*self.store.up().borrow()));
        }
        drop(synced);
    }

    async fn each(&mut self, tick: u64) {
        if tick.is_multiple_of(EXPIRE_EVERY) {
            self.shared.expire();
        }
        if tick.is_multiple_of(REREAD_EVERY) {
            self.what = What::All;
            if *self.store.up().borrow() {
                self.purge().await;
            }
        }
    }

    async fn purge(&self) {
        for _ in 0..PURGES {
            match self.store.purge(self.shared.clock.wall()).await {
                Ok(gone) if gone >= PURGE_BATCH => {}
                _ => return,
            }
        }
    }

    /// Writes what waits, until nothing does or the store fails. A batch with a change that the database refuses is
    /// halved until that change stands alone: no other is held up by it.
    async fn write(&mut self) {
        loop {
            let batch = self.shared.lock().batch(WRITE_BATCH);
            if batch.is_empty() {
                return;
            }
            let mut parts = vec![batch];
            while let Some(mut part) = parts.pop() {
                let changes: Vec<Change> = part.iter().map(|(_, change)| change.clone()).collect();
                match self.store.apply(changes).await {
                    Ok(stay) => {
                        self.backoff = Backoff::default();
                        self.shared.stored(&part, stay);
                    }
                    Err(Error::Refused(_)) if part.len() > 1 => {
                        let half = part.split_off(part.len() / 2);
                        parts.push(half);
                        parts.push(part);
                    }
                    Err(Error::Refused(why)) => self.refused(&part, &why),
                    Err(_) => {
                        self.backoff.failed(self.shared.clock.tick());
                        // What the store holds after the time without it is another question.
                        self.what = What::All;
                        self.shared.metrics.write_failures.inc();
                        self.shared.store_failed();
                        return;
                    }
                }
            }
        }
    }

    fn refused(&mut self, part: &[(u64, Change)], why: &str) {
        for change in part {
            let network = change.1.network();
            tracing::error!(%network, why, "the database refuses a change of the blocks; it is dropped");
            self.shared.refused(change, why);
            self.what.add(What::Networks([network].into()));
        }
    }

    /// All that the store holds. One that was made anew, in the place of one that was lost, gets what is in force first.
    async fn read_all(&self) -> Result<Vec<Block>, Error> {
        let blocks = self.store.blocks().await?;
        if !self.store.is_new() {
            return Ok(blocks);
        }
        let table = self.shared.table.load_full();
        let changes: Vec<Change> = table
            .entries()
            .map(|entry| Change::Block(entry.block.clone()))
            .collect();
        if !changes.is_empty() {
            let count = changes.len();
            tracing::warn!(blocks = count, "the store was made anew: it gets the blocks in force");
        }
        for batch in changes.chunks(WRITE_BATCH) {
            self.store.apply(batch.to_vec()).await?;
        }
        self.store.filled();
        self.store.blocks().await
    }

    async fn read(&mut self) {
        let read = match &self.what {
            What::Nothing => return,
            What::All => match self.read_all().await {
                Ok(blocks) => {
                    self.shared.replace(blocks, &[]);
                    true
                }
                Err(_) => false,
            },
            What::Networks(networks) => match self.store.blocks_of(networks.iter().copied().collect()).await {
                Ok(blocks) => {
                    self.shared.patch(networks, blocks);
                    true
                }
                Err(_) => false,
            },
        };
        if read {
            self.what = What::Nothing;
            self.backoff = Backoff::default();
            self.shared.store_works();
        } else {
            self.what = What::All;
            self.shared.store_failed();
            self.backoff.failed(self.shared.clock.tick());
        }
    }
}
