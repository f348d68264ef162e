//! SIGTERM drains, and nobody who does not read what the gate writes holds it up.

use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::process::Signal;
use tokio::sync::Notify;

use crate::support::client::{self, Raw};
use crate::support::frames::{self, END_HEADERS, END_STREAM, Fate, Frames, HEADERS, frame};
use crate::support::notify::Manager;
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};
use crate::support::{metrics, wait};

async fn closed_port(gate: &Gate) {
    wait::until("the closed port", async || {
        tokio::net::TcpStream::connect(gate.address).await.err()
    })
    .await;
}

#[tokio::test]
async fn request_in_flight_is_answered_after_sigterm() {
    let open = Arc::new(Notify::new());
    let gate_of_origin = Arc::clone(&open);
    let origin = Origin::start(move |_| Script::After(Arc::clone(&gate_of_origin), ok("late"))).await;
    let mut gate = Gate::start(&Config::before(&origin)).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    origin.wait_for("/slow").await;
    gate.signal(Signal::TERM);
    open.notify_one();
    assert_eq!(raw.answer().await.body.as_ref(), b"late");
    assert!(gate.exited().await.success(), "{}", gate.log());
}

#[tokio::test]
async fn sigterm_in_the_middle_of_a_reload_drains_all_the_same() {
    let open = Arc::new(Notify::new());
    let gate_of_origin = Arc::clone(&open);
    let origin = Origin::start(move |_| Script::After(Arc::clone(&gate_of_origin), ok("late"))).await;
    let (directory, manager) = (private(), Manager::new());
    let config = Config::before(&origin);
    let mut gate = Gate::start_shaped(directory, &config, |command| manager.is_told_by(command)).await;
    // The reload that belongs to the start is over.
    for line in ["READY=1", "RELOADING=1", "READY=1"] {
        manager.hears(gate.pid(), line).await;
    }
    let mut raw = Raw::plain(gate.address).await;
    raw.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    origin.wait_for("/slow").await;
    // So many that reading them takes a while.
    let networks: Vec<String> = (0..20_000).map(|n| format!("10.{}.{}.0/24", n >> 8, n & 255)).collect();
    gate.rewrite(&config.set("limits.exempt", &format!("{networks:?}")));
    manager.hears(gate.pid(), "RELOADING=1").await;
    gate.signal(Signal::TERM);
    closed_port(&gate).await;
    open.notify_one();
    assert_eq!(raw.answer().await.body.as_ref(), b"late");
    assert!(gate.exited().await.success(), "{}", gate.log());
}

#[tokio::test]
async fn drain_refuses_new_clients_and_ends_idle_ones() {
    let open = Arc::new(Notify::new());
    let gate_of_origin = Arc::clone(&open);
    let origin = Origin::start(move |head| {
        if head.starts_with("GET /slow") {
            Script::After(Arc::clone(&gate_of_origin), ok("late"))
        } else {
            Script::Answer(ok("x"))
        }
    })
    .await;
    let mut gate = Gate::start(&Config::before(&origin)).await;
    let mut idle = Raw::plain(gate.address).await;
    idle.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(idle.answer().await.status, 200);
    let mut busy = Raw::plain(gate.address).await;
    busy.send("GET /slow/h1 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut streams = Frames::open(gate.address).await;
    streams
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/slow/h2")))
        .await;
    origin.wait_for("/slow/h1").await;
    origin.wait_for("/slow/h2").await;
    gate.signal(Signal::TERM);
    idle.closed().await;
    closed_port(&gate).await;
    // HTTP/2 is told first, without an error, and keeps its stream.
    assert_eq!(streams.fate(1).await, Fate::GoAway(0));
    open.notify_waiters();
    let answer = busy.answer().await;
    assert_eq!(
        (answer.body.as_ref(), answer.header("connection")),
        (b"late".as_slice(), Some("close"))
    );
    wait::within("the answer in the stream", async {
        while streams.fate(1).await != Fate::Status(200) {}
    })
    .await;
    assert!(gate.exited().await.success(), "{}", gate.log());
}

#[tokio::test]
async fn drain_has_a_deadline() {
    let origin = Origin::start(|_| Script::Never).await;
    let config = Config::before(&origin).set("server.drain_timeout", r#""1s""#);
    let mut gate = Gate::start(&config).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await;
    origin.wait_for("/never").await;
    gate.signal(Signal::TERM);
    raw.closed().await;
    assert!(gate.exited().await.success(), "{}", gate.log());
}

/// Asks over one connection, a hundred times at once, until the metric has begun to count.
async fn ask_until_dropped(gate: &Gate, path: &str, metric: &str) {
    let mut raw = Raw::plain(gate.address).await;
    let batch = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").repeat(100);
    wait::until(metric, async || {
        raw.send(&batch).await;
        for _ in 0..100 {
            assert_eq!(raw.answer().await.status, 200);
        }
        let text = metrics::scrape(gate.admin).await;
        (metrics::sample(&text, metric)? > 0.0).then_some(())
    })
    .await;
}

fn private() -> tempfile::TempDir {
    tempfile::tempdir().expect("a private folder")
}

#[tokio::test]
async fn access_log_that_nobody_reads_stops_neither_requests_nor_the_end() {
    let origin = Origin::answering("x").await;
    let unread = |command: &mut Command| {
        command.stdout(Stdio::piped());
    };
    let mut gate = Gate::start_shaped(private(), &Config::before(&origin), unread).await;
    // Long lines, so that the queue is soon full.
    let path = format!("/{}", "x".repeat(16 << 10));
    ask_until_dropped(&gate, &path, "foregate_access_log_dropped_lines_total").await;
    gate.signal(Signal::TERM);
    assert!(gate.exited().await.success(), "{}", gate.log());
}

#[tokio::test]
async fn log_that_nobody_reads_stops_neither_requests_nor_the_end() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin)
        .set("limits.mode", r#""observe""#)
        .set("limits.requests_per_minute", "1");
    // Every request over the limit makes a line of the log, in the thread that serves it.
    let unread = |command: &mut Command| {
        command.stderr(Stdio::piped()).env("FOREGATE_LOG", "debug");
    };
    let mut gate = Gate::start_shaped(private(), &config, unread).await;
    ask_until_dropped(&gate, "/", "foregate_log_dropped_lines_total").await;
    gate.signal(Signal::TERM);
    assert!(gate.exited().await.success());
}

#[tokio::test]
async fn access_log_is_opened_anew_after_it_was_rotated() {
    let origin = Origin::answering("x").await;
    let directory = private();
    let (file, rotated) = (
        directory.path().join("access.log"),
        directory.path().join("access.log.1"),
    );
    let config = Config::before(&origin).set("log.access_log", &format!("{:?}", file.display().to_string()));
    let gate = Gate::start_in(directory, &config).await;
    let logged = async |path: &str, file: &std::path::Path| {
        client::get(gate.address, path, "").await;
        wait::until("the line", async || {
            let text = std::fs::read_to_string(file).ok()?;
            text.contains(path).then_some(text)
        })
        .await
    };
    logged("/before", &file).await;
    std::fs::rename(&file, &rotated).expect("the file is rotated");
    logged("/between", &rotated).await;
    gate.signal(Signal::HUP);
    // Without a request: what rotates waits for the new file, not for a client.
    wait::until("the new file", async || file.exists().then_some(())).await;
    let text = logged("/after", &file).await;
    assert!(!text.contains("/between"), "{text}");
}
