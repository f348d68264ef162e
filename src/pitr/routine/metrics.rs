//! What is exported of recovery: how far back and how near to now, and how the last rehearsal went.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use prometheus::core::{AtomicF64, AtomicI64, Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, IntCounterVec, IntGauge, Opts, Registry};

use crate::clock::Clock;
use crate::pitr::base::{self, Base};
use crate::pitr::drill::Drill;
use crate::pitr::metrics::{Measure, seconds};
use crate::pitr::window::Window;

#[derive(Debug)]
pub(super) struct Metrics {
    earliest: Gauge,
    latest: Gauge,
    recovery_point: Point,
    holes: Measure<AtomicI64>,
    bases: IntGauge,
    base_bytes: IntGauge,
    base_at: Gauge,
    taken: IntCounterVec,
    drill_at: Gauge,
    drill_passed: IntGauge,
    drill_recovery_time: Measure<AtomicF64>,
    drill_recovery_point: Measure<AtomicF64>,
    drills: IntCounterVec,
}

/// What would be lost now. Computed when it is read: it grows while nothing new is archived, and all the more while the
/// repository cannot be looked at.
#[derive(Debug, Clone)]
struct Point {
    gauge: Gauge,
    clock: Clock,
    /// The outer `None`: nothing has been looked at yet, so there is nothing to say.
    latest: Arc<Mutex<Option<Option<Timestamp>>>>,
}

impl Collector for Point {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(latest) = *self.latest.lock().unwrap_or_else(PoisonError::into_inner) else {
            return Vec::new();
        };
        let now = self.clock.wall();
        self.gauge
            .set(latest.map_or(-1.0, |latest| now.duration_since(latest).as_secs_f64().max(0.0)));
        self.gauge.collect()
    }
}

impl Metrics {
    pub(super) fn new(clock: Clock) -> Result<Self, prometheus::Error> {
        let gauge = Gauge::new::<&str, &str>;
        let count = IntGauge::new::<&str, &str>;
        let results = |name: &str, help: &str| IntCounterVec::new(Opts::new(name, help), &["result"]);
        Ok(Self {
            earliest: gauge(
                "foregate_pitr_window_earliest_timestamp_seconds",
                "The earliest instant that can be recovered; 0: none.",
            )?,
            latest: gauge(
                "foregate_pitr_window_latest_timestamp_seconds",
                "The latest instant that can be recovered; 0: none.",
            )?,
            recovery_point: Point {
                gauge: gauge(
                    "foregate_pitr_recovery_point_seconds",
                    "What would be lost if the server burned now; -1: all of it.",
                )?,
                clock,
                latest: Arc::default(),
            },
            holes: Measure::new(
                "foregate_pitr_window_gaps",
                "Stretches within the window that cannot be recovered, and one if its end is a gap.",
            )?,
            bases: count(
                "foregate_pitr_base_backups",
                "Base backups that can be used: whole, and not marked for deletion.",
            )?,
            base_bytes: count("foregate_pitr_base_backup_bytes", "All base backups, as stored.")?,
            base_at: gauge(
                "foregate_pitr_last_base_backup_timestamp_seconds",
                "When the newest base backup that can be used ended; 0: there is none.",
            )?,
            taken: results("foregate_pitr_base_backups_total", "Base backups that were begun.")?,
            drill_at: gauge(
                "foregate_pitr_last_drill_timestamp_seconds",
                "When the last drill began; 0: never.",
            )?,
            drill_passed: count("foregate_pitr_last_drill_passed", "1: the last drill passed.")?,
            drill_recovery_time: Measure::new(
                "foregate_pitr_drill_recovery_time_seconds",
                "How long the last drill took, from the plan to a server that takes writes.",
            )?,
            drill_recovery_point: Measure::new(
                "foregate_pitr_drill_recovery_point_seconds",
                "What would have been lost when the last drill began.",
            )?,
            drills: results("foregate_pitr_drills_total", "Drills since the start.")?,
        })
    }

