//! Requests per minute and per hour for each client: GCRA by governor over our own bounded table.
//!
//! # What a limit means
//! - N per minute admits N requests at once, then one every 60/N seconds; after a minute of silence the N are there
//!   again. N per hour does the same over an hour. So within any hour up to 2N can pass: the N at once, and the N that
//!   are refilled meanwhile. It is not a window that is reset.
//! - The minute is asked first, the hour after it. What the minute refuses never touches the hour; what the hour refuses
//!   has cost one request of the minute, which is refilled long before the hour is.
//! - A request is charged to one limit: to the rule with the longest `path` that begins its path and has its method, else
//!   to the default. The comparison is of plain text: `/login` is also the beginning of `/login-help`; write `/login/` for
//!   what lies below only. Rules are counted apart, and known by path and methods: their order and their quotas may
//!   change in a reload without anybody's count being lost. What is kept is the time until the quota is full again, so that
//!   half a quota spent remains half a quota spent.
//! - `max_tracked_clients` bounds the memory (a client takes an entry for each rule that it meets). When all are taken by
//!   clients whose quota is not full, a *new* client shares the quota of its neighbours (/24, /48), until an entry becomes
//!   free. The size is fixed at start; a reload that changes it is heeded after a restart.
//!
//! Time is an argument, everywhere: governor reads it from a cell of the calling thread.

mod meter;
mod table;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use self::meter::Meter;
use self::table::{Column, Owner, Slot, Table};
use super::client::Client;

/// The `[limits]` section as the limiter needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub mode: Mode,
    pub default: Quota,
    pub rules: Vec<Rule>,
    /// How many clients are tracked one by one; beyond it new ones share a bucket with their neighbours.
    pub max_tracked_clients: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Enforce,
    /// Count and log, refuse nothing.
    Observe,
}

/// `None`: not limited over that time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    pub per_minute: Option<std::num::NonZeroU32>,
    pub per_hour: Option<std::num::NonZeroU32>,
}

/// A stricter limit for some paths, counted apart from the default and from other rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Prefix of the normalised path; the longest matching one wins.
    pub path: String,
    /// Upper-case method names; empty: every method.
    pub methods: Vec<String>,
    pub quota: Quota,
}

/// Which of the two limits refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    Minute,
    Hour,
}

/// Why a request is over its limit: what 429 says in its headers and its problem document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excess {
    pub violated: Window,
    /// Until the same request would pass.
    pub retry_after: Duration,
    /// The quota that applied.
    pub quota: Quota,
    /// What is left of the minute and of the hour right now; `u32::MAX` where there is no such limit.
    pub remaining_minute: u32,
    pub remaining_hour: u32,
}

/// What every client has used up so far. Survives reloads.
#[derive(Debug, Clone)]
pub struct Memory {
    table: Arc<Table>,
    /// Not to be guessed from outside, or somebody could choose addresses that share slots.
    key: RandomState,
}

impl Memory {
    #[must_use]
    pub fn new(max_tracked_clients: usize) -> Self {
        Self {
            table: Arc::new(Table::new(max_tracked_clients)),
            key: RandomState::new(),
        }
    }

    /// How many clients have less than their full quota; an estimate when they are many. Reads a few MiB.
    #[must_use]
    pub fn tracked(&self, tick: Duration) -> u64 {
        self.table.tracked(nanos(tick))
    }

    /// Bytes held now: grows with the clients, up to [`Self::bytes_max`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.table.bytes()
    }

    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.table.bytes_max()
    }

    fn fingerprint(&self, client: Client, limit: u64) -> u64 {
        let (kind, address) = client.key();
        let mut hasher = self.key.build_hasher();
        hasher.write_u128(address);
        hasher.write_u64(limit);
        hasher.write_u16(kind);
        // 0 marks a free slot.
        hasher.finish().max(1)
    }
}

/// The limits in force: immutable, built anew by each reload.
#[derive(Debug)]
pub struct Limiter {
    memory: Memory,
    default: Limit,
    /// In the order in which they are asked: longest path first, those with methods before those without.
    rules: Vec<(Rule, Limit)>,
}

#[derive(Debug)]
struct Limit {
    /// The same for the same rule in every reload.
    id: u64,
    quota: Quota,
    minute: Option<Meter>,
    hour: Option<Meter>,
}

impl Limiter {
    #[must_use]
    pub fn new(config: &Config, memory: &Memory) -> Self {
        let limit = |id, quota| Limit::new(id, quota, &memory.table);
        let mut rules: Vec<_> = config
            .rules
            .iter()
            .map(|rule| (rule.clone(), limit(identity(rule, &memory.key), rule.quota)))
            .collect();
        rules.sort_by_key(|(rule, _)| (std::cmp::Reverse(rule.path.len()), rule.methods.is_empty()));
        Self {
            memory: memory.clone(),
            default: limit(0, config.default),
            rules,
        }
    }

