//! The support pieces, proven without the gate.

use crate::support::certificates::Authority;
use crate::support::client::{self, Raw};
use crate::support::metrics;
use crate::support::origin::{Origin, Script, ok};
use crate::support::postgres::Cluster;

#[tokio::test]
async fn origin_records_exact_bytes_and_answers() {
    let origin = Origin::answering("hello").await;
    let mut raw = Raw::plain(origin.address).await;
    let request = "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    raw.send(request).await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.body.as_ref()), (200, b"hello".as_slice()));
    assert_eq!(origin.received(), [request.as_bytes()]);
}

#[tokio::test]
async fn origin_echoes_after_an_upgrade_and_closes_when_told() {
    let origin = Origin::start(|head| {
        if head.starts_with("GET /up") {
            Script::Echo
        } else {
            Script::Close(ok("x"))
        }
    })
    .await;
    let mut raw = Raw::plain(origin.address).await;
    raw.send("GET /up HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 101);
    raw.send("ping").await;
    assert_eq!(raw.take(4).await.expect("the echo"), b"ping");
    let mut raw = Raw::plain(origin.address).await;
    raw.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(raw.answer().await.body.as_ref(), b"x");
    raw.closed().await;
}

#[tokio::test]
async fn postgres_answers_stops_and_comes_back() {
    let mut cluster = Cluster::start().await;
    cluster.database("one").await;
    assert_eq!(cluster.query("one", "SELECT 41 + 1").await.expect("an answer"), ["42"]);
    cluster.stop();
    assert!(cluster.query("one", "SELECT 1").await.is_err());
    cluster.resume().await;
    assert_eq!(cluster.query("one", "SELECT 1").await.expect("an answer"), ["1"]);
}

#[test]
fn metrics_are_found_by_whole_name() {
    let text = "# HELP a x\na_total 3\na_total{kind=\"b\"} 4\n";
    assert_eq!(metrics::sample(text, "a_total"), Some(3.0));
    assert_eq!(metrics::sample(text, "a_total{kind=\"b\"}"), Some(4.0));
    assert_eq!(metrics::sample(text, "a"), None);
}

#[tokio::test]
async fn a_leaf_is_trusted_through_its_authority_only() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().expect("a folder");
    let files = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let acceptor = crate::support::certificates::acceptor(&files);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            drop(acceptor.accept(tcp).await);
        }
    });
    client::handshake(address, authority.client(&[]), "localhost")
        .await
        .expect("trusted");
    client::handshake(address, stranger.client(&[]), "localhost")
        .await
        .expect_err("a stranger's");
    server.abort();
}
