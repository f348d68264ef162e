//! A client that is refused while it still sends gets to read why: the connection is not reset under the answer.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::certificates::Authority;
use crate::support::client::{self, Raw};
use crate::support::metrics;
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::wait;

/// More than the kernel takes for both sides.
const UPLOAD_BYTES: usize = 12 << 20;

/// The bytes of a request that is refused before they are read, all written before any of the answer is.
fn uploads() -> Vec<(&'static str, u16, Vec<u8>)> {
    let body = vec![b'z'; UPLOAD_BYTES];
    let post = |fields: &str| format!("POST /upload HTTP/1.1\r\nhost: a\r\n{fields}\r\n").into_bytes();
    let declared = post(&format!("content-length: {UPLOAD_BYTES}\r\n"));
    let size = format!("{UPLOAD_BYTES:x}\r\n").into_bytes();
    let chunked = post("transfer-encoding: chunked\r\n");
    let field = b"GET / HTTP/1.1\r\nhost: a\r\nx: ".to_vec();
    vec![
        ("declared", 413, [declared, body.clone()].concat()),
        (
            "chunked",
            413,
            [chunked, size, body.clone(), b"\r\n0\r\n\r\n".to_vec()].concat(),
        ),
        ("a head without end", 431, [field, body].concat()),
    ]
}

async fn gets_its_answer(name: &str, mut raw: Raw, status: u16, bytes: &[u8]) {
    wait::within(name, raw.try_send(bytes))
        .await
        .unwrap_or_else(|error| panic!("{name}: the gate stopped reading: {error}"));
    let answer = wait::within(name, raw.try_answer()).await;
    let answer = answer.unwrap_or_else(|| panic!("{name}: no answer"));
    assert_eq!(answer.status, status, "{name}: {answer:?}");
    answer.problem();
    raw.closed().await;
}

#[tokio::test]
async fn client_that_writes_12_mib_before_it_reads_still_gets_its_refusal() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let config = Config::before(&origin).set("limits.max_request_size", r#""64KiB""#);
    let plain = Gate::start(&config).await;
    let secured = Gate::start(&config.tls(&[&leaf])).await;
    for (name, status, bytes) in uploads() {
        gets_its_answer(name, Raw::plain(plain.address).await, status, &bytes).await;
        let tls = Raw::tls(secured.address, authority.client(&["http/1.1"]), "localhost").await;
        gets_its_answer(&format!("{name}, over TLS"), tls, status, &bytes).await;
    }
}

#[tokio::test]
async fn over_its_limit_a_client_may_finish_its_upload_too() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin).set("limits.requests_per_minute", "1")).await;
    assert_eq!(client::get(gate.address, "/", "").await.status, 200);
    let (name, _, bytes) = uploads().remove(0);
    gets_its_answer(name, Raw::plain(gate.address).await, 429, &bytes).await;
}

/// Answers 401 as soon as it has a head, ends its side, and reads on for as long as the gate sends.
async fn hasty_app() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    drop(tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                if tcp.read_buf(&mut head).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let answer = b"HTTP/1.1 401 Unauthorized\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno";
            drop(tcp.write_all(answer).await);
            drop(tcp.shutdown().await);
            drop(tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await);
        }
    }));
    address
}

#[tokio::test]
async fn answer_of_an_app_that_does_not_want_the_upload_arrives_too() {
    let (unused, address) = (Origin::answering("x").await, hasty_app().await);
    let config = Config::before(&unused)
        .set("upstream.servers", &format!(r#"["http://{address}"]"#))
        .set("limits.max_request_size", r#""100MiB""#);
    let gate = Gate::start(&config).await;
    let (name, _, bytes) = uploads().remove(0);
    let mut raw = Raw::plain(gate.address).await;
    wait::within(name, raw.try_send(&bytes))
        .await
        .expect("the gate reads on");
    assert_eq!(raw.answer().await.status, 401);
    raw.closed().await;
}

#[tokio::test]
async fn client_that_never_stops_sending_is_cut_off() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin).set("limits.max_request_size", r#""64KiB""#)).await;
    let before = gate.resident_bytes();
    let mut endless = Raw::plain(gate.address).await;
    endless
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9000000000000\r\n\r\n")
        .await;
    let piece = vec![b'z'; 1 << 20];
    wait::until("the end of an endless upload", async || {
        endless.try_send(&piece).await.err()
    })
    .await;
    // Neither does one stay that sends nothing more and keeps its side open; meanwhile it counts as a connection.
    let open = async || {
        let text = metrics::scrape(gate.admin).await;
        metrics::sample(&text, "foregate_proxy_connections").expect("the gauge")
    };
    let mut silent = Vec::new();
    wait::until("a silent client that counts", async || {
        let mut raw = Raw::plain(gate.address).await;
        raw.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9000000000000\r\n\r\n")
            .await;
        raw.closed().await;
        silent.push(raw);
        // Again, where the machine stood still for as long as it may stay.
        (open().await >= 1.0).then_some(())
    })
    .await;
    wait::until("the end of a silent client", async || {
        (open().await == 0.0).then_some(())
    })
    .await;
    let grown = gate.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
}
