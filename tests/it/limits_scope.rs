//! Whom a limit counts, for which paths, and who is left alone.

use crate::support::client::{self, Raw};
use crate::support::metrics;
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};

async fn status(gate: &Gate, method: &str, path: &str, from: &str) -> u16 {
    let headers = if from.is_empty() {
        String::new()
    } else {
        format!("x-forwarded-for: {from}\r\n")
    };
    client::request(gate.address, method, path, &headers, "").await.status
}

fn trusting(origin: &Origin) -> Config {
    Config::before(origin)
        .set("client.trusted_proxies", r#"["127.0.0.1/32"]"#)
        .set("limits.requests_per_minute", "2")
}

#[tokio::test]
async fn path_with_its_own_rule_is_counted_apart() {
    let origin = Origin::answering("x").await;
    let rules = r#"[{ path = "/login", methods = ["POST"], requests_per_minute = 1, requests_per_hour = 60 }]"#;
    let gate = Gate::start(&trusting(&origin).set("limits.rules", rules)).await;
    assert_eq!(status(&gate, "POST", "/login", "192.0.2.1").await, 200);
    assert_eq!(status(&gate, "POST", "/login", "192.0.2.1").await, 429);
    assert_eq!(
        status(&gate, "POST", "/x/../%6cogin", "192.0.2.1").await,
        429,
        "another spelling"
    );
    assert_eq!(status(&gate, "GET", "/login", "192.0.2.1").await, 200);
    assert_eq!(status(&gate, "GET", "/", "192.0.2.1").await, 200);
    assert_eq!(status(&gate, "GET", "/", "192.0.2.1").await, 429);
}

#[tokio::test]
async fn clients_are_counted_apart_and_an_ipv6_client_by_its_network() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&trusting(&origin)).await;
    for (client, wanted) in [
        ("192.0.2.1", 200),
        ("192.0.2.1", 200),
        ("192.0.2.1", 429),
        ("192.0.2.2", 200),
        ("2001:db8::1", 200),
        ("2001:db8::ffff:2", 200),
        ("[2001:db8::3]:99", 429),
        ("2001:db8:0:1::1", 200),
        ("6.6.6.6, 192.0.2.1", 429),
        ("::ffff:192.0.2.1", 429),
    ] {
        assert_eq!(status(&gate, "GET", "/", client).await, wanted, "{client}");
    }
}

#[tokio::test]
async fn ipv6_peer_is_limited_by_its_own_address() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin)
        .set("server.listen", r#"["[::1]:0"]"#)
        .set("limits.requests_per_minute", "1");
    let gate = Gate::start(&config).await;
    assert_eq!(client::get(gate.address, "/", "").await.status, 200);
    assert_eq!(client::get(gate.address, "/", "").await.status, 429);
    assert!(origin.text().contains("x-real-ip: ::1\r\n"), "{}", origin.text());
}

#[tokio::test]
async fn observed_limit_refuses_nothing_and_is_counted() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&trusting(&origin).set("limits.mode", r#""observe""#)).await;
    for _ in 0..5 {
        assert_eq!(status(&gate, "GET", "/", "192.0.2.1").await, 200);
    }
    let text = metrics::scrape(gate.admin).await;
    let name = r#"foregate_guard_observed_requests_total{window="minute"}"#;
    assert_eq!(metrics::sample(&text, name), Some(3.0), "{text}");
}

#[tokio::test]
async fn exempt_network_is_never_limited() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&trusting(&origin).set("limits.exempt", r#"["192.0.2.0/24"]"#)).await;
    for _ in 0..5 {
        assert_eq!(status(&gate, "GET", "/", "192.0.2.1").await, 200);
    }
    for wanted in [200, 200, 429] {
        assert_eq!(status(&gate, "GET", "/", "198.51.100.1").await, wanted);
    }
}

#[tokio::test]
async fn refused_request_tells_policy_and_remainder() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&trusting(&origin).set("limits.requests_per_hour", "50")).await;
    for _ in 0..2 {
        assert_eq!(status(&gate, "GET", "/", "").await, 200);
    }
    let refused = client::get(gate.address, "/", "").await;
    assert_eq!(
        refused.header("ratelimit-policy"),
        Some(r#""minute";q=2;w=60,"hour";q=50;w=3600"#)
    );
    let left = refused.header("ratelimit").expect("a remainder");
    assert!(
        left.starts_with(r#""minute";r=0;t="#) && left.contains(r#""hour";r=48"#),
        "{left}"
    );
    assert_eq!(refused.problem()["violated-policies"][0], "minute");
}

#[tokio::test]
async fn chunked_body_is_cut_off_at_the_very_byte_of_the_cap() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin).set("limits.max_request_size", r#""1000B""#)).await;
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let piece = format!("1f4\r\n{}\r\n", "z".repeat(500));
    let mut raw = Raw::plain(gate.address).await;
    raw.send(format!("{head}{piece}{piece}0\r\n\r\n")).await;
    assert_eq!(raw.answer().await.status, 200, "exactly the cap");
    let mut raw = Raw::plain(gate.address).await;
    raw.send(format!("{head}{piece}{piece}")).await;
    raw.send("1\r\nz\r\n0\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 413, "one byte more");
    raw.closed().await;
    assert!(origin.text().matches('z').count() <= 2000, "the app saw the excess");
}

#[tokio::test]
async fn too_many_fields_are_431_whatever_their_size() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin).set("limits.max_headers", "20")).await;
    let answer = client::get(gate.address, "/", &"x-y: z\r\n".repeat(30)).await;
    assert_eq!(answer.status, 431);
    answer.problem();
    let answer = client::get(gate.address, "/", &"x-y: z\r\n".repeat(300)).await;
    assert_eq!(answer.status, 431, "beyond what the parser holds");
    assert!(origin.received().is_empty());
}
