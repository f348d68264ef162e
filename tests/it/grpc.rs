//! gRPC through the gate to an `h2c://` app: a real client and a real server (tonic), all four kinds of calls, over TLS too.

use futures_util::future::join_all;
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};

use crate::support::certificates::Authority;
use crate::support::client::Raw;
use crate::support::frames::{DATA, END_HEADERS, Fate, Frames, HEADERS, WINDOW_UPDATE, block, frame};
use crate::support::grpc::{self, App, Client, Text};
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::wait;

/// Only the first request of a connection has time.
fn hasty(origin: &Origin) -> Config {
    crate::slow::hasty(origin).set("server.timeouts.request_header", r#""10m""#)
}

async fn config(app: &App) -> Config {
    let unused = Origin::answering("x").await;
    Config::before(&unused).set("upstream.servers", &format!("[\"h2c://{}\"]", app.address))
}

async fn start() -> (App, Gate, Client) {
    let app = App::start();
    let gate = Gate::start(&config(&app).await).await;
    let client = grpc::plain(gate.address).await;
    (app, gate, client)
}

fn method(name: &str) -> PathAndQuery {
    format!("/test.Echo/{name}").parse().expect("a path")
}

async fn unary(client: &Client, name: &str, request: Request<String>) -> Result<tonic::Response<String>, Status> {
    let mut client = client.clone();
    client.ready().await.expect("the channel is open");
    wait::within(name, client.unary(request, method(name), Text)).await
}

async fn answers(client: &Client, name: &str, count: &str) -> Streaming<String> {
    let mut client = client.clone();
    client.ready().await.expect("the channel is open");
    let calling = client.server_streaming(Request::new(count.to_owned()), method(name), Text);
    wait::within(name, calling).await.expect("a stream").into_inner()
}

async fn next(stream: &mut Streaming<String>) -> Result<Option<String>, Status> {
    wait::within("the next message", stream.message()).await
}

#[tokio::test]
async fn unary_call_carries_messages_and_metadata_both_ways() {
    let (_app, _gate, client) = start().await;
    let mut request = Request::new("z".repeat(1 << 20));
    request
        .metadata_mut()
        .insert("x-asked", MetadataValue::from_static("in words"));
    request
        .metadata_mut()
        .insert_bin("x-asked-bin", MetadataValue::from_bytes(&[0, 1, 254, 255]));
    let response = unary(&client, "Unary", request).await.expect("an answer");
    assert_eq!(response.get_ref().len(), 1 << 20);
    assert_eq!(response.metadata().get("x-answered").expect("metadata"), "in words");
    let binary = response.metadata().get_bin("x-answered-bin").expect("metadata");
    assert_eq!(binary.to_bytes().expect("bytes").as_ref(), [0, 1, 254, 255]);
    // The status came in trailers, which tonic shows beside the headers.
    assert_eq!(response.metadata().get("grpc-status").expect("the status"), "0");
}

#[tokio::test]
async fn error_without_an_answer_keeps_its_code_message_and_details() {
    let (_app, _gate, client) = start().await;
    let status = unary(&client, "Fail", Request::new(String::new()))
        .await
        .expect_err("trailers only");
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "no such thing: \u{fc}")
    );
    assert_eq!(status.details(), b"details");
    assert_eq!(status.metadata().get("x-why").expect("metadata"), "because");
    let unknown = unary(&client, "Nonsense", Request::new(String::new())).await;
    assert_eq!(unknown.expect_err("no such method").code(), Code::Unimplemented);
}

#[tokio::test]
async fn answers_stream_as_they_come_and_may_still_end_in_an_error() {
    let (app, _gate, client) = start().await;
    let mut stream = answers(&client, "Count", "100").await;
    assert_eq!(next(&mut stream).await.expect("ok").as_deref(), Some("answer 0"));
    // Only now may the app send the second.
    app.notes.go_on.notify_one();
    for number in 1..100 {
        assert_eq!(next(&mut stream).await.expect("ok"), Some(format!("answer {number}")));
    }
    assert_eq!(next(&mut stream).await.expect("the status is ok"), None);
    let mut failing = answers(&client, "FailLate", "1").await;
    assert_eq!(next(&mut failing).await.expect("ok").as_deref(), Some("answer 0"));
    let status = next(&mut failing).await.expect_err("the trailers carry an error");
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "no more"));
}

