//! Listening sockets that come from elsewhere: from systemd, and from a running gate whose clients speak TLS and HTTP/2 and
//! have tunnels open.

use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio_rustls::rustls::ClientConfig;

use crate::load::Successor;
use crate::support::certificates::Authority;
use crate::support::client::{self, Raw};
use crate::support::load::DRAIN_GRACE;
use crate::support::notify::Manager;
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};
use crate::support::wait;

#[tokio::test]
async fn socket_of_systemd_is_served_with_what_waits_in_it() {
    let origin = Origin::answering("x").await;
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("a bound socket has an address");
    // Nobody accepts yet.
    let mut early = Raw::plain(address).await;
    early.send("GET /early HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let config = Config::before(&origin).set("server.listen", &format!("[\"{address}\"]"));
    let mut gate = Gate::start_activated(&config, socket).await;
    assert_eq!(gate.address, address);
    assert_eq!(early.answer().await.status, 200);
    assert_eq!(client::get(address, "/late", "").await.status, 200);
    gate.signal(Signal::TERM);
    assert!(gate.exited().await.success(), "{}", gate.log());
}

/// As where the disk has gone over to reading alone: no reason to stay down.
#[tokio::test]
async fn socket_for_successors_that_cannot_be_made_is_told_and_made_once_it_can_be() {
    let origin = Origin::answering("x").await;
    let directory = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(directory.path().join("state/handover.sock")).expect("something is in the way");
    let mut gate = Gate::start_in(directory, &Config::before(&origin)).await;
    assert_eq!(client::get(gate.address, "/", "").await.status, 200);
    let health = gate.admin("GET", "/health/comprehensive", "").await.json();
    assert_eq!(health["parts"]["handover"]["status"], "degraded", "{health}");
    // One that could not take over would serve beside it for ever.
    gate.signal(Signal::USR2);
    said(&gate, "SIGUSR2 is ignored: no successor can take over").await;
    assert_eq!(children(gate.pid()), 0);
    std::fs::remove_dir(gate.path("state/handover.sock")).expect("it is out of the way");
    wait::until("the socket", async || {
        let health = gate.admin("GET", "/health/comprehensive", "").await.json();
        (health["parts"]["handover"]["status"] == "healthy").then_some(())
    })
    .await;
    let successor = Successor::of(&gate).await;
    assert!(gate.exited().await.success(), "{}", gate.log());
    drop(successor);
}

async fn said(gate: &Gate, words: &str) {
    wait::until(&format!("{words:?} in the log"), async || {
        gate.log().contains(words).then_some(())
    })
    .await;
}

#[tokio::test]
async fn second_order_for_a_successor_is_ignored_while_one_is_under_way() {
    let origin = Origin::answering("x").await;
    let mut gate = Gate::start(&Config::before(&origin)).await;
    // As a successor that takes the sockets and its time: another one has to wait.
    let slow = UnixStream::connect(gate.path("state/handover.sock")).expect("the gate's door");
    gate.signal(Signal::USR2);
    said(&gate, "started a successor").await;
    let successor = Successor::find(&gate);
    gate.signal(Signal::USR2);
    said(&gate, "SIGUSR2 is ignored").await;
    assert_eq!(gate.log().matches("started a successor").count(), 1, "{}", gate.log());
    drop((successor, slow));
    // Both have failed: the next may try.
    said(&gate, "ended before it took over").await;
    let successor = Successor::of(&gate).await;
    assert!(gate.exited().await.success(), "{}", gate.log());
    drop(successor);
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    h1: AtomicU64,
    h2: AtomicU64,
}

/// Asks over TLS and HTTP/1.1, one request after the other, until told to stop.
async fn ask_over_h1(address: SocketAddr, config: Arc<ClientConfig>, counts: Arc<Counts>) {
    let mut kept: Option<(Raw, Instant)> = None;
    while !counts.stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let (mut raw, last) = match kept.take() {
            Some((raw, last)) => (raw, Some(last)),
            None => (Raw::tls(address, Arc::clone(&config), "localhost").await, None),
        };
        drop(raw.try_send("GET /load HTTP/1.1\r\nhost: localhost\r\n\r\n").await);
        let Some(answer) = wait::within("an answer over h1", raw.try_answer()).await else {
            // Only a client that stood still for too long has to ask again.
            assert!(last.is_some_and(|last| last.elapsed() >= DRAIN_GRACE), "lost");
            continue;
        };
        assert_eq!(answer.status, 200, "{answer:?}");
        counts.h1.fetch_add(1, Ordering::Relaxed);
        if answer.header("connection") != Some("close") {
            kept = Some((raw, begin));
        }
    }
}