    pub(super) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let gauges = [&self.earliest, &self.latest, &self.base_at, &self.drill_at];
        registry.register(Box::new(self.recovery_point.clone()))?;
        for gauge in gauges {
            registry.register(Box::new(gauge.clone()))?;
        }
        for count in [&self.bases, &self.base_bytes, &self.drill_passed] {
            registry.register(Box::new(count.clone()))?;
        }
        self.holes.register(registry)?;
        self.drill_recovery_time.register(registry)?;
        self.drill_recovery_point.register(registry)?;
        for results in [&self.taken, &self.drills] {
            for result in ["passed", "failed"] {
                // There from the start, so that a first failure is a rise.
                results.with_label_values(&[result]).inc_by(0);
            }
            registry.register(Box::new(results.clone()))?;
        }
        Ok(())
    }

    pub(super) fn listed(&self, bases: &[Base]) {
        let (count, newest) = base::counted(bases);
        self.bases.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.base_at.set(newest.map_or(0.0, |base| seconds(base.stopped_at)));
        let bytes: u64 = bases.iter().map(Base::stored_bytes).sum();
        self.base_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub(super) fn looked(&self, window: &Window, drills: &[Drill]) {
        self.earliest.set(window.earliest().map_or(0.0, seconds));
        self.latest.set(window.latest().map_or(0.0, seconds));
        *self
            .recovery_point
            .latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(window.latest());
        let holes = window
            .holes
            .len()
            .saturating_add(usize::from(window.ends_because.is_some()));
        self.holes.set(i64::try_from(holes).unwrap_or(i64::MAX));
        if let Some(drill) = drills.first() {
            self.last_drill(drill);
        }
    }

    pub(super) fn base_taken(&self, passed: bool) {
        self.taken.with_label_values(&[result(passed)]).inc();
    }

    pub(super) fn drilled(&self, drill: &Drill) {
        self.drills.with_label_values(&[result(drill.passed())]).inc();
        self.last_drill(drill);
    }

    fn last_drill(&self, drill: &Drill) {
        self.drill_at.set(seconds(drill.at));
        self.drill_passed.set(i64::from(drill.passed()));
        if drill.passed() {
            self.drill_recovery_time.set(drill.recovery_time().as_secs_f64());
        }
        if let Some(point) = drill.recovery_point {
            self.drill_recovery_point.set(point.as_secs_f64());
        }
    }
}

fn result(passed: bool) -> &'static str {
    if passed { "passed" } else { "failed" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pitr::window::Stretch;

    fn point(registry: &Registry) -> Option<f64> {
        let families = registry.gather();
        let found = families
            .iter()
            .find(|family| family.name() == "foregate_pitr_recovery_point_seconds")?;
        Some(found.get_metric().first()?.get_gauge().get_value())
    }

    #[test]
    fn empty_repository_shows_no_number_that_looks_well() {
        let registry = Registry::new();
        let metrics = Metrics::new(Clock::system()).expect("metrics");
        metrics.register(&registry).expect("registered");
        let value = |name: &str| {
            let families = registry.gather();
            let found = families
                .iter()
                .find(|family| family.name() == format!("foregate_pitr_{name}"))?;
            Some(found.get_metric().first()?.get_gauge().get_value())
        };
        assert_eq!(value("window_gaps"), None, "nothing is known yet");
        metrics.listed(&[]);
        metrics.looked(&Window::default(), &[]);
        for (name, expected) in [
            ("window_earliest_timestamp_seconds", Some(0.0)),
            ("window_latest_timestamp_seconds", Some(0.0)),
            ("recovery_point_seconds", Some(-1.0)),
            ("base_backups", Some(0.0)),
            ("last_base_backup_timestamp_seconds", Some(0.0)),
            ("last_drill_passed", Some(0.0)),
            ("last_drill_timestamp_seconds", Some(0.0)),
            ("drill_recovery_time_seconds", None),
            ("drill_recovery_point_seconds", None),
        ] {
            assert_eq!(value(name), expected, "{name}");
        }
    }

    #[test]
    fn what_would_be_lost_grows_from_one_scrape_to_the_next_though_nothing_is_looked_at() {
        let (clock, registry) = (Clock::system(), Registry::new());
        let metrics = Metrics::new(clock).expect("metrics");
        metrics.register(&registry).expect("registered");
        assert_eq!(point(&registry), None, "nothing is known yet");
        metrics.looked(&Window::default(), &[]);
        assert_eq!(point(&registry), Some(-1.0));
        let latest = clock.wall();
        let stretch = Stretch {
            from: latest,
            to: latest,
        };
        let window = Window {
            stretches: vec![stretch],
            ..Window::default()
        };
        metrics.looked(&window, &[]);
        let first = point(&registry).expect("a point");
        assert!(point(&registry).expect("a point") > first);
    }
}
