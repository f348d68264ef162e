//! TLS: protocols by ALPN, certificates by SNI.

use std::sync::Arc;

use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind};

use crate::support::certificates::{Authority, Files};
use crate::support::client::{self, Raw};
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};
use crate::support::{metrics, wait};

fn secured(origin: &Origin, leaves: &[&Files]) -> Config {
    Config::before(origin).tls(leaves)
}

/// The certificate that the gate shows for this name.
async fn shown(gate: &Gate, client: Arc<ClientConfig>, name: &str) -> Vec<u8> {
    let stream = client::handshake(gate.address, client, name)
        .await
        .expect("a handshake");
    let chain = stream.get_ref().1.peer_certificates().expect("a certificate");
    chain[0].to_vec()
}

async fn ask(gate: &Gate, client: Arc<ClientConfig>) -> std::io::Result<(HandshakeKind, u16)> {
    let stream = client::handshake(gate.address, client, "localhost").await?;
    let kind = stream.get_ref().1.handshake_kind().expect("a finished handshake");
    let mut raw = Raw::over(stream);
    raw.try_send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
    let answer = wait::within("an answer", raw.try_answer()).await;
    let answer = answer.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok((kind, answer.status))
}

#[tokio::test]
async fn both_protocols_pass_over_tls() {
    let (origin, directory) = (Origin::answering("hello").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let config = secured(&origin, &[&leaf]);
    let gate = Gate::start(&config).await;
    let mut raw = Raw::tls(gate.address, authority.client(&["http/1.1"]), "localhost").await;
    raw.send("GET /one HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(raw.answer().await.body.as_ref(), b"hello");
    let stream = client::handshake(gate.address, authority.client(&["h2"]), "localhost")
        .await
        .expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let request = http::Request::get("https://localhost/two")
        .body(http_body_util::Full::default())
        .expect("a request");
    assert_eq!(client::h2(stream, request).await.body.as_ref(), b"hello");
}

#[tokio::test]
async fn certificate_is_chosen_by_the_name_that_is_asked_for() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let one = authority.leaf(directory.path(), "one", &["one.test"]);
    let two = authority.leaf(directory.path(), "two", &["two.test", "*.wild.test"]);
    let gate = Gate::start(&secured(&origin, &[&one, &two])).await;
    let client = || authority.client(&["http/1.1"]);
    let first = shown(&gate, client(), "one.test").await;
    let second = shown(&gate, client(), "two.test").await;
    assert_ne!(first, second);
    assert_eq!(shown(&gate, client(), "a.wild.test").await, second);
    client::handshake(gate.address, client(), "other.test")
        .await
        .expect_err("the first certificate does not hold for other names");
}

#[tokio::test]
async fn both_versions_of_tls_are_spoken_and_the_older_one_can_be_refused() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let config = secured(&origin, &[&leaf]);
    let gate = Gate::start(&config).await;
    for version in [&TLS12, &TLS13] {
        assert_eq!(
            ask(&gate, authority.client_of(version, None))
                .await
                .expect("an answer")
                .1,
            200
        );
    }
    let strict = Gate::start(&config.set("tls.min_version", r#""1.3""#)).await;
    ask(&strict, authority.client_of(&TLS12, None))
        .await
        .expect_err("1.2 is refused");
    assert_eq!(
        ask(&strict, authority.client_of(&TLS13, None))
            .await
            .expect("an answer")
            .1,
        200
    );
}

#[tokio::test]
async fn session_is_resumed_across_a_reload() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let config = secured(&origin, &[&leaf]);
    let gate = Gate::start(&config).await;
    for version in [&TLS13, &TLS12] {
        let client = authority.client_of(version, None);
        assert_eq!(
            ask(&gate, Arc::clone(&client)).await.expect("an answer").0,
            HandshakeKind::Full
        );
        let mark = format!("\"{:?}\"", version.version);
        gate.rewrite(&config.clone().set("headers.x_frame_options", &mark));
        wait::until("the reload", async || {
            let stream = client::handshake(gate.address, authority.client(&[]), "localhost")
                .await
                .ok()?;
            let mut raw = Raw::over(stream);
            raw.send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
            (raw.answer().await.header("x-frame-options") == Some(mark.trim_matches('"'))).then_some(())
        })
        .await;
        assert_eq!(
            ask(&gate, client).await.expect("an answer").0,
            HandshakeKind::Resumed,
            "{version:?}"
        );
    }
}

#[tokio::test]
async fn client_certificate_is_required_where_an_authority_is_set() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let (authority, stranger) = (Authority::new(), Authority::new());
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let own = authority.leaf(directory.path(), "client", &["client"]);
    let foreign = stranger.leaf(directory.path(), "stranger", &["client"]);
    let file = directory.path().join("clients.pem");
    authority.write(&file);
    let config = secured(&origin, &[&leaf]).set("tls.client_ca", &format!("{:?}", file.display().to_string()));
    let gate = Gate::start(&config).await;
    for version in [&TLS12, &TLS13] {
        ask(&gate, authority.client_of(version, None))
            .await
            .expect_err("no certificate");
        ask(&gate, authority.client_of(version, Some(&foreign)))
            .await
            .expect_err("a stranger's");
        let (_, status) = ask(&gate, authority.client_of(version, Some(&own)))
            .await
            .expect("an answer");
        assert_eq!(status, 200);
    }
    let stream = client::handshake(gate.address, authority.client_of(&TLS13, Some(&own)), "localhost")
        .await
        .expect("a handshake");
    let mut raw = Raw::over(stream);
    raw.send("GET / HTTP/1.1\r\nhost: other\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 421, "another host than the handshake named");
}

#[tokio::test]
async fn bad_certificate_at_a_reload_leaves_the_old_one_and_a_good_one_replaces_it() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let gate = Gate::start(&secured(&origin, &[&leaf])).await;
    let client = || authority.client(&["http/1.1"]);
    let old = shown(&gate, client(), "localhost").await;
    let good_key = std::fs::read(&leaf.key).expect("the key");
    let other = authority.leaf(directory.path(), "other", &["localhost"]);
    let expired = authority.leaf_until(directory.path(), "expired", &["localhost"], 2001);
    let mistakes = [
        (
            "a key that does not fit",
            std::fs::read(&leaf.cert),
            std::fs::read(&other.key),
        ),
        (
            "an expired certificate",
            std::fs::read(&expired.cert),
            std::fs::read(&expired.key),
        ),
        ("no certificate", Ok(b"junk".to_vec()), Ok(good_key)),
    ];
    let success = async |wanted: f64| {
        gate.signal(rustix::process::Signal::HUP);
        wait::until("the outcome of the reload", async || {
            let text = metrics::scrape(gate.admin).await;
            (metrics::sample(&text, "foregate_config_last_reload_success") == Some(wanted)).then_some(())
        })
        .await;
    };
    for (name, cert, key) in mistakes {
        std::fs::write(&leaf.cert, cert.expect("a certificate")).expect("the certificate is written");
        std::fs::write(&leaf.key, key.expect("a key")).expect("the key is written");
        success(0.0).await;
        assert_eq!(shown(&gate, client(), "localhost").await, old, "{name}");
    }
    let fresh = authority.leaf(directory.path(), "leaf", &["localhost"]);
    assert_eq!(fresh.cert, leaf.cert);
    wait::until("the new certificate", async || {
        (shown(&gate, client(), "localhost").await != old).then_some(())
    })
    .await;
    success(1.0).await;
}

