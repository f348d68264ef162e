//! Slow and greedy clients: each is ended by a deadline, and none costs the gate its memory or another client its answer.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::support::certificates::Authority;
use crate::support::client::{self, Raw};
use crate::support::frames::{self, END_HEADERS, END_STREAM, Frames, HEADERS, frame};
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};
use crate::support::{metrics, wait};

const GROWTH_BYTES_MAX: u64 = 32 << 20;

pub(crate) fn hasty(origin: &Origin) -> Config {
    Config::before(origin)
        .set("server.timeouts.tls_handshake", r#""1s""#)
        .set("server.timeouts.request_header", r#""1s""#)
        .set("server.timeouts.request_body_idle", r#""1s""#)
        .set("server.timeouts.response_idle", r#""1s""#)
        .set("server.timeouts.keep_alive", r#""1s""#)
}

#[tokio::test]
async fn handshake_that_is_never_finished_is_closed() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let leaf = Authority::new().leaf(directory.path(), "leaf", &["localhost"]);
    let gate = Gate::start(&hasty(&origin).tls(&[&leaf])).await;
    for begun in [b"".as_slice(), b"\x16\x03\x01\x02\x00\x01\x00"] {
        let mut raw = Raw::plain(gate.address).await;
        raw.send(begun).await;
        raw.closed().await;
    }
}

#[tokio::test]
async fn without_tls_the_first_byte_may_come_as_late_as_a_head() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&hasty(&origin).set("server.timeouts.request_header", r#""10m""#)).await;
    let mut silent = Raw::plain(gate.address).await;
    let mut idle = Raw::plain(gate.address).await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    idle.send(request).await;
    assert_eq!(idle.answer().await.status, 200);
    // The look at the deadlines that ends it finds the silent one older.
    idle.closed().await;
    silent.send(request).await;
    assert_eq!(silent.answer().await.status, 200);
}

#[tokio::test]
async fn head_that_never_ends_is_closed() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&hasty(&origin)).await;
    for begun in ["", "GET / HTTP/1.1\r\nhost: a\r\nx: ", "PRI * HTTP/2.0\r\n"] {
        let mut raw = Raw::plain(gate.address).await;
        raw.send(begun).await;
        raw.closed().await;
    }
    assert!(origin.heads().is_empty());
}

#[tokio::test]
async fn dripping_head_does_not_push_its_deadline() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&hasty(&origin)).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("GET / HTTP/1.1\r\nhost: a\r\nx: ").await;
    // One byte each time that the kernel has taken the last, as long as the gate lets it.
    wait::until("the end of a dripping client", async || match raw.try_send("y").await {
        Ok(()) => None,
        Err(_) => Some(()),
    })
    .await;
}

#[tokio::test]
async fn idle_connections_end_over_both_protocols() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&hasty(&origin).set("server.timeouts.request_header", r#""3s""#)).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 200);
    raw.closed().await;
    let mut quiet = Frames::open(gate.address).await;
    quiet.ended().await;
    let mut served = Frames::open(gate.address).await;
    served
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/")))
        .await;
    assert_eq!(served.fate(1).await, frames::Fate::Status(200));
    served.ended().await;
}

#[tokio::test]
async fn h2_header_block_that_never_ends_is_closed() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&hasty(&origin).set("server.timeouts.request_header", r#""3s""#)).await;
    let mut client = Frames::open(gate.address).await;
    client.send(&frame(HEADERS, END_STREAM, 1, &frames::get("/"))).await;
    client.ended().await;
    assert!(origin.heads().is_empty());
}

#[tokio::test]
async fn later_h2_header_block_has_no_more_time_than_the_first() {
    let (origin, patience) = (Origin::answering("x").await, r#""1h""#);
    let config = hasty(&origin)
        .set("server.timeouts.request_header", r#""3s""#)
        .set("server.timeouts.keep_alive", patience)
        .set("upstream.response_timeout", patience);
    let gate = Gate::start(&config).await;
    for busy in [false, true] {
        let mut client = Frames::open(gate.address).await;
        client
            .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/")))
            .await;
        assert_eq!(client.fate(1).await, frames::Fate::Status(200));
        if busy {
            let post = frames::block(&[
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":authority", "a"),
                (":path", "/busy"),
            ]);
            client.send(&frame(HEADERS, END_HEADERS, 3, &post)).await;
        }
        client
            .send(&frame(HEADERS, END_STREAM, 5, &frames::get("/never")))
            .await;
        client.ended().await;
    }
    assert!(!origin.heads().iter().any(|head| head.contains("/never")));
}

#[tokio::test]
async fn h2_body_that_stands_still_is_408_and_its_connection_lives_on() {
    let origin = Origin::answering("x").await;
    let config = hasty(&origin)
        .set("server.timeouts.request_header", r#""10m""#)
        .set("server.timeouts.keep_alive", r#""30s""#);
    let gate = Gate::start(&config).await;
    let mut client = Frames::open(gate.address).await;
    client
        .send(&frame(HEADERS, END_HEADERS, 1, &frames::post("/still", "9")))
        .await;
    client.send(&frame(frames::DATA, 0, 1, b"abc")).await;
    assert_eq!(client.fate(1).await, frames::Fate::Status(408));
    client
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &frames::get("/")))
        .await;
    assert_eq!(client.fate(3).await, frames::Fate::Status(200));
}

#[tokio::test]
async fn body_that_stands_still_is_408() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&hasty(&origin)).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc")
        .await;
    assert_eq!(raw.answer().await.status, 408);
    raw.closed().await;
}