#[tokio::test]
async fn messages_of_the_client_stream_and_those_of_both_sides_interleave() {
    let (_app, _gate, client) = start().await;
    let mut joining = client.clone();
    joining.ready().await.expect("the channel is open");
    let pieces = futures_util::stream::iter((0..1000).map(|_| "y".repeat(3000)));
    let joined = joining.client_streaming(Request::new(pieces), method("Join"), Text);
    let joined = wait::within("Join", joined).await.expect("an answer");
    assert_eq!(joined.into_inner(), "1000 messages, 3000000 bytes");

    let (said, saying) = mpsc::channel(1);
    let mut chatting = client.clone();
    chatting.ready().await.expect("the channel is open");
    let opening = chatting.streaming(Request::new(ReceiverStream::new(saying)), method("Chat"), Text);
    let mut heard = wait::within("Chat", opening).await.expect("a stream").into_inner();
    for number in 0..100 {
        said.send(format!("{number}")).await.expect("the call is open");
        assert_eq!(next(&mut heard).await.expect("ok"), Some(format!("you said {number}")));
    }
    drop(said);
    assert_eq!(next(&mut heard).await.expect("the status is ok"), None);
}

/// The begin of a call that announces a message of 1,000 bytes.
fn begun_call() -> Vec<u8> {
    let head = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/test.Echo/Join"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]);
    [
        frame(HEADERS, END_HEADERS, 1, &head),
        frame(DATA, 0, 1, &[0, 0, 0, 3, 232]),
    ]
    .concat()
}

/// Whether the gate ends a call whose message comes byte by byte, and one whose message stands still.
async fn slow_messages_end(gate: &Gate) {
    let mut still = Frames::open(gate.address).await;
    still.send(&begun_call()).await;
    assert_eq!(still.fate(1).await, Fate::Status(200), "a refusal in the words of gRPC");
    let mut dripping = Frames::open(gate.address).await;
    dripping.send(&begun_call()).await;
    let mut ticker = tokio::time::interval(std::time::Duration::from_millis(50));
    wait::within("the end of a dripping call", async {
        loop {
            tokio::select! {
                _ = ticker.tick() => drop(dripping.try_send(&frame(DATA, 0, 1, b"x")).await),
                next = dripping.next() => match next {
                    Some(next) if next.stream != 1 || next.kind == WINDOW_UPDATE => {}
                    _ => return,
                },
            }
        }
    })
    .await;
}

#[tokio::test]
async fn body_that_calls_itself_grpc_is_held_to_the_deadlines_of_any_other() {
    let origin = Origin::answering("x").await;
    let before_h1 = Gate::start(&hasty(&origin)).await;
    slow_messages_end(&before_h1).await;
    // There not even a pause between messages is borne: this app knows of none.
    let mut silent = Frames::open(before_h1.address).await;
    let mut head = begun_call();
    head.truncate(head.len() - 9 - 5);
    silent.send(&head).await;
    assert_eq!(silent.fate(1).await, Fate::Status(200));
    let app = App::start();
    let before_h2c =
        Gate::start(&hasty(&origin).set("upstream.servers", &format!("[\"h2c://{}\"]", app.address))).await;
    slow_messages_end(&before_h2c).await;
}

#[tokio::test]
async fn call_may_pause_between_messages_for_longer_than_any_body_may_stand_still() {
    let (app, origin) = (App::start(), Origin::answering("x").await);
    let gate = Gate::start(&hasty(&origin).set("upstream.servers", &format!("[\"h2c://{}\"]", app.address))).await;
    let mut client = grpc::plain(gate.address).await;
    client.ready().await.expect("the channel is open");
    let (said, saying) = mpsc::channel(1);
    let joining = client.client_streaming(Request::new(ReceiverStream::new(saying)), method("Join"), Text);
    let talking = async {
        said.send("one".to_owned()).await.expect("the call is open");
        // Two bodies, one after the other, that stand still until they are ended.
        for _ in 0..2 {
            let mut raw = Raw::plain(gate.address).await;
            raw.send("POST /test.Echo/Join HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 9\r\n\r\nabc")
                .await;
            assert_eq!(raw.answer().await.status, 408);
        }
        said.send("two".to_owned()).await.expect("the call is still open");
        drop(said);
    };
    let (joined, ()) = wait::within("Join", async { tokio::join!(joining, talking) }).await;
    assert_eq!(joined.expect("an answer").into_inner(), "2 messages, 6 bytes");
}

