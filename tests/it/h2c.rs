//! Apps that speak HTTP/2 in the clear: connections that many requests share, and what becomes of them.

use http::Method;

use crate::support::client;
use crate::support::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, Fate, Frames, GOAWAY, HEADERS, RST_STREAM, WINDOW_UPDATE, block,
    frame,
};
use crate::support::h2c::{Event, H2c, Place, ok};
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::wait;

const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;

async fn gate(apps: &[&H2c]) -> Gate {
    Gate::start(&before(apps).await).await
}

/// One worker, so that all requests could share one connection.
async fn before(apps: &[&H2c]) -> Config {
    let unused = Origin::answering("x").await;
    let urls: Vec<String> = apps.iter().map(|app| app.url()).collect();
    Config::before(&unused)
        .set("upstream.servers", &format!("{urls:?}"))
        .set("server.workers", "1")
}

fn refused(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &REFUSED_STREAM.to_be_bytes())
}

#[tokio::test]
async fn request_that_one_server_refuses_goes_to_another_whatever_its_method() {
    let choosy = H2c::start(|_, place| refused(place.stream)).await;
    let willing = H2c::start(|_, place| ok(place.stream, "taken")).await;
    let gate = gate(&[&choosy, &willing]).await;
    for number in 0..30 {
        let method = [Method::GET, Method::POST, Method::DELETE][number % 3].clone();
        let answer = client::request(gate.address, method.as_str(), "/", "", "").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "taken"), "{method}");
    }
    assert_eq!(willing.requests(), 30, "each arrived once");
    assert!(choosy.requests() > 0);
}

#[tokio::test]
async fn request_that_its_connection_was_closed_before_goes_out_on_a_new_one() {
    // Every connection takes one request and turns the second away with all that follow.
    let app = H2c::start(|event, place| match (event, place.stream) {
        (Event::Reset, _) => Vec::new(),
        (_, 1) => ok(1, "taken"),
        _ => frame(GOAWAY, 0, 0, &[1_u32.to_be_bytes(), 0_u32.to_be_bytes()].concat()),
    })
    .await;
    let gate = gate(&[&app]).await;
    for number in 0..10 {
        let answer = client::request(gate.address, "POST", "/", "", "").await;
        assert_eq!(answer.status, 200, "{number}");
    }
}

#[tokio::test]
async fn request_that_the_server_may_have_processed_is_not_sent_again() {
    let internal_error = 2_u32;
    let app = H2c::start(move |_, place| frame(RST_STREAM, 0, place.stream, &internal_error.to_be_bytes())).await;
    let gate = gate(&[&app]).await;
    assert_eq!(client::request(gate.address, "POST", "/", "", "").await.status, 502);
    assert_eq!(app.requests(), 1);
    // One with a body cannot be repeated, even if it was refused.
    let picky = H2c::start(|_, place| refused(place.stream)).await;
    let gate = self::gate(&[&picky]).await;
    assert_eq!(client::request(gate.address, "POST", "/", "", "body").await.status, 502);
    assert_eq!(picky.requests(), 1);
}

