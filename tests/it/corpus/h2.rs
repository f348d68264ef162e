//! The same over HTTP/2, as bare frames (RFC 9113 sections 5.1, 8.1 to 8.3).

use crate::support::frames::{self, DATA, END_HEADERS, END_STREAM, Fate, Frames, HEADERS, frame};
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};

#[derive(Debug, Clone, Copy)]
enum Want {
    /// The stream is reset, or answered with 400; the app sees nothing.
    Malformed,
    Status(u16),
    Passes(&'static [&'static str], &'static [&'static str]),
}
use Want::{Malformed, Passes, Status};

type Fields = &'static [(&'static str, &'static str)];

const GET: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "a"),
    (":path", "/c"),
];

/// Fields beside those of a plain GET.
const BESIDE: &[(&str, Fields, Want)] = &[
    ("upper-case name", &[("X-Y", "z")], Malformed),
    ("name with a space", &[("x y", "z")], Malformed),
    ("name with CR LF", &[("x\r\ny", "z")], Malformed),
    ("empty name", &[("", "z")], Malformed),
    ("name with a colon", &[("x:y", "z")], Malformed),
    ("value with LF", &[("x-y", "a\ntransfer-encoding: chunked")], Malformed),
    ("value with CR", &[("x-y", "a\rb")], Malformed),
    ("value with NUL", &[("x-y", "a\0b")], Malformed),
    ("connection", &[("connection", "close")], Malformed),
    ("keep-alive", &[("keep-alive", "5")], Malformed),
    ("proxy-connection", &[("proxy-connection", "close")], Malformed),
    ("transfer-encoding", &[("transfer-encoding", "chunked")], Malformed),
    ("upgrade", &[("upgrade", "websocket")], Malformed),
    ("te of gzip", &[("te", "gzip")], Malformed),
    (
        "te of trailers",
        &[("te", "trailers")],
        Passes(&["te: trailers\r\n"], &[]),
    ),
    (
        "pseudo-header behind a field",
        &[("x-y", "z"), (":path", "/d")],
        Malformed,
    ),
    ("pseudo-header twice", &[(":path", "/d")], Malformed),
    ("unknown pseudo-header", &[(":evil", "x")], Malformed),
    ("pseudo-header of answers", &[(":status", "200")], Malformed),
    (":protocol without CONNECT", &[(":protocol", "websocket")], Malformed),
    ("host that agrees", &[("host", "a")], Passes(&["host: a\r\n"], &[])),
    ("host that differs", &[("host", "b")], Malformed),
    ("two hosts", &[("host", "a"), ("host", "b")], Malformed),
    ("content-length without a body", &[("content-length", "5")], Malformed),
    (
        "two content-lengths",
        &[("content-length", "0"), ("content-length", "1")],
        Malformed,
    ),
    ("content-length with a sign", &[("content-length", "+0")], Malformed),
    (
        "cookie crumbs are joined",
        &[("cookie", "a=1"), ("cookie", "b=2")],
        Passes(&["cookie: a=1; b=2\r\n"], &[]),
    ),
    (
        "x-forwarded-for",
        &[("x-forwarded-for", "6.6.6.6")],
        Passes(&["x-forwarded-for: 127.0.0.1\r\n"], &["6.6.6.6"]),
    ),
    ("x_real_ip", &[("x_real_ip", "6.6.6.6")], Passes(&[], &["6.6.6.6"])),
    ("x.real.ip", &[("x.real.ip", "6.6.6.6")], Passes(&[], &["6.6.6.6"])),
    ("proxy", &[("proxy", "http://evil")], Passes(&[], &["evil"])),
    (
        "http2-settings",
        &[("http2-settings", "x")],
        Passes(&[], &["http2-settings"]),
    ),
    ("expect of something unknown", &[("expect", "tea")], Status(417)),
];

