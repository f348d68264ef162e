//! Limits and size caps.

use crate::support::client::{self, Raw};
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};

#[tokio::test]
async fn client_over_its_limit_gets_429_that_explains_itself() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin).set("limits.requests_per_minute", "3")).await;
    for _ in 0..3 {
        assert_eq!(client::get(gate.address, "/", "").await.status, 200);
    }
    let refused = client::get(gate.address, "/", "").await;
    assert_eq!(refused.status, 429);
    refused.problem();
    let retry: u64 = refused
        .header("retry-after")
        .and_then(|text| text.parse().ok())
        .expect("whole seconds");
    assert!((1..=60).contains(&retry), "{retry}");
    assert!(
        refused.header("ratelimit").is_some() && refused.header("ratelimit-policy").is_some(),
        "{refused:?}"
    );
    assert_eq!(origin.text().matches("GET / ").count(), 3);
}

#[tokio::test]
async fn body_over_the_cap_never_reaches_the_app() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin).set("limits.max_request_size", r#""1000B""#)).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("POST /declared HTTP/1.1\r\nhost: a\r\ncontent-length: 1001\r\n\r\n")
        .await;
    assert_eq!(raw.answer().await.status, 413);
    let mut raw = Raw::plain(gate.address).await;
    let excess = "z".repeat(1001);
    raw.send(format!(
        "POST /chunked HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n{excess}\r\n0\r\n\r\n"
    ))
    .await;
    assert_eq!(raw.answer().await.status, 413);
    let seen = origin.text();
    assert!(
        !seen.contains("/declared") && seen.matches('z').count() <= 1000,
        "{seen}"
    );
}

#[tokio::test]
async fn header_over_the_cap_is_431() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin).set("limits.max_header_size", r#""8KiB""#)).await;
    let answer = client::get(gate.address, "/", &format!("x-big: {}\r\n", "a".repeat(16 << 10))).await;
    assert_eq!(answer.status, 431);
    assert!(origin.received().is_empty());
}
