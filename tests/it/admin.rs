//! The admin listener: who may, what is listed, and refusals as problem documents.

use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::version::{TLS12, TLS13};
use sha2::{Digest as _, Sha256};

use crate::support::certificates::{Authority, Files};
use crate::support::client::{self, Answer, Raw};
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate, TOKEN};
use crate::support::{namespace, wait};

const DDOS: &str = "/api/infrastructure/ddos";
const METRICS_TOKEN: &str = "fgt_for_prometheus_alone";

#[tokio::test]
async fn api_needs_a_token_and_quotes_what_is_no_address() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let stats = format!("{DDOS}/stats");
    let refused = client::get(gate.admin, &stats, "").await;
    assert_eq!(refused.status, 401);
    refused.problem();
    assert_eq!(gate.admin("GET", &stats, "").await.status, 200);
    assert_eq!(client::get(gate.admin, "/health", "").await.status, 200);
    for (method, act) in [("POST", "block"), ("POST", "unblock"), ("GET", "ip")] {
        for (written, quoted) in [
            ("nonsense", "nonsense"),
            ("999.1.2.3", "999.1.2.3"),
            ("1.2.3.4%2F33", "1.2.3.4/33"),
            ("%3Cscript%3E", "<script>"),
            ("2001:db8:::1", "2001:db8:::1"),
            ("a%0Ab", "a\\nb"),
        ] {
            let refused = gate.admin(method, &format!("{DDOS}/{act}/{written}"), "").await;
            assert_eq!(refused.status, 422, "{act} {written}");
            let detail = refused.problem()["detail"].as_str().map(str::to_owned);
            assert!(
                detail.as_ref().is_some_and(|detail| detail.contains(quoted)),
                "{act} {written}: {detail:?}"
            );
        }
    }
}

#[tokio::test]
async fn blocks_are_paged_from_the_newest_on_with_their_total() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let page = async |query: &str| {
        let answer = gate.admin("GET", &format!("{DDOS}/blocks{query}"), "").await;
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        let page = answer.json();
        let blocks = page["blocks"].as_array().expect("a list").iter();
        let networks = blocks.map(|block| block["network"].as_str().unwrap_or_default().to_owned());
        let paging = ["total", "offset", "limit"].map(|name| page[name].as_u64().unwrap_or(u64::MAX));
        (networks.collect::<Vec<_>>(), paging)
    };
    assert_eq!(page("").await, (Vec::new(), [0, 0, 100]));
    for number in 1..=5 {
        let made = gate
            .admin("POST", &format!("{DDOS}/block/198.51.100.{number}"), "")
            .await;
        assert_eq!(made.status, 201, "{made:?}");
    }
    let of = |numbers: &[u8]| -> Vec<String> { numbers.iter().map(|n| format!("198.51.100.{n}")).collect() };
    for (query, numbers, paging) in [
        ("", &[5, 4, 3, 2, 1][..], [5, 0, 100]),
        ("?limit=2", &[5, 4], [5, 0, 2]),
        ("?offset=2&limit=2", &[3, 2], [5, 2, 2]),
        ("?limit=2&offset=4", &[1], [5, 4, 2]),
        ("?offset=5", &[], [5, 5, 100]),
        ("?offset=18446744073709551615&limit=3", &[], [5, u64::MAX, 3]),
        ("?limit=0", &[5], [5, 0, 1]),
        ("?limit=1000000", &[5, 4, 3, 2, 1], [5, 0, 1000]),
    ] {
        assert_eq!(page(query).await, (of(numbers), paging), "{query}");
    }
    // A block that is replaced is a new one.
    gate.admin("POST", &format!("{DDOS}/block/198.51.100.2"), r#"{"reason":"again"}"#)
        .await;
    assert_eq!(page("?limit=2").await, (of(&[2, 5]), [5, 0, 2]));
    for query in ["?limit=x", "?offset=-1", "?limit=", "?page=2"] {
        let refused = gate.admin("GET", &format!("{DDOS}/blocks{query}"), "").await;
        assert_eq!(refused.status, 422, "{query}");
        refused.problem();
    }
}