#[tokio::test]
async fn call_that_its_client_gives_up_ends_at_the_app() {
    let (app, _gate, client) = start().await;
    {
        let call = unary(&client, "Wait", Request::new(String::new()));
        tokio::select! {
            answer = call => panic!("answered: {answer:?}"),
            () = app.notes.wait_for("unary call begun") => {}
        }
    }
    app.notes.wait_for("unary call given up").await;
    let mut stream = answers(&client, "Hang", "1").await;
    assert_eq!(next(&mut stream).await.expect("ok").as_deref(), Some("answer 0"));
    drop(stream);
    app.notes.wait_for("stream given up").await;
    // The connections on both sides outlive what was cancelled.
    let after = unary(&client, "Unary", Request::new("still".to_owned())).await;
    assert_eq!(after.expect("an answer").into_inner(), "still");
}

#[tokio::test]
async fn deadline_reaches_the_app_and_ends_the_call_there() {
    let (app, _gate, client) = start().await;
    let mut request = Request::new(String::new());
    request.set_timeout(std::time::Duration::from_secs(3));
    let status = unary(&client, "Wait", request).await.expect_err("too late");
    assert!(
        matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded),
        "{status:?}"
    );
    app.notes.wait_for("grpc-timeout true").await;
    app.notes.wait_for("unary call given up").await;
}

#[tokio::test]
async fn app_that_is_down_or_a_limit_is_unavailable_to_grpc_clients() {
    let app = App::start();
    let limited = config(&app).await.set("limits.requests_per_minute", "2");
    let gate = Gate::start(&limited).await;
    let client = grpc::plain(gate.address).await;
    for _ in 0..2 {
        let answer = unary(&client, "Unary", Request::new("x".to_owned())).await;
        assert_eq!(answer.expect("within the limit").into_inner(), "x");
    }
    let status = unary(&client, "Unary", Request::new("x".to_owned())).await;
    let status = status.expect_err("over the limit");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status
            .message()
            .starts_with("You sent more than 2 requests per minute."),
        "{status:?}"
    );
    assert!(status.metadata().contains_key("retry-after"), "{status:?}");
    let gone = config(&app).await;
    drop(app);
    let gate = Gate::start(&gone).await;
    let client = grpc::plain(gate.address).await;
    let status = unary(&client, "Unary", Request::new("x".to_owned())).await;
    assert_eq!(status.expect_err("502").code(), Code::Unavailable);
}

#[tokio::test]
async fn hundreds_of_calls_at_a_time_over_tls_share_connections_and_none_is_mixed_up() {
    let (app, directory) = (App::start(), tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let gate = Gate::start(&config(&app).await.tls(&[&leaf])).await;
    let client = grpc::secured(gate.address, &authority).await;
    let calls = (0..400).map(|number| {
        let client = &client;
        async move {
            let answer = unary(client, "Unary", Request::new(format!("call {number}"))).await;
            assert_eq!(answer.expect("an answer").into_inner(), format!("call {number}"));
        }
    });
    join_all(calls).await;
    let mut stream = answers(&client, "Count", "3").await;
    assert_eq!(next(&mut stream).await.expect("ok").as_deref(), Some("answer 0"));
    app.notes.go_on.notify_one();
    assert_eq!(next(&mut stream).await.expect("ok").as_deref(), Some("answer 1"));
    assert_eq!(next(&mut stream).await.expect("ok").as_deref(), Some("answer 2"));
    assert_eq!(next(&mut stream).await.expect("the status is ok"), None);
}