/// Sends a body of `length` bytes in pieces until it is complete or an answer comes. Returns the status, and how long this client
/// itself stood still at most.
async fn upload(gate: &Gate, length: usize, piece: usize, every: Duration) -> (u16, Duration) {
    let mut client = Raw::plain(gate.address).await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n"
        ))
        .await;
    let mut ticker = tokio::time::interval(every);
    let (mut sent, mut last, mut pause) = (0, Instant::now(), Duration::ZERO);
    let mut goes_on = || {
        pause = pause.max(last.elapsed());
        last = Instant::now();
        pause
    };
    while sent < length {
        tokio::select! {
            _ = ticker.tick() => {
                let next = piece.min(length - sent);
                sent += next;
                if client.try_send(vec![b'x'; next]).await.is_err() {
                    break;
                }
            }
            () = client.anything() => break,
        }
        goes_on();
    }
    let status = client.answer().await.status;
    (status, goes_on())
}

#[tokio::test]
async fn body_that_drips_is_408_but_a_slow_line_has_all_the_time_it_needs() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&hasty(&origin).set("upstream.response_timeout", r#""1s""#)).await;
    let (drip, _) = upload(&gate, 1_000, 1, Duration::from_millis(50)).await;
    assert_eq!(drip, 408, "a byte at a time");
    // Several times every time-out of this gate.
    loop {
        let started = Instant::now();
        let (status, pause) = upload(&gate, 4_000, 50, Duration::from_millis(50)).await;
        // Where the machine stood still for half a time-out, this client was no honest one.
        if status == 408 && pause > Duration::from_millis(500) {
            continue;
        }
        assert_eq!(status, 200, "the longest pause was {pause:?}");
        assert!(started.elapsed() > Duration::from_secs(3));
        return;
    }
}

