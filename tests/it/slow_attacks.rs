//! Slow and greedy clients by the hundred: each is ended, while another client is answered and memory stays bounded. What
//! ends them one by one is told in `slow`.

use futures_util::future::join_all;

use crate::slow::hasty;
use crate::support::certificates::Authority;
use crate::support::client::Raw;
use crate::support::frames::{self, END_HEADERS, END_STREAM, Frames, HEADERS, frame};
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::Gate;
use crate::support::wait;
use crate::support::witness::{unharmed_by, unharmed_over_tls_by};

const CLIENTS: usize = 100;
const MIB: u64 = 1 << 20;
const LARGE_BYTES: usize = 2 << 20;

async fn gate() -> (Origin, Gate) {
    let (small, large) = (ok("x"), ok(&"z".repeat(LARGE_BYTES)));
    let origin = Origin::start(move |head| {
        Script::Answer(if head.starts_with("GET /large") {
            large.clone()
        } else {
            small.clone()
        })
    })
    .await;
    let config = hasty(&origin)
        .set("server.max_connections_per_client", "10000")
        // The other client may be slow itself, where the machine is.
        .set("server.timeouts.keep_alive", r#""30s""#);
    let gate = Gate::start(&config).await;
    (origin, gate)
}

/// Many clients that each send this, and nothing more, until they are cut off.
async fn clients_that_send(gate: &Gate, name: &str, growth_bytes_max: u64, bytes: &[u8]) {
    unharmed_by(name, gate, growth_bytes_max, async || {
        let clients = (0..CLIENTS).map(|_| async {
            let mut raw = Raw::plain(gate.address).await;
            // On a busy machine its deadline may come first.
            drop(raw.try_send(bytes).await);
            raw.closed().await;
        });
        join_all(clients).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn handshakes_never_finished_by_a_hundred_clients() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let config = hasty(&origin)
        .set("server.max_connections_per_client", "10000")
        .set("server.timeouts.keep_alive", r#""30s""#)
        .tls(&[&leaf]);
    let gate = Gate::start(&config).await;
    let begun = [b"".as_slice(), b"\x16\x03\x01\x02\x00\x01\x00"];
    let tls = authority.client(&["http/1.1"]);
    unharmed_over_tls_by("handshake never finished", &gate, 4 * MIB, tls, async || {
        let clients = (0..CLIENTS).map(|number| {
            let gate = &gate;
            async move {
                let mut raw = Raw::plain(gate.address).await;
                drop(raw.try_send(begun[number % 2]).await);
                raw.closed().await;
            }
        });
        join_all(clients).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn heads_that_never_end_by_a_hundred_clients() {
    let (_origin, gate) = gate().await;
    let big = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "y".repeat(12 << 10));
    clients_that_send(&gate, "header never finished", 8 * MIB, big.as_bytes()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn heads_and_bodies_that_drip_by_a_hundred_clients() {
    let (_origin, gate) = gate().await;
    for (name, head) in [
        ("header dripped", "GET / HTTP/1.1\r\nhost: a\r\nx: "),
        (
            "body dripped",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n",
        ),
    ] {
        unharmed_by(name, &gate, 8 * MIB, async || {
            let clients = (0..CLIENTS).map(|_| async {
                let mut raw = Raw::plain(gate.address).await;
                drop(raw.try_send(head).await);
                wait::until(name, async || raw.try_send("y").await.err()).await;
            });
            join_all(clients).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bodies_that_stand_still_by_a_hundred_clients() {
    let (_origin, gate) = gate().await;
    let begun = format!(
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n{}",
        "y".repeat(50_000)
    );
    clients_that_send(&gate, "body that stands still", 24 * MIB, begun.as_bytes()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn answers_never_read_by_a_hundred_clients() {
    let (_origin, gate) = gate().await;
    // What a connection may have waiting is a megabyte.
    unharmed_by("response never read", &gate, CLIENTS as u64 * MIB, async || {
        let mut greedy = Vec::new();
        for _ in 0..CLIENTS {
            let mut raw = Raw::plain(gate.address).await;
            raw.send("GET /large HTTP/1.1\r\nhost: a\r\n\r\n".repeat(8)).await;
            greedy.push(raw);
        }
        // Reading is what would free the gate, so what the gate holds is asked of the gate.
        wait::until("the end of what nobody reads", async || {
            (crate::slow::in_flight(&gate).await <= 1.0).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn windows_that_stay_shut_on_thousands_of_streams() {
    let (_origin, gate) = gate().await;
    unharmed_by("zero-window h2 streams", &gate, 48 * MIB, async || {
        let mut stalled = Vec::new();
        for _ in 0..10 {
            let mut client = Frames::open_with(gate.address, &[0, 4, 0, 0, 0, 0]).await;
            let all: Vec<u8> = (0..100)
                .flat_map(|number| {
                    frame(
                        HEADERS,
                        END_HEADERS | END_STREAM,
                        1 + 2 * number,
                        &frames::get("/small"),
                    )
                })
                .collect();
            client.send(&all).await;
            stalled.push(client);
        }
        join_all(stalled.iter_mut().map(async |client| {
            assert_eq!(client.reset(199).await, 8, "CANCEL");
        }))
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_without_a_request_by_a_hundred_clients() {
    let (_origin, gate) = gate().await;
    unharmed_by("idle h2", &gate, 8 * MIB, async || {
        let clients = (0..CLIENTS).map(|_| async { Frames::open(gate.address).await.ended().await });
        join_all(clients).await;
    })
    .await;
}
