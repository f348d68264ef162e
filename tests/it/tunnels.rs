//! Tunnels: how long they live, what they hold in memory, and that nothing of one is used for anything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::client::{self, Raw};
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};
use crate::support::wait;

const WISH: &str = "GET /tunnel HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
const GROWTH_BYTES_MAX: u64 = 16 << 20;

async fn open(gate: &Gate) -> Raw {
    let mut raw = Raw::plain(gate.address).await;
    raw.send(WISH).await;
    assert_eq!(raw.answer().await.status, 101);
    raw
}

async fn echoes(raw: &mut Raw, text: &str) {
    raw.send(text).await;
    let echo = wait::within("the echo", raw.take(text.len())).await;
    assert_eq!(echo.as_deref(), Some(text.as_bytes()));
}

#[tokio::test]
async fn tunnel_that_is_quiet_for_too_long_ends_and_one_that_is_not_goes_on() {
    let origin = Origin::start(|_| Script::Echo).await;
    let gate = Gate::start(&Config::before(&origin).set("server.timeouts.tunnel_idle", r#""5s""#)).await;
    let (mut quiet, mut busy) = (open(&gate).await, open(&gate).await);
    echoes(&mut quiet, "once").await;
    let ended = quiet.closed();
    tokio::pin!(ended);
    let mut ticker = tokio::time::interval(std::time::Duration::from_millis(100));
    loop {
        tokio::select! {
            () = &mut ended => break,
            _ = ticker.tick() => echoes(&mut busy, "again").await,
        }
    }
    echoes(&mut busy, "still").await;
}

#[tokio::test]
async fn tunnel_works_while_the_gate_drains_and_ends_with_the_drain() {
    let origin = Origin::start(|_| Script::Echo).await;
    let mut gate = Gate::start(&Config::before(&origin).set("server.drain_timeout", r#""8s""#)).await;
    let mut tunnel = open(&gate).await;
    echoes(&mut tunnel, "before").await;
    gate.signal(Signal::TERM);
    wait::until("the closed port", async || TcpStream::connect(gate.address).await.err()).await;
    echoes(&mut tunnel, "while it drains").await;
    tunnel.closed().await;
    assert!(gate.exited().await.success(), "{}", gate.log());
}

#[tokio::test]
async fn socket_of_a_tunnel_never_serves_a_request() {
    let origin = Origin::start(|head| match head.starts_with("GET /tunnel") {
        true => Script::Echo,
        false => Script::Answer(ok("x")),
    })
    .await;
    let gate = Gate::start(&Config::before(&origin).set("server.workers", "1")).await;
    assert_eq!(client::get(gate.address, "/before", "").await.status, 200);
    let mut tunnel = open(&gate).await;
    echoes(&mut tunnel, "hello").await;
    assert_eq!(client::get(gate.address, "/during", "").await.status, 200);
    drop(tunnel);
    for number in 0..5 {
        assert_eq!(
            client::get(gate.address, &format!("/after/{number}"), "").await.status,
            200
        );
    }
    let tunnels: Vec<String> = origin
        .received()
        .iter()
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .filter(|text| text.contains("GET /tunnel"))
        .collect();
    assert_eq!(tunnels.len(), 1);
    assert!(tunnels[0].ends_with("\r\n\r\nhello"), "{}", tunnels[0]);
}

/// An app that switches, then writes for ever and reads nothing; it counts what it could write.
async fn torrent() -> (std::net::SocketAddr, Arc<AtomicUsize>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let written = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&written);
    let app = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert!(tcp.read_buf(&mut head).await.expect("a head") > 0);
        }
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        tcp.write_all(switch).await.expect("the answer");
        while let Ok(length @ 1..) = tcp.write(&[b'z'; 64 << 10]).await {
            count.fetch_add(length, Ordering::SeqCst);
        }
    });
    (address, written, app)
}

/// Waits until a count has not changed for a while.
async fn stalls(what: &str, count: impl Fn() -> usize) -> usize {
    let (mut last, mut same) = (0, 0);
    wait::until(what, async || {
        let now = count();
        same = if now == last && now > 0 { same + 1 } else { 0 };
        last = now;
        (same > 30).then_some(now)
    })
    .await
}

