//! Very many clients: what is remembered of them is bounded.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::client::Raw;
use crate::support::metrics;
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::wait;

/// Connections of the trusted proxy that speaks for all clients.
const CONNECTIONS: u32 = 4;
/// Requests that the proxy has on the way on each of them.
const PIPELINED: u32 = 50;
/// Of a client with both limits (`benches/guard.rs` measures it; this is the promise).
const BYTES_PER_CLIENT: u64 = 100;
/// Of a client with strikes. So many are remembered at most.
const BYTES_PER_STRUCK_CLIENT: u64 = 600;
const STRUCK_CLIENTS_MAX: u64 = 65_536;
/// What the process may grow by for other reasons: buffers, arenas of the allocator.
const SLACK_BYTES: u64 = 4 << 20;

/// An app that keeps nothing of what it is asked; the scripted one would record a million requests.
async fn forgetful_app() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(forget(stream));
        }
    });
    (address, tasks)
}

/// One request after the other, none with a body; ends with the connection.
async fn forget(mut stream: TcpStream) {
    let mut buffer = Vec::new();
    while stream.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
        while let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            buffer.drain(..end + 4);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

/// A request of each of these clients, over a few connections; returns how many passed, and how many were limited.
async fn ask_for(gate: SocketAddr, clients: std::ops::Range<u32>) -> (u32, u32) {
    let share = clients.len().div_ceil(CONNECTIONS as usize);
    let all: Vec<u32> = clients.collect();
    let mut proxies = JoinSet::new();
    for share in all.chunks(share) {
        let share = share.to_vec();
        proxies.spawn(async move {
            let (mut raw, mut passed, mut limited) = (Raw::plain(gate).await, 0, 0);
            for batch in share.chunks(PIPELINED as usize) {
                let request = |number: &u32| {
                    let client = Ipv4Addr::from_bits(0x0A00_0000 + number);
                    format!("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {client}\r\n\r\n")
                };
                raw.send(batch.iter().map(request).collect::<String>()).await;
                for _ in batch {
                    match raw.answer().await.status {
                        200 => passed += 1,
                        429 => limited += 1,
                        other => panic!("answered {other}"),
                    }
                }
            }
            (passed, limited)
        });
    }
    let shares = proxies.join_all().await;
    shares
        .iter()
        .fold((0, 0), |sum, share| (sum.0 + share.0, sum.1 + share.1))
}

/// Twice as many clients as may be tracked, each with one request.
async fn memory_stays_bounded(tracked_max: u32) {
    let (app, _tasks) = forgetful_app().await;
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin)
        .set("upstream.servers", &format!("[\"http://{app}\"]"))
        .set("client.trusted_proxies", r#"["127.0.0.1/32"]"#)
        // Each client is remembered for as long as the test takes.
        .set("limits.requests_per_minute", "2")
        .set("limits.requests_per_hour", "4")
        .set("limits.max_tracked_clients", &tracked_max.to_string());
    let gate = Gate::start(&config).await;
    // What the first ones cost is the program's own.
    assert_eq!(ask_for(gate.address, 0..1000).await, (1000, 0));
    let before = gate.resident_bytes();
    let within = tracked_max - tracked_max / 10;
    assert_eq!(
        ask_for(gate.address, 1000..within).await,
        (within - 1000, 0),
        "none is limited for what others do"
    );
    let grown = gate.resident_bytes().saturating_sub(before);
    let most = u64::from(tracked_max) * BYTES_PER_CLIENT + SLACK_BYTES;
    eprintln!("{within} clients: {} KiB", grown >> 10);
    assert!(grown <= most, "{grown} bytes for {within} clients");
    // Those beyond the cap are counted by their network and may be limited, which is a strike.
    let (passed, limited) = ask_for(gate.address, within..2 * tracked_max).await;
    let grown = gate.resident_bytes().saturating_sub(before);
    let most = most + u64::from(limited).min(STRUCK_CLIENTS_MAX) * BYTES_PER_STRUCK_CLIENT;
    eprintln!("twice the cap: {} KiB, {passed} passed, {limited} limited", grown >> 10);
    assert!(
        grown <= most,
        "{grown} bytes for twice as many clients as may be tracked"
    );
    let text = wait::until("the count of clients", async || {
        let text = metrics::scrape(gate.admin).await;
        metrics::sample(&text, "foregate_guard_tracked_clients")
            .is_some_and(|tracked| tracked > f64::from(tracked_max) * 0.8)
            .then_some(text)
    })
    .await;
    let tracked = metrics::sample(&text, "foregate_guard_tracked_clients").expect("a count");
    // Nobody is turned away before three quarters of the slots are taken, so there are more of them than clients.
    assert!(tracked <= f64::from(tracked_max) * 1.5, "{tracked} are tracked");
    let held = metrics::sample(&text, "foregate_guard_limiter_memory_bytes").expect("a size");
    assert!(held <= f64::from(tracked_max) * 100.0, "the limiter holds {held} bytes");
}

#[tokio::test]
async fn clients_without_end_cost_no_more_memory_than_those_that_may_be_tracked() {
    memory_stays_bounded(20_000).await;
}

#[tokio::test]
#[ignore = "minutes: part of `make soak`"]
async fn million_clients_stay_within_the_memory_cap() {
    memory_stays_bounded(1_000_000).await;
}
