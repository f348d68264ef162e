//! The guard as the proxy sees it: one question per request, one note per answer.

use std::net::IpAddr;
use std::sync::Arc;

use super::Config;
use super::blocklist::{Block, Blocklist, Entry};
use super::limit::Excess;
use crate::clock::Now;

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
    pub client: super::client::Client,
    pub exempt: bool,
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
    pub tracked_clients: u64,
}

#[derive(Debug)]
pub struct Guard {
    blocklist: Blocklist,
}

impl Guard {
    #[must_use]
    pub fn new(config: Config, blocklist: Blocklist) -> Self {
        let _ = config;
        Self { blocklist }
    }

    /// The client that `address` belongs to.
    #[must_use]
    pub fn client_of(&self, address: IpAddr) -> super::client::Client {
        super::client::Client::of(address, 64)
    }

    /// Swaps the policy; counters, strikes and blocks survive.
    pub fn reload(&self, config: Config) {
        let _ = config;
    }

    /// At accept, before TLS: whether to close at once, because this peer is blocked and has been told why.
    #[must_use]
    pub fn refuses_connection(&self, peer: IpAddr, now: Now) -> bool {
        let _ = (peer, now);
        false
    }

    /// Whether `address` is blocked now; for connections and tunnels that live when a block comes into force.
    #[must_use]
    pub fn is_blocked(&self, address: IpAddr, now: Now) -> bool {
        self.blocklist.find(address, now.wall).is_some()
    }

    /// Decides about one request and charges it.
    #[must_use]
    pub fn admit(&self, visit: Visit<'_>, now: Now) -> Verdict {
        let _ = (visit, now);
        Verdict::Pass
    }

    /// Notes the app's own answer (never one that Foregate made).
    pub fn answered(&self, visit: Visit<'_>, status: u16, now: Now) {
        let _ = (visit, status, now);
    }

    #[must_use]
    pub fn report(&self, address: IpAddr, now: Now) -> ClientReport {
        let client = super::client::Client::of(address, 64);
        let block = self.blocklist.find(address, now.wall).map(|entry| entry.block.clone());
        ClientReport {
            client,
            exempt: false,
            block,
            strikes: 0,
            remaining_minute: None,
            remaining_hour: None,
        }
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    #[must_use]
    pub fn blocklist(&self) -> &Blocklist {
        &self.blocklist
    }
}
