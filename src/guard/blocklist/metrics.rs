//! What the blocklist counts.

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) entries: IntGauge,
    pub(super) blocked: IntCounter,
    pub(super) unblocked: IntCounter,
    pub(super) expired: IntCounter,
    pub(super) waiting: IntGauge,
    pub(super) lag: Gauge,
    pub(super) store_up: IntGauge,
    pub(super) write_failures: IntCounter,
    pub(super) refused: IntCounter,
    pub(super) journal_failures: IntCounter,
    pub(super) dropped: IntCounter,
    changes: IntCounterVec,
}

impl Metrics {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let changes = IntCounterVec::new(
            Opts::new("foregate_blocklist_changes_total", "Changes of the blocks in force."),
            &["kind"],
        )?;
        Ok(Self {
            entries: IntGauge::new("foregate_blocklist_entries", "Blocks in force.")?,
            blocked: changes.with_label_values(&["block"]),
            unblocked: changes.with_label_values(&["unblock"]),
            expired: changes.with_label_values(&["expire"]),
            store_up: IntGauge::new("foregate_store_up", "Whether the last call reached the store.")?,
            waiting: IntGauge::new("foregate_store_queue_changes", "Changes that wait for the store.")?,
            lag: Gauge::new(
                "foregate_store_sync_lag_seconds",
                "How long the oldest change has waited for the store; 0: none waits.",
            )?,
            write_failures: IntCounter::new("foregate_store_write_failures_total", "Writes the store did not take.")?,
            refused: IntCounter::new(
                "foregate_store_refused_changes_total",
                "Changes that the database refused for good.",
            )?,
            journal_failures: IntCounter::new(
                "foregate_store_journal_failures_total",
                "Writes of the local journal or snapshot that failed.",
            )?,
            dropped: IntCounter::new(
                "foregate_blocklist_dropped_orders_total",
                "Automatic blocks not taken, or not written down because too many wait for the store.",
            )?,
            changes,
        })
    }

    pub(super) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.entries.clone()))?;
        registry.register(Box::new(self.waiting.clone()))?;
        registry.register(Box::new(self.lag.clone()))?;
        registry.register(Box::new(self.store_up.clone()))?;
        registry.register(Box::new(self.write_failures.clone()))?;
        registry.register(Box::new(self.refused.clone()))?;
        registry.register(Box::new(self.journal_failures.clone()))?;
        registry.register(Box::new(self.dropped.clone()))?;
        registry.register(Box::new(self.changes.clone()))
    }
}
