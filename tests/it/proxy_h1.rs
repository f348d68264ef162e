//! HTTP/1.1 through the gate.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::support::client::{self, Raw};
use crate::support::origin::{Origin, Script, ok};
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

#[tokio::test]
async fn body_and_trailers_stream_both_ways() {
    let open = Arc::new(Notify::new());
    let pieces = vec![
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nfirst\r\n".to_vec(),
        b"4\r\nlast\r\n0\r\nx-sum: 9\r\n\r\n".to_vec(),
    ];
    let gate_of_origin = Arc::clone(&open);
    let origin = Origin::start(move |_| Script::Pieces(Arc::clone(&gate_of_origin), pieces.clone())).await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntransfer-encoding: chunked\r\ntrailer: x-check\r\n\r\n8\r\nup-first\r\n")
        .await;
    origin.wait_for("up-first").await;
    raw.until("first").await;
    assert!(!origin.text().contains("up-last"));
    raw.send("7\r\nup-last\r\n0\r\nx-check: 7\r\n\r\n").await;
    origin.wait_for("up-last").await;
    origin.wait_for("x-check: 7").await;
    open.notify_one();
    raw.until("last").await;
    raw.until("x-sum: 9").await;
}

#[tokio::test]
async fn request_id_of_a_trusted_proxy_is_kept_and_comes_back() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin).set("client.trusted_proxies", r#"["127.0.0.1/32"]"#);
    let gate = Gate::start(&config).await;
    let headers = "x-request-id: from-the-balancer\r\nx-forwarded-for: 192.0.2.9\r\nx-forwarded-proto: https\r\n";
    let answer = client::get(gate.address, "/", headers).await;
    assert_eq!(answer.header("x-request-id"), Some("from-the-balancer"));
    let seen = origin.text();
    for header in [
        "x-request-id: from-the-balancer\r\n",
        "x-forwarded-for: 192.0.2.9, 127.0.0.1\r\n",
        "x-real-ip: 192.0.2.9\r\n",
        "x-forwarded-proto: https\r\n",
    ] {
        assert!(seen.contains(header), "{header} is missing: {seen}");
    }
    let hostile = client::get(gate.address, "/", &format!("x-request-id: {}\r\n", "i".repeat(500))).await;
    assert_eq!(hostile.header("x-request-id").map(str::len), Some(32));
}

#[tokio::test]
async fn client_cannot_name_itself_in_the_field_that_its_proxy_does_not_write() {
    let both = "x-forwarded-for: 198.51.100.1\r\nforwarded: for=192.0.2.1\r\n";
    for (told_by, seen) in [
        (None, "x-real-ip: 198.51.100.1"),
        (Some(r#""forwarded""#), "x-real-ip: 192.0.2.1"),
    ] {
        let origin = Origin::answering("x").await;
        let config = Config::before(&origin).set("client.trusted_proxies", r#"["127.0.0.0/8"]"#);
        let config = told_by
            .iter()
            .fold(config, |config, word| config.set("client.forwarded_header", word));
        let gate = Gate::start(&config).await;
        assert_eq!(client::get(gate.address, "/", both).await.status, 200);
        let head = origin.heads().concat();
        assert!(head.contains(seen), "{told_by:?}: {head}");
        assert!(!head.contains("forwarded: for="), "{head}");
    }
}

#[tokio::test]
async fn security_headers_are_added_where_the_app_has_none() {
    let origin = Origin::start(|_| {
        Script::Answer(b"HTTP/1.1 200 OK\r\nx-frame-options: SAMEORIGIN\r\ncontent-length: 0\r\n\r\n".to_vec())
    })
    .await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let answer = client::get(gate.address, "/", "").await;
    assert_eq!(answer.header("x-frame-options"), Some("SAMEORIGIN"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert!(
        answer.header("referrer-policy").is_some() && answer.header("date").is_some(),
        "{answer:?}"
    );
}

#[tokio::test]
async fn answers_without_a_body_keep_the_connection_in_step() {
    let origin = Origin::start(|head| {
        Script::Answer(match head.split(' ').nth(1) {
            Some("/head") => b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n".to_vec(),
            Some("/204") => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
            Some("/304") => b"HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n".to_vec(),
            _ => ok("whole"),
        })
    })
    .await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("HEAD /head HTTP/1.1\r\nhost: a\r\n\r\n").await;
    raw.until("content-length: 1234\r\n").await;
    raw.until("\r\n\r\n").await;
    for (path, status) in [("/204", 204), ("/304", 304), ("/next", 200)] {
        raw.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let answer = raw.answer().await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(
            status == 200 || answer.header("transfer-encoding").is_none(),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_over_few_connections_to_the_app() {
    let origin = Origin::start(|head| Script::Answer(ok(head.split(' ').nth(1).unwrap_or_default()))).await;
    let gate = Gate::start(&Config::before(&origin).set("server.workers", "1")).await;
    let mut raw = Raw::plain(gate.address).await;
    let all: String = (0..50)
        .map(|number| format!("GET /{number} HTTP/1.1\r\nhost: a\r\n\r\n"))
        .collect();
    raw.send(all).await;
    for number in 0..50 {
        assert_eq!(raw.answer().await.body.as_ref(), format!("/{number}").as_bytes());
    }
    assert_eq!(
        origin.received().len(),
        1,
        "the connection to the app was not used again"
    );
}

#[tokio::test]
async fn options_go_no_further_than_they_say() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let ask = async |method: &str, hops: &str| {
        let field = format!("max-forwards: {hops}\r\n");
        client::request(gate.address, method, "/hops", &field, "").await
    };
    let own = ask("OPTIONS", "0").await;
    assert_eq!((own.status, own.body.len()), (204, 0));
    assert!(own.header("allow").expect("Allow").contains("OPTIONS"), "{own:?}");
    assert!(origin.heads().is_empty());
    assert_eq!(ask("OPTIONS", "7").await.status, 200);
    assert!(origin.text().contains("max-forwards: 6\r\n"), "{}", origin.text());
    assert_eq!(ask("OPTIONS", "many").await.status, 400);
    // Other methods have no use for it (RFC 9110 section 7.6.2).
    assert_eq!(ask("GET", "0").await.status, 200);
}

#[tokio::test]
async fn expectation_is_answered_before_the_body_is_sent() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
        .await;
    assert_eq!(raw.answer().await.status, 100);
    raw.send("body").await;
    assert_eq!(raw.answer().await.status, 200);
    assert!(!origin.text().contains("100-continue"), "{}", origin.text());
}

#[tokio::test]
async fn refused_connection_is_502_at_once() {
    let origin = Origin::answering("x").await;
    // A bound port that nobody listens on refuses at once and cannot be taken by another test.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let dead = format!(r#"["http://{}"]"#, socket.local_addr().expect("an address"));
    let config = Config::before(&origin)
        .set("upstream.servers", &dead)
        // Longer than the answer is waited for.
        .set("upstream.connect_timeout", r#""10m""#);
    let gate = Gate::start(&config).await;
    let answer = client::get(gate.address, "/", "").await;
    assert_eq!(answer.status, 502);
    answer.problem();
}
