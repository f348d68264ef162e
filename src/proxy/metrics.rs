//! The data plane's metrics. Each worker counts in its own cells and adds them to the shared ones at its tick, so that
//! workers never write to the same cache line while they serve.

use prometheus::local::{LocalHistogram, LocalIntCounter};
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// How a request ended, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The app answered.
    App,
    Blocked,
    Limited,
    Oversized,
    /// 4xx that Foregate made for other reasons.
    Refused,
    /// The app could not be reached or failed.
    UpstreamError,
    /// The client left before the answer was complete.
    Aborted,
    Tunnel,
}

impl Outcome {
    const ALL: [Self; 8] = [
        Self::App,
        Self::Blocked,
        Self::Limited,
        Self::Oversized,
        Self::Refused,
        Self::UpstreamError,
        Self::Aborted,
        Self::Tunnel,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Blocked => "blocked",
            Self::Limited => "limited",
            Self::Oversized => "oversized",
            Self::Refused => "refused",
            Self::UpstreamError => "upstream_error",
            Self::Aborted => "aborted",
            Self::Tunnel => "tunnel",
        }
    }
}

/// Of an answer's status; `none`: the client left before there was one.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// What the counters below may carry, so that each is there from the start: a counter that appears with its first count has
/// no rate at that moment, and an alert on it sleeps through it.
const HANDSHAKES: [&str; 2] = ["ok", "failed"];
const REFUSALS: [&str; 5] = ["blocked", "full", "client_full", "proxy_protocol", "memory"];
const FLOODS: [&str; 9] = [
    "resets",
    "settings",
    "ping",
    "window_update",
    "empty_data",
    "priority",
    "rst_stream",
    "refused_stream",
    "other",
];
const UPSTREAM_ERRORS: [&str; 5] = [
    "connect_refused",
    "connect_timeout",
    "connect_http",
    "bad_answer",
    "response_timeout",
];

/// The shared handles; cloned into every worker.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    requests: IntCounterVec,
    request_seconds: Histogram,
    upstream_seconds: Histogram,
    /// How near honest requests come to the caps on headers, before a cap is lowered.
    header_bytes: Histogram,
    header_fields: Histogram,
    bytes_received: IntCounter,
    bytes_sent: IntCounter,
    pub(super) connections: IntGauge,
    pub(super) tunnels: IntGauge,
    pub(super) in_flight: IntGauge,
    pub(super) handshakes: IntCounterVec,
    pub(super) refused_connections: IntCounterVec,
    pub(super) floods: IntCounterVec,
    pub(super) upstream_errors: IntCounterVec,
    pub(super) upstream_connections: IntCounter,
}

