//! PostgreSQL as the store: shared, and allowed to be away.

use crate::support::client;
use crate::support::origin::Origin;
use crate::support::postgres::Cluster;
use crate::support::process::{Config, Gate};
use crate::support::wait;

/// A configuration that reads the database's address from a file.
fn config(origin: &Origin, directory: &std::path::Path, cluster: &Cluster) -> Config {
    let file = directory.join("database-url");
    std::fs::write(&file, cluster.url("gate")).expect("the address is written");
    Config::before(origin)
        .set("client.trusted_proxies", r#"["127.0.0.1/32"]"#)
        .set(
            "store.postgres",
            &format!("{{ file = {:?} }}", file.display().to_string()),
        )
}

#[tokio::test]
async fn two_instances_share_a_block_and_keep_it_while_postgres_is_down() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let mut cluster = Cluster::start().await;
    cluster.database("gate").await;
    let config = config(&origin, directory.path(), &cluster);
    let (first, second) = (Gate::start(&config).await, Gate::start(&config).await);
    let made = first
        .admin("POST", "/api/infrastructure/ddos/block/198.51.100.7", "")
        .await;
    assert!((200..300).contains(&made.status), "{made:?}");
    wait::until("the block at the other instance", async || {
        let answer = client::get(second.address, "/", "x-forwarded-for: 198.51.100.7\r\n").await;
        (answer.status == 403).then_some(())
    })
    .await;
    // The last known blocks are saved once a second.
    wait::until("the snapshot on the second's disk", async || {
        let saved = std::fs::read_to_string(second.path("state/blocks-snapshot.jsonl")).ok()?;
        saved.contains("198.51.100.7").then_some(())
    })
    .await;
    cluster.stop();
    assert_eq!(
        client::get(second.address, "/", "x-forwarded-for: 198.51.100.8\r\n")
            .await
            .status,
        200
    );
    let restarted = Gate::start_in(second.kill(), &config).await;
    assert_eq!(
        client::get(restarted.address, "/", "x-forwarded-for: 198.51.100.7\r\n")
            .await
            .status,
        403
    );
}

#[tokio::test]
async fn acknowledged_block_in_postgres_outlives_kill_9() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let cluster = Cluster::start().await;
    cluster.database("gate").await;
    let config = config(&origin, directory.path(), &cluster);
    let gate = Gate::start(&config).await;
    let made = gate
        .admin("POST", "/api/infrastructure/ddos/block/198.51.100.7", "")
        .await;
    assert_eq!(made.json()["durability"], "stored", "{made:?}");
    let gate = Gate::start_in(gate.kill(), &config).await;
    let refused = client::get(gate.address, "/", "x-forwarded-for: 198.51.100.7\r\n").await;
    assert_eq!(refused.status, 403);
}

#[tokio::test]
async fn postgres_stopped_in_the_middle_of_traffic_delays_no_request_and_loses_no_block() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let mut cluster = Cluster::start().await;
    cluster.database("gate").await;
    let config = config(&origin, directory.path(), &cluster);
    let gate = Gate::start(&config).await;
    let db = async |wanted: u16| {
        wait::until("what health says of the store", async || {
            let answer = gate.admin("GET", "/health/db", "").await;
            (answer.status == wanted).then_some(())
        })
        .await;
    };
    db(200).await;
    cluster.stop();
    for number in 0..50 {
        let answer = client::get(gate.address, "/", &format!("x-forwarded-for: 192.0.2.{number}\r\n")).await;
        assert_eq!(answer.status, 200);
    }
    let made = gate
        .admin("POST", "/api/infrastructure/ddos/block/198.51.100.9", "")
        .await;
    assert_eq!(made.json()["durability"], "queued", "{made:?}");
    let refused = client::get(gate.address, "/", "x-forwarded-for: 198.51.100.9\r\n").await;
    assert_eq!(refused.status, 403);
    db(503).await;
    let gate = Gate::start_in(gate.kill(), &config).await;
    let refused = client::get(gate.address, "/", "x-forwarded-for: 198.51.100.9\r\n").await;
    assert_eq!(refused.status, 403, "a queued block was lost by kill -9");
    cluster.resume().await;
    wait::until("the block in PostgreSQL", async || {
        let rows = cluster
            .query("gate", "SELECT network::text FROM foregate.blocks")
            .await
            .ok()?;
        rows.iter()
            .any(|network| network.starts_with("198.51.100.9"))
            .then_some(())
    })
    .await;
}
