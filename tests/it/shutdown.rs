//! SIGTERM drains.

use std::sync::Arc;

use rustix::process::Signal;
use tokio::sync::Notify;

use crate::support::client::Raw;
use crate::support::frames::{self, END_HEADERS, END_STREAM, Fate, Frames, HEADERS, frame};
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};
use crate::support::wait;

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
    wait::until("the closed port", async || {
        tokio::net::TcpStream::connect(gate.address).await.err()
    })
    .await;
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
