//! Every family of metrics: what makes it count is provoked, then all of it is read from `/metrics` at once. No label may
//! tell who a client is or what it asked for.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::Notify;

use crate::support::certificates::Authority;
use crate::support::client::{self, Raw};
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};
use crate::support::{metrics, wait};

const DDOS: &str = "/api/infrastructure/ddos";
/// In every path that the tests ask for.
const MARK: &str = "/marked-";
/// Labels that name what an operator has configured.
const CONFIGURED: [(&str, &str); 2] = [
    ("foregate_tls_certificate_expiry_seconds", "path"),
    ("foregate_upstream_server_up", "server"),
];

/// What a sample must be.
#[derive(Debug, Clone, Copy)]
enum Want {
    Is(f64),
    AtLeast(f64),
}

use Want::{AtLeast, Is};

/// Waits until all of these samples are what they must be, in one and the same answer.
async fn hold(gate: &Gate, table: &[(&str, Want)]) {
    // A little before the wait is over, it is told what was waited for in vain.
    let tell = Instant::now() + wait::DEADLINE - Duration::from_secs(1);
    wait::until("the samples", async || {
        let text = metrics::scrape(gate.admin).await;
        names_no_client(&text);
        let wrong: Vec<_> = table
            .iter()
            .map(|(name, want)| (name, want, metrics::sample(&text, name)))
            .filter(|(_, want, found)| match want {
                Is(wanted) => *found != Some(*wanted),
                AtLeast(least) => found.is_none_or(|found| found < *least),
            })
            .collect();
        assert!(wrong.is_empty() || Instant::now() < tell, "{wrong:#?}\n{text}");
        wrong.is_empty().then_some(())
    })
    .await;
}

/// Looks at every label of every sample.
fn names_no_client(text: &str) {
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, labels)) = line.split_once('{') else {
            continue;
        };
        let (labels, _) = labels.rsplit_once('}').expect("labels end");
        for label in labels.split("\",") {
            let (label, value) = label.split_once("=\"").expect("a label has a value");
            let value = value.trim_end_matches('"');
            if CONFIGURED.contains(&(name, label)) {
                continue;
            }
            let is_address = value.parse::<IpAddr>().is_ok()
                || value.parse::<IpNet>().is_ok()
                || value.parse::<SocketAddr>().is_ok();
            assert!(!is_address && !value.contains(MARK), "{line}");
        }
    }
}

/// An app that answers as the path says.
async fn obedient_app(rest: Arc<Notify>) -> Origin {
    let plain = |status: &str| Script::Answer(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into_bytes());
    Origin::start(move |head| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        match path.strip_prefix(MARK).unwrap_or(path) {
            "moved" => plain("302 Found"),
            "missing" => plain("404 Not Found"),
            "forbidden" => plain("401 Unauthorized"),
            "broken" => plain("500 Internal Server Error"),
            "dead" => Script::Close(Vec::new()),
            "never" => Script::Never,
            "echo" => Script::Echo,
            "half" => Script::Pieces(
                Arc::clone(&rest),
                vec![
                    b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".to_vec(),
                    b"-whole".to_vec(),
                ],
            ),
            "/.env" => plain("404 Not Found"),
            _ => Script::Answer(ok("hello")),
        }
    })
    .await
}

/// The status of an answer to GET, for this client.
async fn get(gate: &Gate, path: &str, from: &str) -> u16 {
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{MARK}{path}")
    };
    let headers = format!("x-forwarded-for: {from}\r\n");
    client::get(gate.address, &path, &headers).await.status
}

/// Sends this and returns the status of the answer, and the connection.
async fn exchange(gate: &Gate, request: &str) -> (u16, Raw) {
    let mut raw = Raw::plain(gate.address).await;
    drop(raw.try_send(request).await);
    (raw.answer().await.status, raw)
}

/// The class of the status, the outcome, and how many of such requests [`end_in_every_way`] makes.
const ENDED: [(&str, &str, f64); 13] = [
    ("2xx", "app", 2.0),
    ("3xx", "app", 1.0),
    ("4xx", "app", 1.0),
    ("5xx", "app", 1.0),
    ("4xx", "limited", 1.0),
    ("4xx", "blocked", 1.0),
    ("4xx", "oversized", 3.0),
    ("4xx", "refused", 2.0),
    ("5xx", "upstream_error", 1.0),
    ("none", "aborted", 1.0),
    ("2xx", "aborted", 1.0),
    ("1xx", "tunnel", 1.0),
    ("1xx", "aborted", 0.0),
];

fn ended(class: &str, outcome: &str) -> String {
    format!("foregate_proxy_requests_total{{class=\"{class}\",outcome=\"{outcome}\"}}")
}

