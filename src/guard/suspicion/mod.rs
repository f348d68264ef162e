//! Strikes: evidence that a client means harm, and the block that follows.
//!
//! - A strike is given at most once a second per client and kind: the burst of a page's assets is one strike, hammering for
//!   `threshold` seconds is enough of them.
//! - Only the app's own answers are evidence, and the 429 by which Foregate asked to slow down. Other refusals of
//!   Foregate are not, or a block would feed itself.
//! - Each further block lasts `escalation` times longer. A client that stays out of trouble for `max_block_duration`
//!   after its last block has ended starts afresh; so does everybody after a restart. A block that an admin lifts
//!   counts as served.
//!
//! What is known of a client is bounded twice: by how many clients are remembered (the least recently seen is forgotten
//! first; TinyLFU would refuse new ones in a flood), and by how much is kept of each.

mod recent;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::blocklist::{Order, Source};
use super::client::Client;
use recent::Recent;

const REMEMBERED_CLIENTS_MAX: u64 = 65_536;
/// More than any sensible threshold or count of failed logins; higher settings count as this.
const KEPT_TIMES_MAX: usize = 1024;
const IDLE_MIN: Duration = Duration::from_secs(60);
const IDLE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
const STRIKE_SPACING: Duration = Duration::from_secs(1);
const FAILED_LOGINS_WINDOW: Duration = Duration::from_secs(60);
/// Escalation stops to matter long before.
const TERMS_MAX: i32 = 64;

/// The detecting half of the `[blocklist]` section.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Strikes within `window` before a block; 0: never block by itself.
    pub threshold: u32,
    pub window: Duration,
    pub block_duration: Duration,
    /// Each further block of a client lasts this many times longer, up to `max_block_duration`.
    pub escalation: f64,
    pub max_block_duration: Duration,
    /// Prefixes of paths where a 404 of the app is a strike.
    pub probe_paths: Vec<String>,
    /// 401 and 403 of the app in a minute before a strike; 0: off.
    pub failed_logins_per_minute: u32,
}

/// What a strike was given for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request over its limit was answered 429.
    Limited,
    /// The app knows nothing at a path that only scanners ask for.
    Probe,
    /// The app refused too many logins within a minute.
    FailedLogins,
    /// A connection was closed on it for a flood of HTTP/2: it comes back for as long as it may.
    Flood,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Limited, Self::Probe, Self::FailedLogins, Self::Flood];

    /// As a metric label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Limited => "limited",
            Self::Probe => "probe",
            Self::FailedLogins => "failed_logins",
            Self::Flood => "flood",
        }
    }

    fn evidence(self) -> &'static str {
        match self {
            Self::Limited => "over its limit",
            Self::Probe => "probing for weak spots",
            Self::FailedLogins => "too many failed logins",
            Self::Flood => "flooding connections",
        }
    }
}

/// What is held against clients. Survives reloads; knows neither policy nor time but by argument.
#[derive(Debug)]
pub struct Suspicion {
    records: Cache<Client, Arc<Mutex<Record>>>,
    recent: Recent,
    strikes: [AtomicU64; Kind::ALL.len()],
}

#[derive(Debug, Clone, Copy)]
struct Strike {
    at: Duration,
    kind: Kind,
}

#[derive(Debug, Default)]
struct Record {
    strikes: VecDeque<Strike>,
    failed_logins: VecDeque<Duration>,
    /// Blocks that still count, and when the last of them ends.
    terms: i32,
    term_ends: Duration,
}