#[tokio::test]
async fn network_is_blocked_and_lifted_by_its_percent_encoded_name() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin).set("client.trusted_proxies", r#"["127.0.0.1/32"]"#);
    let gate = Gate::start(&config).await;
    let status = async |from: &str| {
        let header = format!("x-forwarded-for: {from}\r\n");
        client::get(gate.address, "/", &header).await.status
    };
    for (written, network, inside, outside) in [
        ("198.51.100.0%2F24", "198.51.100.0/24", "198.51.100.9", "198.51.101.9"),
        (
            "198.51.100.77%2f25",
            "198.51.100.0/25",
            "198.51.100.9",
            "198.51.100.200",
        ),
        (
            "2001%3Adb8%3A1%3A%3A%2F48",
            "2001:db8:1::/48",
            "2001:db8:1:9::1",
            "2001:db8:2::1",
        ),
    ] {
        let made = gate.admin("POST", &format!("{DDOS}/block/{written}"), "").await;
        assert_eq!(made.status, 201, "{written}: {made:?}");
        assert_eq!(made.json()["block"]["network"], network, "{made:?}");
        assert_eq!((status(inside).await, status(outside).await), (403, 200), "{written}");
        let lifted = gate.admin("POST", &format!("{DDOS}/unblock/{written}"), "").await;
        assert_eq!(lifted.status, 200, "{written}: {lifted:?}");
        assert_eq!(status(inside).await, 200, "{written}");
        let again = gate.admin("POST", &format!("{DDOS}/unblock/{written}"), "").await;
        assert_eq!(again.status, 404, "{written}");
        assert!(again.problem()["detail"].to_string().contains(network), "{again:?}");
    }
    let unencoded = gate.admin("POST", &format!("{DDOS}/block/198.51.100.0/24"), "").await;
    assert_eq!(unencoded.status, 404);
    unencoded.problem();
}

#[tokio::test]
async fn report_of_a_client_tells_a_block_that_holds_from_one_that_does_not() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin)
        .set("client.trusted_proxies", r#"["127.0.0.1/32"]"#)
        .set("limits.exempt", r#"["198.51.100.7/32"]"#);
    let gate = Gate::start(&config).await;
    let made = gate.admin("POST", &format!("{DDOS}/block/198.51.100.0%2F24"), "").await;
    assert_eq!(made.status, 201, "{made:?}");
    for (address, exempt, blocked, status) in [("198.51.100.7", true, false, 200), ("198.51.100.8", false, true, 403)] {
        let report = gate.admin("GET", &format!("{DDOS}/ip/{address}"), "").await.json();
        assert_eq!(report["block"]["network"], "198.51.100.0/24", "{report}");
        assert_eq!(
            (&report["blocked"], &report["exempt"]),
            (&blocked.into(), &exempt.into()),
            "{report}"
        );
        let header = format!("x-forwarded-for: {address}\r\n");
        assert_eq!(
            client::get(gate.address, "/", &header).await.status,
            status,
            "{address}"
        );
    }
    let elsewhere = gate.admin("GET", &format!("{DDOS}/ip/192.0.2.1"), "").await.json();
    assert_eq!(
        (&elsewhere["blocked"], &elsewhere["block"]),
        (&false.into(), &serde_json::Value::Null)
    );
}

#[tokio::test]
async fn who_guesses_tokens_must_wait_and_who_has_one_need_not() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let stats = format!("{DDOS}/stats");
    for guess in 0..10 {
        let refused = client::get(gate.admin, &stats, &format!("authorization: Bearer guess-{guess}\r\n")).await;
        assert_eq!(refused.status, 401, "guess {guess}");
        let challenge = refused.header("www-authenticate").unwrap_or_default().to_owned();
        assert!(challenge.contains("invalid_token"), "{challenge}");
    }
    let throttled = client::get(gate.admin, &stats, "authorization: Bearer guess-11\r\n").await;
    assert_eq!(throttled.status, 429);
    throttled.problem();
    let wait: u64 = throttled
        .header("retry-after")
        .and_then(|text| text.parse().ok())
        .expect("whole seconds");
    assert!((1..=61).contains(&wait), "{wait}");
    // Nothing that is known is kept from its owner, and asking without a token is no guess.
    assert_eq!(gate.admin("GET", &stats, "").await.status, 200);
    assert_eq!(client::get(gate.admin, &stats, "").await.status, 401);
    assert_eq!(client::get(gate.admin, "/metrics", "").await.status, 200);
}

/// The admin listener with TLS on this address; clients must show a certificate of `clients`.
fn secured(origin: &Origin, at: &str, leaf: &Files, clients: Option<&Path>) -> Config {
    let text = |path: &Path| format!("{:?}", path.display().to_string());
    let (cert, key) = (text(&leaf.cert), text(&leaf.key));
    let clients = clients.map_or(String::new(), |ca| format!(", client_ca = {}", text(ca)));
    Config::before(origin)
        .set("admin.listen", &format!("{at:?}"))
        .set("admin.tls", &format!("{{ cert = {cert}, key = {key}{clients} }}"))
        .set(
            "admin.metrics_token",
            &format!("\"{}\"", hex::encode(Sha256::digest(METRICS_TOKEN))),
        )
}

