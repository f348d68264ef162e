//! A block is one act at every layer, and is remembered.

use crate::support::client::{self, Raw};
use crate::support::origin::{Origin, Script};
use crate::support::process::{Config, Gate};

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
