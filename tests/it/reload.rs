//! A changed file takes effect at once and never breaks traffic.

use rustix::process::Signal;

use crate::support::certificates::Authority;
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

/// Waits until the last reload has succeeded (1) or failed (0).
async fn outcome(gate: &Gate, wanted: f64) {
    wait::until("the outcome of the reload", async || {
        let text = metrics::scrape(gate.admin).await;
        (metrics::sample(&text, "foregate_config_last_reload_success") == Some(wanted)).then_some(())
    })
    .await;
}

async fn detail(gate: &Gate) -> String {
    let answer = gate.admin("GET", "/api/infrastructure/config", "").await;
    answer.json()["detail"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn invalid_file_is_visible_everywhere_and_no_key_of_it_is_applied() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin);
    let gate = Gate::start(&config).await;
    let health = async || client::get(gate.admin, "/health", "").await.json()["status"].clone();
    assert_eq!(health().await, "healthy");
    let torn = config.clone().set("headers.referrer_policy", r#""torn""#);
    gate.rewrite(&torn.clone().set("limits.nonsense", "1"));
    outcome(&gate, 0.0).await;
    wait::until("the mistake in the log, with its caret", async || {
        let log = gate.log();
        ["limits", "nonsense", "^^^"]
            .iter()
            .all(|part| log.contains(part))
            .then_some(())
    })
    .await;
    let text = metrics::scrape(gate.admin).await;
    let failed = metrics::sample(&text, "foregate_config_reloads_total{result=\"failed\"}");
    assert!(failed >= Some(1.0), "{failed:?}");
    wait::until("the degraded health", async || {
        (health().await == "degraded").then_some(())
    })
    .await;
    assert!(detail(&gate).await.contains("nonsense"));
    let answer = client::get(gate.address, "/", "").await;
    assert_eq!(
        answer.header("referrer-policy"),
        Some("strict-origin-when-cross-origin"),
        "{answer:?}"
    );
    gate.rewrite(&torn);
    takes_effect(&gate, "the file without its mistake", "torn").await;
    wait::until("the good health", async || (health().await == "healthy").then_some(())).await;
    assert_eq!(detail(&gate).await, "");
}

#[tokio::test]
async fn one_part_that_refuses_keeps_the_whole_file_out() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let mut other = authority.leaf(directory.path(), "other", &["localhost"]);
    other.key.clone_from(&leaf.key);
    let config = Config::before(&origin).tls(&[&leaf]);
    let gate = Gate::start(&config).await;
    // A token is withdrawn by the same save that names a key which does not fit.
    gate.rewrite(&config.clone().tls(&[&other]).set("admin.tokens", "[]"));
    outcome(&gate, 0.0).await;
    let answer = gate.admin("GET", "/api/infrastructure/ddos/stats", "").await;
    assert_eq!(answer.status, 200, "the old tokens are in force: {answer:?}");
    // The other way about: the listener of the admin refuses, the gate would not.
    let mismatched = format!(
        "{{ cert = {:?}, key = {:?} }}",
        other.cert.display().to_string(),
        other.key.display().to_string()
    );
    gate.rewrite(
        &config
            .clone()
            .set("admin.tls", &mismatched)
            .set("headers.referrer_policy", r#""torn""#),
    );
    wait::until("the second refusal", async || {
        detail(&gate).await.contains("admin listener").then_some(())
    })
    .await;
    let mut raw = Raw::tls(gate.address, authority.client(&["http/1.1"]), "localhost").await;
    raw.send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_ne!(raw.answer().await.header("referrer-policy"), Some("torn"));
}

#[tokio::test]
async fn emptied_file_is_not_taken_for_the_defaults() {
    let origin = Origin::answering("ours").await;
    let config = Config::before(&origin);
    let gate = Gate::start(&config).await;
    let file = gate.path("config.toml");
    // As an editor leaves it that truncates and then meets a full disk.
    for emptied in ["", "# only this line was written\n"] {
        std::fs::write(&file, emptied).expect("the file is written");
        outcome(&gate, 0.0).await;
        assert!(detail(&gate).await.contains("holds no key"), "{}", detail(&gate).await);
        assert_eq!(client::get(gate.address, "/", "").await.text(), "ours");
        std::fs::write(&file, gate.text_of(&config)).expect("the file is written");
        outcome(&gate, 1.0).await;
    }
}

#[tokio::test]
async fn file_that_arrives_late_mends_the_reload_that_missed_it() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let config = Config::before(&origin).tls(&[&leaf]);
    let gate = Gate::start(&config).await;
    let text = |path: &std::path::Path| format!("{:?}", path.display().to_string());

    let late = directory.path().join("late");
    let pair = format!(
        "[{{ cert = {}, key = {} }}]",
        text(&late.with_extension("pem")),
        text(&late.with_extension("key"))
    );
    let named = config.set("tls.certificates", &pair);
    gate.rewrite(&named);
    outcome(&gate, 0.0).await;
    authority.leaf(directory.path(), "late", &["localhost"]);
    outcome(&gate, 1.0).await;

    // A secret is missed sooner than a certificate: while the file is read.
    let hook = directory.path().join("hook");
    gate.rewrite(&named.set("alerts.webhook", &format!("{{ file = {} }}", text(&hook))));
    outcome(&gate, 0.0).await;
    std::fs::write(&hook, "http://127.0.0.1:1/").expect("the secret is written");
    outcome(&gate, 1.0).await;
}

