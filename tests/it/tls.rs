//! TLS: protocols by ALPN, certificates by SNI.

use crate::support::certificates::Authority;
use crate::support::client::{self, Raw};
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};

#[tokio::test]
async fn both_protocols_pass_over_tls() {
    let (origin, directory) = (Origin::answering("hello").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let pair = format!(
        "[{{ cert = {:?}, key = {:?} }}]",
        leaf.cert.display().to_string(),
        leaf.key.display().to_string()
    );
    let config = Config::before(&origin)
        .set("tls.mode", r#""files""#)
        .set("tls.certificates", &pair);
    let gate = Gate::start(&config).await;
    let mut raw = Raw::tls(gate.address, authority.client(&["http/1.1"]), "localhost").await;
    raw.send("GET /one HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(raw.answer().await.body.as_ref(), b"hello");
    let stream = client::handshake(gate.address, authority.client(&["h2"]), "localhost")
        .await
        .expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let request = http::Request::get("https://localhost/two")
        .body(http_body_util::Full::default())
        .expect("a request");
    assert_eq!(client::h2(stream, request).await.body.as_ref(), b"hello");
}
