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

/// Waits until the gate answers with this mark, which each way of writing the file sets anew.
async fn takes_effect(gate: &Gate, how: &str, mark: &str) {
    wait::until(how, async || {
        let answer = client::get(gate.address, "/", "").await;
        (answer.header("referrer-policy") == Some(mark)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn file_takes_effect_however_it_is_written() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin);
    let gate = Gate::start(&config).await;
    let file = gate.path("config.toml");
    let with = |mark: &str| gate.text_of(&config.clone().set("headers.referrer_policy", &format!("{mark:?}")));

    gate.rewrite(&config.clone().set("headers.referrer_policy", r#""renamed""#));
    takes_effect(&gate, "a rename over the file", "renamed").await;

    std::fs::write(&file, with("in-place")).expect("the file is written");
    takes_effect(&gate, "an editor that writes in place", "in-place").await;

    std::fs::rename(&file, gate.path("config.toml~")).expect("a backup copy");
    std::fs::write(&file, with("backed-up")).expect("the file is written");
    takes_effect(&gate, "an editor that keeps a backup", "backed-up").await;

    // As Kubernetes mounts a ConfigMap: a link to a link to a folder, which is swapped.
    for mark in ["first-link", "second-link"] {
        let folder = gate.path(mark);
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::write(folder.join("config.toml"), with(mark)).expect("the file is written");
        let link = gate.path("data.new");
        std::os::unix::fs::symlink(&folder, &link).expect("a link");
        std::fs::rename(&link, gate.path("data")).expect("the link is swapped");
        if mark == "first-link" {
            let link = gate.path("config.new");
            std::os::unix::fs::symlink("data/config.toml", &link).expect("a link");
            std::fs::rename(&link, &file).expect("the file becomes a link");
        }
        takes_effect(&gate, "a swapped link", mark).await;
    }
}

#[tokio::test]
async fn counters_survive_a_reload() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin)
        .set("client.trusted_proxies", r#"["127.0.0.1/32"]"#)
        .set("limits.requests_per_minute", "2");
    let gate = Gate::start(&config).await;
    let spent = "x-forwarded-for: 192.0.2.1\r\n";
    for wanted in [200, 200, 429] {
        assert_eq!(client::get(gate.address, "/", spent).await.status, wanted);
    }
    gate.rewrite(&config.set("headers.referrer_policy", r#""reloaded""#));
    wait::until("the reload", async || {
        let fresh = client::get(gate.address, "/", "x-forwarded-for: 192.0.2.2\r\n").await;
        (fresh.header("referrer-policy") == Some("reloaded")).then_some(())
    })
    .await;
    assert_eq!(client::get(gate.address, "/", spent).await.status, 429);
}