#[tokio::test]
async fn tls_is_switched_on_and_off_by_a_restart_alone() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let plain = Config::before(&origin);
    let secure = plain.clone().tls(&[&leaf]);
    let gate = Gate::start(&plain).await;
    gate.rewrite(&secure.clone().set("headers.referrer_policy", r#""rest""#));
    takes_effect(&gate, "the rest of the file, over plain HTTP", "rest").await;
    wait::until("the key that waits", async || {
        let detail = detail(&gate).await;
        (detail.contains("waiting for a restart") && detail.contains("tls.mode")).then_some(())
    })
    .await;

    let gate = Gate::start(&secure).await;
    gate.rewrite(&plain);
    wait::until("the key that waits", async || {
        detail(&gate).await.contains("tls.mode").then_some(())
    })
    .await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    raw.closed().await;
    let mut raw = Raw::tls(gate.address, authority.client(&["http/1.1"]), "localhost").await;
    raw.send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 200);
}

#[tokio::test]
async fn logs_and_the_length_of_the_drain_follow_a_reload() {
    let origin = Origin::start(|head| {
        if head.starts_with("GET /never") {
            Script::Never
        } else {
            Script::Answer(crate::support::origin::ok("x"))
        }
    })
    .await;
    let config = Config::before(&origin).set("server.drain_timeout", r#""10m""#);
    let mut gate = Gate::start(&config).await;
    let file = gate.path("access.log");
    let target = format!("{:?}", file.display().to_string());
    gate.rewrite(
        &config
            .set("server.drain_timeout", r#""100ms""#)
            .set("log.access_log", &target)
            .set("log.format", r#""text""#)
            .set("headers.referrer_policy", r#""moved""#),
    );
    takes_effect(&gate, "the reload", "moved").await;
    // The header may be there a moment before the log.
    wait::until("the line in the file", async || {
        client::get(gate.address, "/to/the/file", "").await;
        let text = std::fs::read_to_string(&file).ok()?;
        text.contains("/to/the/file").then_some(())
    })
    .await;
    wait::until("a line of text in the log", async || {
        let log = std::fs::read_to_string(gate.path("stderr")).ok()?;
        log.lines()
            .any(|line| !line.is_empty() && !line.starts_with('{'))
            .then_some(())
    })
    .await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await;
    origin.wait_for("/never").await;
    gate.signal(Signal::TERM);
    assert!(gate.exited().await.success(), "{}", gate.log());
}

/// A store that takes a connection and says nothing until it is dropped.
struct Store {
    _held: tokio::net::TcpStream,
    _listener: tokio::net::TcpListener,
    /// With its address.
    _file: tempfile::TempDir,
}

/// A gate in the middle of its start: it has read its configuration and waits for the store.
async fn starting(config: &Config) -> (Gate, Store) {
    let store = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let directory = tempfile::tempdir().expect("a folder");
    let file = directory.path().join("store");
    let address = store.local_addr().expect("a bound socket has an address");
    std::fs::write(&file, format!("postgres://user@{address}/app?sslmode=disable")).expect("the address is written");
    let from = format!("{{ file = {:?} }}", file.display().to_string());
    let gate = Gate::begin(&config.clone().set("store.postgres", &from));
    let (held, _) = wait::within("the call to the store", store.accept())
        .await
        .expect("a connection");
    (
        gate,
        Store {
            _held: held,
            _listener: store,
            _file: directory,
        },
    )
}

#[tokio::test]
async fn change_made_while_the_gate_starts_takes_effect() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin);
    let (mut gate, store) = starting(&config).await;
    gate.rewrite(&config.set("headers.referrer_policy", r#""meanwhile""#));
    drop(store);
    gate.ready().await;
    takes_effect(&gate, "what was written during the start", "meanwhile").await;
}

#[tokio::test]
async fn hangup_while_the_gate_starts_does_not_end_it() {
    let origin = Origin::answering("x").await;
    let (mut gate, store) = starting(&Config::before(&origin)).await;
    gate.signal(Signal::HUP);
    drop(store);
    gate.ready().await;
    assert_eq!(client::get(gate.address, "/", "").await.status, 200);
}
