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
