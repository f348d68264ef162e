//! Hostile and clumsy apps: whatever they answer, the client gets one sound answer or an honest end.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::support::client::{self, Raw};
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};
use crate::support::{metrics, wait};

/// What a client must get for an app's bytes.
enum Want {
    /// This status with a problem document.
    Problem(u16),
    /// The app's status and body.
    Body(u16, &'static str),
    /// A head of 200, and then an end that cannot be mistaken for the whole body.
    CutOff,
}
use Want::{Body, CutOff, Problem};

/// What the app says, and what the client must get for it.
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

fn bad_framing() -> Vec<Case> {
    vec![
        (
            "a length beside chunks",
            text("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            Problem(502),
        ),
        (
            "chunks beside a length",
            text("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            Problem(502),
        ),
        (
            "a coding that is not chunked",
            text("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc"),
            Problem(502),
        ),
        (
            "two codings",
            text("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            Problem(502),
        ),
        (
            "chunked twice",
            text(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            ),
            Problem(502),
        ),
        (
            "a folded field",
            text("HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 3\r\n\r\nabc"),
            Problem(502),
        ),
        (
            "a bare CR in a field",
            text("HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\ncontent-length: 3\r\n\r\nabc"),
            Problem(502),
        ),
        (
            "a space before the colon",
            text("HTTP/1.1 200 OK\r\ncontent-length : 3\r\n\r\nabc"),
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
            "lines that end in bare LF",
            text("HTTP/1.1 200 OK\ncontent-length: 3\n\nabc"),
            Body(200, "abc"),
        ),
        (
            "a coding with 204",
            text("HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            Body(204, ""),
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

fn all() -> impl Iterator<Item = Case> {
    bad_heads().into_iter().chain(bad_framing()).chain(bad_bodies())
}

/// Cases whose answer only the end of the connection completes.
const ENDED_BY_THE_APP: &[&str] = &[
    "nothing",
    "junk",
    "half a head",
    "another protocol",
    "a short body",
    "chunks without an end",
    "a body until the end",
    "HTTP/1.0",
];

/// Asks an app that answers with `script` for each case, and then for something honest.
async fn run(cases: Vec<Case>, script: fn(Vec<u8>) -> Script) {
    let answers: Vec<Vec<u8>> = cases.iter().map(|(_, bytes, _)| bytes.clone()).collect();
    let origin = Origin::start(move |head| {
        let number = head.strip_prefix("GET /case/").and_then(|rest| rest.split(' ').next());
        match number.and_then(|number| number.parse::<usize>().ok()) {
            Some(number) => script(answers[number].clone()),
            None => Script::Answer(ok("honest")),
        }
    })
    .await;
    let gate = Gate::start(&Config::before(&origin).set("server.workers", "1")).await;
    for (number, (name, _, want)) in cases.iter().enumerate() {
        let mut raw = Raw::plain(gate.address).await;
        raw.send(format!("GET /case/{number} HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        if matches!(want, CutOff) {
            wait::within(name, raw.until("HTTP/1.1 200 OK\r\n")).await;
            wait::within(name, raw.until("abc")).await;
            raw.closed().await;
            assert!(!raw.has("\r\n0\r\n\r\n"), "{name}: it ended in order");
        } else {
            let answer = wait::within(name, raw.try_answer()).await;
            let answer = answer.unwrap_or_else(|| panic!("{name}: no answer"));
            match want {
                Problem(status) => {
                    assert_eq!(answer.status, *status, "{name}: {answer:?}");
                    answer.problem();
                }
                Body(status, body) => {
                    let got = (answer.status, answer.body.as_ref());
                    assert_eq!(got, (*status, body.as_bytes()), "{name}");
                }
                CutOff => {}
            }
        }
        // Whatever the app left behind on its connection, the next client does not get it.
        let next = client::get(gate.address, "/honest", "").await;
        assert_eq!(
            (next.status, next.body.as_ref()),
            (200, b"honest".as_slice()),
            "after {name}"
        );
        // It is the last word on that connection, unless all of it was sound.
        let is_sound = matches!(*name, "an early 103" | "lines that end in bare LF");
        let mark = format!("GET /case/{number} ");
        let connections = origin.received();
        let used = connections.iter().map(|bytes| String::from_utf8_lossy(bytes));
        let after: Vec<String> = used
            .filter_map(|text| text.split_once(&mark).map(|(_, after)| after.to_string()))
            .collect();
        assert!(!after.is_empty(), "{name}: the app saw nothing");
        assert!(
            is_sound || after.iter().all(|after| !after.contains("GET /")),
            "after {name} its connection was used again"
        );
    }
}

#[tokio::test]
async fn no_answer_of_the_app_confuses_the_client() {
    run(all().collect(), Script::Close).await;
}

#[tokio::test]
async fn connection_of_an_unsound_answer_is_not_used_again_though_the_app_keeps_it_open() {
    let open = all().filter(|(name, ..)| !ENDED_BY_THE_APP.contains(name));
    run(open.collect(), Script::Answer).await;
}

/// On its first connection it answers soundly, and then, when told to, a request that was never made; it tells when that
/// connection has been closed. On later ones it is honest.
async fn two_faced(poisons: Arc<Notify>, closed: Arc<Notify>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    drop(tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert!(tcp.read_buf(&mut head).await.expect("a head") > 0);
        }
        tcp.write_all(&ok("sound")).await.expect("the answer");
        poisons.notified().await;
        tcp.write_all(&ok("poison")).await.expect("the poison");
        let mut more = Vec::new();
        drop(tcp.read_to_end(&mut more).await);
        assert!(more.is_empty(), "it was used again: {}", String::from_utf8_lossy(&more));
        closed.notify_one();
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && matches!(tcp.read_buf(&mut head).await, Ok(1..)) {}
            drop(tcp.write_all(&ok("honest")).await);
        }
    }));
    address
}

#[tokio::test]
async fn answer_to_a_request_that_was_never_made_is_nobodys_answer() {
    let (poisons, closed) = (Arc::<Notify>::default(), Arc::<Notify>::default());
    let address = two_faced(Arc::clone(&poisons), Arc::clone(&closed)).await;
    let unused = Origin::answering("x").await;
    let config = Config::before(&unused)
        .set("upstream.servers", &format!(r#"["http://{address}"]"#))
        .set("server.workers", "1");
    let gate = Gate::start(&config).await;
    assert_eq!(client::get(gate.address, "/first", "").await.text(), "sound");
    // Now the connection is idle in the pool.
    poisons.notify_one();
    wait::within("the end of the poisoned connection", closed.notified()).await;
    assert_eq!(client::get(gate.address, "/second", "").await.text(), "honest");
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

/// More than the kernel takes on both ways to the app.
const UPLOAD_BYTES: usize = 20 << 20;

fn upload() -> Vec<u8> {
    let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {UPLOAD_BYTES}\r\n\r\n");
    [head.into_bytes(), vec![b'z'; UPLOAD_BYTES]].concat()
}

/// A second for a client that stops sending.
fn hurrying(origin: &Origin, response_timeout: &str) -> Config {
    Config::before(origin)
        .set("server.timeouts.request_header", r#""1s""#)
        .set("server.timeouts.request_body_idle", r#""1s""#)
        .set("limits.max_request_size", r#""100MiB""#)
        .set("upstream.response_timeout", response_timeout)
}

#[tokio::test]
async fn app_that_reads_nothing_is_504_and_not_the_fault_of_its_client() {
    let origin = Origin::start(|_| Script::Deaf(Arc::default(), Vec::new())).await;
    let gate = Gate::start(&hurrying(&origin, r#""2s""#)).await;
    let mut raw = Raw::plain(gate.address).await;
    // With its answer the gate reads the rest.
    wait::within("an upload", raw.try_send(upload()))
        .await
        .expect("the gate reads on");
    assert_eq!(raw.answer().await.status, 504);
    let text = metrics::scrape(gate.admin).await;
    let errors = metrics::sample(&text, "foregate_upstream_errors_total{kind=\"response_timeout\"}");
    assert_eq!(errors, Some(1.0), "{text}");
}

#[tokio::test]
async fn app_may_rest_for_longer_than_its_client() {
    let rested = Arc::new(Notify::new());
    let gate_of_origin = Arc::clone(&rested);
    let origin = Origin::start(move |head| match head.starts_with("POST ") {
        true => Script::Rested(Arc::clone(&gate_of_origin), ok("at last")),
        false => Script::Answer(ok("x")),
    })
    .await;
    let gate = Gate::start(&hurrying(&origin, r#""20s""#)).await;
    let mut raw = Raw::plain(gate.address).await;
    let resting = async {
        origin.wait_for("POST ").await;
        for _ in 0..3 {
            // Each has as long as a client that stops sending.
            Raw::plain(gate.address).await.closed().await;
        }
        rested.notify_one();
    };
    let (sent, ()) = tokio::join!(wait::within("an upload", raw.try_send(upload())), resting);
    sent.expect("the gate reads on");
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "at last"));
}
