//! Who may pass: limits, blocks, strikes. Knows neither HTTP nor serde; time is an argument.
//!
//! A request costs one [`Guard::admit`] and, for few answers, one [`Guard::answered`]. Both read snapshots and
//! never wait: no lock is shared between workers on this path, and what they cause goes to the blocklist as a
//! message on a bounded queue.

pub mod blocklist;
pub mod client;
pub mod limit;
mod metrics;
pub mod suspicion;
mod tally;
pub mod verdict;

pub use verdict::{Guard, Verdict, Visit};

use ipnet::IpNet;

/// Everything the guard needs to know, resolved from `[limits]`, `[blocklist]` and `[client]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub limits: limit::Config,
    pub suspicion: suspicion::Config,
    /// Networks that are never limited and never blocked.
    pub exempt: Vec<IpNet>,
    /// Networks that may be limited but are never blocked: the trusted proxies, and loopback unless
    /// `blocklist.block_loopback` is set.
    pub never_block: Vec<IpNet>,
    /// One IPv6 client is one network of this many bits.
    pub ipv6_prefix: u8,
}
