//! The guard as the proxy sees it: one question per request, one note per answer.
//!
//! The order is: exempt networks pass; blocked clients are refused; then the limits are asked. Networks of `never_block`
//! are limited like everybody, but no block holds against them, not even one that an admin ordered for a network around
//! them. A refused request is not charged to any limit.

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;

use super::Config;
use super::blocklist::{Block, Blocklist, Entry, Order};
use super::client::{Client, Networks};
use super::limit::{Excess, Limiter, Memory, Mode, Window};
use super::metrics::Metrics;
use super::suspicion::{self, Kind, Suspicion};
use super::tally::{Act, Tally};
use crate::clock::Now;

/// Requests of a block that are told why; after them the client's connections are closed at accept.
const TOLD_REQUESTS: u32 = 10;
/// Of a block, connections that are let in so that they can be told.
const MET_CONNECTIONS: u32 = 2 * TOLD_REQUESTS;

/// A request as far as the guard cares.
#[derive(Debug, Clone, Copy)]
pub struct Visit<'a> {
    /// The client's address, after PROXY protocol and trusted proxies; IPv4-mapped addresses are unwrapped.
    pub address: IpAddr,
    pub method: &'a str,
    /// The normalised path without its query.
    pub path: &'a str,
}

/// What the guard says to a request.
#[derive(Debug, Clone)]
pub enum Verdict {
    Pass,
    /// In `observe` mode a request over its limit passes, but is counted and logged.
    PassOverLimit(Box<Excess>),
    Limited(Box<Excess>),
    Blocked(Arc<Entry>),
}

/// What is known of one client right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientReport {
    pub client: Client,
    pub exempt: bool,
    /// Whether [`ClientReport::block`] holds: a wider block does not shut out what is never blocked.
    pub blocked: bool,
    /// The block that covers the address, whether it holds or not.
    pub block: Option<Block>,
    /// Strikes within the window.
    pub strikes: u32,
    /// `None`: not limited over that time.
    pub remaining_minute: Option<u32>,
    pub remaining_hour: Option<u32>,
}

/// Totals since start and current sizes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    pub admitted: u64,
    pub limited: u64,
    pub refused_blocked: u64,
    pub refused_connections: u64,
    pub strikes: u64,
    pub automatic_blocks: u64,
    pub blocks_in_force: u64,
    /// As of the last request.
    pub tracked_clients: u64,
}

#[derive(Debug)]
pub struct Guard {
    policy: ArcSwap<Policy>,
    blocklist: Blocklist,
    // What follows outlives every policy.
    memory: Memory,
    suspicion: Arc<Suspicion>,
    tally: Arc<Tally>,
}

/// What one reload brings: immutable.
#[derive(Debug)]
struct Policy {
    mode: Mode,
    limiter: Limiter,
    suspicion: suspicion::Config,
    exempt: Networks,
    /// Exempt networks among them.
    never_block: Networks,
    ipv6_prefix: u8,
}

impl Policy {
    fn new(config: &Config, memory: &Memory) -> Self {
        Self {
            mode: config.limits.mode,
            limiter: Limiter::new(&config.limits, memory),
            suspicion: config.suspicion.clone(),
            exempt: Networks::new(&config.exempt),
            never_block: Networks::new(config.never_block.iter().chain(&config.exempt)),
            ipv6_prefix: config.ipv6_prefix,
        }
    }

    /// Where a 404 of the app is evidence.
    fn is_probe(&self, path: &str) -> bool {
        self.suspicion
            .probe_paths
            .iter()
            .any(|probe| path.starts_with(&**probe))
    }
}