    /// Charges one request to its client. Hot path: no lock, no allocation once the client is tracked.
    #[expect(clippy::missing_errors_doc, reason = "the error is the answer")]
    pub fn check(&self, client: Client, method: &str, path: &str, tick: Duration) -> Result<(), Box<Excess>> {
        let limit = self.limit(method, path);
        if limit.minute.is_none() && limit.hour.is_none() {
            return Ok(());
        }
        let now = nanos(tick);
        let own = self.memory.fingerprint(client, limit.id);
        let neighbourhood = || self.memory.fingerprint(client.neighbourhood(), limit.id);
        // More than one round only if the slot changes hands in the moment between; then a charge went astray.
        let mut answer = Ok(());
        for _ in 0..3 {
            let slot = self.memory.table.slot(own, neighbourhood, now);
            answer = limit.charge(slot, now);
            if self.memory.table.holds(slot) {
                break;
            }
        }
        answer.map_err(Box::new)
    }

    /// What the default limit leaves to a client, without charging it.
    #[must_use]
    pub fn remaining(&self, client: Client, tick: Duration) -> (Option<u32>, Option<u32>) {
        let now = nanos(tick);
        let limit = &self.default;
        let slot = self.memory.table.peek(
            Owner {
                client: self.memory.fingerprint(client, limit.id),
                neighbourhood: self.memory.fingerprint(client.neighbourhood(), limit.id),
            },
            now,
        );
        let remaining = |meter: &Meter| slot.map_or(meter.burst(), |slot| meter.peek(slot, now).remaining);
        (limit.minute.as_ref().map(remaining), limit.hour.as_ref().map(remaining))
    }

    fn limit(&self, method: &str, path: &str) -> &Limit {
        self.rules
            .iter()
            .find(|(rule, _)| rule.applies_to(method, path))
            .map_or(&self.default, |(_, limit)| limit)
    }
}

impl Limit {
    fn new(id: u64, quota: Quota, table: &Arc<Table>) -> Self {
        let meter = |column, quota| Meter::new(quota, Arc::clone(table), column);
        let per_minute = quota.per_minute.map(governor::Quota::per_minute);
        let per_hour = quota.per_hour.map(governor::Quota::per_hour);
        Self {
            id,
            quota,
            minute: per_minute.map(|quota| meter(Column::Minute, quota)),
            hour: per_hour.map(|quota| meter(Column::Hour, quota)),
        }
    }

    fn charge(&self, slot: Slot, now: u64) -> Result<(), Excess> {
        let refused_by = |meter: &Option<Meter>| meter.as_ref().is_some_and(|meter| !meter.charge(slot, now));
        if refused_by(&self.minute) {
            return Err(self.excess(Window::Minute, slot, now));
        }
        if refused_by(&self.hour) {
            return Err(self.excess(Window::Hour, slot, now));
        }
        Ok(())
    }

    fn excess(&self, violated: Window, slot: Slot, now: u64) -> Excess {
        let reading = |meter: &Option<Meter>| meter.as_ref().map(|meter| meter.peek(slot, now));
        let (minute, hour) = (reading(&self.minute), reading(&self.hour));
        let wait = |reading: Option<meter::Reading>| reading.map_or(Duration::ZERO, |reading| reading.wait);
        let remaining = |reading: Option<meter::Reading>| reading.map_or(u32::MAX, |reading| reading.remaining);
        Excess {
            violated,
            retry_after: wait(minute).max(wait(hour)),
            quota: self.quota,
            remaining_minute: remaining(minute),
            remaining_hour: remaining(hour),
        }
    }
}

impl Rule {
    fn applies_to(&self, method: &str, path: &str) -> bool {
        path.starts_with(&*self.path) && (self.methods.is_empty() || self.methods.iter().any(|own| own == method))
    }
}

/// By path and methods alone, so that a reload may reorder rules and change their quotas. 0 is the default limit's.
fn identity(rule: &Rule, key: &RandomState) -> u64 {
    let mut methods = rule.methods.clone();
    methods.sort_unstable();
    methods.dedup();
    key.hash_one((&rule.path, methods)).max(1)
}

/// Time since the clock was made. Half of the range is left for the arithmetic: three hundred years.
fn nanos(tick: Duration) -> u64 {
    u64::try_from(tick.as_nanos()).map_or(u64::MAX / 2, |nanos| nanos.min(u64::MAX / 2))
}
