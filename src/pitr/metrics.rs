//! What the log's archive counts.

use std::time::Duration;

use jiff::Timestamp;
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
    pub gap_segments: IntGauge,
    pub ready_files: IntGauge,
    pub ready_age: Gauge,
    pub slot_retained: IntGauge,
    pub beats: IntCounter,
    pub beat_failures: IntCounter,
    pub last_beat: Gauge,
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
            gap_segments: gauge(
                "foregate_pitr_gap_segments",
                "Segments that are missing of what base backups need.",
            )?,
            ready_files: gauge(
                "foregate_pitr_ready_files",
                "Files that PostgreSQL waits to see archived.",
            )?,
            ready_age: Gauge::new(
                "foregate_pitr_ready_age_seconds",
                "How long the oldest of them has waited; 0: none waits.",
            )?,
            slot_retained: gauge(
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
        let gauges = [&self.last_archived, &self.ready_age, &self.last_beat];
        let counts = [
            &self.archive_bytes,
            &self.archive_segments,
            &self.gap_segments,
            &self.ready_files,
            &self.slot_retained,
        ];
        for gauge in gauges {
            registry.register(Box::new(gauge.clone()))?;
        }
        for count in counts {
            registry.register(Box::new(count.clone()))?;
        }
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
