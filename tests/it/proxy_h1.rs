//! HTTP/1.1 through the gate.

use crate::support::client::{self, Raw};
use crate::support::origin::{Origin, Script};
use crate::support::process::{Config, Gate};

#[tokio::test]
async fn request_reaches_the_app_with_forwarding_headers() {
    let origin = Origin::answering("hello").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let answer = client::get(gate.address, "/a?b=c", "x-forwarded-for: 192.0.2.9\r\n").await;
    assert_eq!((answer.status, answer.body.as_ref()), (200, b"hello".as_slice()));
    let seen = origin.text().to_ascii_lowercase();
    assert!(seen.starts_with("get /a?b=c http/1.1\r\n"), "{seen}");
    for header in [
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-proto: http\r\n",
        "x-real-ip: 127.0.0.1\r\n",
    ] {
        assert!(seen.contains(header), "{header} is missing: {seen}");
    }
    assert!(
        seen.contains("x-request-id: ") && seen.contains(&format!("x-forwarded-host: {}\r\n", gate.address)),
        "{seen}"
    );
    assert!(!seen.contains("192.0.2.9"), "an untrusted peer was believed: {seen}");
}

#[tokio::test]
async fn upstream_down_is_502_and_slow_is_504() {
    let origin = Origin::start(|_| Script::Never).await;
    let config = Config::before(&origin).set("upstream.response_timeout", r#""200ms""#);
    let gate = Gate::start(&config).await;
    let slow = client::get(gate.address, "/", "").await;
    assert_eq!(slow.status, 504);
    slow.problem();
    gate.rewrite(&config.set("upstream.servers", r#"["http://127.0.0.1:1"]"#));
    crate::support::wait::until("502", async || {
        let answer = client::get(gate.address, "/", "").await;
        (answer.status == 502).then(|| answer.problem())
    })
    .await;
}

#[tokio::test]
async fn upgrade_becomes_a_tunnel() {
    let origin = Origin::start(|_| Script::Echo).await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await;
    assert_eq!(raw.answer().await.status, 101);
    raw.send("ping").await;
    assert_eq!(raw.take(4).await.expect("the echo"), b"ping");
}