/// Whole header blocks.
const WHOLE: &[(&str, Fields, Want)] = &[
    (
        "no method",
        &[(":scheme", "http"), (":authority", "a"), (":path", "/c")],
        Malformed,
    ),
    (
        "no path",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a")],
        Malformed,
    ),
    (
        "empty path",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", ""),
        ],
        Malformed,
    ),
    (
        "no scheme",
        &[(":method", "GET"), (":authority", "a"), (":path", "/c")],
        Malformed,
    ),
    (
        "no authority and no host",
        &[(":method", "GET"), (":scheme", "http"), (":path", "/c")],
        Malformed,
    ),
    (
        "host in the place of authority",
        &[(":method", "GET"), (":scheme", "http"), (":path", "/c"), ("host", "a")],
        Passes(&["host: a\r\n"], &[]),
    ),
    (
        "authority with a user",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "u@a"),
            (":path", "/c"),
        ],
        Malformed,
    ),
    (
        "authority with a path",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a/b"),
            (":path", "/c"),
        ],
        Malformed,
    ),
    (
        "path with a space and a version",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/c HTTP/1.1\r\nx: y"),
        ],
        Malformed,
    ),
    (
        "path without a slash",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "c"),
        ],
        Malformed,
    ),
    (
        "path that is a URI",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "http://b/c"),
        ],
        Malformed,
    ),
    (
        "star for GET",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "*"),
        ],
        Malformed,
    ),
    (
        "method with a line end",
        &[
            (":method", "GET / HTTP/1.1\r\n"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/c"),
        ],
        Malformed,
    ),
    (
        "method with a space",
        &[
            (":method", "GET /x"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/c"),
        ],
        Malformed,
    ),
    (
        "scheme of another kind",
        &[
            (":method", "GET"),
            (":scheme", "ftp"),
            (":authority", "a"),
            (":path", "/c"),
        ],
        Passes(&["get /c http/1.1\r\n", "x-forwarded-proto: http\r\n"], &["ftp"]),
    ),
    (
        "scheme with a line end",
        &[
            (":method", "GET"),
            (":scheme", "http\r\nx: y"),
            (":authority", "a"),
            (":path", "/c"),
        ],
        Malformed,
    ),
    (
        "scheme with a colon",
        &[
            (":method", "GET"),
            (":scheme", "http://b/?"),
            (":authority", "a"),
            (":path", "/c"),
        ],
        Malformed,
    ),
    (
        "empty scheme",
        &[
            (":method", "GET"),
            (":scheme", ""),
            (":authority", "a"),
            (":path", "/c"),
        ],
        Passes(&["get /c http/1.1\r\n", "x-forwarded-proto: http\r\n"], &[]),
    ),
    (
        "TRACE",
        &[
            (":method", "TRACE"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/c"),
        ],
        Status(405),
    ),
    (
        "CONNECT",
        &[(":method", "CONNECT"), (":authority", "b:443")],
        Status(405),
    ),
    (
        "CONNECT for another protocol",
        &[
            (":method", "CONNECT"),
            (":protocol", "connect-udp"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/c"),
        ],
        Status(405),
    ),
    (
        "dot segments are removed",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/x/../c"),
        ],
        Passes(&["get /c http/1.1\r\n"], &[]),
    ),
    (
        "encoded slash",
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/x%2fc"),
        ],
        Malformed,
    ),
];

/// Whether the case went as it must; otherwise what went wrong.
async fn judge(gate: &Gate, origin: &Origin, name: &str, fields: &[(&str, &str)], want: Want) -> Option<String> {
    let before = origin.heads().len();
    let mut client = Frames::open(gate.address).await;
    client
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::block(fields)))
        .await;
    let fate = client.fate(1).await;
    let seen: Vec<String> = origin
        .heads()
        .split_off(before)
        .iter()
        .map(|head| head.to_ascii_lowercase())
        .collect();
    let right = match want {
        Malformed => !matches!(fate, Fate::Status(status) if status != 400) && seen.is_empty(),
        Status(status) => fate == Fate::Status(status) && seen.is_empty(),
        Passes(has, lacks) => {
            fate == Fate::Status(200)
                && seen.len() == 1
                && has.iter().all(|text| seen[0].contains(text))
                && !lacks.iter().any(|text| seen[0].contains(text))
        }
    };
    (!right).then(|| format!("{name}: wanted {want:?}, got {fate:?}, the app saw {seen:?}"))
}

