//! A changed file takes effect at once and never breaks traffic.

use crate::support::client::{self, Raw};
use crate::support::origin::{Origin, Script};
use crate::support::process::{Config, Gate};
use crate::support::{metrics, wait};

#[tokio::test]
async fn tunnel_survives_a_reload_and_an_invalid_file_changes_nothing() {
    let origin = Origin::start(|_| Script::Echo).await;
    let config = Config::before(&origin);
    let gate = Gate::start(&config).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await;
    assert_eq!(raw.answer().await.status, 101);
    gate.rewrite(&config.clone().set("limits.nonsense", "1"));
    wait::until("the refused reload", async || {
        let text = metrics::scrape(gate.admin).await;
        (metrics::sample(&text, "foregate_config_last_reload_success") == Some(0.0)).then_some(())
    })
    .await;
    gate.rewrite(&config.set("limits.max_header_size", r#""8KiB""#));
    wait::until("the new cap", async || {
        let big = format!("x-big: {}\r\n", "a".repeat(12 << 10));
        (client::get(gate.address, "/", &big).await.status == 431).then_some(())
    })
    .await;
    raw.send("ping").await;
    assert_eq!(raw.take(4).await.expect("the echo"), b"ping");
}
