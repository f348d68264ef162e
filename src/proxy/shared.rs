//! The few things that all workers share: read-mostly handles, and counts that change per connection, not per request.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::hold::Hold;
use super::metrics::Metrics;
use crate::clock::Clock;
use crate::guard::Guard;
use crate::guard::client::Client;
use crate::telemetry::access_log::Sink;

/// How far a shutdown has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Serving,
    /// No new connections; what is in flight is finished, idle connections are closed.
    Draining,
    /// `drain_timeout` has passed: everything is closed.
    Ending,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) guard: Arc<Guard>,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) access_log: Sink,
    pub(super) census: Census,
    /// New connections are refused, see `memory`.
    pub(super) is_short_of_memory: AtomicBool,
    /// When each worker last made its round, in milliseconds of the clock's ticks: proof that it makes progress.
    pub(super) rounds: Vec<AtomicU64>,
    /// Where plain-HTTP listeners send clients: the port of the first TLS listener.
    pub(super) https_port: u16,
    pub(super) hold: Hold,
}

impl Shared {
    pub(super) fn note_round(&self, worker: usize, tick: Duration) {
        if let Some(round) = self.rounds.get(worker) {
            round.store(u64::try_from(tick.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// The age of the round of the worker that is furthest behind.
    pub(super) fn oldest_round(&self, now: Duration) -> Duration {
        let oldest = self
            .rounds
            .iter()
            .map(|round| round.load(Ordering::Relaxed))
            .min()
            .unwrap_or(0);
        now.saturating_sub(Duration::from_millis(oldest))
    }
}

/// Open connections, in all and per client. Touched at accept and close only; sharded, so that workers seldom meet.
#[derive(Debug)]
pub(super) struct Census {
    total: AtomicUsize,
    shards: Vec<Mutex<HashMap<Client, usize>>>,
}

/// Why a connection is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Total,
    Client,
}

/// One counted connection; dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Seat {
    shared: Arc<Shared>,
    client: Option<Client>,
}

const SHARDS: usize = 64;

impl Default for Census {
    fn default() -> Self {
        Self {
            total: AtomicUsize::new(0),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }
}

impl Census {
    pub(super) fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    fn shard(&self, client: &Client) -> Option<MutexGuard<'_, HashMap<Client, usize>>> {
        let bytes = match client.network().addr() {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        };
        // Any spread will do: the maps inside hash with a secret key.
        let folded = bytes ^ (bytes >> 64);
        let index = usize::try_from((folded ^ (folded >> 16)) % SHARDS as u128).unwrap_or(0);
        self.shards
            .get(index)
            .map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Seat {
    /// A place in the total; the client's share is counted by [`Seat::count_client`] once its address is known.
    pub(super) fn take(shared: &Arc<Shared>, max: usize) -> Result<Self, Full> {
        if shared.census.total.fetch_add(1, Ordering::Relaxed) >= max {
            shared.census.total.fetch_sub(1, Ordering::Relaxed);
            return Err(Full::Total);
        }
        Ok(Self {
            shared: Arc::clone(shared),
            client: None,
        })
    }

    pub(super) fn count_client(&mut self, client: Client, max: usize) -> Result<(), Full> {
        let Some(mut shard) = self.shared.census.shard(&client) else {
            return Ok(());
        };
        let count = shard.entry(client).or_insert(0);
        if *count >= max {
            return Err(Full::Client);
        }
        *count += 1;
        drop(shard);
        self.client = Some(client);
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.census.total.fetch_sub(1, Ordering::Relaxed);
        let Some(client) = self.client else { return };
        let Some(mut shard) = self.shared.census.shard(&client) else {
            return;
        };
        if let Entry::Occupied(mut entry) = shard.entry(client) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}
