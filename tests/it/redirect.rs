//! Plain HTTP is only sent on to https, and is guarded as https is.

use std::net::SocketAddr;

use crate::support::certificates::Authority;
use crate::support::client::{self, Answer, Raw};
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::{metrics, wait};

/// A gate with TLS, and beside it a listener for plain HTTP.
struct Redirecting {
    gate: Gate,
    plain: SocketAddr,
    _origin: Origin,
    _certificates: tempfile::TempDir,
}

impl Redirecting {
    /// On the address ::1, so that blocking it does not block the admin's calls.
    async fn start(shape: impl FnOnce(Config) -> Config) -> Self {
        let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
        let leaf = Authority::new().leaf(directory.path(), "leaf", &["localhost"]);
        let config = Config::before(&origin)
            .tls(&[&leaf])
            .set("server.redirect_http", r#"["[::1]:0"]"#);
        let gate = Gate::start(&shape(config)).await;
        let addresses = std::fs::read_to_string(gate.path("addresses.json")).expect("the addresses");
        let addresses: serde_json::Value = serde_json::from_str(&addresses).expect("JSON");
        let plain = addresses["redirect"][0].as_str().and_then(|text| text.parse().ok());
        Self {
            plain: plain.expect("an address"),
            gate,
            _origin: origin,
            _certificates: directory,
        }
    }

    async fn ask(&self, target: &str, hosts: &[&str]) -> Answer {
        let hosts: String = hosts.iter().map(|host| format!("host: {host}\r\n")).collect();
        let mut raw = Raw::plain(self.plain).await;
        raw.send(format!("GET {target} HTTP/1.1\r\n{hosts}\r\n")).await;
        raw.answer().await
    }

    /// The answer on a connection of its own, unless that is refused.
    async fn try_ask(&self) -> Option<Answer> {
        let stream = wait::within("a connection", tokio::net::TcpStream::connect(self.plain)).await;
        let mut raw = Raw::over(stream.ok()?);
        raw.try_send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.ok()?;
        wait::within("an answer or the end", raw.try_answer()).await
    }

    /// Waits until a further connection is refused for this reason.
    async fn refused(&self, reason: &str) {
        let name = format!("foregate_proxy_refused_connections_total{{reason=\"{reason}\"}}");
        wait::until(&name, async || {
            let answer = self.try_ask().await;
            let text = metrics::scrape(self.gate.admin).await;
            (answer.is_none() && metrics::sample(&text, &name)? > 0.0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn plain_http_is_sent_to_the_same_place_over_https() {
    let gate = Redirecting::start(|config| config).await;
    let port = gate.gate.address.port();
    for (target, host, place) in [
        (
            "/a/b?c=d&e=%2F",
            "example.org",
            format!("https://example.org:{port}/a/b?c=d&e=%2F"),
        ),
        ("/", "example.org:8080", format!("https://example.org:{port}/")),
        ("/x", "[2001:db8::1]:80", format!("https://[2001:db8::1]:{port}/x")),
        ("/x", "[2001:db8::1]", format!("https://[2001:db8::1]:{port}/x")),
        (
            "http://example.net/y?z",
            "example.net",
            format!("https://example.net:{port}/y?z"),
        ),
    ] {
        let answer = gate.ask(target, &[host]).await;
        assert_eq!(
            (answer.status, answer.header("location")),
            (308, Some(place.as_str())),
            "{target} at {host}"
        );
    }
    for hosts in [&[] as &[&str], &["a", "b"], &["a/b"], &["a b"], &["user@a"], &[""]] {
        let answer = gate.ask("/", hosts).await;
        assert_eq!((answer.status, answer.header("location")), (400, None), "{hosts:?}");
    }
}

#[tokio::test]
async fn limits_hold_for_plain_http_too() {
    let gate = Redirecting::start(|config| config.set("limits.requests_per_minute", "2")).await;
    for wanted in [308, 308, 429] {
        let answer = gate.ask("/", &["a"]).await;
        assert_eq!(answer.status, wanted, "{answer:?}");
        assert_eq!(answer.header("location").is_some(), wanted == 308);
        assert_eq!(answer.header("strict-transport-security"), None, "RFC 6797 section 7.2");
    }
    gate.ask("/", &["a"]).await.problem();
}

#[tokio::test]
async fn blocked_client_is_refused_on_plain_http_too() {
    // Where the gate's own listener learns the client from a balancer, plain HTTP still sees its peer.
    for behind_balancer in ["false", "true"] {
        let gate = Redirecting::start(|config| config.set("server.proxy_protocol", behind_balancer)).await;
        assert_eq!(gate.ask("/", &["a"]).await.status, 308);
        let made = gate.gate.admin("POST", "/api/infrastructure/ddos/block/::1", "").await;
        assert!((200..300).contains(&made.status), "{made:?}");
        assert_eq!(gate.ask("/", &["a"]).await.problem()["status"], 403);
        gate.refused("blocked").await;
    }
}

#[tokio::test]
async fn connections_of_a_client_to_plain_http_are_capped_behind_a_balancer_too() {
    let gate = Redirecting::start(|config| {
        config
            .set("server.proxy_protocol", "true")
            .set("server.max_connections_per_client", "2")
            // Those that are held say nothing.
            .set("server.timeouts.request_header", r#""10m""#)
            // One worker takes connections in the order in which they came.
            .set("server.workers", "1")
    })
    .await;
    let held = [Raw::plain(gate.plain).await, Raw::plain(gate.plain).await];
    gate.refused("client_full").await;
    drop(held);
    wait::until("a free place", async || {
        (gate.try_ask().await?.status == 308).then_some(())
    })
    .await;
    // The balancer's own listener asks for its header as before.
    let mut raw = Raw::plain(gate.gate.address).await;
    raw.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    raw.closed().await;
    assert_eq!(client::get(gate.gate.admin, "/health", "").await.status, 200);
}
