//! Long runs, left out of `make test`: `make soak`, for SOAK_SECONDS (default 600) at a time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::client::{self, Raw};
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};

/// Memory may grow by this much after the first tenth of the run.
const GROWTH_BYTES_MAX: u64 = 16 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: ten minutes"]
async fn mixed_requests_leave_memory_flat() {
    let seconds = std::env::var("SOAK_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(600);
    let unused = Origin::answering("x").await;
    let app = forgetful_app().await;
    let gate = Gate::start(
        &Config::before(&unused)
            .set("upstream.servers", &format!("[\"http://{app}\"]"))
            .set("client.trusted_proxies", r#"["127.0.0.1/32"]"#)
            .set("limits.requests_per_minute", "100")
            .set("server.max_connections_per_client", "10000"),
    )
    .await;
    let (started, run) = (Instant::now(), Duration::from_secs(seconds));
    let (mut requests, mut settled) = (0_u64, 0);
    while started.elapsed() < run {
        let mut kept = Raw::plain(gate.address).await;
        for number in 0..2_000_u64 {
            // Ever new clients, with some that are limited, some bodies, some refusals.
            let client = (requests + number) / 150;
            let address = format!("10.{}.{}.{}", (client >> 16) & 255, (client >> 8) & 255, client & 255);
            let request = match number % 4 {
                0 => {
                    format!("POST /p HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {address}\r\ncontent-length: 3\r\n\r\nabc")
                }
                1 => format!("GET /%2e/a//b HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {address}\r\n\r\n"),
                _ => format!("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {address}\r\n\r\n"),
            };
            kept.send(request).await;
            let status = kept.answer().await.status;
            assert!(matches!(status, 200 | 429), "{status}");
        }
        requests += 2_000;
        assert_eq!(
            client::get(gate.address, "/", "x-forwarded-for: 192.0.2.1\r\nx: y\r\n")
                .await
                .status
                / 100,
            2
        );
        if settled == 0 && started.elapsed() > run / 10 {
            settled = gate.resident_bytes();
        }
    }
    let grown = gate.resident_bytes().saturating_sub(settled);
    eprintln!("{requests} requests; {settled} bytes after a tenth of the time, {grown} more at the end");
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more after {requests} requests");
}

/// An app that answers everything and, unlike the recording one, keeps nothing.
async fn forgetful_app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    drop(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(tokio::spawn(answer_all(stream)));
        }
    }));
    address
}

async fn answer_all(mut stream: TcpStream) {
    let mut waiting = Vec::new();
    while stream.read_buf(&mut waiting).await.is_ok_and(|count| count > 0) {
        while let Some(end) = memchr::memmem::find(&waiting, b"\r\n\r\n") {
            let body = if waiting.starts_with(b"POST") { 3 } else { 0 };
            if waiting.len() < end + 4 + body {
                break;
            }
            drop(waiting.drain(..end + 4 + body));
            if stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx")
                .await
                .is_err()
            {
                return;
            }
        }
    }
}
