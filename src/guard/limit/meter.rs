//! One quota over one column of the table: where governor's arithmetic meets our memory and our time.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};

use super::table::{Column, Slot, Table};

thread_local! {
    /// What governor takes for the present: set just before it is asked.
    static NOW: Cell<u64> = const { Cell::new(0) };
}

#[derive(Debug)]
struct GivenTime;

impl governor::clock::Clock for GivenTime {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        NOW.get().into()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Act {
    Charge,
    Peek,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    slot: Slot,
    act: Act,
}

#[derive(Debug)]
struct Times {
    table: Arc<Table>,
    column: Column,
}

impl StateStore for Times {
    type Key = Key;

    fn measure_and_replace<T, F, E>(&self, key: &Key, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let Some(time) = self.table.time(key.slot, self.column) else {
            return decide(None).map(|(outcome, _)| outcome);
        };
        let mut known = time.load(Ordering::SeqCst);
        loop {
            let (outcome, next) = decide(Some(known.into()))?;
            if key.act == Act::Peek {
                return Ok(outcome);
            }
            match time.compare_exchange_weak(known, next.into(), Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Ok(outcome),
                Err(current) => known = current,
            }
        }
    }
}

/// How a quota stands at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    /// Requests that would pass right now.
    pub(super) remaining: u32,
    /// Until one would pass.
    pub(super) wait: Duration,
}

#[derive(Debug)]
pub(super) struct Meter {
    limiter: RateLimiter<Key, Times, GivenTime, StateInformationMiddleware>,
    burst: u32,
}

impl Meter {
    /// Times in the table are counted from the clock's origin and say when a quota is full again. So they mean the same
    /// to every meter of the column, whatever its quota, and never lie further ahead than the column's length.
    pub(super) fn new(quota: Quota, table: Arc<Table>, column: Column) -> Self {
        NOW.set(0);
        Self {
            limiter: RateLimiter::new(quota, Times { table, column }, GivenTime),
            burst: quota.burst_size().get(),
        }
    }

    /// Takes one request from the quota; `false`: there is none left, and nothing was taken.
    pub(super) fn charge(&self, slot: Slot, now: u64) -> bool {
        NOW.set(now);
        let act = Act::Charge;
        self.limiter.check_key(&Key { slot, act }).is_ok()
    }

    pub(super) fn peek(&self, slot: Slot, now: u64) -> Reading {
        NOW.set(now);
        let act = Act::Peek;
        match self.limiter.check_key(&Key { slot, act }) {
            // The snapshot is of the state after the request.
            Ok(after) => Reading {
                remaining: after.remaining_burst_capacity().saturating_add(1).min(self.burst),
                wait: Duration::ZERO,
            },
            Err(refusal) => Reading {
                remaining: 0,
                wait: refusal.wait_time_from(now.into()),
            },
        }
    }

    pub(super) fn burst(&self) -> u32 {
        self.burst
    }
}
