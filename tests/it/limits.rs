//! Limits and size caps.

use crate::support::client::{self, Answer, Raw};
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

/// A refusal that can be understood and looked up: a problem document whose reference is the request's id.
fn explained(answer: &Answer, status: u16, says: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    let problem = answer.problem();
    assert_eq!(
        problem["reference"].as_str(),
        answer.header("x-request-id"),
        "{problem}"
    );
    assert!(
        problem["reference"].as_str().is_some_and(|id| id.len() >= 16),
        "{problem}"
    );
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(says), "{says} is not in {problem}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
}

#[tokio::test]
async fn oversized_request_is_told_which_cap_it_is_beyond_and_not_to_come_again() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin)
        .set("limits.max_request_size", r#""1000B""#)
        .set("limits.max_header_size", r#""8KiB""#)
        .set("limits.max_headers", "20");
    let gate = Gate::start(&config).await;
    let post = "POST / HTTP/1.1\r\nhost: a\r\n";
    let (large, small) = (format!("x-big: {}\r\n", "a".repeat(7 << 10)), "x-y: z\r\n");
    let fields = |fields: &str| format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
    for (what, request, status, says) in [
        (
            "a declared body",
            format!("{post}content-length: 1001\r\n\r\n"),
            413,
            "1000",
        ),
        (
            "a chunked body",
            format!(
                "{post}transfer-encoding: chunked\r\n\r\n3e9\r\n{}\r\n0\r\n\r\n",
                "z".repeat(1001)
            ),
            413,
            "1000",
        ),
        ("large fields", fields(&large.repeat(2)), 431, "8192"),
        (
            "fields that the parser has no room for",
            fields(&large.repeat(20)),
            431,
            "8192",
        ),
        ("many fields", fields(&small.repeat(30)), 431, "20"),
        (
            "many more fields than the parser holds",
            fields(&small.repeat(300)),
            431,
            "20",
        ),
    ] {
        let mut raw = Raw::plain(gate.address).await;
        // The gate may answer and close before it has read all of it.
        drop(raw.try_send(request).await);
        let answer = raw.answer().await;
        explained(&answer, status, says);
        // It would be refused again, whenever it came.
        assert_eq!(answer.header("retry-after"), None, "{what}: {answer:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{what}: {answer:?}");
    }
    assert!(origin.text().matches('z').count() <= 1000, "the app saw the excess");
}

#[tokio::test]
async fn blocked_request_is_told_why_and_how_long_and_a_permanent_one_not_to_wait() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin).set("client.trusted_proxies", r#"["127.0.0.1/32"]"#)).await;
    for (client, order, waits) in [
        (
            "198.51.100.1",
            r#"{"reason":"too curious","durationSeconds":600}"#,
            true,
        ),
        ("198.51.100.2", r#"{"reason":"too curious"}"#, false),
    ] {
        let made = gate
            .admin("POST", &format!("/api/infrastructure/ddos/block/{client}"), order)
            .await;
        let reference = made.json()["block"]["reference"].as_str().map(str::to_owned);
        let refused = client::get(gate.address, "/", &format!("x-forwarded-for: {client}\r\n")).await;
        explained(&refused, 403, "too curious");
        explained(&refused, 403, &reference.expect("the block has a reference"));
        let wait = refused.header("retry-after").map(|text| text.parse::<u64>().ok());
        match wait {
            Some(seconds) => assert!(
                waits && seconds.is_some_and(|s| (590..=600).contains(&s)),
                "{refused:?}"
            ),
            None => assert!(!waits, "{refused:?}"),
        }
    }
    assert!(origin.received().is_empty());
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