#[tokio::test]
async fn thousands_of_cancelled_requests_leave_their_connection_usable() {
    // The answer to a request that was cancelled crosses the news of it.
    let app = H2c::start(|event, place| match event {
        Event::Request if place.stream == 1 => ok(1, "first"),
        Event::Request => Vec::new(),
        Event::Reset => ok(place.stream, "too late"),
    })
    .await;
    let gate = gate(&[&app]).await;
    assert_eq!(client::get(gate.address, "/", "").await.status, 200);
    let mut expected = 1;
    for _ in 0..40 {
        let mut client = Frames::open(gate.address).await;
        let streams = (0..90_u32).map(|number| 1 + 2 * number);
        for stream in streams.clone() {
            client
                .send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &frames::get("/")))
                .await;
        }
        expected += 90;
        wait::until("the requests at the app", async || {
            (app.requests() == expected).then_some(())
        })
        .await;
        for stream in streams {
            client.send(&frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())).await;
        }
        wait::until("the resets at the app", async || {
            (app.resets() >= expected - 1).then_some(())
        })
        .await;
    }
    assert!(app.resets() >= 3_600);
    let last = client::get(gate.address, "/", "");
    tokio::select! {
        answer = last => panic!("the app answers no later request: {answer:?}"),
        () = wait::until("a request on the first connection", async || {
            (app.requests() == expected + 1).then_some(())
        }) => {}
    }
    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn connection_on_which_an_answer_is_overdue_is_not_used_again() {
    let app = H2c::start(|_, place| ok(place.stream, "alive")).await;
    // Below the PING that finds out a dead connection.
    let gate = Gate::start(&before(&[&app]).await.set("upstream.response_timeout", r#""3s""#)).await;
    assert_eq!(client::get(gate.address, "/", "").await.status, 200);
    app.play_dead();
    assert_eq!(client::get(gate.address, "/", "").await.status, 504);
    assert_eq!(client::get(gate.address, "/", "").await.status, 200);
    assert_eq!(app.connections(), 2);
}

#[tokio::test]
async fn dead_connection_is_found_out_long_before_an_answer_is_overdue() {
    let app = H2c::start(|_, place| ok(place.stream, "alive")).await;
    let gate = Gate::start(&before(&[&app]).await.set("upstream.response_timeout", r#""10m""#)).await;
    assert_eq!(client::get(gate.address, "/", "").await.status, 200);
    app.play_dead();
    // Lost with its connection; being a GET it is sent again.
    assert_eq!(client::get(gate.address, "/", "").await.status, 200);
    assert_eq!(app.connections(), 2);
}

#[tokio::test]
async fn app_that_never_answers_is_504_though_the_body_came_in_pieces() {
    let app = H2c::start(|_, _| Vec::new()).await;
    let gate = Gate::start(&before(&[&app]).await.set("upstream.response_timeout", r#""1s""#)).await;
    let mut client = Frames::open(gate.address).await;
    let head = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ]);
    client.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    wait::until("the request at the app", async || (app.requests() == 1).then_some(())).await;
    client.send(&frame(DATA, 0, 1, b"abc")).await;
    client.send(&frame(DATA, END_STREAM, 1, b"def")).await;
    assert_eq!(client.fate(1).await, Fate::Status(504));
}

/// What an app answers with on a stream, and what the client gets: a status, or an answer that is cut off.
type Case = (&'static str, fn(u32) -> Vec<u8>, Option<u16>);

/// A whole answer without a body.
fn head(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(fields))
}

fn with_body(stream: u32, fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let head = frame(HEADERS, END_HEADERS, stream, &block(fields));
    [head, frame(DATA, END_STREAM, stream, body)].concat()
}

const HOSTILE: &[Case] = &[
    (
        "a body without a head",
        |stream| frame(DATA, END_STREAM, stream, b"abc"),
        Some(502),
    ),
    ("no status", |stream| head(stream, &[("x", "y")]), Some(502)),
    (
        "a status that is none",
        |stream| head(stream, &[(":status", "2x0")]),
        Some(502),
    ),
    (
        "two statuses",
        |stream| head(stream, &[(":status", "200"), (":status", "201")]),
        Some(502),
    ),
    (
        "a name in upper case",
        |stream| head(stream, &[(":status", "200"), ("X-Y", "z")]),
        Some(502),
    ),
    (
        "a connection field",
        |stream| head(stream, &[(":status", "200"), ("connection", "close")]),
        Some(502),
    ),
    (
        "a transfer coding",
        |stream| head(stream, &[(":status", "200"), ("transfer-encoding", "chunked")]),
        Some(502),
    ),
    (
        "a line end in a value",
        |stream| head(stream, &[(":status", "200"), ("x", "a\r\nset-cookie: b")]),
        Some(502),
    ),
    (
        "101",
        |stream| head(stream, &[(":status", "101"), ("upgrade", "x")]),
        Some(502),
    ),
    (
        "broken compression",
        |stream| frame(HEADERS, END_HEADERS, stream, &[0xff; 20]),
        Some(502),
    ),
    (
        "a continuation of nothing",
        |stream| frame(CONTINUATION, END_HEADERS, stream, &[0x88]),
        Some(502),
    ),
    (
        "a head beyond the cap",
        |stream| {
            let long = "a".repeat(1 << 20);
            let block = block(&[(":status", "200"), ("x", &long)]);
            let mut pieces = block.chunks(16_000).peekable();
            let mut kind = HEADERS;
            let mut bytes = Vec::new();
            while let Some(piece) = pieces.next() {
                let flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
                bytes.extend(frame(kind, flags, stream, piece));
                kind = CONTINUATION;
            }
            bytes
        },
        Some(502),
    ),
    (
        "a window beyond its size",
        |_| frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
        Some(502),
    ),
    (
        "a reset in the body",
        |stream| {
            let head = frame(HEADERS, END_HEADERS, stream, &[0x88]);
            [
                head,
                frame(DATA, 0, stream, b"abc"),
                frame(RST_STREAM, 0, stream, &2_u32.to_be_bytes()),
            ]
            .concat()
        },
        None,
    ),
    (
        "less than its length",
        |stream| with_body(stream, &[(":status", "200"), ("content-length", "9")], b"abc"),
        None,
    ),
    (
        "more than its length",
        |stream| with_body(stream, &[(":status", "200"), ("content-length", "2")], b"abc"),
        None,
    ),
];

#[tokio::test]
async fn no_frames_of_the_app_confuse_the_client() {
    for (name, bytes, want) in HOSTILE {
        // The first connection is hostile, later ones are honest.
        let app = H2c::start(
            move |event, Place { connection, stream }| match (event, connection, stream) {
                (Event::Reset, ..) => Vec::new(),
                (_, 0, 1) => bytes(stream),
                _ => ok(stream, "honest"),
            },
        )
        .await;
        let gate = gate(&[&app]).await;
        let mut raw = client::Raw::plain(gate.address).await;
        raw.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
            .await;
        let answer = wait::within(name, raw.try_answer()).await;
        match want {
            Some(status) => {
                let answer = answer.unwrap_or_else(|| panic!("{name}: no answer"));
                assert_eq!(answer.status, *status, "{name}: {answer:?}");
                answer.problem();
            }
            None => assert!(answer.is_none(), "{name}: {answer:?}"),
        }
        let next = client::get(gate.address, "/", "").await;
        assert_eq!((next.status, next.text().as_str()), (200, "honest"), "after {name}");
    }
}