#[tokio::test]
async fn expired_certificate_stops_neither_start_nor_reload_and_is_told_until_it_is_renewed() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let other = authority.leaf_until(directory.path(), "other", &["other"], 2001);
    let config = secured(&origin, &[&leaf, &other]);
    let gate = Gate::start(&config).await;
    let told = async |wanted: &str, alerts: f64| {
        wait::until(&format!("certificates {wanted}, {alerts} alerts"), async || {
            let health = gate.admin("GET", "/health/comprehensive", "").await.json();
            let metrics = metrics::scrape(gate.admin).await;
            let in_force = metrics::sample(&metrics, "foregate_alerts_in_force");
            (health["parts"]["certificates"]["status"] == wanted && in_force == Some(alerts)).then_some(health)
        })
        .await
    };
    let health = told("degraded", 1.0).await;
    let detail = health["parts"]["certificates"]["detail"].to_string();
    assert!(detail.contains("other.pem expired at 2001"), "{detail}");
    assert!(gate.log().contains("other.pem expired at 2001"), "{}", gate.log());
    let client = || authority.client(&["http/1.1"]);
    shown(&gate, client(), "localhost").await;

    // In the middle of an attack, say.
    gate.rewrite(&config.set("headers.referrer_policy", r#""reloaded""#));
    wait::until("the reload", async || {
        let mut raw = Raw::tls(gate.address, client(), "localhost").await;
        raw.send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        (raw.answer().await.header("referrer-policy") == Some("reloaded")).then_some(())
    })
    .await;

    authority.leaf(directory.path(), "other", &["other"]);
    told("healthy", 0.0).await;
    shown(&gate, client(), "other").await;
}

#[tokio::test]
async fn plain_mode_speaks_both_protocols_on_one_port() {
    let origin = Origin::answering("hello").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    assert_eq!(client::get(gate.address, "/", "").await.status, 200);
    let tcp = tokio::net::TcpStream::connect(gate.address)
        .await
        .expect("the port accepts");
    let request = http::Request::get("http://localhost/two")
        .body(http_body_util::Full::default())
        .expect("a request");
    assert_eq!(client::h2(tcp, request).await.body.as_ref(), b"hello");
}

fn quoted(path: &std::path::Path) -> String {
    format!("{:?}", path.display().to_string())
}

/// Waits until a client without a ticket is refused, which tells that a reload has made the rules stricter.
async fn refused_anew(gate: &Gate, client: impl Fn() -> Arc<ClientConfig>) {
    wait::until("the stricter rules", async || ask(gate, client()).await.err()).await;
}

#[tokio::test]
async fn ticket_from_before_client_certificates_were_required_lets_nobody_in() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let own = authority.leaf(directory.path(), "client", &["client"]);
    let file = directory.path().join("clients.pem");
    authority.write(&file);
    // One worker, which is the one that the probe has asked.
    let config = secured(&origin, &[&leaf]).set("server.workers", "1");
    let gate = Gate::start(&config).await;
    let before = [&TLS12, &TLS13].map(|version| authority.client_of(version, None));
    for client in &before {
        assert_eq!(ask(&gate, Arc::clone(client)).await.expect("an answer").1, 200);
        let (kind, _) = ask(&gate, Arc::clone(client)).await.expect("an answer");
        assert_eq!(kind, HandshakeKind::Resumed, "a ticket is there");
    }
    let strict = config.set("tls.client_ca", &quoted(&file));
    gate.rewrite(&strict);
    refused_anew(&gate, || authority.client_of(&TLS13, None)).await;
    for client in before {
        ask(&gate, client)
            .await
            .expect_err("the ticket stands for no certificate");
    }
    // What was issued under the rule in force is good for as long as the rule is.
    let client = authority.client_of(&TLS13, Some(&own));
    assert_eq!(
        ask(&gate, Arc::clone(&client)).await.expect("an answer").0,
        HandshakeKind::Full
    );
    gate.rewrite(&strict.set("headers.x_frame_options", r#""reloaded""#));
    wait::until("the reload", async || {
        let client = authority.client_of(&TLS13, Some(&own));
        let stream = client::handshake(gate.address, client, "localhost").await.ok()?;
        let mut raw = Raw::over(stream);
        raw.send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        (raw.answer().await.header("x-frame-options") == Some("reloaded")).then_some(())
    })
    .await;
    assert_eq!(ask(&gate, client).await.expect("an answer").0, HandshakeKind::Resumed);
}

#[tokio::test]
async fn ticket_ends_with_the_authority_behind_its_certificate() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let (authority, withdrawn) = (Authority::new(), Authority::new());
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let good = authority.leaf(directory.path(), "good", &["client"]);
    let bad = withdrawn.leaf(directory.path(), "bad", &["client"]);
    let (file, other) = (directory.path().join("clients.pem"), directory.path().join("other.pem"));
    withdrawn.write(&other);
    authority.write(&file);
    let alone = std::fs::read_to_string(&file).expect("the authority");
    let both = format!("{alone}{}", std::fs::read_to_string(&other).expect("the other"));
    std::fs::write(&file, both).expect("both are believed");
    let config = secured(&origin, &[&leaf])
        .set("server.workers", "1")
        .set("tls.client_ca", &quoted(&file));
    let gate = Gate::start(&config).await;
    let before = [&TLS12, &TLS13].map(|version| authority.client_of(version, Some(&bad)));
    for client in &before {
        assert_eq!(ask(&gate, Arc::clone(client)).await.expect("an answer").1, 200);
    }
    // The same name, another content: nothing in config.toml changes.
    std::fs::write(&file, alone).expect("one is withdrawn");
    refused_anew(&gate, || authority.client_of(&TLS13, Some(&bad))).await;
    for client in before {
        ask(&gate, client)
            .await
            .expect_err("the authority is not believed any more");
    }
    let client = authority.client_of(&TLS13, Some(&good));
    assert_eq!(ask(&gate, client).await.expect("an answer").1, 200);
}

#[tokio::test]
async fn development_certificate_is_kept_over_a_restart() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin).set("tls.mode", r#""self_signed""#);
    let gate = Gate::start(&config).await;
    let file = |gate: &Gate| std::fs::read(gate.path("state/self-signed.crt")).expect("a certificate");
    let first = file(&gate);
    let gate = Gate::start_in(gate.kill(), &config).await;
    assert_eq!(file(&gate), first);
}