#[tokio::test]
async fn side_that_does_not_read_stops_the_other_and_costs_no_memory() {
    let (address, written, app) = torrent().await;
    let unused = Origin::answering("x").await;
    let config = Config::before(&unused).set("upstream.servers", &format!(r#"["http://{address}"]"#));
    let gate = Gate::start(&config).await;
    let before = gate.resident_bytes();
    let mut tcp = TcpStream::connect(gate.address).await.expect("the port accepts");
    tcp.write_all(WISH.as_bytes()).await.expect("the request");
    // The client does not read: the app comes to a stop, after what the kernel holds.
    let stopped = stalls("the app's stop", || written.load(Ordering::SeqCst)).await;
    // Nor does the app: the client comes to a stop too.
    let sent = Arc::<AtomicUsize>::default();
    let (mut reading, mut writing) = tcp.into_split();
    let count = Arc::clone(&sent);
    let client = tokio::spawn(async move {
        while let Ok(length @ 1..) = writing.write(&[b'y'; 64 << 10]).await {
            count.fetch_add(length, Ordering::SeqCst);
        }
    });
    stalls("the client's stop", || sent.load(Ordering::SeqCst)).await;
    let grown = gate.resident_bytes().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more");
    // What waited comes when it is read, and the app goes on.
    let mut piece = vec![0; 64 << 10];
    let mut got = 0;
    while got <= stopped {
        let length = wait::within("more", reading.read(&mut piece)).await.expect("bytes");
        assert!(length > 0);
        got += length;
    }
    client.abort();
    app.abort();
}

async fn open_over_h2(gate: &Gate) -> TokioIo<Upgraded> {
    let mut sender = client::h2_with_settings(gate.address).await;
    let request = http::Request::connect(format!("http://{}/tunnel", gate.address))
        .extension(hyper::ext::Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(Empty::<Bytes>::new())
        .expect("a request");
    let mut response = wait::within("the tunnel", sender.send_request(request))
        .await
        .expect("an answer");
    assert_eq!(response.status(), 200);
    TokioIo::new(hyper::upgrade::on(&mut response).await.expect("the stream is ours"))
}

/// An app that takes the handshake of a WebSocket for what it is, and then counts bytes until their end.
async fn counting_app(hurries: bool) -> (std::net::SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let app = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.expect("a connection");
        let socket = tokio_tungstenite::accept_async(tcp).await.expect("the handshake");
        let mut tcp = socket.into_inner();
        if hurries {
            tcp.write_all(b"all I have").await.expect("the words");
            tcp.shutdown().await.expect("the end of one side");
        }
        let mut got = Vec::new();
        tcp.read_to_end(&mut got)
            .await
            .expect("the client's side ends in order");
        assert_eq!(got.len(), 100_000);
        if !hurries {
            tcp.write_all(b"all I have").await.expect("the words");
        }
    });
    (address, app)
}

#[tokio::test]
async fn either_side_of_a_tunnel_over_h2_may_end_while_the_other_goes_on() {
    for hurries in [false, true] {
        let (address, app) = counting_app(hurries).await;
        let unused = Origin::answering("x").await;
        let config = Config::before(&unused).set("upstream.servers", &format!(r#"["http://{address}"]"#));
        let gate = Gate::start(&config).await;
        let mut tunnel = open_over_h2(&gate).await;
        let mut got = Vec::new();
        if hurries {
            wait::within("the app's end", tunnel.read_to_end(&mut got))
                .await
                .expect("an orderly end");
            assert_eq!(got, b"all I have");
        }
        tunnel
            .write_all(&vec![b'y'; 100_000])
            .await
            .expect("the client's side is open");
        tunnel.shutdown().await.expect("the end of the client's side");
        if !hurries {
            wait::within("the app's end", tunnel.read_to_end(&mut got))
                .await
                .expect("an orderly end");
            assert_eq!(got, b"all I have");
        }
        wait::within("the app", app).await.expect("the app is content");
    }
}

/// Whether the kernel's timer of a connection between these ports is that of keep-alive (proc(5), /proc/net/tcp).
fn is_probed(local: u16, remote: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc");
    let port = |address: &str| u16::from_str_radix(address.rsplit(':').next().unwrap_or(""), 16).ok();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, from, to, "01", _, timer, ..] = fields.as_slice() else {
            return false;
        };
        let is_meant = (port(from), port(to)) == (Some(local), Some(remote));
        is_meant && timer.starts_with("02:")
    })
}

#[tokio::test]
async fn kernel_looks_after_both_sides_of_a_quiet_tunnel() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let unused = Origin::answering("x").await;
    let config = Config::before(&unused).set("upstream.servers", &format!(r#"["http://{address}"]"#));
    let gate = Gate::start(&config).await;
    let client = TcpStream::connect(gate.address).await.expect("the port accepts");
    let from = client.local_addr().expect("an address").port();
    let mut raw = Raw::over(client);
    raw.send(WISH).await;
    let (mut app, gate_side) = wait::within("the gate", listener.accept()).await.expect("a connection");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = wait::within("the request", app.read_buf(&mut head)).await;
        assert!(read.expect("a head") > 0);
    }
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    app.write_all(switch).await.expect("the answer");
    assert_eq!(raw.answer().await.status, 101);
    for (side, local, remote) in [
        ("the client's", gate.address.port(), from),
        ("the app's", gate_side.port(), address.port()),
    ] {
        wait::until(side, async || is_probed(local, remote).then_some(())).await;
    }
}

#[tokio::test]
async fn quiet_tunnel_over_h2_ends_too() {
    let (address, _app) = counting_app(false).await;
    let unused = Origin::answering("x").await;
    let config = Config::before(&unused)
        .set("upstream.servers", &format!(r#"["http://{address}"]"#))
        .set("server.timeouts.tunnel_idle", r#""1s""#);
    let gate = Gate::start(&config).await;
    let mut tunnel = open_over_h2(&gate).await;
    let mut got = Vec::new();
    // By a reset or in order: both are an end.
    drop(wait::within("the end of the tunnel", tunnel.read_to_end(&mut got)).await);
    assert!(got.is_empty());
}