impl Suspicion {
    /// The cache's own expiry runs by the system's clock and only gives memory back; what counts is decided by the time
    /// that callers pass. It is fixed at start, from the longest time over which `config` looks back.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let looked_back = config.max_block_duration.saturating_mul(2).max(config.window);
        let records = Cache::builder()
            .max_capacity(REMEMBERED_CLIENTS_MAX)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(looked_back.clamp(IDLE_MIN, IDLE_MAX))
            .build();
        let strikes = std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            records,
            recent: Recent::new(),
            strikes,
        }
    }

    /// Gives a strike, unless the client had one of this kind within the last second. When it is one too many, `block` is
    /// called with the order to give; `false` means that the order was not taken, and the next strike tries again.
    pub fn strike(
        &self,
        client: Client,
        kind: Kind,
        config: &Config,
        tick: Duration,
        block: impl FnOnce(Order) -> bool,
    ) {
        if config.threshold == 0 {
            return;
        }
        if self.recent.has(self.recent.mark(client, kind), tick) {
            return;
        }
        let record = self.record(client);
        let mut record = match record.try_lock() {
            Ok(record) => record,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Two workers refuse the same client at the same moment: one strike is all that it can get.
            Err(TryLockError::WouldBlock) if kind == Kind::Limited => return,
            Err(TryLockError::WouldBlock) => record.lock().unwrap_or_else(PoisonError::into_inner),
        };
        self.strike_record(&mut record, client, kind, config, tick, block);
    }

    /// Notes a login that the app refused; too many within a minute are a strike, and are counted anew after it.
    pub fn failed_login(&self, client: Client, config: &Config, tick: Duration, block: impl FnOnce(Order) -> bool) {
        if config.threshold == 0 || config.failed_logins_per_minute == 0 {
            return;
        }
        let record = self.record(client);
        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
        let logins = &mut record.failed_logins;
        forget_before(logins, |at| *at, FAILED_LOGINS_WINDOW, tick);
        logins.push_back(tick);
        if logins.len() > bounded(config.failed_logins_per_minute) {
            logins.clear();
            self.strike_record(&mut record, client, Kind::FailedLogins, config, tick, block);
        }
    }

    /// Strikes of a client that still count.
    #[must_use]
    pub fn strikes(&self, client: Client, config: &Config, tick: Duration) -> u32 {
        let Some(record) = self.records.get(&client) else {
            return 0;
        };
        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
        forget_before(&mut record.strikes, |strike| strike.at, config.window, tick);
        u32::try_from(record.strikes.len()).unwrap_or(u32::MAX)
    }

    /// Strikes given since start.
    #[must_use]
    pub fn total(&self, kind: Kind) -> u64 {
        self.strikes
            .get(kind as usize)
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }

    fn record(&self, client: Client) -> Arc<Mutex<Record>> {
        self.records.get_with(client, Arc::default)
    }

    fn strike_record(
        &self,
        record: &mut Record,
        client: Client,
        kind: Kind,
        config: &Config,
        tick: Duration,
        block: impl FnOnce(Order) -> bool,
    ) {
        if !record.strike(kind, config.window, tick) {
            return;
        }
        let mark = self.recent.mark(client, kind);
        self.recent.note(mark, tick);
        if let Some(count) = self.strikes.get(kind as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if record.strikes.len() < bounded(config.threshold) {
            return;
        }
        let duration = record.sentence(config, tick);
        let order = Order {
            network: client.network(),
            reason: record.evidence(config.window),
            source: Source::Automatic,
            created_by: "foregate".to_owned(),
            duration: Some(duration),
        };
        if block(order) {
            record.terms = (record.terms + 1).min(TERMS_MAX);
            record.term_ends = tick.saturating_add(duration);
            record.strikes.clear();
            self.recent.forget(mark);
        } else {
            // Room for the strike that will try again.
            record.strikes.pop_front();
        }
    }
}

impl Record {
    /// Whether the strike was given.
    fn strike(&mut self, kind: Kind, window: Duration, tick: Duration) -> bool {
        forget_before(&mut self.strikes, |strike| strike.at, window, tick);
        let last = self.strikes.iter().rev().find(|strike| strike.kind == kind);
        if last.is_some_and(|last| tick.saturating_sub(last.at) < STRIKE_SPACING) {
            return false;
        }
        self.strikes.push_back(Strike { at: tick, kind });
        true
    }

    /// How long the block is to last: longer for every earlier one that still counts.
    fn sentence(&mut self, config: &Config, tick: Duration) -> Duration {
        if tick >= self.term_ends.saturating_add(config.max_block_duration) {
            self.terms = 0;
        }
        let seconds = config.block_duration.as_secs_f64() * config.escalation.max(1.0).powi(self.terms);
        Duration::try_from_secs_f64(seconds)
            .unwrap_or(config.max_block_duration)
            .min(config.max_block_duration)
    }

    fn evidence(&self, window: Duration) -> String {
        let counted = Kind::ALL.into_iter().filter_map(|kind| {
            let count = self.strikes.iter().filter(|strike| strike.kind == kind).count();
            (count > 0).then(|| format!("{} ({count})", kind.evidence()))
        });
        let kinds: Vec<String> = counted.collect();
        format!(
            "{} strikes within {}s: {}",
            self.strikes.len(),
            window.as_secs(),
            kinds.join(", ")
        )
    }
}

fn bounded(setting: u32) -> usize {
    usize::try_from(setting).map_or(KEPT_TIMES_MAX, |setting| setting.min(KEPT_TIMES_MAX))
}

fn forget_before<T>(times: &mut VecDeque<T>, at: impl Fn(&T) -> Duration, window: Duration, tick: Duration) {
    while times
        .front()
        .is_some_and(|first| tick.saturating_sub(at(first)) >= window)
    {
        times.pop_front();
    }
}
