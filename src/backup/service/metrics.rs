//! The vault's metrics, per kind: `daily`, `weekly`, `monthly`, `manual` and the file sets.

use prometheus::{GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::stats::KindStats;

#[derive(Debug, Clone)]
pub(super) struct Metrics {
    last_good: IntGaugeVec,
    last_good_age: IntGaugeVec,
    duration: GaugeVec,
    size: IntGaugeVec,
    level: IntGaugeVec,
    overdue: IntGaugeVec,
    good: IntGaugeVec,
    incomplete: IntGaugeVec,
    runs: IntCounterVec,
    failures: IntCounterVec,
    stored: IntGauge,
    running: IntGauge,
}

impl Metrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let by_kind = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["kind"]);
        let metrics = Self {
            last_good: by_kind(
                "foregate_backup_last_good_timestamp_seconds",
                "When the newest proven backup of a kind began",
            )?,
            last_good_age: by_kind(
                "foregate_backup_last_good_age_seconds",
                "Age of the newest proven backup of a kind",
            )?,
            duration: GaugeVec::new(
                Opts::new(
                    "foregate_backup_duration_seconds",
                    "How long the newest proven backup took",
                ),
                &["kind"],
            )?,
            size: by_kind("foregate_backup_size_bytes", "Stored size of the newest proven backup")?,
            level: by_kind(
                "foregate_backup_verified_level",
                "How far the newest proven backup is proven: 2 read back whole, 3 restored",
            )?,
            overdue: by_kind(
                "foregate_backup_overdue",
                "1: no proven backup of this kind for twice its interval",
            )?,
            good: by_kind("foregate_backup_good", "Proven backups of a kind")?,
            incomplete: by_kind(
                "foregate_backup_incomplete",
                "Backups of a kind that are listed and not all there",
            )?,
            runs: IntCounterVec::new(
                Opts::new("foregate_backup_runs_total", "Runs of the vault by act and result"),
                &["act", "result"],
            )?,
            failures: IntCounterVec::new(
                Opts::new("foregate_backup_failures_total", "Failed runs by the step that failed"),
                &["act", "step"],
            )?,
            stored: IntGauge::new("foregate_backup_stored_bytes", "Bytes of all backups in the repository")?,
            running: IntGauge::new("foregate_backup_running", "1 while a run is under way")?,
        };
        for gauge in metrics.by_kind() {
            registry.register(Box::new(gauge.clone()))?;
        }
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.runs.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        registry.register(Box::new(metrics.stored.clone()))?;
        registry.register(Box::new(metrics.running.clone()))?;
        Ok(metrics)
    }

    fn by_kind(&self) -> [&IntGaugeVec; 7] {
        [
            &self.last_good,
            &self.last_good_age,
            &self.size,
            &self.level,
            &self.overdue,
            &self.good,
            &self.incomplete,
        ]
    }

    pub(super) fn show(&self, kinds: &[KindStats], stored_bytes: u64) {
        for gauge in self.by_kind() {
            gauge.reset();
        }
        self.duration.reset();
        self.stored.set(int(stored_bytes));
        for kind in kinds {
            let label = [kind.kind.as_str()];
            self.overdue.with_label_values(&label).set(i64::from(kind.is_overdue));
            self.good.with_label_values(&label).set(int(kind.good as u64));
            self.incomplete
                .with_label_values(&label)
                .set(int(kind.incomplete as u64));
            let Some(newest) = &kind.newest_good else { continue };
            self.last_good.with_label_values(&label).set(newest.at.as_second());
            self.last_good_age
                .with_label_values(&label)
                .set(int(newest.age.as_secs()));
            self.duration.with_label_values(&label).set(newest.took.as_secs_f64());
            self.size.with_label_values(&label).set(int(newest.stored_bytes));
            self.level.with_label_values(&label).set(i64::from(newest.level));
        }
    }

    pub(super) fn began(&self) {
        self.running.set(1);
    }

    /// `failed_at`: the step, if it failed.
    pub(super) fn ended(&self, act: &str, failed_at: Option<&str>) {
        self.running.set(0);
        let result = if failed_at.is_some() { "failed" } else { "ok" };
        self.runs.with_label_values(&[act, result]).inc();
        if let Some(step) = failed_at {
            self.failures.with_label_values(&[act, step]).inc();
        }
    }
}

fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
