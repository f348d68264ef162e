//! Strikes: evidence that a client means harm, and the block that follows.

use std::time::Duration;

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
