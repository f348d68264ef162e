//! Where a request ends: lengths, chunks, line ends (RFC 9112 sections 2.2, 5, 6 and 7).

use super::{Case, Want, run};
use crate::support::client::Raw;
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::wait;
use Want::{Passes, PassesAndCloses, Refused, RefusedInBody};

const SMUGGLED: &str = "get /smuggled";

/// A length beside chunks: hyper ignores the length, frames anew and closes, before our code can refuse (hyper#4123).
const LENGTHS: &[Case] = &[
    (
        "CL then TE",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        PassesAndCloses(&["transfer-encoding: chunked\r\n"], &["content-length", SMUGGLED]),
    ),
    (
        "TE then CL",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        PassesAndCloses(&["transfer-encoding: chunked\r\n"], &["content-length", SMUGGLED]),
    ),
    (
        "CL 0 and TE",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        PassesAndCloses(&["transfer-encoding: chunked\r\n"], &["content-length", SMUGGLED]),
    ),
    (
        "two different CL",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        Refused(400),
    ),
    (
        "two different CL in one line",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 4\r\n\r\nabcd",
        Refused(400),
    ),
    (
        "CL with plus",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
        Refused(400),
    ),
    (
        "CL with minus",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\nabc",
        Refused(400),
    ),
    (
        "CL in hex",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc",
        Refused(400),
    ),
    (
        "CL with a letter",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 3a\r\n\r\nabc",
        Refused(400),
    ),
    (
        "CL with a space inside",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 1 3\r\n\r\nabc",
        Refused(400),
    ),
    (
        "CL with a point",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 3.0\r\n\r\nabc",
        Refused(400),
    ),
    (
        "CL empty",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nabc",
        Refused(400),
    ),
    (
        "CL beyond 64 bits",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\nabc",
        Refused(400),
    ),
    (
        "CL just beyond 64 bits",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\nabc",
        Refused(400),
    ),
    (
        "CL of 63 bits",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775807\r\n\r\nabc",
        Refused(413),
    ),
    (
        "CL with quotes",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: \"3\"\r\n\r\nabc",
        Refused(400),
    ),
    (
        "CL with leading zeros",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 003\r\n\r\nabc",
        Passes(&["post /c "], &[SMUGGLED]),
    ),
    (
        "CL with trailing space",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 3 \r\n\r\nabc",
        Passes(&["content-length: 3\r\n"], &[]),
    ),
    (
        "CL in a GET",
        "GET /c HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        Passes(&["content-length: 3\r\n"], &[]),
    ),
    (
        "CL that hides a request",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 38\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: aa\r\n\r\n\r\n",
        Passes(&["post /c "], &[SMUGGLED]),
    ),
    (
        "CL with underscore alias",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent_Length: 50\r\nContent-Length: 3\r\n\r\nabc",
        Passes(&["content-length: 3\r\n"], &["content_length"]),
    ),
    (
        "no CL and no TE",
        "POST /c HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["post /c "], &["transfer-encoding"]),
    ),
];

