//! What the log's archive counts.

use std::time::Duration;

use jiff::Timestamp;
use prometheus::core::{Atomic, AtomicF64, AtomicI64, GenericGaugeVec};
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::archive::Pushed;

/// The gauges that a watch sets and the counters of what was archived.
#[derive(Debug, Clone)]
pub struct Metrics {
    pushes: IntCounterVec,
    new: IntCounter,
    already: IntCounter,
    pub(super) push_failures: IntCounter,
    pushed_bytes: IntCounter,
    push_seconds: Histogram,
    last_archived: Gauge,
    pub archive_bytes: IntGauge,
    pub archive_segments: IntGauge,
    pub gap_segments: Measure<AtomicI64>,
    pub ready_files: Measure<AtomicI64>,
    pub ready_age: Measure<AtomicF64>,
    pub slot_retained: Measure<AtomicI64>,
    pub beats: IntCounter,
    pub beat_failures: IntCounter,
    pub last_beat: Gauge,
}

/// A gauge whose zero looks well, and which therefore is not exported before it is known: one series without a label.
#[derive(Debug)]
pub struct Measure<P: Atomic>(GenericGaugeVec<P>);

// Derived, it would ask for a `P` that can be cloned.
impl<P: Atomic> Clone for Measure<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<P: Atomic + 'static> Measure<P> {
    /// # Errors
    /// Never, unless the name is misspelt.
    pub fn new(name: &str, help: &str) -> Result<Self, prometheus::Error> {
        Ok(Self(GenericGaugeVec::new(Opts::new(name, help), &[])?))
    }

    /// # Errors
    /// When the name is taken.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.0.clone()))
    }

    pub fn set(&self, value: P::T) {
        self.0.with_label_values(&[""; 0]).set(value);
    }
}

impl Metrics {
    /// # Errors
    /// Never, unless a name is misspelt.
    pub fn new() -> Result<Self, prometheus::Error> {
        let pushes = IntCounterVec::new(
            Opts::new(
                "foregate_pitr_pushes_total",
                "Files that PostgreSQL gave to the archive.",
            ),
            &["result"],
        )?;
        let push_seconds = HistogramOpts::new(
            "foregate_pitr_push_seconds",
            "From a file's arrival until it was durable in the repository.",
        )
        .buckets(vec![
            0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
        ]);
        let gauge = IntGauge::new;
        Ok(Self {
            new: pushes.with_label_values(&["new"]),
            already: pushes.with_label_values(&["already"]),
            push_failures: pushes.with_label_values(&["failed"]),
            pushes,
            pushed_bytes: IntCounter::new("foregate_pitr_pushed_bytes_total", "Log archived, before compression.")?,
            push_seconds: Histogram::with_opts(push_seconds)?,
            last_archived: Gauge::new(
                "foregate_pitr_last_archived_timestamp_seconds",
                "When a file was archived last; 0: none since the start.",
            )?,
            archive_bytes: gauge("foregate_pitr_archive_bytes", "Log in the repository, as stored.")?,
            archive_segments: gauge("foregate_pitr_archive_segments", "Segments in the repository.")?,
            gap_segments: Measure::new(
                "foregate_pitr_gap_segments",
                "Segments that are missing of what base backups need.",
            )?,
            ready_files: Measure::new(
                "foregate_pitr_ready_files",
                "Files that PostgreSQL waits to see archived.",
            )?,
            ready_age: Measure::new(
                "foregate_pitr_ready_age_seconds",
                "How long the oldest of them has waited; 0: none waits.",
            )?,
            slot_retained: Measure::new(
                "foregate_pitr_slot_retained_bytes",
                "Log that the server keeps for the replication slot; -1: the slot is lost.",
            )?,
            beats: IntCounter::new("foregate_pitr_heartbeats_total", "Heartbeats that were committed.")?,
            beat_failures: IntCounter::new("foregate_pitr_heartbeat_failures_total", "Heartbeats that were not.")?,
            last_beat: Gauge::new(
                "foregate_pitr_last_heartbeat_timestamp_seconds",
                "The time of the last heartbeat, by the database's clock.",
            )?,
        })
    }

    /// # Errors
    /// When a name is taken.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.pushes.clone()))?;
        registry.register(Box::new(self.pushed_bytes.clone()))?;
        registry.register(Box::new(self.push_seconds.clone()))?;
        for gauge in [&self.last_archived, &self.last_beat] {
            registry.register(Box::new(gauge.clone()))?;
        }
        for count in [&self.archive_bytes, &self.archive_segments] {
            registry.register(Box::new(count.clone()))?;
        }
        for measure in [&self.gap_segments, &self.ready_files, &self.slot_retained] {
            measure.register(registry)?;
        }
        self.ready_age.register(registry)?;
        registry.register(Box::new(self.beats.clone()))?;
        registry.register(Box::new(self.beat_failures.clone()))
    }

    pub(super) fn pushed(&self, pushed: Pushed, bytes: u64, took: Duration, at: Timestamp) {
        match pushed {
            Pushed::New => self.new.inc(),
            Pushed::Already => self.already.inc(),
        }
        self.pushed_bytes.inc_by(bytes);
        self.push_seconds.observe(took.as_secs_f64());
        self.last_archived.set(seconds(at));
    }
}

/// As Prometheus writes times.
#[must_use]
pub fn seconds(at: Timestamp) -> f64 {
    Duration::try_from(at.duration_since(Timestamp::UNIX_EPOCH)).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_would_look_well_is_exported_before_it_is_known() {
        let registry = Registry::new();
        let metrics = Metrics::new().expect("metrics");
        metrics.register(&registry).expect("registered");
        let exported = || {
            let families = registry.gather();
            let names = families.iter().map(|family| family.name().to_owned());
            names
                .filter(|name| name.contains("_gap_") || name.contains("_ready_") || name.contains("_slot_"))
                .collect::<Vec<_>>()
        };
        assert_eq!(exported(), [""; 0]);
        metrics.ready_age.set(0.0);
        metrics.gap_segments.set(0);
        assert_eq!(
            exported(),
            ["foregate_pitr_gap_segments", "foregate_pitr_ready_age_seconds"]
        );
    }
}