/// Returns the tunnel, which has not ended yet.
async fn end_in_every_way(gate: &Gate, origin: &Origin) -> Raw {
    for (path, status) in [
        ("fine", 200),
        ("moved", 302),
        ("missing", 404),
        ("broken", 500),
        ("dead", 502),
    ] {
        assert_eq!(get(gate, path, "198.51.100.1").await, status, "{path}");
    }
    assert_eq!(get(gate, "limited", "198.51.100.2").await, 200);
    assert_eq!(get(gate, "limited", "198.51.100.2").await, 429);
    let made = gate.admin("POST", &format!("{DDOS}/block/198.51.100.3"), "").await;
    assert_eq!(made.status, 201);
    assert_eq!(get(gate, "fine", "198.51.100.3").await, 403);
    let big = format!("GET / HTTP/1.1\r\nhost: a\r\nx-big: {}\r\n\r\n", "a".repeat(9 << 10));
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x-y: z\r\n".repeat(30));
    let long = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1001\r\n\r\n".to_owned();
    for (request, wanted) in [(big, 431), (many, 431), (long, 413)] {
        assert_eq!(exchange(gate, &request).await.0, wanted);
    }
    assert_eq!(
        exchange(gate, "TRACE /marked-x HTTP/1.1\r\nhost: a\r\n\r\n").await.0,
        405
    );
    assert_eq!(exchange(gate, "nonsense\r\n\r\n").await.0, 400);
    // Left before there was an answer, and in the middle of one.
    let mut left = Raw::plain(gate.address).await;
    left.send("GET /marked-never HTTP/1.1\r\nhost: a\r\n\r\n").await;
    origin.wait_for("/marked-never").await;
    drop(left);
    let mut left = Raw::plain(gate.address).await;
    left.send("GET /marked-half HTTP/1.1\r\nhost: a\r\n\r\n").await;
    left.until("half").await;
    drop(left);
    let upgrade = "GET /marked-echo HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    let (status, tunnel) = exchange(gate, upgrade).await;
    assert_eq!(status, 101);
    tunnel
}

