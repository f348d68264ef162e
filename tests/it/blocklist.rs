//! A block is one act at every layer, and is remembered.

use tokio::io::AsyncReadExt as _;

use crate::support::certificates::Authority;
use crate::support::client::{self, Raw};
use crate::support::origin::{Origin, Script};
use crate::support::process::{Config, Gate};
use crate::support::{metrics, wait};

const BLOCK: &str = "/api/infrastructure/ddos/block/";

#[tokio::test]
async fn acknowledged_block_outlives_kill_9() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin).set("client.trusted_proxies", r#"["127.0.0.1/32"]"#);
    let gate = Gate::start(&config).await;
    let acknowledged = gate
        .admin("POST", &format!("{BLOCK}198.51.100.7"), r#"{"reason":"test"}"#)
        .await;
    assert!((200..300).contains(&acknowledged.status), "{acknowledged:?}");
    let gate = Gate::start_in(gate.kill(), &config).await;
    let refused = client::get(gate.address, "/", "x-forwarded-for: 198.51.100.7\r\n").await;
    assert_eq!(refused.status, 403);
    refused.problem();
    assert_eq!(
        client::get(gate.address, "/", "x-forwarded-for: 198.51.100.8\r\n")
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn block_closes_the_tunnels_of_its_client() {
    let origin = Origin::start(|_| Script::Echo).await;
    let config = Config::before(&origin).set("client.trusted_proxies", r#"["127.0.0.1/32"]"#);
    let gate = Gate::start(&config).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send(
        "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 198.51.100.7\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
    )
    .await;
    assert_eq!(raw.answer().await.status, 101);
    let acknowledged = gate.admin("POST", &format!("{BLOCK}198.51.100.7"), "").await;
    assert!((200..300).contains(&acknowledged.status), "{acknowledged:?}");
    raw.closed().await;
}

#[tokio::test]
async fn blocked_client_is_told_ten_times_and_then_reset_at_accept() {
    let origin = Origin::answering("x").await;
    // The admin calls from 127.0.0.1, which can therefore not be blocked.
    let gate = Gate::start(&Config::before(&origin).set("server.listen", r#"["[::1]:0"]"#)).await;
    let mut live = Raw::plain(gate.address).await;
    live.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(live.answer().await.status, 200);
    let body = r#"{"reason":"tests","durationSeconds":3600}"#;
    let made = gate.admin("POST", &format!("{BLOCK}::1"), body).await;
    assert!((200..300).contains(&made.status), "{made:?}");
    for _ in 0..10 {
        let refused = client::get(gate.address, "/", "").await;
        assert_eq!(refused.status, 403);
        assert!(refused.problem()["detail"].to_string().contains("tests"), "{refused:?}");
        let wait: u64 = refused
            .header("retry-after")
            .and_then(|text| text.parse().ok())
            .expect("whole seconds");
        assert!((3500..=3600).contains(&wait), "{wait}");
    }
    let reset = wait::until("a reset", async || {
        let mut raw = tokio::net::TcpStream::connect(gate.address).await.ok()?;
        use tokio::io::AsyncWriteExt as _;
        drop(raw.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await);
        raw.read(&mut [0; 512]).await.err()
    })
    .await;
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    let lifted = gate.admin("POST", "/api/infrastructure/ddos/unblock/::1", "").await;
    assert!((200..300).contains(&lifted.status), "{lifted:?}");
    assert_eq!(client::get(gate.address, "/", "").await.status, 200);
    assert_eq!(origin.heads().len(), 2);
}

#[tokio::test]
async fn blocked_client_is_reset_before_any_byte_of_tls() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let config = Config::before(&origin)
        .tls(&[&leaf])
        .set("server.listen", r#"["[::1]:0"]"#);
    let gate = Gate::start(&config).await;
    let made = gate.admin("POST", &format!("{BLOCK}::1"), "").await;
    assert_eq!(made.status, 201, "{made:?}");
    for _ in 0..10 {
        let mut raw = Raw::tls(gate.address, authority.client(&["http/1.1"]), "localhost").await;
        raw.send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert_eq!(raw.answer().await.status, 403);
    }
    let handshakes = |text: &str| {
        ["ok", "failed"].map(|result| {
            let name = format!("foregate_proxy_handshakes_total{{result=\"{result}\"}}");
            metrics::sample(text, &name).unwrap_or_default()
        })
    };
    assert_eq!(handshakes(&metrics::scrape(gate.admin).await), [10.0, 0.0]);
    for _ in 0..5 {
        // Nothing is sent: the gate does not wait for a hello to say no.
        let mut bytes = Vec::new();
        let ended = match tokio::net::TcpStream::connect(gate.address).await {
            Ok(mut raw) => wait::within("a reset", raw.read_to_end(&mut bytes)).await,
            // The reset was quicker than the connection.
            Err(error) => Err(error),
        };
        let error = ended.expect_err("a reset, no close");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert!(bytes.is_empty(), "{bytes:?}");
    }
    let text = metrics::scrape(gate.admin).await;
    assert_eq!(handshakes(&text), [10.0, 0.0], "a handshake was begun");
    for name in [
        "foregate_proxy_refused_connections_total{reason=\"blocked\"}",
        "foregate_guard_refused_connections_total",
    ] {
        assert_eq!(metrics::sample(&text, name), Some(5.0), "{name}");
    }
}

#[tokio::test]
async fn block_behind_a_trusted_proxy_leaves_the_shared_connection_to_others() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin).set("client.trusted_proxies", r#"["127.0.0.1/32"]"#);
    let gate = Gate::start(&config).await;
    let made = gate.admin("POST", &format!("{BLOCK}198.51.100.0%2F24"), "").await;
    assert!((200..300).contains(&made.status), "{made:?}");
    let tcp = tokio::net::TcpStream::connect(gate.address)
        .await
        .expect("the port accepts");
    let (sender, connection) = h2::client::handshake(tcp).await.expect("h2 begins");
    drop(tokio::spawn(connection));
    let mut sender = sender.ready().await.expect("a stream may open");
    for round in 0..20 {
        for (client, wanted) in [("198.51.100.7", 403), ("192.0.2.1", 200), ("for-nobody", 200)] {
            let request = http::Request::get("http://a/")
                .header("x-forwarded-for", client)
                .body(())
                .expect("a request");
            let (response, _) = sender.send_request(request, true).expect("a stream");
            let response = wait::within("an answer", response).await.expect("an answer");
            assert_eq!(response.status(), wanted, "{client} in round {round}");
        }
    }
    // The same over one connection of HTTP/1.1.
    let mut raw = Raw::plain(gate.address).await;
    for (client, wanted) in [("198.51.100.7", 403), ("192.0.2.1", 200), ("198.51.100.7", 403)] {
        raw.send(format!(
            "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {client}\r\n\r\n"
        ))
        .await;
        assert_eq!(raw.answer().await.status, wanted, "{client}");
    }
}

#[tokio::test]
async fn client_that_probes_is_blocked_without_an_order() {
    let origin =
        Origin::start(|_| Script::Answer(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec())).await;
    let config = Config::before(&origin)
        .set("client.trusted_proxies", r#"["127.0.0.1/32"]"#)
        .set("blocklist.suspicious_threshold", "1");
    let gate = Gate::start(&config).await;
    let probe = client::get(gate.address, "/.env", "x-forwarded-for: 192.0.2.1\r\n").await;
    assert_eq!(probe.status, 404);
    client::until_status(gate.address, "192.0.2.1", 403).await;
    assert_eq!(
        client::get(gate.address, "/", "x-forwarded-for: 192.0.2.2\r\n")
            .await
            .status,
        404
    );
}
