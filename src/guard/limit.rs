//! Requests per minute and per hour for each client: GCRA by governor over our own bounded table.

use std::time::Duration;

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
    /// What is left of the minute and of the hour right now.
    pub remaining_minute: u32,
    pub remaining_hour: u32,
}
