//! HTTP/2 through the gate: streams, trailers, WebSocket in a stream.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::frames::{self, DATA, END_HEADERS, END_STREAM, Fate, Frames, HEADERS, frame};
use crate::support::origin::{Origin, Script};
use crate::support::process::{Config, Gate};
use crate::support::wait;

async fn connect(gate: &Gate) -> h2::client::SendRequest<Bytes> {
    let tcp = TcpStream::connect(gate.address).await.expect("the port accepts");
    let (sender, connection) = h2::client::handshake(tcp).await.expect("h2 begins");
    drop(tokio::spawn(connection));
    sender.ready().await.expect("a stream may open")
}

#[tokio::test]
async fn body_and_trailers_stream_both_ways_over_h2() {
    let open = Arc::new(Notify::new());
    let pieces = vec![
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nfirst\r\n".to_vec(),
        b"4\r\nlast\r\n0\r\nx-sum: 9\r\n\r\n".to_vec(),
    ];
    let gate_of_origin = Arc::clone(&open);
    let origin = Origin::start(move |_| Script::Pieces(Arc::clone(&gate_of_origin), pieces.clone())).await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let mut sender = connect(&gate).await;
    let request = Request::post("http://a/c")
        .header("te", "trailers")
        .body(())
        .expect("a request");
    let (response, mut body) = sender.send_request(request, false).expect("a stream");
    body.send_data(Bytes::from_static(b"up-first"), false).expect("data");
    origin.wait_for("up-first").await;
    let response = wait::within("the head of the answer", response)
        .await
        .expect("an answer");
    let mut answer = response.into_body();
    let first = wait::within("the first piece", answer.data())
        .await
        .expect("data")
        .expect("data");
    assert_eq!(first, "first");
    assert!(!origin.text().contains("up-last"));
    body.send_data(Bytes::from_static(b"up-last"), false).expect("data");
    let mut trailers = HeaderMap::new();
    trailers.insert("x-check", HeaderValue::from_static("7"));
    body.send_trailers(trailers).expect("trailers");
    origin.wait_for("up-last").await;
    open.notify_one();
    let last = wait::within("the last piece", answer.data())
        .await
        .expect("data")
        .expect("data");
    assert_eq!(last, "last");
    let trailers = wait::within("trailers", answer.trailers()).await.expect("trailers");
    assert_eq!(trailers.expect("trailers")["x-sum"], "9");
}

#[tokio::test]
async fn expectation_over_h2_waits_for_nothing_and_stays_on_its_hop() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let mut sender = connect(&gate).await;
    let request = Request::post("http://a/c")
        .header("expect", "100-continue")
        .body(())
        .expect("a request");
    let (response, mut body) = sender.send_request(request, false).expect("a stream");
    // No interim answer comes: a client sends its body after a moment (RFC 9110 section 10.1.1).
    origin.wait_for("POST /c").await;
    body.send_data(Bytes::from_static(b"the body"), true).expect("data");
    let response = wait::within("an answer", response).await.expect("an answer");
    assert_eq!(response.status(), 200);
    let text = origin.text();
    assert!(text.contains("the body") && !text.contains("expect:"), "{text}");
    let request = Request::post("http://a/c").header("expect", "miracles").body(());
    let (response, _) = sender
        .send_request(request.expect("a request"), true)
        .expect("a stream");
    assert_eq!(
        wait::within("an answer", response).await.expect("an answer").status(),
        417
    );
}

#[tokio::test]
async fn streams_of_one_connection_do_not_wait_for_each_other() {
    let open = Arc::new(Notify::new());
    let gate_of_origin = Arc::clone(&open);
    let origin = Origin::start(move |head| {
        if head.starts_with("GET /slow") {
            Script::After(Arc::clone(&gate_of_origin), crate::support::origin::ok("slow"))
        } else {
            Script::Answer(crate::support::origin::ok("fast"))
        }
    })
    .await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let mut client = Frames::open(gate.address).await;
    client
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/slow")))
        .await;
    origin.wait_for("/slow").await;
    client
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &frames::get("/fast")))
        .await;
    assert_eq!(client.fate(3).await, Fate::Status(200));
    open.notify_one();
    // The second answer names its status by the table that the first one filled, or in the static one: 0x88 either way.
    assert_eq!(client.fate(1).await, Fate::Status(200));
}

/// All of a body, and its end in a frame of its own when the body is at the app.
async fn ended_apart(client: &mut Frames, stream: u32, origin: &Origin) {
    let (head, body) = (frames::post("/", "4"), format!("{stream:04}"));
    let head = frame(HEADERS, END_HEADERS, stream, &head);
    client
        .send(&[head, frame(DATA, 0, stream, body.as_bytes())].concat())
        .await;
    origin.wait_for(&body).await;
    client.send(&frame(DATA, END_STREAM, stream, b"")).await;
}

#[tokio::test]
async fn upload_whose_end_comes_apart_leaves_its_connection_to_others() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin).set("server.workers", "1")).await;
    let mut client = Frames::open(gate.address).await;
    for stream in [1, 3, 5] {
        ended_apart(&mut client, stream, &origin).await;
        assert_eq!(client.fate(stream).await, Fate::Status(200));
        client.data(stream, 1).await;
    }
    assert_eq!(origin.received().len(), 1, "{}", origin.text());
}

#[tokio::test]
async fn app_that_is_late_with_an_upload_whose_end_came_apart_is_504() {
    let origin = Origin::start(|_| Script::Never).await;
    let config = Config::before(&origin)
        .set("server.timeouts.request_body_idle", r#""1s""#)
        .set("upstream.response_timeout", r#""1s""#);
    let gate = Gate::start(&config).await;
    let mut client = Frames::open(gate.address).await;
    ended_apart(&mut client, 1, &origin).await;
    assert_eq!(client.fate(1).await, Fate::Status(504));
}
