//! Long uploads by honest clients on slow lines: they take longer than every time-out of the gate, and none of its memory.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::slow::hasty;
use crate::support::client::Raw;
use crate::support::origin::Origin;
use crate::support::process::{self, Gate};
use crate::support::{sink, wait};

const MIB: usize = 1 << 20;
const PIECE_BYTES: usize = 64 << 10;
/// Far below the gate's time-outs, of which the longest are three seconds.
const PACE: Duration = Duration::from_millis(100);
const TICKS: usize = 60;
/// Windows, socket buffers and what the allocator keeps, whatever the length of a body.
const GROWTH_BYTES_MAX: u64 = 16 << 20;

/// Gives `total` bytes away, a sixtieth of them at each tick.
async fn paced(total: usize, mut give: impl AsyncFnMut(Bytes)) {
    let piece = Bytes::from(vec![b'x'; PIECE_BYTES]);
    let mut ticker = tokio::time::interval(PACE);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for tick in 0..TICKS {
        ticker.tick().await;
        let mut rest = total * (tick + 1) / TICKS - total * tick / TICKS;
        while rest > 0 {
            let next = piece.slice(..rest.min(PIECE_BYTES));
            rest -= next.len();
            give(next).await;
        }
    }
}

/// The body of a request, as it is given.
struct Given(mpsc::Receiver<Bytes>);

impl Body for Given {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0
            .poll_recv(cx)
            .map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}

async fn over_h1(gate: &Gate, total: usize) -> String {
    let mut client = Raw::plain(gate.address).await;
    client
        .send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {total}\r\n\r\n"))
        .await;
    paced(total, async |piece| client.send(piece).await).await;
    client.answer().await.text()
}

async fn over_h2(gate: &Gate, total: usize) -> String {
    let stream = TcpStream::connect(gate.address).await.expect("the port accepts");
    // Or each window waits for a delayed acknowledgement.
    stream.set_nodelay(true).expect("an option");
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("h2 begins");
    let driver = tokio::spawn(connection);
    let (give, given) = mpsc::channel(1);
    let request = http::Request::post("http://a/")
        .header("content-length", total)
        .body(Given(given))
        .expect("a request");
    let answer = tokio::spawn(sender.send_request(request));
    paced(total, async |piece| give.send(piece).await.expect("the upload goes on")).await;
    drop(give);
    let answer = wait::within("an answer", answer)
        .await
        .expect("no panic")
        .expect("an answer");
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    driver.abort();
    String::from_utf8_lossy(&body).into_owned()
}

async fn upload(mib: usize) {
    let total = mib * MIB;
    let unused = Origin::answering("x").await;
    let config = hasty(&unused)
        .set("upstream.servers", &format!("[\"http://{}\"]", sink::start().await))
        // A busy machine stands still for a second, now and then.
        .set("server.timeouts.request_body_idle", r#""3s""#)
        .set("upstream.response_timeout", r#""3s""#)
        .set("limits.max_request_size", r#""2GiB""#);
    let gate = Gate::start(&config).await;
    let (begun, before) = (Instant::now(), gate.resident_bytes());
    process::reset_peak(gate.pid());
    let (first, second) = tokio::join!(over_h1(&gate, total), over_h2(&gate, total));
    assert_eq!((first, second), (total.to_string(), total.to_string()));
    assert!(begun.elapsed() > PACE * 50, "too fast to prove anything");
    let grown = process::peak_bytes(gate.pid()).saturating_sub(before);
    eprintln!(
        "{mib} MiB twice in {:?}, {} KiB more in memory",
        begun.elapsed(),
        grown >> 10
    );
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_honest_upload_takes_its_time_and_no_memory() {
    upload(96).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: a gibibyte over each protocol"]
async fn slow_honest_upload_of_a_gibibyte_takes_no_memory() {
    upload(1024).await;
}