/// The same over HTTP/2; a connection that takes no more streams says so, and what it did not take is asked on another. So is
/// what a client asks that stood still for too long.
async fn ask_over_h2(address: SocketAddr, config: Arc<ClientConfig>, counts: Arc<Counts>) {
    while !counts.stop.load(Ordering::Relaxed) {
        let mut last = Instant::now();
        let tls = client::handshake(address, Arc::clone(&config), "localhost")
            .await
            .expect("TLS");
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
            .await
            .expect("h2 begins");
        drop(tokio::spawn(connection));
        while !counts.stop.load(Ordering::Relaxed) && sender.ready().await.is_ok() {
            let request = http::Request::get("https://localhost/load").body(Empty::<Bytes>::new());
            let begin = Instant::now();
            let sent = sender.try_send_request(request.expect("a request"));
            let response = match wait::within("an answer over h2", sent).await {
                Ok(response) => response,
                Err(mut refused) => {
                    let is_safe = refused.take_message().is_some() || last.elapsed() >= DRAIN_GRACE;
                    assert!(is_safe, "lost: {:?}", refused.error());
                    break;
                }
            };
            assert_eq!(response.status(), 200);
            let body = wait::within("a body over h2", response.into_body().collect()).await;
            assert_eq!(body.expect("a whole body").to_bytes().as_ref(), b"x");
            counts.h2.fetch_add(1, Ordering::Relaxed);
            last = begin;
        }
    }
}

/// Waits until so many more requests have been answered over each protocol.
async fn goes_on(counts: &Counts, more: u64) {
    for count in [&counts.h1, &counts.h2] {
        let from = count.load(Ordering::Relaxed);
        wait::until("more answers", async || {
            (count.load(Ordering::Relaxed) >= from + more).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn successor_takes_over_without_a_loss_to_tls_h2_or_an_open_tunnel() {
    let origin = Origin::start(|head| match head.starts_with("GET /tunnel") {
        true => Script::Echo,
        false => Script::Answer(ok("x")),
    })
    .await;
    let (authority, directory) = (Authority::new(), tempfile::tempdir().expect("a folder"));
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    // Keeps the port from others, as in `load`.
    let keeper = tokio::net::TcpSocket::new_v4().expect("a socket");
    keeper.set_reuseport(true).expect("an option");
    keeper.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let address = keeper.local_addr().expect("a bound socket has an address");
    let config = Config::before(&origin)
        .set("server.listen", &format!("[\"{address}\"]"))
        .tls(&[&leaf]);
    let mut gate = Gate::start(&config).await;
    let (h1, h2) = (authority.client(&["http/1.1"]), authority.client(&["h2"]));
    let mut tunnel = Raw::tls(address, Arc::clone(&h1), "localhost").await;
    tunnel
        .send("GET /tunnel HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await;
    assert_eq!(tunnel.answer().await.status, 101);
    let counts = Arc::<Counts>::default();
    let mut clients = JoinSet::new();
    for _ in 0..2 {
        clients.spawn(ask_over_h1(address, Arc::clone(&h1), Arc::clone(&counts)));
        clients.spawn(ask_over_h2(address, Arc::clone(&h2), Arc::clone(&counts)));
    }
    goes_on(&counts, 50).await;
    let successor = Successor::of(&gate).await;
    goes_on(&counts, 100).await;
    // The old process lives on for its tunnel alone.
    tunnel.send("still").await;
    let echo = wait::within("the echo", tunnel.take(5)).await;
    assert_eq!(echo.as_deref(), Some(b"still".as_slice()));
    drop(tunnel);
    assert!(gate.exited().await.success(), "{}", gate.log());
    goes_on(&counts, 50).await;
    counts.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.expect("no request fails");
    }
    drop(successor);
}

#[tokio::test]
async fn successor_becomes_the_main_process_and_pings_the_watchdog() {
    let origin = Origin::answering("x").await;
    let manager = Manager::new();
    let mut gate = Gate::start_watched(&Config::before(&origin), &manager, Duration::from_secs(6)).await;
    manager.hears(gate.pid(), "READY=1").await;
    manager.hears(gate.pid(), "WATCHDOG=1").await;
    let successor = Successor::of(&gate).await;
    manager.hears(gate.pid(), &format!("MAINPID={}", successor.pid())).await;
    // Only now would systemd heed the successor.
    manager.hears(successor.pid(), "WATCHDOG=1").await;
    assert!(gate.exited().await.success(), "{}", gate.log());
    drop(successor);
}

/// The processes that `pid` has started and that have not been waited for, zombies among them (proc(5): the parent stands
/// second after the name, which is in parentheses and may hold anything).
fn children(pid: u32) -> usize {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let is_child = |entry: &std::fs::DirEntry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
        (parent == pid.to_string()).then_some(())
    };
    processes.filter(|entry| is_child(entry).is_some()).count()
}

#[tokio::test]
async fn successor_that_fails_is_told_of_and_leaves_no_zombie() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin);
    let gate = Gate::start(&config).await;
    gate.rewrite(&config.set("limits.nonsense", "1"));
    gate.signal(Signal::USR2);
    said(&gate, "started a successor").await;
    wait::until("the end of the successor", async || {
        (children(gate.pid()) == 0).then_some(())
    })
    .await;
    said(&gate, "ended before it took over").await;
    assert_eq!(client::get(gate.address, "/", "").await.status, 200);
}