const CODINGS: &[Case] = &[
    (
        "TE chunked",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        Passes(&["transfer-encoding: chunked\r\n"], &["content-length"]),
    ),
    (
        "TE in other case",
        "POST /c HTTP/1.1\r\nHost: a\r\ntRANSFER-eNCODING: cHuNkEd\r\n\r\n0\r\n\r\n",
        Passes(&["transfer-encoding: chunked\r\n"], &["content-length"]),
    ),
    (
        "TE chunked twice",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "TE chunked, chunked",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "TE identity",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
        Refused(400),
    ),
    (
        "TE chunked, identity",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "TE xchunked",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "TE chunkedx",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunkedx\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "TE with vertical tab",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "TE quoted",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "TE with a parameter",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "TE empty",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "TE chunked, empty",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked,\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "TE gzip, chunked",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "TE gzip alone",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        Refused(400),
    ),
    (
        "TE on HTTP/1.0",
        "POST /c HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "TE by underscore is no TE",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
        Passes(&["content-length: 3\r\n"], &["transfer_encoding"]),
    ),
    (
        "TE with a space before the colon",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "TE folded",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "TE behind a NUL",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \0chunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
];

const CHUNKS: &[Case] = &[
    (
        "chunk size with plus",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
        RefusedInBody(400),
    ),
    (
        "chunk size with minus",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
        RefusedInBody(400),
    ),
    (
        "chunk size with 0x",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        RefusedInBody(400),
    ),
    (
        "chunk size empty",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n",
        RefusedInBody(400),
    ),
    (
        "chunk size not hex",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\ng\r\nabc\r\n0\r\n\r\n",
        RefusedInBody(400),
    ),
    (
        "chunk size beyond 64 bits",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        RefusedInBody(400),
    ),
    (
        "chunk longer than its size",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        RefusedInBody(400),
    ),
    (
        "chunk size ends in bare LF",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        RefusedInBody(400),
    ),
    (
        "chunk data ends in bare LF",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n",
        RefusedInBody(400),
    ),
    (
        "chunk extension with bare LF",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\nabc\r\n0\r\n\r\n",
        RefusedInBody(400),
    ),
    (
        "chunk extension is dropped",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n",
        Passes(&["transfer-encoding: chunked\r\n"], &["x=y"]),
    ),
    (
        "space before the chunk size",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n 3\r\nabc\r\n0\r\n\r\n",
        RefusedInBody(400),
    ),
    (
        "last chunk hides a request",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n26\r\nGET /smuggled HTTP/1.1\r\nHost: aa\r\n\r\n\r\n\r\n0\r\n\r\n",
        Passes(&["post /c "], &[SMUGGLED]),
    ),
    (
        "trailer that frames",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 50\r\n\r\n",
        Passes(&["post /c "], &["content-length"]),
    ),
    (
        "trailer that forges the client",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x-real-ip\r\n\r\n0\r\nX-Real-IP: 192.0.2.1\r\n\r\n",
        Passes(&["x-real-ip: 127.0.0.1"], &["192.0.2.1"]),
    ),
    (
        "trailer without a colon",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nnonsense\r\n\r\n",
        RefusedInBody(400),
    ),
];

/// A bare LF is taken for a line end, as RFC 9112 section 2.2 allows; the app gets CRLF.
const LINES: &[Case] = &[
    (
        "all lines end in bare LF",
        "GET /c HTTP/1.1\nHost: a\n\n",
        Passes(&["get /c http/1.1\r\nhost: a\r\n"], &["\n\n"]),
    ),
    (
        "request line ends in bare LF",
        "GET /c HTTP/1.1\nHost: a\r\n\r\n",
        Passes(&["get /c http/1.1\r\nhost: a\r\n"], &["\n\n"]),
    ),
    (
        "a field ends in bare LF",
        "GET /c HTTP/1.1\r\nHost: a\nX-Y: z\r\n\r\n",
        Passes(&["get /c http/1.1\r\nhost: a\r\n"], &["\n\n"]),
    ),
    (
        "the head ends in bare LF",
        "GET /c HTTP/1.1\r\nHost: a\r\n\n",
        Passes(&["get /c http/1.1\r\nhost: a\r\n"], &["\n\n"]),
    ),
    (
        "bare LF hides TE",
        "POST /c HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
        PassesAndCloses(&["transfer-encoding: chunked\r\n"], &["content-length"]),
    ),
    (
        "bare CR in a value",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Y: a\rb\r\n\r\n",
        Refused(400),
    ),
    (
        "bare CR ends a field",
        "GET /c HTTP/1.1\r\nHost: a\rX-Y: z\r\n\r\n",
        Refused(400),
    ),
    (
        "bare CR in the request line",
        "GET /c\r HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    ("CR CR LF", "GET /c HTTP/1.1\r\r\nHost: a\r\n\r\n", Refused(400)),
    (
        "NUL in a value",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Y: a\0b\r\n\r\n",
        Refused(400),
    ),
    (
        "NUL in a name",
        "GET /c HTTP/1.1\r\nHost: a\r\nX\0Y: b\r\n\r\n",
        Refused(400),
    ),
    (
        "control character in a value",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Y: a\x01b\r\n\r\n",
        Refused(400),
    ),
    (
        "DEL in a value",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Y: a\x7fb\r\n\r\n",
        Refused(400),
    ),
    (
        "tab in a value",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Y: a\tb\r\n\r\n",
        Passes(&["x-y: a\tb\r\n"], &[]),
    ),
    (
        "obs-fold",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Y: a\r\n b\r\n\r\n",
        Refused(400),
    ),
    (
        "obs-fold by tab",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Y: a\r\n\tb\r\n\r\n",
        Refused(400),
    ),
    (
        "first field begins with a space",
        "GET /c HTTP/1.1\r\n Host: a\r\n\r\n",
        Refused(400),
    ),
    (
        "field begins with a colon",
        "GET /c HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
        Refused(400),
    ),
    (
        "field without a colon",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Y\r\n\r\n",
        Refused(400),
    ),
    (
        "space in a name",
        "GET /c HTTP/1.1\r\nHost: a\r\nX Y: b\r\n\r\n",
        Refused(400),
    ),
    (
        "space before the colon",
        "GET /c HTTP/1.1\r\nHost : a\r\n\r\n",
        Refused(400),
    ),
    (
        "tab before the colon",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Y\t: b\r\n\r\n",
        Refused(400),
    ),
    (
        "separator in a name",
        "GET /c HTTP/1.1\r\nHost: a\r\nX(Y): b\r\n\r\n",
        Refused(400),
    ),
    (
        "non-ASCII name",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-\u{e9}: b\r\n\r\n",
        Refused(400),
    ),
    (
        "empty line before the request",
        "\r\nGET /c HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["get /c "], &[]),
    ),
];

#[tokio::test]
async fn length_that_can_be_read_two_ways_is_refused() {
    run(LENGTHS).await;
}

#[tokio::test]
async fn coding_other_than_one_final_chunked_is_refused() {
    run(CODINGS).await;
}

#[tokio::test]
async fn malformed_chunk_never_ends_a_request_early() {
    run(CHUNKS).await;
}

#[tokio::test]
async fn line_that_others_might_end_elsewhere_is_refused() {
    run(LINES).await;
}

#[tokio::test]
async fn chunk_extensions_are_neither_kept_nor_endless() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let before = gate.resident_bytes();
    let begin = "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let long = |length: usize| format!("3;{}\r\nabc\r\n", "x".repeat(length));
    let many = format!("1;{}\r\na\r\n", "y".repeat(100)).repeat(1_000);
    for (name, body, status) in [
        ("one of 1 KiB", long(1 << 10), 200),
        ("one of 100 KiB", long(100 << 10), 400),
        ("one without end", format!("3;{}", "x".repeat(8 << 20)), 400),
        ("a hundred bytes in each of a thousand chunks", many, 400),
    ] {
        let mut raw = Raw::plain(gate.address).await;
        raw.send(format!("{begin}{body}0\r\n\r\n")).await;
        let answer = wait::within(name, raw.try_answer()).await;
        assert_eq!(answer.map(|answer| answer.status), Some(status), "{name}");
    }
    assert!(!origin.text().contains("xxx") && !origin.text().contains("yyy"));
    let grown = gate.resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
}