#[tokio::test]
async fn malformed_request_over_h2_never_becomes_one_over_h1() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let mut wrong = Vec::new();
    for (name, fields, want) in BESIDE {
        let fields = [GET.as_slice(), fields].concat();
        wrong.extend(judge(&gate, &origin, name, &fields, *want).await);
    }
    for (name, fields, want) in WHOLE {
        wrong.extend(judge(&gate, &origin, name, fields, *want).await);
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn h2_body_that_differs_from_its_length_is_never_completed_at_the_app() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    for body in ["abcd", "ab"] {
        let mut client = Frames::open(gate.address).await;
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/c"),
            ("content-length", "3"),
        ];
        client
            .send(&frame(HEADERS, END_HEADERS, 1, &frames::block(&fields)))
            .await;
        client.send(&frame(DATA, END_STREAM, 1, body.as_bytes())).await;
        let fate = client.fate(1).await;
        assert!(
            matches!(fate, Fate::Reset(_) | Fate::Status(400 | 408) | Fate::GoAway(_)),
            "{body}: {fate:?}"
        );
        assert!(!origin.text().contains("abc"), "{}", origin.text());
    }
}

/// What ends a request as it must not: the app sees nothing of it, and no whole request unless it is sound without it.
#[tokio::test]
async fn trailers_of_h2_smuggle_nothing() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let trailers = |flags, fields: &[(&str, &str)]| frame(HEADERS, flags, 1, &frames::block(fields));
    let end = END_HEADERS | END_STREAM;
    // h2 drops pseudo-header fields of trailers rather than refusing them (RFC 9113 section 8.1).
    for (name, last, may_pass) in [
        ("path", trailers(end, &[(":path", "/evil")]), true),
        ("status", trailers(end, &[(":status", "200")]), true),
        (
            "path behind a field",
            trailers(end, &[("x-y", "z"), (":path", "/evil")]),
            false,
        ),
        ("unknown pseudo-header", trailers(end, &[(":evil", "z")]), false),
        ("not the end", trailers(END_HEADERS, &[("x-y", "/evil")]), false),
    ] {
        let mut client = Frames::open(gate.address).await;
        let post = frames::block(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/c"),
        ]);
        client.send(&frame(HEADERS, END_HEADERS, 1, &post)).await;
        client.send(&frame(DATA, 0, 1, b"abc")).await;
        client.send(&last).await;
        let fate = client.fate(1).await;
        assert!(may_pass || fate != Fate::Status(200), "{name}: {fate:?}");
        let text = origin.text();
        assert!(!text.contains("evil") && !text.contains(":status"), "{name}: {text}");
    }
}

#[tokio::test]
async fn data_behind_the_end_of_a_request_reaches_nobody() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let mut client = Frames::open(gate.address).await;
    let whole = frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/c"));
    let behind = frame(DATA, END_STREAM, 1, b"GET /evil HTTP/1.1\r\nhost: a\r\n\r\n");
    client.send(&[whole, behind].concat()).await;
    let fate = client.fate(1).await;
    assert!(!matches!(fate, Fate::Closed), "{fate:?}");
    assert!(!origin.text().contains("evil"), "{}", origin.text());
    assert!(origin.heads().len() <= 1);
}

#[tokio::test]
async fn h2_body_over_the_cap_is_413_and_its_connection_lives_on() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin).set("limits.max_request_size", r#""1KiB""#)).await;
    let mut client = Frames::open(gate.address).await;
    client
        .send(&frame(HEADERS, END_HEADERS, 1, &frames::post("/c", "1025")))
        .await;
    assert_eq!(client.fate(1).await, Fate::Status(413));
    assert!(origin.heads().is_empty(), "the length alone says enough");
    let unsaid = frames::block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/c"),
    ]);
    let mut client = Frames::open(gate.address).await;
    client.send(&frame(HEADERS, END_HEADERS, 1, &unsaid)).await;
    client.send(&frame(DATA, 0, 1, &[b'y'; 1025])).await;
    assert_eq!(client.fate(1).await, Fate::Status(413));
    client
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &frames::get("/after")))
        .await;
    assert_eq!(client.fate(3).await, Fate::Status(200));
}
