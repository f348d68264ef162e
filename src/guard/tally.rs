//! What the guard has done since start, and its metrics. Counting must cost a worker nothing: each thread counts on a
//! cache line of its own, and whoever reads adds them up.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Beyond so many threads some share a line, which is slower but not wrong.
const SHARDS: usize = 32;

static NEXT_SHARD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Acts that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Admitted,
    LimitedByMinute,
    LimitedByHour,
    /// Passed in `observe` mode.
    ObservedOverMinute,
    ObservedOverHour,
    RefusedBlocked,
    RefusedConnection,
    BlockOrdered,
    BlockDropped,
}

const ACTS: usize = Act::BlockDropped as usize + 1;

/// Two lines, because processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    counts: [AtomicU64; ACTS],
    /// When this thread last counted, in nanoseconds.
    tick: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Tally {
    shards: Box<[Shard]>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            shards: std::iter::repeat_with(Shard::default).take(SHARDS).collect(),
        }
    }
}

impl Tally {
    pub(super) fn count(&self, act: Act, tick: Duration) {
        let Some(shard) = self.shards.get(own_shard()) else {
            return;
        };
        if let Some(count) = shard.counts.get(act as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let nanos = u64::try_from(tick.as_nanos()).unwrap_or(u64::MAX);
        shard.tick.store(nanos, Ordering::Relaxed);
    }

    pub(super) fn total(&self, act: Act) -> u64 {
        let counts = self.shards.iter().filter_map(|shard| shard.counts.get(act as usize));
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The latest time at which anything was counted: the present of whoever reads without a clock.
    pub(super) fn latest(&self) -> Duration {
        let ticks = self.shards.iter().map(|shard| shard.tick.load(Ordering::Relaxed));
        Duration::from_nanos(ticks.max().unwrap_or(0))
    }
}

fn own_shard() -> usize {
    SHARD.get().unwrap_or_else(|| {
        let shard = NEXT_SHARD.fetch_add(1, Ordering::Relaxed) % SHARDS;
        SHARD.set(Some(shard));
        shard
    })
}
