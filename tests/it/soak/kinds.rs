//! The kinds of requests of a soak run. Each client checks every answer.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::Tally;
use crate::support::certificates::Authority;
use crate::support::client::Raw;

pub(crate) struct Target {
    pub(crate) plain: SocketAddr,
    pub(crate) secured: SocketAddr,
    pub(crate) authority: Authority,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Http1,
    Http2,
    NewTls,
    Limited,
    TooLarge,
    Tunnel,
    AbortedBody,
    BadAnswer,
    Malformed,
}

type Run = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Http1,
        Self::Http2,
        Self::NewTls,
        Self::Limited,
        Self::TooLarge,
        Self::Tunnel,
        Self::AbortedBody,
        Self::BadAnswer,
        Self::Malformed,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "h1, pipelined, ever new clients",
            Self::Http2 => "h2, 64 streams at a time",
            Self::NewTls => "new TLS connection",
            Self::Limited => "429",
            Self::TooLarge => "413",
            Self::Tunnel => "tunnel",
            Self::AbortedBody => "aborted body",
            Self::BadAnswer => "502",
            Self::Malformed => "400",
        }
    }

    pub(crate) fn run(self, target: Arc<Target>, tally: Arc<Tally>) -> Run {
        match self {
            Self::Http1 => Box::pin(http1(target, tally)),
            Self::Http2 => Box::pin(http2(target, tally)),
            _ => Box::pin(one_by_one(self, target, tally)),
        }
    }
}

/// Pipelined and parsed as little as possible, so that the gate is the one that works.
async fn http1(target: Arc<Target>, tally: Arc<Tally>) {
    const BATCH: u64 = 64;
    let mut number = 0_u64;
    while tally.goes_on() {
        let mut raw = Raw::plain(target.plain).await;
        for _ in 0..200 {
            // No client comes near its limit.
            let client = format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255);
            number += 1;
            let batch: String = (0..BATCH)
                .map(|number| match number % 4 {
                    0 => format!(
                        "POST /p HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {client}\r\ncontent-length: 3\r\n\r\nabc"
                    ),
                    1 => format!("GET /%61/b//c HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {client}\r\n\r\n"),
                    _ => format!("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {client}\r\n\r\n"),
                })
                .collect();
            raw.send(batch).await;
            for _ in 0..BATCH {
                assert_eq!(raw.answer().await.status, 200);
            }
            tally.count(Kind::Http1.name(), BATCH);
            if !tally.goes_on() {
                return;
            }
        }
    }
}

async fn http2(target: Arc<Target>, tally: Arc<Tally>) {
    const BATCH: u64 = 64;
    let config = target.authority.client(&["h2"]);
    while tally.goes_on() {
        let stream = crate::support::client::handshake(target.secured, Arc::clone(&config), "localhost").await;
        let io = TokioIo::new(stream.expect("a handshake"));
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
            .await
            .expect("h2 begins");
        let driver = tokio::spawn(connection);
        for _ in 0..200 {
            let answers = (0..BATCH).map(|_| {
                let mut sender = sender.clone();
                let request = http::Request::get("https://localhost/").body(Empty::<Bytes>::new());
                async move {
                    let request = request.expect("a request");
                    let response = sender.send_request(request).await.expect("an answer");
                    assert_eq!(response.status(), 200);
                    assert_eq!(response.collect().await.expect("a body").to_bytes(), "x");
                }
            });
            futures_util::future::join_all(answers).await;
            tally.count(Kind::Http2.name(), BATCH);
            if !tally.goes_on() {
                break;
            }
        }
        driver.abort();
    }
}

async fn one_by_one(kind: Kind, target: Arc<Target>, tally: Arc<Tally>) {
    let config = target.authority.client(&["http/1.1"]);
    let mut number = 0_u64;
    // Most of the work is for those that keep their connections.
    let mut ticker = tokio::time::interval(Duration::from_millis(10));
    while tally.goes_on() {
        ticker.tick().await;
        number += 1;
        // A client of its own for each second connection, in a network that no other kind uses.
        let client = format!("172.{}.{}.{}", 16 + kind as u64, number >> 9 & 255, number >> 1 & 255);
        let host = format!("host: a\r\nx-forwarded-for: {client}\r\n");
        match kind {
            Kind::NewTls => {
                let mut raw = Raw::tls(target.secured, Arc::clone(&config), "localhost").await;
                raw.send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
                assert_eq!(raw.answer().await.status, 200);
            }
            Kind::Limited => limited(&target, &tally, &host).await,
            Kind::TooLarge => {
                let head = format!("POST / HTTP/1.1\r\n{host}content-length: 9000000\r\n\r\n");
                assert_eq!(answer(&target, &head).await, 413);
            }
            Kind::Tunnel => {
                let mut raw = Raw::plain(target.plain).await;
                raw.send(format!(
                    "GET /switch HTTP/1.1\r\n{host}connection: upgrade\r\nupgrade: echo\r\n\r\n"
                ))
                .await;
                assert_eq!(raw.answer().await.status, 101);
                raw.send("ping").await;
                assert_eq!(raw.take(4).await.as_deref(), Some(b"ping".as_slice()));
            }
            Kind::AbortedBody => {
                let mut raw = Raw::plain(target.plain).await;
                raw.send(format!("POST / HTTP/1.1\r\n{host}content-length: 100000\r\n\r\nabc"))
                    .await;
            }
            Kind::BadAnswer => {
                assert!(matches!(
                    answer(&target, &format!("GET /broken HTTP/1.1\r\n{host}\r\n")).await,
                    502 | 503
                ));
            }
            _ => assert_eq!(answer(&target, &format!("GET /%00 HTTP/1.1\r\n{host}\r\n")).await, 400),
        }
        if !matches!(kind, Kind::Limited) {
            tally.count(kind.name(), 1);
        }
    }
}

async fn answer(target: &Target, request: &str) -> u16 {
    let mut raw = Raw::plain(target.plain).await;
    raw.send(request).await;
    raw.answer().await.status
}

/// A client that has used up its quota and does not stop.
async fn limited(target: &Target, tally: &Tally, host: &str) {
    let mut raw = Raw::over(TcpStream::connect(target.plain).await.expect("the port accepts"));
    for _ in 0..500 {
        raw.send(format!("GET / HTTP/1.1\r\n{host}\r\n")).await;
        let answer = raw.answer().await;
        assert!(matches!(answer.status, 200 | 429), "{answer:?}");
        tally.count(Kind::Limited.name(), 1);
        if answer.header("connection") == Some("close") || !tally.goes_on() {
            return;
        }
    }
}
