//! Long runs, left out of `make test`: `make soak`, for SOAK_SECONDS (default 600) at a time. The count of all runs so far is
//! kept in `target/soak-total`.

mod app;
mod kinds;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::certificates::Authority;
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::wait;
use kinds::{Kind, Target};

/// Memory may grow by this much after the first tenth of the run.
const GROWTH_BYTES_MAX: u64 = 16 << 20;

/// What every client of one run shares.
pub(crate) struct Tally {
    stop: AtomicBool,
    counts: BTreeMap<&'static str, AtomicU64>,
}

impl Tally {
    pub(crate) fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, kind: &str, requests: u64) {
        self.counts[kind].fetch_add(requests, Ordering::Relaxed);
    }

    fn total(&self) -> u64 {
        self.counts.values().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: ten minutes"]
async fn mixed_requests_leave_memory_flat() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let run = Duration::from_secs(seconds.unwrap_or(600));
    let directory = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let unused = Origin::answering("x").await;
    let app = app::start().await;
    let common = Config::before(&unused)
        .set("upstream.servers", &format!("[\"http://{app}\"]"))
        .set("client.trusted_proxies", r#"["127.0.0.1/32"]"#)
        .set("limits.max_request_size", r#""1MiB""#)
        .set("limits.max_tracked_clients", "100000")
        .set("log.access_log", r#""""#)
        .set("server.max_connections_per_client", "10000");
    let plain = Gate::start(&common.clone().set("limits.requests_per_minute", "100")).await;
    let secured = Gate::start(&common.tls(&[&leaf])).await;
    let tally = Arc::new(Tally {
        stop: AtomicBool::new(false),
        counts: Kind::ALL.iter().map(|kind| (kind.name(), AtomicU64::new(0))).collect(),
    });
    let target = Arc::new(Target {
        plain: plain.address,
        secured: secured.address,
        authority,
    });
    let clients: Vec<_> = Kind::ALL
        .iter()
        .map(|kind| tokio::spawn(kind.run(Arc::clone(&target), Arc::clone(&tally))))
        .collect();

    let started = Instant::now();
    let (mut settled, mut last) = (None, (started, 0));
    let mut ticker = tokio::time::interval(Duration::from_secs(1));
    while started.elapsed() < run && !clients.iter().any(tokio::task::JoinHandle::is_finished) {
        ticker.tick().await;
        let resident = plain.resident_bytes() + secured.resident_bytes();
        if settled.is_none() && started.elapsed() > run / 10 {
            settled = Some(resident);
        }
        if last.0.elapsed() > Duration::from_secs(30) {
            let total = tally.total();
            eprintln!(
                "{} requests, {} a second, {resident} bytes",
                total,
                (total - last.1) / last.0.elapsed().as_secs()
            );
            last = (Instant::now(), total);
        }
    }
    tally.stop.store(true, Ordering::Relaxed);
    for client in clients {
        wait::within("the end of a client", client)
            .await
            .expect("no answer is wrong");
    }
    let resident = plain.resident_bytes() + secured.resident_bytes();
    let (settled, total) = (settled.expect("a tenth of the run is over"), tally.total());
    for (kind, count) in &tally.counts {
        eprintln!("{kind}: {}", count.load(Ordering::Relaxed));
        assert!(count.load(Ordering::Relaxed) > 0, "no {kind} at all");
    }
    let grown = resident.saturating_sub(settled);
    eprintln!(
        "{total} requests; {settled} bytes after a tenth of the time, {resident} at the end; {} requests in all runs",
        add_to_total(total)
    );
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more after {total} requests");
}

/// Adds this run to those before.
fn add_to_total(requests: u64) -> u64 {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let file = target.join("soak-total");
    let before = std::fs::read_to_string(&file)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let total = before.unwrap_or(0) + requests;
    std::fs::write(&file, total.to_string()).expect("the total is written");
    total
}