/// `None`: no handshake, or the connection ended without an answer (TLS 1.3 refuses a client only after it has begun).
async fn ask(gate: &Gate, client: &Arc<ClientConfig>, path: &str, token: &str) -> Option<Answer> {
    let stream = client::handshake(gate.admin, Arc::clone(client), "admin.test")
        .await
        .ok()?;
    let mut raw = Raw::over(stream);
    let authorization = if token.is_empty() {
        String::new()
    } else {
        format!("authorization: Bearer {token}\r\n")
    };
    raw.try_send(format!(
        "GET {path} HTTP/1.1\r\nhost: admin.test\r\n{authorization}\r\n"
    ))
    .await
    .ok()?;
    wait::within("an answer or the end", raw.try_answer()).await
}

/// Everything that must hold beyond loopback.
async fn admin_beyond_loopback() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let (ours, strangers) = (Authority::new(), Authority::new());
    let leaf = ours.leaf(directory.path(), "admin", &["admin.test"]);
    let known = ours.leaf(directory.path(), "known", &["prometheus"]);
    let unknown = strangers.leaf(directory.path(), "unknown", &["prometheus"]);
    let authority = directory.path().join("clients.pem");
    ours.write(&authority);
    // No port can be taken here: nobody else is in this network.
    let at = |port: u16| format!("{}:{port}", namespace::ADDRESS);
    let gate = Gate::start(&secured(&origin, &at(8444), &leaf, Some(&authority))).await;
    let stats = format!("{DDOS}/stats");
    // In the clear, nothing is said.
    let mut plain = Raw::plain(gate.admin).await;
    drop(plain.try_send("GET /health HTTP/1.1\r\nhost: a\r\n\r\n").await);
    assert!(wait::within("the end", plain.try_answer()).await.is_none());
    for version in [&TLS12, &TLS13] {
        for own in [None, Some(&unknown)] {
            let client = ours.client_of(version, own);
            assert!(ask(&gate, &client, "/health", "").await.is_none(), "{version:?}");
        }
        let client = ours.client_of(version, Some(&known));
        for (path, token, wanted) in [
            ("/health", "", 200),
            ("/metrics", "", 401),
            ("/metrics", "wrong", 401),
            ("/metrics", METRICS_TOKEN, 200),
            ("/metrics", TOKEN, 200),
            (&stats, "", 401),
            (&stats, METRICS_TOKEN, 401),
            (&stats, TOKEN, 200),
        ] {
            let answer = ask(&gate, &client, path, token).await.expect("an answer");
            assert_eq!(
                answer.status, wanted,
                "{path} with {token:?} over {version:?}: {answer:?}"
            );
        }
    }
    // The certificate of a client is no token, and without `client_ca` none is asked for.
    let gate = Gate::start(&secured(&origin, &at(8445), &leaf, None)).await;
    let client = ours.client_of(&TLS13, None);
    let bare = ask(&gate, &client, "/metrics", "").await.expect("an answer");
    assert_eq!(bare.status, 401);
    bare.problem();
    let scraped = ask(&gate, &client, "/metrics", METRICS_TOKEN).await.expect("an answer");
    assert_eq!(scraped.status, 200);
    assert!(scraped.text().contains("foregate_build_info"), "{scraped:?}");
}

mod own_network {
    use super::{admin_beyond_loopback, namespace};

    #[tokio::test]
    async fn beyond_loopback_admin_asks_for_tls_a_client_certificate_and_a_token_even_for_metrics() {
        let test = "beyond_loopback_admin_asks_for_tls_a_client_certificate_and_a_token_even_for_metrics";
        if namespace::is_here_or_runs(&format!("admin::own_network::{test}")) {
            admin_beyond_loopback().await;
        }
    }
}

#[tokio::test]
async fn admin_certificate_is_asked_for_on_loopback_too_and_renewed_by_a_reload() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "admin", &["admin.test"]);
    let known = authority.leaf(directory.path(), "known", &["ops"]);
    let ca = directory.path().join("clients.pem");
    authority.write(&ca);
    let config = secured(&origin, "127.0.0.1:0", &leaf, Some(&ca));
    let gate = Gate::start(&config).await;
    let client = authority.client_of(&TLS13, Some(&known));
    assert!(
        ask(&gate, &authority.client_of(&TLS13, None), "/health", "")
            .await
            .is_none()
    );
    // A name in `Host` that is not this machine's is refused here, as in the clear (DNS rebinding).
    let answer = ask(&gate, &client, "/metrics", "").await.expect("an answer");
    assert_eq!(answer.status, 421, "{answer:?}");
    let shown = async || {
        let stream = client::handshake(gate.admin, Arc::clone(&client), "admin.test").await;
        let stream = stream.expect("a handshake");
        stream.get_ref().1.peer_certificates().expect("a certificate")[0].to_vec()
    };
    let before = shown().await;
    let fresh = authority.leaf(directory.path(), "fresh", &["admin.test"]);
    gate.rewrite(&secured(&origin, "127.0.0.1:0", &fresh, Some(&ca)));
    wait::until("the fresh certificate", async || {
        (shown().await != before).then_some(())
    })
    .await;
}
