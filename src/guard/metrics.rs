//! The guard's metrics, made up when they are asked for: nothing on the path of a request knows about them.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts};

use super::limit::Memory;
use super::suspicion::{Kind, Suspicion};
use super::tally::{Act, Tally};

#[derive(Debug)]
pub(super) struct Metrics {
    tally: Arc<Tally>,
    memory: Memory,
    suspicion: Arc<Suspicion>,
    descriptions: Vec<Desc>,
}

impl Metrics {
    pub(super) fn new(tally: Arc<Tally>, memory: Memory, suspicion: Arc<Suspicion>) -> prometheus::Result<Self> {
        let mut metrics = Self {
            tally,
            memory,
            suspicion,
            descriptions: Vec::new(),
        };
        let read = metrics.read()?;
        metrics.descriptions = read.iter().flat_map(|metric| metric.desc()).cloned().collect();
        Ok(metrics)
    }

    /// A set of metrics with their present values.
    fn read(&self) -> prometheus::Result<Vec<Box<dyn Collector>>> {
        let total = |name: &str, help: &str, value: u64| -> prometheus::Result<Box<dyn Collector>> {
            let counter = IntCounter::new(name, help)?;
            counter.inc_by(value);
            Ok(Box::new(counter))
        };
        let gauge = |name: &str, help: &str, value: i64| -> prometheus::Result<Box<dyn Collector>> {
            let gauge = IntGauge::new(name, help)?;
            gauge.set(value);
            Ok(Box::new(gauge))
        };
        let windows = |name: &str, help: &str, minute: Act, hour: Act| -> prometheus::Result<Box<dyn Collector>> {
            let counters = IntCounterVec::new(Opts::new(name, help), &["window"])?;
            counters.with_label_values(&["minute"]).inc_by(self.tally.total(minute));
            counters.with_label_values(&["hour"]).inc_by(self.tally.total(hour));
            Ok(Box::new(counters))
        };
        Ok(vec![
            total(
                "foregate_guard_admitted_requests_total",
                "Requests that passed the guard.",
                self.tally.total(Act::Admitted),
            )?,
            windows(
                "foregate_guard_limited_requests_total",
                "Requests answered 429, by the limit that refused.",
                Act::LimitedByMinute,
                Act::LimitedByHour,
            )?,
            windows(
                "foregate_guard_observed_requests_total",
                "Requests over a limit that passed because limits are only observed.",
                Act::ObservedOverMinute,
                Act::ObservedOverHour,
            )?,
            total(
                "foregate_guard_blocked_requests_total",
                "Requests answered 403 because their client is blocked.",
                self.tally.total(Act::RefusedBlocked),
            )?,
            total(
                "foregate_guard_refused_connections_total",
                "Connections of blocked clients closed at accept.",
                self.tally.total(Act::RefusedConnection),
            )?,
            self.strikes()?,
            total(
                "foregate_guard_automatic_blocks_total",
                "Blocks ordered because of strikes.",
                self.tally.total(Act::BlockOrdered),
            )?,
            total(
                "foregate_guard_dropped_blocks_total",
                "Automatic blocks that the blocklist's queue had no room for.",
                self.tally.total(Act::BlockDropped),
            )?,
            gauge(
                "foregate_guard_tracked_clients",
                "Clients with less than their full quota, per rule; an estimate when they are many.",
                saturated(self.memory.tracked(self.tally.latest())),
            )?,
            gauge(
                "foregate_guard_limiter_memory_bytes",
                "Memory that the limiter holds.",
                saturated(self.memory.bytes() as u64),
            )?,
        ])
    }

    fn strikes(&self) -> prometheus::Result<Box<dyn Collector>> {
        let opts = Opts::new("foregate_guard_strikes_total", "Strikes given, by what for.");
        let strikes = IntCounterVec::new(opts, &["kind"])?;
        for kind in Kind::ALL {
            strikes
                .with_label_values(&[kind.name()])
                .inc_by(self.suspicion.total(kind));
        }
        Ok(Box::new(strikes))
    }
}

fn saturated(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let metrics = self.read().unwrap_or_default();
        metrics.iter().flat_map(|metric| metric.collect()).collect()
    }
}
