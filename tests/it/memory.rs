//! The guard on memory: new connections wait for better times, those that are there go on.

use tokio::net::TcpStream;

use crate::support::client::Raw;
use crate::support::metrics;
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::wait;

/// The status of a request on a connection of its own; `None`: it was not let in.
async fn comes_in(gate: &Gate) -> Option<u16> {
    let mut raw = Raw::over(TcpStream::connect(gate.address).await.ok()?);
    raw.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.ok()?;
    raw.try_answer().await.map(|answer| answer.status)
}

async fn health(gate: &Gate) -> String {
    gate.admin("GET", "/health/comprehensive", "").await.text()
}

#[tokio::test]
async fn new_connections_are_refused_while_memory_is_short_and_let_in_again() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin).set("server.memory_limit", r#""64GiB""#);
    let gate = Gate::start(&config).await;
    let mut held = Raw::plain(gate.address).await;
    held.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(held.answer().await.status, 200);

    // Half of what it has: it may give some back.
    let half = gate.resident_bytes() / 2048;
    gate.rewrite(&config.clone().set("server.memory_limit", &format!("\"{half}KiB\"")));
    wait::until("a refusal", async || comes_in(&gate).await.is_none().then_some(())).await;
    wait::until("the reason in /health", async || {
        health(&gate)
            .await
            .contains("new connections are refused")
            .then_some(())
    })
    .await;
    let text = metrics::scrape(gate.admin).await;
    let refused = metrics::sample(&text, r#"foregate_proxy_refused_connections_total{reason="memory"}"#);
    assert!(refused >= Some(1.0), "{text}");
    held.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(held.answer().await.status, 200, "who is there is served on");

    gate.rewrite(&config);
    wait::until("a place", async || (comes_in(&gate).await == Some(200)).then_some(())).await;
    wait::until("the end of it in /health", async || {
        (!health(&gate).await.contains("new connections are refused")).then_some(())
    })
    .await;
}