#[tokio::test]
async fn connection_of_who_would_not_be_let_in_any_more_ends_and_others_stay() {
    let origin = Origin::start(|head| {
        if head.starts_with("GET /tunnel") {
            Script::Echo
        } else {
            Script::Answer(ok("x"))
        }
    })
    .await;
    let directory = tempfile::tempdir().expect("a folder");
    let (authority, other) = (Authority::new(), Authority::new());
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let own = authority.leaf(directory.path(), "client", &["client"]);
    let file = directory.path().join("clients.pem");
    authority.write(&file);
    let plain = secured(&origin, &[&leaf]).set("server.workers", "1");
    let strict = plain.clone().set("tls.client_ca", &quoted(&file));
    let gate = Gate::start(&plain).await;
    let open = async |own: Option<&Files>| {
        let mut raw = Raw::tls(gate.address, authority.client_of(&TLS13, own), "localhost").await;
        raw.send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert_eq!(raw.answer().await.status, 200);
        raw
    };
    let (mut unproven, mut tunnel) = (open(None).await, open(None).await);
    tunnel
        .send("GET /tunnel HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        .await;
    assert_eq!(tunnel.answer().await.status, 101);
    tunnel.send("ping").await;
    assert_eq!(tunnel.take(4).await.expect("the echo"), b"ping");
    gate.rewrite(&strict);
    unproven.closed().await;
    tunnel.closed().await;

    let mut proven = open(Some(&own)).await;
    // Another authority beside the first one: whoever was let in still is.
    let more = directory.path().join("more.pem");
    other.write(&more);
    let both = [&file, &more].map(|file| std::fs::read_to_string(file).expect("an authority"));
    std::fs::write(&file, both.concat()).expect("both are believed");
    let late = other.leaf(directory.path(), "late", &["client"]);
    wait::until("the other authority", async || {
        ask(&gate, authority.client_of(&TLS13, Some(&late))).await.ok()
    })
    .await;
    proven.send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(proven.answer().await.status, 200);
    other.write(&file);
    proven.closed().await;
}