#[tokio::test]
async fn every_way_in_which_a_request_ends_is_counted_with_its_status_class() {
    let rest = Arc::new(Notify::new());
    let origin = obedient_app(Arc::clone(&rest)).await;
    let config = Config::before(&origin)
        .set("client.trusted_proxies", r#"["127.0.0.1/32"]"#)
        .set("limits.max_request_size", r#""1000B""#)
        .set("limits.max_header_size", r#""8KiB""#)
        .set("limits.max_headers", "20")
        // Every write to it fails.
        .set("log.access_log", r#""/dev/full""#)
        .set(
            "limits.rules",
            r#"[{ path = "/marked-limited", requests_per_minute = 1, requests_per_hour = 60 }]"#,
        );
    let gate = Gate::start(&config).await;
    hold(
        &gate,
        &[(
            "foregate_proxy_requests_total{class=\"none\",outcome=\"aborted\"}",
            Is(0.0),
        )],
    )
    .await;
    let tunnel = end_in_every_way(&gate, &origin).await;
    hold(
        &gate,
        &[
            ("foregate_proxy_tunnels", Is(1.0)),
            ("foregate_proxy_connections", Is(1.0)),
            ("foregate_proxy_requests_in_flight", Is(1.0)),
        ],
    )
    .await;
    drop(tunnel);
    let names = ENDED.map(|(class, outcome, count)| (ended(class, outcome), Is(count)));
    let mut table: Vec<(&str, Want)> = names.iter().map(|(name, want)| (name.as_str(), *want)).collect();
    let all = ENDED.iter().map(|(_, _, count)| count).sum::<f64>();
    table.extend([
        ("foregate_proxy_tunnels", Is(0.0)),
        ("foregate_proxy_connections", Is(0.0)),
        ("foregate_proxy_requests_in_flight", Is(0.0)),
        ("foregate_proxy_request_seconds_count", Is(all)),
        ("foregate_proxy_request_seconds_bucket{le=\"+Inf\"}", Is(all)),
        ("foregate_proxy_request_seconds_sum", AtLeast(0.000_001)),
        // Those whose headers came from the app: five answers, the half one, the tunnel.
        ("foregate_proxy_upstream_seconds_count", Is(7.0)),
        ("foregate_proxy_upstream_seconds_bucket{le=\"+Inf\"}", Is(7.0)),
        ("foregate_proxy_upstream_seconds_sum", AtLeast(0.000_001)),
        ("foregate_proxy_sent_bytes_total", AtLeast(10.0)),
        ("foregate_proxy_received_bytes_total", Is(0.0)),
        ("foregate_upstream_connections_total", AtLeast(1.0)),
        ("foregate_access_log_dropped_lines_total", Is(all)),
        ("foregate_upstream_errors_total{kind=\"bad_answer\"}", Is(1.0)),
        ("foregate_guard_limited_requests_total{window=\"minute\"}", Is(1.0)),
        ("foregate_guard_blocked_requests_total", Is(1.0)),
        ("process_resident_memory_bytes", AtLeast(1.0)),
    ]);
    let version = format!("foregate_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    table.push((&version, Is(1.0)));
    hold(&gate, &table).await;
}

#[tokio::test]
async fn failures_of_the_app_are_counted_by_their_kind() {
    let origin = obedient_app(Arc::default()).await;
    let config = Config::before(&origin).set("upstream.response_timeout", r#""3s""#);
    let gate = Gate::start(&config).await;
    let kinds = [
        "connect_refused",
        "connect_timeout",
        "connect_http",
        "bad_answer",
        "response_timeout",
    ]
    .map(|kind| format!("foregate_upstream_errors_total{{kind=\"{kind}\"}}"));
    let counts =
        |counts: [f64; 5]| -> Vec<(&str, Want)> { kinds.iter().map(String::as_str).zip(counts.map(Is)).collect() };
    // There before anything fails, so that an alert sees the first one.
    hold(&gate, &counts([0.0; 5])).await;
    assert_eq!(get(&gate, "dead", "").await, 502);
    assert_eq!(get(&gate, "never", "").await, 504);
    hold(&gate, &counts([0.0, 0.0, 0.0, 1.0, 1.0])).await;
    // Nobody listens where this is bound.
    let closed = tokio::net::TcpSocket::new_v4().expect("a socket");
    closed.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let nobody = closed.local_addr().expect("a bound socket has an address");
    let gate = Gate::start(&config.set("upstream.servers", &format!("[\"http://{nobody}\"]"))).await;
    assert_eq!(get(&gate, "fine", "").await, 502);
    hold(&gate, &counts([1.0, 0.0, 0.0, 0.0, 0.0])).await;
}

#[tokio::test]
async fn handshakes_are_counted_also_those_that_end_in_silence() {
    let (origin, directory) = (Origin::answering("x").await, tempfile::tempdir().expect("a folder"));
    let authority = Authority::new();
    let leaf = authority.leaf_until(directory.path(), "leaf", &["localhost"], 2040);
    let config = Config::before(&origin)
        .tls(&[&leaf])
        .set("server.timeouts.tls_handshake", r#""3s""#);
    let gate = Gate::start(&config).await;
    let [good, failed] =
        ["ok", "failed"].map(|result| format!("foregate_proxy_handshakes_total{{result=\"{result}\"}}"));
    let expiry = format!(
        "foregate_tls_certificate_expiry_seconds{{path=\"{}\"}}",
        leaf.cert.display()
    );
    // The first second of 2040.
    hold(
        &gate,
        &[(&good, Is(0.0)), (&failed, Is(0.0)), (&expiry, Is(2_208_988_800.0))],
    )
    .await;
    let mut held = Raw::tls(gate.address, authority.client(&["http/1.1"]), "localhost").await;
    held.send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(held.answer().await.status, 200);
    hold(
        &gate,
        &[
            (&good, Is(1.0)),
            (&failed, Is(0.0)),
            ("foregate_proxy_connections", Is(1.0)),
        ],
    )
    .await;
    // Not TLS; then nothing at all, then a beginning, both until the gate loses patience.
    for said in ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "", "\u{16}\u{3}\u{1}"] {
        let mut raw = Raw::plain(gate.address).await;
        raw.send(said).await;
        raw.closed().await;
    }
    hold(&gate, &[(&good, Is(1.0)), (&failed, Is(3.0))]).await;
}

#[tokio::test]
async fn strikes_blocks_and_clients_are_counted() {
    let origin = obedient_app(Arc::default()).await;
    let config = Config::before(&origin)
        .set("client.trusted_proxies", r#"["127.0.0.1/32"]"#)
        .set("limits.requests_per_minute", "2")
        .set("limits.requests_per_hour", "100")
        .set("blocklist.failed_logins_per_minute", "1")
        .set("blocklist.suspicious_threshold", "2");
    let gate = Gate::start(&config).await;
    let strikes =
        ["limited", "probe", "failed_logins"].map(|kind| format!("foregate_guard_strikes_total{{kind=\"{kind}\"}}"));
    let changes =
        ["block", "unblock", "expire"].map(|kind| format!("foregate_blocklist_changes_total{{kind=\"{kind}\"}}"));
    let counts = |given: [f64; 3], changed: [f64; 3]| -> Vec<(&str, Want)> {
        let given = strikes.iter().map(String::as_str).zip(given.map(Is));
        given
            .chain(changes.iter().map(String::as_str).zip(changed.map(Is)))
            .collect()
    };
    hold(&gate, &counts([0.0; 3], [0.0; 3])).await;
    // A strike for a probe, one for a third request in a minute: blocked.
    assert_eq!(get(&gate, "/.env", "198.51.100.1").await, 404);
    assert_eq!(get(&gate, "fine", "198.51.100.1").await, 200);
    assert_eq!(get(&gate, "fine", "198.51.100.1").await, 429);
    // A strike for wrong passwords.
    for _ in 0..2 {
        assert_eq!(get(&gate, "forbidden", "198.51.100.2").await, 401);
    }
    let mut table = counts([1.0, 1.0, 1.0], [1.0, 0.0, 0.0]);
    table.extend([
        ("foregate_guard_automatic_blocks_total", Is(1.0)),
        ("foregate_blocklist_entries", Is(1.0)),
        ("foregate_guard_tracked_clients", Is(2.0)),
        ("foregate_guard_admitted_requests_total", Is(4.0)),
        ("foregate_guard_limited_requests_total{window=\"minute\"}", Is(1.0)),
        ("foregate_guard_limited_requests_total{window=\"hour\"}", Is(0.0)),
        ("foregate_guard_limiter_memory_bytes", AtLeast(1.0)),
        ("foregate_store_up", Is(1.0)),
        ("foregate_store_queue_changes", Is(0.0)),
        ("foregate_store_sync_lag_seconds", Is(0.0)),
        ("foregate_store_write_failures_total", Is(0.0)),
    ]);
    hold(&gate, &table).await;
    for (act, client, body) in [
        ("block", "198.51.100.3", ""),
        ("block", "198.51.100.4", r#"{"durationSeconds":1}"#),
        ("unblock", "198.51.100.3", ""),
    ] {
        let done = gate.admin("POST", &format!("{DDOS}/{act}/{client}"), body).await;
        assert!((200..300).contains(&done.status), "{done:?}");
    }
    let mut table = counts([1.0, 1.0, 1.0], [3.0, 1.0, 1.0]);
    table.push(("foregate_blocklist_entries", Is(1.0)));
    table.push((
        "foregate_admin_requests_total{route=\"/api/infrastructure/ddos/block/{ip}\",status=\"201\"}",
        Is(2.0),
    ));
    hold(&gate, &table).await;
}

#[tokio::test]
async fn reloads_are_counted_and_the_last_one_that_failed_is_seen() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin);
    let gate = Gate::start(&config).await;
    let success = "foregate_config_last_reload_success";
    let count = |result: &str| format!("foregate_config_reloads_total{{result=\"{result}\"}}");
    // The start reads the file once more when all is there.
    hold(&gate, &[(success, Is(1.0)), (&count("ok"), AtLeast(1.0))]).await;
    let mut times = Vec::new();
    for (value, result, at_least, is_good) in [
        ("\"a\"", "ok", 2.0, 1.0),
        ("17", "failed", 1.0, 0.0),
        ("\"b\"", "ok", 3.0, 1.0),
    ] {
        gate.rewrite(&config.clone().set("headers.referrer_policy", value));
        hold(&gate, &[(success, Is(is_good)), (&count(result), AtLeast(at_least))]).await;
        let text = metrics::scrape(gate.admin).await;
        times.push(metrics::sample(
            &text,
            "foregate_config_last_reload_success_timestamp_seconds",
        ));
    }
    assert!(
        times[0].is_some() && times[1] == times[0] && times[2] >= times[1],
        "{times:?}"
    );
}

#[tokio::test]
async fn connection_beyond_its_clients_share_is_not_counted_as_blocked_behind_the_proxy_protocol() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin)
        .set("server.proxy_protocol", "true")
        .set("server.max_connections_per_client", "1");
    let gate = Gate::start(&config).await;
    let connect = async |client: &str| {
        let mut raw = Raw::plain(gate.address).await;
        let header = format!("PROXY TCP4 {client} 10.0.0.1 1 2\r\n");
        drop(raw.try_send(format!("{header}GET / HTTP/1.1\r\nhost: a\r\n\r\n")).await);
        let answer = wait::within("an answer or the end", raw.try_answer()).await;
        (answer.map(|answer| answer.status), raw)
    };
    let (status, held) = connect("192.0.2.1").await;
    assert_eq!(status, Some(200));
    assert_eq!(connect("192.0.2.1").await.0, None, "the share of one is used up");
    assert_eq!(connect("192.0.2.2").await.0, Some(200), "others have their own");
    let [full, blocked] = ["client_full", "blocked"]
        .map(|reason| format!("foregate_proxy_refused_connections_total{{reason=\"{reason}\"}}"));
    hold(&gate, &[(&full, Is(1.0)), (&blocked, Is(0.0))]).await;
    drop(held);
}