#[tokio::test]
async fn answers_that_nobody_reads_are_not_piled_up() {
    let body = "z".repeat(8 << 20);
    let answer = ok(&body);
    let origin = Origin::start(move |_| Script::Answer(answer.clone())).await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let before = gate.resident_bytes();
    let mut greedy = Vec::new();
    for number in 0..20 {
        let mut raw = Raw::plain(gate.address).await;
        raw.send(format!("GET /greedy/{number} HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        greedy.push(raw);
        origin.wait_for(&format!("/greedy/{number} ")).await;
    }
    // Zero windows: the gate may send nothing, and must not take the app's 8 MiB for each stream into memory.
    let mut stalled = Frames::open_with(gate.address, &[0, 4, 0, 0, 0, 0]).await;
    for number in 0..50_u32 {
        let path = format!("/stalled/{number}");
        stalled
            .send(&frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1 + 2 * number,
                &frames::get(&path),
            ))
            .await;
        origin.wait_for(&format!("{path} ")).await;
    }
    let grown = gate.resident_bytes().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more");
    let answer = client::get(gate.address, "/other", "").await;
    assert_eq!((answer.status, answer.body.len()), (200, body.len()));
}

#[tokio::test]
async fn answer_that_nobody_reads_is_closed_over_h1() {
    let answer = ok(&"z".repeat(16 << 20));
    let origin = Origin::start(move |_| Script::Answer(answer.clone())).await;
    let gate = Gate::start(&hasty(&origin)).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    wait::until("the end of the request", async || {
        let text = metrics::scrape(gate.admin).await;
        let aborted = r#"foregate_proxy_requests_total{class="2xx",outcome="aborted"}"#;
        (metrics::sample(&text, aborted) == Some(1.0)).then_some(())
    })
    .await;
    // What the kernel had taken is read, and then the connection ends before the body does.
    assert!(wait::within("the end", raw.try_answer()).await.is_none());
}

#[tokio::test]
async fn stream_whose_window_stays_shut_is_reset_and_its_connection_lives_on() {
    let origin = Origin::answering("small").await;
    let config = hasty(&origin)
        .set("server.timeouts.request_header", r#""10m""#)
        .set("server.timeouts.keep_alive", r#""30s""#);
    let gate = Gate::start(&config).await;
    let mut client = Frames::open_with(gate.address, &[0, 4, 0, 0, 0, 0]).await;
    client
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/")))
        .await;
    assert_eq!(client.fate(1).await, frames::Fate::Status(200));
    assert_eq!(client.reset(1).await, 8, "CANCEL");
    // A window of its own lets another stream through.
    client
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &frames::get("/")))
        .await;
    client
        .send(&frame(frames::WINDOW_UPDATE, 0, 3, &100_u32.to_be_bytes()))
        .await;
    client.data(3, 5).await;
}

#[tokio::test]
async fn window_that_opens_byte_by_byte_holds_neither_the_app_nor_the_connection() {
    // Three seconds of what the slowest line carries.
    let origin = Origin::answering(&"z".repeat(720)).await;
    let gate = Gate::start(&hasty(&origin).set("server.timeouts.request_header", r#""10m""#)).await;
    // The gate takes the whole piece of the answer, of which one byte may go.
    let mut client = Frames::open_with(gate.address, &[0, 4, 0, 0, 0, 1]).await;
    client
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/")))
        .await;
    assert_eq!(client.fate(1).await, frames::Fate::Status(200));
    let mut ticker = tokio::time::interval(Duration::from_millis(100));
    wait::within("the end of the connection", async {
        loop {
            tokio::select! {
                _ = ticker.tick() => {
                    let more = frame(frames::WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes());
                    if client.try_send(&more).await.is_err() {
                        break;
                    }
                }
                next = client.next() => if next.is_none() { break },
            }
        }
    })
    .await;
}

#[tokio::test]
async fn slow_reader_has_all_the_time_it_needs() {
    let answer = ok(&"z".repeat(100_000));
    let origin = Origin::start(move |_| Script::Answer(answer.clone())).await;
    let gate = Gate::start(&hasty(&origin).set("server.timeouts.request_header", r#""10m""#)).await;
    let mut client = Frames::open_with(gate.address, &[0, 4, 0, 0, 0, 0]).await;
    client
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/")))
        .await;
    assert_eq!(client.fate(1).await, frames::Fate::Status(200));
    // The window of the whole connection is no obstacle.
    client
        .send(&frame(frames::WINDOW_UPDATE, 0, 0, &1_000_000_u32.to_be_bytes()))
        .await;
    let (started, mut ticker) = (Instant::now(), tokio::time::interval(Duration::from_millis(50)));
    for _ in 0..100 {
        ticker.tick().await;
        client
            .send(&frame(frames::WINDOW_UPDATE, 0, 1, &1_000_u32.to_be_bytes()))
            .await;
    }
    client.data(1, 100_000).await;
    assert!(started.elapsed() > Duration::from_secs(3));
}

/// Requests under way, as the gate tells Prometheus.
pub(crate) async fn in_flight(gate: &Gate) -> f64 {
    let text = metrics::scrape(gate.admin).await;
    metrics::sample(&text, "foregate_proxy_requests_in_flight").expect("the gauge")
}

#[tokio::test]
async fn connection_beyond_the_cap_of_all_is_refused_until_another_ends() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin).set("server.max_connections", "5")).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut raw = Raw::plain(gate.address).await;
        raw.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(raw.answer().await.status, 200);
        held.push(raw);
    }
    if let Ok(sixth) = TcpStream::connect(gate.address).await {
        Raw::over(sixth).closed().await;
    }
    let text = metrics::scrape(gate.admin).await;
    let refused = metrics::sample(&text, "foregate_proxy_refused_connections_total{reason=\"full\"}");
    assert_eq!(refused, Some(1.0), "{text}");
    held.pop();
    wait::until("the place of a connection that ended", async || {
        let mut raw = Raw::over(TcpStream::connect(gate.address).await.ok()?);
        raw.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.ok()?;
        raw.try_answer().await.filter(|answer| answer.status == 200)
    })
    .await;
}

#[tokio::test]
async fn one_client_may_hold_only_so_many_connections() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin).set("server.max_connections_per_client", "5")).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut raw = Raw::plain(gate.address).await;
        raw.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(raw.answer().await.status, 200);
        held.push(raw);
    }
    // The reset may come before the test has noticed that the connection stands.
    if let Ok(sixth) = TcpStream::connect(gate.address).await {
        Raw::over(sixth).closed().await;
    }
    held.pop();
    wait::until("the place of a connection that ended", async || {
        let mut raw = Raw::over(TcpStream::connect(gate.address).await.ok()?);
        raw.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.ok()?;
        raw.try_answer().await.filter(|answer| answer.status == 200)
    })
    .await;
}