impl Guard {
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the policy is made of it, and the caller keeps nothing to share"
    )]
    #[must_use]
    pub fn new(config: Config, blocklist: Blocklist) -> Self {
        let memory = Memory::new(config.limits.max_tracked_clients);
        Self {
            policy: ArcSwap::from_pointee(Policy::new(&config, &memory)),
            blocklist,
            memory,
            suspicion: Arc::new(Suspicion::new(&config.suspicion)),
            tally: Arc::default(),
        }
    }

    /// Exports `foregate_guard_*`.
    pub fn register(&self, registry: &prometheus::Registry) -> prometheus::Result<()> {
        let metrics = Metrics::new(
            Arc::clone(&self.tally),
            self.memory.clone(),
            Arc::clone(&self.suspicion),
        )?;
        registry.register(Box::new(metrics))
    }

    /// Swaps the policy; counters, strikes and blocks survive. `max_tracked_clients` is heeded after a restart.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the policy is made of it, and the caller keeps nothing to share"
    )]
    pub fn reload(&self, config: Config) {
        self.policy.store(Arc::new(Policy::new(&config, &self.memory)));
    }

    /// On an open connection, after [`Guard::admit`] has refused a request: whether to close it without another answer.
    pub fn cuts_off(&self, entry: &Entry, now: Now) -> bool {
        let cut_off = is_beyond_telling(entry);
        if cut_off {
            self.tally.count(Act::RefusedConnection, now.tick);
        }
        cut_off
    }

    /// At accept, before TLS: whether to close at once, because this peer is blocked and has been told why.
    #[must_use]
    pub fn refuses_connection(&self, peer: IpAddr, now: Now) -> bool {
        let refused = self
            .block_on(&self.policy.load(), peer, now)
            .is_some_and(|entry| has_been_told(&entry) || is_met_too_often(&entry));
        if refused {
            self.tally.count(Act::RefusedConnection, now.tick);
        }
        refused
    }

    /// Whether `address` is blocked now; for connections and tunnels that live when a block comes into force.
    #[must_use]
    pub fn is_blocked(&self, address: IpAddr, now: Now) -> bool {
        self.block_on(&self.policy.load(), address, now).is_some()
    }

    /// Decides about one request and charges it.
    #[must_use]
    pub fn admit(&self, visit: Visit<'_>, now: Now) -> Verdict {
        let policy = self.policy.load();
        if policy.exempt.contains(visit.address) {
            self.tally.count(Act::Admitted, now.tick);
            return Verdict::Pass;
        }
        if let Some(entry) = self.block_on(&policy, visit.address, now) {
            tell(&entry);
            self.tally.count(Act::RefusedBlocked, now.tick);
            return Verdict::Blocked(entry);
        }
        let client = Client::of(visit.address, policy.ipv6_prefix);
        let Err(excess) = policy.limiter.check(client, visit.method, visit.path, now.tick) else {
            self.tally.count(Act::Admitted, now.tick);
            return Verdict::Pass;
        };
        match (policy.mode, excess.violated) {
            (Mode::Observe, violated) => {
                let over = match violated {
                    Window::Minute => Act::ObservedOverMinute,
                    Window::Hour => Act::ObservedOverHour,
                };
                self.tally.count(over, now.tick);
                self.tally.count(Act::Admitted, now.tick);
                return Verdict::PassOverLimit(excess);
            }
            (Mode::Enforce, Window::Minute) => self.tally.count(Act::LimitedByMinute, now.tick),
            (Mode::Enforce, Window::Hour) => self.tally.count(Act::LimitedByHour, now.tick),
        }
        self.strike(&policy, client, Kind::Limited, now);
        Verdict::Limited(excess)
    }

    /// Notes the app's own answer (never one that Foregate made).
    pub fn answered(&self, visit: Visit<'_>, status: u16, now: Now) {
        if !matches!(status, 401 | 403 | 404) {
            return;
        }
        let policy = self.policy.load();
        let client = Client::of(visit.address, policy.ipv6_prefix);
        if status != 404 {
            self.failed_login(&policy, client, now);
        } else if policy.is_probe(visit.path) {
            self.strike(&policy, client, Kind::Probe, now);
        }
    }

    /// Notes that a connection was closed on `address` because it was flooded.
    pub fn flooded(&self, address: IpAddr, now: Now) {
        let policy = self.policy.load();
        let client = Client::of(address, policy.ipv6_prefix);
        self.strike(&policy, client, Kind::Flood, now);
    }

    #[must_use]
    pub fn report(&self, address: IpAddr, now: Now) -> ClientReport {
        let policy = self.policy.load();
        let client = Client::of(address, policy.ipv6_prefix);
        let (remaining_minute, remaining_hour) = policy.limiter.remaining(client, now.tick);
        let exempt = policy.exempt.contains(address);
        let block = self.blocklist.find(address, now.wall).map(|entry| entry.block.clone());
        ClientReport {
            client,
            exempt,
            blocked: block.is_some() && !policy.never_block.contains(address),
            block,
            strikes: self.suspicion.strikes(client, &policy.suspicion, now.tick),
            remaining_minute: remaining_minute.filter(|_| !exempt),
            remaining_hour: remaining_hour.filter(|_| !exempt),
        }
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        let total = |act| self.tally.total(act);
        Stats {
            admitted: total(Act::Admitted),
            limited: total(Act::LimitedByMinute) + total(Act::LimitedByHour),
            refused_blocked: total(Act::RefusedBlocked),
            refused_connections: total(Act::RefusedConnection),
            strikes: Kind::ALL.into_iter().map(|kind| self.suspicion.total(kind)).sum(),
            automatic_blocks: total(Act::BlockOrdered),
            blocks_in_force: self.blocklist.page(0, 0).total as u64,
            tracked_clients: self.memory.tracked(self.tally.latest()),
        }
    }

    /// The client that `address` belongs to.
    #[must_use]
    pub fn client_of(&self, address: IpAddr) -> Client {
        Client::of(address, self.policy.load().ipv6_prefix)
    }

    #[must_use]
    pub fn blocklist(&self) -> &Blocklist {
        &self.blocklist
    }

    /// The block that holds against an address.
    fn block_on(&self, policy: &Policy, address: IpAddr, now: Now) -> Option<Arc<Entry>> {
        let entry = self.blocklist.find(address, now.wall)?;
        // Asked second: few addresses are blocked, and those that may not be are fewer.
        (!policy.never_block.contains(address)).then_some(entry)
    }

    fn strike(&self, policy: &Policy, client: Client, kind: Kind, now: Now) {
        if !policy.never_block.overlaps(client.network()) {
            let block = |order| self.order(order, now);
            self.suspicion.strike(client, kind, &policy.suspicion, now.tick, block);
        }
    }

    fn failed_login(&self, policy: &Policy, client: Client, now: Now) {
        if !policy.never_block.overlaps(client.network()) {
            let block = |order| self.order(order, now);
            self.suspicion.failed_login(client, &policy.suspicion, now.tick, block);
        }
    }

    fn order(&self, order: Order, now: Now) -> bool {
        let network = order.network;
        let ordered = self.blocklist.block_soon(order);
        let act = if ordered { Act::BlockOrdered } else { Act::BlockDropped };
        self.tally.count(act, now.tick);
        if !ordered {
            tracing::warn!(%network, "the blocklist's queue is full: an automatic block is put off to the next strike");
        }
        ordered
    }
}

/// Counts a request that is told why it is refused.
fn tell(entry: &Entry) {
    // A client that hammers must not make workers write to a shared line for ever.
    // One more than is told: the request that comes after the last answer is the first one to be cut off.
    if !is_beyond_telling(entry) {
        entry.told.fetch_add(1, Ordering::Relaxed);
    }
}

fn is_beyond_telling(entry: &Entry) -> bool {
    entry.told.load(Ordering::Relaxed) > TOLD_REQUESTS
}

/// Counts a connection of a blocked peer: one that shakes hands for ever and asks for nothing is never told.
fn is_met_too_often(entry: &Entry) -> bool {
    let met = entry.met.load(Ordering::Relaxed);
    if met < MET_CONNECTIONS {
        entry.met.fetch_add(1, Ordering::Relaxed);
    }
    met >= MET_CONNECTIONS
}

fn has_been_told(entry: &Entry) -> bool {
    entry.told.load(Ordering::Relaxed) >= TOLD_REQUESTS
}
