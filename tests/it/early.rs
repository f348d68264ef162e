//! An app may answer before it has the whole request: its answer arrives, and what it was not sent goes nowhere.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::client::{Raw, h2};
use crate::support::frames::{self, DATA, END_HEADERS, END_STREAM, Fate, Frames, HEADERS, WINDOW_UPDATE, frame};
use crate::support::h2c::H2c;
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};
use crate::support::wait;

/// RFC 9113 section 7.
const NO_ERROR: u32 = 0;
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

/// Answers `/early` at its head, and then reads the body.
async fn early_app(body: &str) -> Origin {
    let early = ok(body);
    Origin::start(move |head| match head.split(' ').nth(1) {
        Some("/early") => Script::Pieces(Arc::default(), vec![early.clone()]),
        _ => Script::Answer(ok("other")),
    })
    .await
}

/// Idle connections are put away after a second; nothing else ends here.
fn patient(origin: &Origin) -> Config {
    Config::before(origin)
        .set("server.workers", "1")
        .set("server.timeouts.request_header", r#""2s""#)
        .set("limits.max_request_size", r#""100MiB""#)
}

/// Until the only worker has put away what is idle now: it then closes a connection that is younger, and silent.
pub(crate) async fn until_parked(gate: &Gate) {
    Raw::plain(gate.address).await.closed().await;
}

async fn post(gate: &Gate, path: &str, length: usize) -> Raw {
    let mut raw = Raw::plain(gate.address).await;
    raw.send(format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n"
    ))
    .await;
    raw
}

#[tokio::test]
async fn body_that_comes_after_the_answer_is_never_taken_for_a_request() {
    let origin = early_app("early").await;
    let gate = Gate::start(&patient(&origin)).await;
    let mut raw = post(&gate, "/early", SMUGGLED.len()).await;
    assert_eq!(raw.answer().await.text(), "early");
    until_parked(&gate).await;
    drop(raw.try_send(SMUGGLED).await);
    raw.closed().await;
    assert!(!raw.has("HTTP/1.1"), "a second answer");
    assert!(!origin.heads().iter().any(|head| head.contains("/smuggled")));
}

#[tokio::test]
async fn body_that_an_app_leaves_unread_is_never_taken_for_requests() {
    let go_on = Arc::new(Notify::new());
    let gate_of_origin = Arc::clone(&go_on);
    let origin = Origin::start(move |_| Script::Deaf(Arc::clone(&gate_of_origin), ok("early"))).await;
    let gate = Gate::start(&patient(&origin).set("server.timeouts.keep_alive", r#""5s""#)).await;
    let body = SMUGGLED.repeat(1 << 19);
    let mut raw = post(&gate, "/deaf", body.len()).await;
    let answering = async {
        origin.wait_for("/deaf").await;
        // By then all buffers on the way are full.
        until_parked(&gate).await;
        go_on.notify_one();
        until_parked(&gate).await;
    };
    let (sent, ()) = tokio::join!(wait::within("the end of an upload", raw.try_send(body)), answering);
    drop(sent);
    raw.closed().await;
    assert!(raw.count("HTTP/1.1") <= 1, "several answers to one request");
    assert!(!origin.heads().iter().any(|head| head.contains("/smuggled")));
}

#[tokio::test]
async fn upload_ends_with_its_answer_and_the_h2_connection_lives_on() {
    let origin = early_app("early").await;
    let gate = Gate::start(&patient(&origin)).await;
    let mut client = Frames::open(gate.address).await;
    client
        .send(&frame(HEADERS, END_HEADERS, 1, &frames::post("/early", "900000")))
        .await;
    assert_eq!(client.fate(1).await, Fate::Status(200));
    client.data(1, "early".len()).await;
    assert_eq!(client.reset(1).await, NO_ERROR);
    // What was on its way.
    client.send(&frame(DATA, END_STREAM, 1, &[0; 1000])).await;
    client.settle().await;
    client
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &frames::get("/other")))
        .await;
    assert_eq!(client.fate(3).await, Fate::Status(200));
}

#[tokio::test]
async fn answer_arrives_whole_though_its_client_never_stops_sending() {
    let length = 1 << 20;
    let origin = early_app(&"z".repeat(length)).await;
    let gate = Gate::start(&patient(&origin)).await;
    let mut client = Frames::open_with(gate.address, &[0, 4, 0x7f, 0xff, 0xff, 0xff]).await;
    client
        .send(&frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()))
        .await;
    client
        .send(&frame(HEADERS, END_HEADERS, 1, &frames::post("/early", "900000")))
        .await;
    for _ in 0..4 {
        client.send(&frame(DATA, 0, 1, &[0; 16_000])).await;
    }
    assert_eq!(client.fate(1).await, Fate::Status(200));
    client.data(1, length).await;
    assert_eq!(client.reset(1).await, NO_ERROR);
}

#[tokio::test]
async fn upload_ends_with_its_answer_in_front_of_an_h2c_app() {
    let app = H2c::answering_early().await;
    let unused = Origin::answering("x").await;
    let config = patient(&unused).set("upstream.servers", &format!("[{:?}]", app.url()));
    let gate = Gate::start(&config).await;
    let mut client = Frames::open(gate.address).await;
    client
        .send(&frame(HEADERS, END_HEADERS, 1, &frames::post("/", "900000")))
        .await;
    assert_eq!(client.fate(1).await, Fate::Status(200));
    client.data(1, "early".len()).await;
    assert_eq!(client.reset(1).await, NO_ERROR);
    wait::until("the end of the stream at the app", async || {
        (app.resets() == 1).then_some(())
    })
    .await;
    let stream = TcpStream::connect(gate.address).await.expect("the port accepts");
    let request = http::Request::post("http://a/")
        .body("whole".into())
        .expect("a request");
    assert_eq!(h2(stream, request).await.text(), "early");
    assert_eq!(app.connections(), 1);
}
