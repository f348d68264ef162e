//! Hostile and clumsy apps: whatever they answer, the client gets one sound answer or an honest end.

use crate::support::client::{self, Raw};
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};
use crate::support::wait;

/// What a client must get for an app's bytes.
enum Want {
    /// This status with a problem document.
    Problem(u16),
    /// The app's status and body.
    Body(u16, &'static str),
    /// A head, and then an end that cannot be mistaken for the whole body.
    CutOff,
}
use Want::{Body, CutOff, Problem};

type Case = (&'static str, Vec<u8>, Want);

fn text(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn bad_heads() -> Vec<Case> {
    vec![
        ("nothing", text(""), Problem(502)),
        ("junk", text("\0\x01\x02 junk\r\n\r\n"), Problem(502)),
        ("half a head", text("HTTP/1.1 200 OK\r\ncontent-le"), Problem(502)),
        ("a status that is none", text("HTTP/1.1 20x OK\r\n\r\n"), Problem(502)),
        ("a status of two digits", text("HTTP/1.1 20 OK\r\n\r\n"), Problem(502)),
        ("another protocol", text("SSH-2.0-OpenSSH\r\n\r\n"), Problem(502)),
        (
            "NUL in a field",
            text("HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n"),
            Problem(502),
        ),
        (
            "two lengths",
            text("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd"),
            Problem(502),
        ),
        (
            "a length with a sign",
            text("HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\nabc"),
            Problem(502),
        ),
        (
            "a head beyond the cap",
            format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(600 << 10)).into_bytes(),
            Problem(502),
        ),
        (
            "a hundred thousand fields",
            format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(100_000)).into_bytes(),
            Problem(502),
        ),
        (
            "101 that nobody asked for",
            text("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
            Problem(502),
        ),
    ]
}

fn bad_bodies() -> Vec<Case> {
    vec![
        (
            "a short body",
            text("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"),
            CutOff,
        ),
        (
            "a bad chunk",
            text("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n"),
            CutOff,
        ),
        (
            "chunks without an end",
            text("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"),
            CutOff,
        ),
        (
            "bytes behind the body",
            text("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"),
            Body(200, "abc"),
        ),
        (
            "a body until the end",
            text("HTTP/1.1 200 OK\r\n\r\nabc"),
            Body(200, "abc"),
        ),
        ("HTTP/1.0", text("HTTP/1.0 200 OK\r\n\r\nabc"), Body(200, "abc")),
        (
            "an early 103",
            text("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"),
            Body(200, "abc"),
        ),
        (
            "a body with 204",
            text("HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"),
            Body(204, ""),
        ),
    ]
}

#[tokio::test]
async fn no_answer_of_the_app_confuses_the_client() {
    let cases: Vec<Case> = bad_heads().into_iter().chain(bad_bodies()).collect();
    let answers: Vec<Vec<u8>> = cases.iter().map(|(_, bytes, _)| bytes.clone()).collect();
    let origin = Origin::start(move |head| {
        let number = head.strip_prefix("GET /case/").and_then(|rest| rest.split(' ').next());
        match number.and_then(|number| number.parse::<usize>().ok()) {
            Some(number) => Script::Close(answers[number].clone()),
            None => Script::Answer(ok("honest")),
        }
    })
    .await;
    let gate = Gate::start(&Config::before(&origin)).await;
    for (number, (name, _, want)) in cases.iter().enumerate() {
        let mut raw = Raw::plain(gate.address).await;
        raw.send(format!("GET /case/{number} HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        let answer = wait::within(name, raw.try_answer()).await;
        match want {
            Problem(status) => {
                let answer = answer.unwrap_or_else(|| panic!("{name}: no answer"));
                assert_eq!(answer.status, *status, "{name}: {answer:?}");
                answer.problem();
            }
            Body(status, body) => {
                let answer = answer.unwrap_or_else(|| panic!("{name}: no answer"));
                assert_eq!(
                    (answer.status, answer.body.as_ref()),
                    (*status, body.as_bytes()),
                    "{name}"
                );
            }
            CutOff => assert!(answer.is_none(), "{name}: {answer:?}"),
        }
        // Whatever the app left behind on its connection, the next client does not get it.
        let next = client::get(gate.address, "/honest", "").await;
        assert_eq!(
            (next.status, next.body.as_ref()),
            (200, b"honest".as_slice()),
            "after {name}"
        );
    }
}

#[tokio::test]
async fn flood_of_interim_answers_ends() {
    let flood = "HTTP/1.1 100 Continue\r\n\r\n".repeat(200_000).into_bytes();
    let origin = Origin::start(move |_| Script::Close(flood.clone())).await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let before = gate.resident_bytes();
    let answer = client::get(gate.address, "/", "").await;
    assert_eq!(answer.status, 502);
    let grown = gate.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
}
