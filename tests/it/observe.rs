//! What can be seen from outside: metrics and the access log.

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use crate::support::client::{self, Raw};
use crate::support::metrics;
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::wait;

/// The access log's line for this path, once it is written.
async fn line(gate: &Gate, path: &str) -> serde_json::Value {
    wait::until(&format!("{path} in the access log"), async || {
        let text = std::fs::read_to_string(gate.path("access.log")).ok()?;
        let lines = text.lines().map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"))
        });
        lines.into_iter().find(|line| line["path"] == path)
    })
    .await
}

async fn start(origin: &Origin) -> Gate {
    let directory = tempfile::tempdir().expect("a private folder");
    let log = format!("{:?}", directory.path().join("access.log").display().to_string());
    Gate::start_in(directory, &Config::before(origin).set("log.access_log", &log)).await
}

#[tokio::test]
async fn access_log_has_one_parsable_line_per_request_without_the_query() {
    let origin = Origin::answering("hello").await;
    let gate = start(&origin).await;
    let answer = client::get(gate.address, "/seen?token=secret", "").await;
    let line = line(&gate, "/seen").await;
    assert_eq!(
        (
            &line["status"],
            &line["method"],
            &line["responseBytes"],
            &line["outcome"]
        ),
        (&200.into(), &"GET".into(), &5.into(), &"app".into()),
        "{line}"
    );
    assert_eq!(line["requestId"].as_str(), answer.header("x-request-id"));
    assert_eq!(line["client"], "127.0.0.1");
    let text = std::fs::read_to_string(gate.path("access.log")).expect("the log");
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn access_log_into_a_pipe_needs_somebody_who_reads_and_holds_no_start_up() {
    let origin = Origin::answering("x").await;
    let elsewhere = tempfile::tempdir().expect("a folder");
    let pipe = elsewhere.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).expect("a pipe");
    let config = Config::before(&origin).set("log.access_log", &format!("{:?}", pipe.display().to_string()));
    let mut unread = Gate::begin(&config);
    assert!(!unread.exited().await.success());
    assert!(unread.log().contains("a pipe that nobody reads"), "{}", unread.log());

    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let reader = rustix::fs::open(&pipe, flags, Mode::empty()).expect("the other end of the pipe");
    let gate = Gate::start(&config).await;
    client::get(gate.address, "/seen", "").await;
    let mut text = Vec::new();
    wait::until("the line in the pipe", async || {
        let mut piece = [0; 4096];
        let length = rustix::io::read(&reader, &mut piece).ok()?;
        text.extend_from_slice(piece.get(..length)?);
        String::from_utf8_lossy(&text).contains("/seen").then_some(())
    })
    .await;
}

#[tokio::test]
async fn hostile_bytes_cannot_forge_a_log_line() {
    let origin = Origin::answering("x").await;
    let gate = start(&origin).await;
    for request in [
        "GET /a\"b,\"status\":1 HTTP/1.1\r\nhost: a\r\n\r\n".as_bytes().to_vec(),
        "GET /quote\" HTTP/1.1\r\nhost: a\"b\r\n\r\n".as_bytes().to_vec(),
        b"GET /x HTTP/1.1\r\nhost: \xff\xfe\r\n\r\n".to_vec(),
        b"\x00\x01\"}\n{\"forged\":1}\r\n\r\n".to_vec(),
    ] {
        let mut raw = Raw::plain(gate.address).await;
        raw.send(request).await;
        drop(wait::within("an answer", raw.try_answer()).await);
    }
    assert_eq!(client::get(gate.address, "/last", "").await.status, 200);
    // Each line is parsed while the last one is looked for.
    line(&gate, "/last").await;
    let text = std::fs::read_to_string(gate.path("access.log")).expect("the log");
    assert!(!text.contains("\"forged\":1"), "{text}");
}

#[tokio::test]
async fn metrics_count_requests_by_outcome_and_name_no_client() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin).set("limits.requests_per_minute", "2")).await;
    for _ in 0..3 {
        client::get(gate.address, "/secret-path", "").await;
    }
    let counts = [
        ("foregate_proxy_request_seconds_count", 3.0),
        (r#"foregate_proxy_requests_total{class="4xx",outcome="limited"}"#, 1.0),
        (r#"foregate_proxy_requests_total{class="2xx",outcome="app"}"#, 2.0),
    ];
    let text = wait::until("the workers' counts", async || {
        let text = metrics::scrape(gate.admin).await;
        // Each worker tells its own once a second, one after the other; the requests may have come to both.
        let are_told = counts
            .iter()
            .all(|(name, count)| metrics::sample(&text, name) == Some(*count));
        are_told.then_some(text)
    })
    .await;
    assert!(!text.contains("127.0.0.1") && !text.contains("secret-path"), "{text}");
    for name in [
        "foregate_build_info",
        "foregate_config_last_reload_success",
        "foregate_proxy_connections",
    ] {
        assert!(text.contains(name), "{name} is missing: {text}");
    }
}