impl Metrics {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new(
                    "foregate_proxy_requests_total",
                    "Requests by how they ended and by status class",
                ),
                &["outcome", "class"],
            )?,
            request_seconds: histogram(
                "foregate_proxy_request_seconds",
                "From a request's headers to its answer's end",
            )?,
            upstream_seconds: histogram(
                "foregate_proxy_upstream_seconds",
                "From sending a request to the app's headers",
            )?,
            header_bytes: header_histogram(
                "foregate_proxy_request_header_bytes",
                "Header fields of a request as limits.max_header_size counts them",
                512.0,
            )?,
            header_fields: header_histogram(
                "foregate_proxy_request_header_fields",
                "Header fields of a request as limits.max_headers counts them",
                4.0,
            )?,
            bytes_received: IntCounter::new("foregate_proxy_received_bytes_total", "Bytes of request bodies")?,
            bytes_sent: IntCounter::new("foregate_proxy_sent_bytes_total", "Bytes of response bodies")?,
            connections: IntGauge::new(
                "foregate_proxy_connections",
                "Open client connections, tunnels included",
            )?,
            tunnels: IntGauge::new("foregate_proxy_tunnels", "Open tunnels (WebSocket and other upgrades)")?,
            in_flight: IntGauge::new("foregate_proxy_requests_in_flight", "Requests being served")?,
            handshakes: counters(
                "foregate_proxy_handshakes_total",
                "TLS handshakes by result",
                "result",
                &HANDSHAKES,
            )?,
            refused_connections: counters(
                "foregate_proxy_refused_connections_total",
                "Connections closed at accept, by reason",
                "reason",
                &REFUSALS,
            )?,
            floods: counters(
                "foregate_proxy_floods_total",
                "HTTP/2 connections closed on a client that flooded them, by what",
                "kind",
                &FLOODS,
            )?,
            upstream_errors: counters(
                "foregate_upstream_errors_total",
                "Failures of the app, by kind",
                "kind",
                &UPSTREAM_ERRORS,
            )?,
            upstream_connections: IntCounter::new(
                "foregate_upstream_connections_total",
                "Connections made to the app",
            )?,
        };
        metrics.register_all(registry)?;
        Ok(metrics)
    }

    fn register_all(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.requests.clone()))?;
        registry.register(Box::new(self.request_seconds.clone()))?;
        registry.register(Box::new(self.upstream_seconds.clone()))?;
        registry.register(Box::new(self.header_bytes.clone()))?;
        registry.register(Box::new(self.header_fields.clone()))?;
        registry.register(Box::new(self.bytes_received.clone()))?;
        registry.register(Box::new(self.bytes_sent.clone()))?;
        registry.register(Box::new(self.connections.clone()))?;
        registry.register(Box::new(self.tunnels.clone()))?;
        registry.register(Box::new(self.in_flight.clone()))?;
        registry.register(Box::new(self.handshakes.clone()))?;
        registry.register(Box::new(self.refused_connections.clone()))?;
        registry.register(Box::new(self.floods.clone()))?;
        registry.register(Box::new(self.upstream_errors.clone()))?;
        registry.register(Box::new(self.upstream_connections.clone()))
    }

    /// One worker's cells.
    pub(super) fn local(&self) -> Local {
        let cell = |outcome: Outcome, class| self.requests.with_label_values(&[outcome.name(), class]).local();
        Local {
            requests: Outcome::ALL.map(|outcome| CLASSES.map(|class| cell(outcome, class))),
            request_seconds: self.request_seconds.local(),
            upstream_seconds: self.upstream_seconds.local(),
            header_bytes: self.header_bytes.local(),
            header_fields: self.header_fields.local(),
            bytes_received: self.bytes_received.local(),
            bytes_sent: self.bytes_sent.local(),
        }
    }
}

pub(super) struct Local {
    requests: [[LocalIntCounter; CLASSES.len()]; Outcome::ALL.len()],
    pub(super) request_seconds: LocalHistogram,
    pub(super) upstream_seconds: LocalHistogram,
    header_bytes: LocalHistogram,
    header_fields: LocalHistogram,
    pub(super) bytes_received: LocalIntCounter,
    pub(super) bytes_sent: LocalIntCounter,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

impl Local {
    pub(super) fn request(&self, outcome: Outcome, status: u16) {
        let class = usize::from(status / 100).min(CLASSES.len() - 1);
        if let Some(cell) = self.requests.get(outcome as usize).and_then(|row| row.get(class)) {
            cell.inc();
        }
    }

    /// Notes the header of a request, whether or not it is refused for it.
    pub(super) fn header(&self, fields: usize, bytes: usize) {
        self.header_fields.observe(fields as f64);
        self.header_bytes.observe(bytes as f64);
    }

    /// Adds what was counted since the last flush to the shared metrics.
    pub(super) fn flush(&self) {
        for cell in self.requests.iter().flatten() {
            cell.flush();
        }
        self.request_seconds.flush();
        self.upstream_seconds.flush();
        self.header_bytes.flush();
        self.header_fields.flush();
        self.bytes_received.flush();
        self.bytes_sent.flush();
    }
}

/// Counters that differ in one label, at zero for each of its values.
fn counters(name: &str, help: &str, label: &str, values: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
    for value in values {
        counters.with_label_values(&[value]).inc_by(0);
    }
    Ok(counters)
}

fn histogram(name: &str, help: &str) -> Result<Histogram, prometheus::Error> {
    let buckets = vec![
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    ];
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
}

/// Eight buckets from `first` on, each twice the one before.
fn header_histogram(name: &str, help: &str, first: f64) -> Result<Histogram, prometheus::Error> {
    let buckets = prometheus::exponential_buckets(first, 2.0, 8)?;
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
}
