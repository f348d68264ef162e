//! The admin listener over a real socket: every route of the table with every role, and what must not happen.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::auth::Access;
use super::{Config, Listener, Parts, Role, Token, routes, token};
use crate::backup::service::tests::settings as settings_of_vault;
use crate::clock::Clock;
use crate::guard::Guard;
use crate::guard::blocklist::{Blocklist, Keeper};
use crate::store::Store;
use crate::telemetry::certificates::Certificates;
use crate::telemetry::health::Board;

struct Admin {
    listener: Arc<Listener>,
    stop: CancellationToken,
    _serving: tokio::task::JoinSet<()>,
    board: Board,
    _keeper: Keeper,
    directory: tempfile::TempDir,
}

impl Admin {
    /// With a vault that is off.
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings_of_vault(directory.path(), Vec::new());
        settings.database = None;
        Self::with(directory, settings).await
    }

    /// With a vault that looks after one file set; the database beside it is away.
    async fn with_files() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("app"), "some data").unwrap();
        let settings = settings_of_vault(directory.path(), Vec::new());
        Self::with(directory, settings).await
    }

    async fn with(directory: tempfile::TempDir, vault_settings: crate::backup::Settings) -> Self {
        let store = crate::store::Config {
            postgres: None,
            pool_size: 1,
            state_dir: directory.path().to_owned(),
        };
        let (board, registry) = (Board::default(), prometheus::Registry::new());
        let store = Store::open(&store, board.clone()).unwrap();
        let (blocklist, keeper) = Blocklist::open(store.clone(), directory.path(), &registry)
            .await
            .unwrap();
        let guard = Arc::new(Guard::new(guard_config(), blocklist));
        let vault = vault(vault_settings, &board, &registry);
        let parts = Parts {
            guard,
            store,
            recovery: crate::pitr::Handles::default(),
            board: board.clone(),
            certificates: Certificates::register(&registry).unwrap(),
            registry,
            clock: Clock::system(),
            vault,
        };
        let listener = Arc::new(Listener::bind(settings(), parts, Vec::new()).unwrap());
        let stop = CancellationToken::new();
        let serving = tokio::task::JoinSet::from_iter([Arc::clone(&listener).serve(stop.clone())]);
        Self {
            listener,
            stop,
            _serving: serving,
            board,
            _keeper: keeper,
            directory,
        }
    }

    /// Status, head and body of one request with a token ("" for none).
    async fn ask(&self, method: &str, path: &str, token: &str, more: &str, body: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.listener.address().unwrap()).await.unwrap();
        let authorization = if token.is_empty() {
            String::new()
        } else {
            format!("Authorization: Bearer {token}\r\n")
        };
        let host = if more.contains("Host:") {
            ""
        } else {
            "Host: localhost\r\n"
        };
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\n{host}{more}{authorization}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let reading = stream.read_to_string(&mut answer);
        tokio::time::timeout(Duration::from_secs(20), reading)
            .await
            .unwrap()
            .unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_ascii_lowercase(), body.to_owned())
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn vault(settings: crate::backup::Settings, board: &Board, registry: &prometheus::Registry) -> crate::backup::Service {
    let (alerts, _) = crate::telemetry::alert::Alerts::start(Default::default(), Clock::system(), registry).unwrap();
    let parts = crate::backup::service::Parts {
        clock: Clock::system(),
        alerts,
        board: board.clone(),
        registry: registry.clone(),
        hold: crate::backup::Hold::nothing(),
        runtime: tokio::runtime::Handle::current(),
    };
    crate::backup::Service::new(settings, parts).unwrap()
}

fn guard_config() -> crate::guard::Config {
    use crate::guard::{limit, suspicion};
    let quota = limit::Quota {
        per_minute: std::num::NonZeroU32::new(100),
        per_hour: None,
    };
    crate::guard::Config {
        limits: limit::Config {
            mode: limit::Mode::Enforce,
            default: quota,
            rules: Vec::new(),
            max_tracked_clients: 1000,
        },
        suspicion: suspicion::Config {
            threshold: 5,
            window: Duration::from_secs(600),
            block_duration: Duration::from_secs(3600),
            escalation: 2.0,
            max_block_duration: Duration::from_secs(86_400),
            probe_paths: Vec::new(),
            failed_logins_per_minute: 0,
        },
        exempt: Vec::new(),
        never_block: Vec::new(),
        ipv6_prefix: 64,
    }
}

fn settings() -> Config {
    let known = |name: &str, role| Token {
        name: name.to_owned(),
        role,
        sha256: token::hash(name.as_bytes()),
    };
    Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        tls: None,
        tokens: vec![
            known("viewer", Role::Viewer),
            known("operator", Role::Operator),
            known("admin", Role::Admin),
        ],
        metrics_token: None,
    }
}

#[tokio::test]
async fn every_route_asks_for_the_role_of_its_line_in_the_table() {
    let admin = Admin::start().await;
    let (_, table) = routes::router(&admin.listener.state);
    assert!(table.len() > 10);
    for entry in table {
        let path = entry.path.replace("{ip}", "192.0.2.7");
        let needed = match entry.access {
            Access::Open | Access::Metrics => None,
            Access::AtLeast(role) => Some(role),
        };
        let (bare, head, _) = admin.ask(entry.method, &path, "", "", "").await;
        assert_eq!(bare == 401, needed.is_some(), "{entry:?} without a token: {bare}");
        assert!(bare != 401 || head.contains("www-authenticate: bearer"), "{head}");
        for role in [Role::Viewer, Role::Operator, Role::Admin] {
            let (status, _, body) = admin.ask(entry.method, &path, role.name(), "", "").await;
            let is_allowed = needed.is_none_or(|needed| role >= needed);
            assert_eq!(status == 403, !is_allowed, "{entry:?} as {role:?}: {status} {body}");
        }
    }
}

#[tokio::test]
async fn docs_api_lists_every_route_with_its_role_and_no_other() {
    let admin = Admin::start().await;
    let (_, table) = routes::router(&admin.listener.state);
    let routes = table.iter().map(|entry| {
        let role = match entry.access {
            Access::Open => "open",
            Access::Metrics => "metrics",
            Access::AtLeast(role) => role.name(),
        };
        format!("| `{} {}` | {role} |", entry.method, entry.path)
    });
    let document = include_str!("../../docs/api.md");
    let listed = document.lines().filter(|line| line.starts_with("| `"));
    // Up to the third bar: route and role.
    let listed = listed.filter_map(|line| Some(&line[..=line.match_indices('|').nth(2)?.0]));
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    assert_eq!(sorted(listed.map(str::to_owned).collect()), sorted(routes.collect()));
}

#[tokio::test]
async fn errors_are_problem_documents_with_the_right_status() {
    let admin = Admin::start().await;
    let block = "/api/infrastructure/ddos/block";
    let backups = "/api/infrastructure/backups";
    let cases = [
        (404, "GET", "/nowhere".to_owned(), "", ""),
        (405, "DELETE", "/health".to_owned(), "", ""),
        (405, "GET", format!("{block}/192.0.2.7"), "", ""),
        (422, "POST", format!("{block}/junk"), "", ""),
        (422, "POST", format!("{block}/0.0.0.0%2F0"), "", ""),
        (422, "POST", format!("{block}/127.0.0.1"), "", ""),
        (422, "POST", format!("{block}/192.0.2.7"), "", "{\"until\":1}"),
        (422, "POST", format!("{block}/192.0.2.7"), "", "{\"durationSeconds\":0}"),
        (400, "POST", format!("{block}/192.0.2.7"), "", "{"),
        (
            404,
            "POST",
            "/api/infrastructure/ddos/unblock/192.0.2.7".to_owned(),
            "",
            "",
        ),
        (422, "GET", "/api/infrastructure/ddos/blocks?limit=x".to_owned(), "", ""),
        (421, "GET", "/health".to_owned(), "Host: evil.example\r\n", ""),
        (422, "GET", format!("{backups}/stats"), "", ""),
        (422, "GET", "/api/infrastructure/pitr/stats".to_owned(), "", ""),
        (422, "GET", "/api/infrastructure/pitr/window".to_owned(), "", ""),
        (422, "POST", format!("{backups}/create"), "", "{\"type\":\"hourly\"}"),
        (422, "POST", format!("{backups}/create"), "", "{\"typ\":\"daily\"}"),
        (422, "POST", format!("{backups}/restore"), "", "{}"),
        (405, "PUT", format!("{backups}/x"), "", ""),
    ];
    for (wanted, method, path, more, body) in cases {
        let (status, head, body) = admin.ask(method, &path, "admin", more, body).await;
        assert_eq!(status, wanted, "{method} {path}: {body}");
        assert!(head.contains("application/problem+json"), "{head}");
        let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(problem["status"], wanted, "{body}");
        assert!(status != 405 || head.contains("\r\nallow: "), "{head}");
    }
    let large = format!("{{\"reason\":\"{}\"}}", "x".repeat(20_000));
    assert_eq!(
        admin
            .ask("POST", &format!("{block}/192.0.2.7"), "admin", "", &large)
            .await
            .0,
        413
    );
}

#[tokio::test]
async fn a_block_is_made_shown_audited_and_lifted() {
    let admin = Admin::start().await;
    let body = "{\"reason\":\"test\",\"durationSeconds\":60}";
    let block = "/api/infrastructure/ddos/block/192.0.2.0%2F24";
    // Where the disk is slow, the first answer may come before the store's.
    crate::store::testing::until("a block that is stored", async || {
        let (status, _, made) = admin.ask("POST", block, "operator", "", body).await;
        assert_eq!(status, 201, "{made}");
        made.contains("\"durability\":\"stored\"")
    })
    .await;
    let (_, _, client) = admin
        .ask("GET", "/api/infrastructure/ddos/ip/192.0.2.9", "viewer", "", "")
        .await;
    assert!(client.contains("\"blocked\":true"), "{client}");
    let (_, _, list) = admin
        .ask("GET", "/api/infrastructure/ddos/blocks", "viewer", "", "")
        .await;
    assert!(list.contains("192.0.2.0/24") && list.contains("\"total\":1"), "{list}");
    let unblock = "/api/infrastructure/ddos/unblock/192.0.2.0%2F24";
    assert_eq!(admin.ask("POST", unblock, "viewer", "", "").await.0, 403);
    assert_eq!(admin.ask("POST", unblock, "operator", "", "").await.0, 200);
    let (_, _, trail) = admin.ask("GET", "/api/infrastructure/audit", "viewer", "", "").await;
    let trail: serde_json::Value = serde_json::from_str(&trail).unwrap();
    let mut actions: Vec<_> = trail["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["action"].clone())
        .collect();
    actions.dedup();
    assert_eq!(actions, ["unblock", "forbidden", "block"], "{trail}");
}

#[tokio::test]
async fn health_is_open_and_says_no_more_than_it_must() {
    let admin = Admin::start().await;
    admin.board.set(
        "config",
        crate::telemetry::health::Condition::Degraded("line 3 is wrong".to_owned()),
    );
    let (status, _, brief) = admin.ask("GET", "/health", "", "", "").await;
    assert_eq!((status, brief.as_str()), (200, "{\"status\":\"degraded\"}"));
    let (_, _, full) = admin.ask("GET", "/health/comprehensive", "viewer", "", "").await;
    assert!(full.contains("line 3 is wrong"), "{full}");
    let (_, _, config) = admin.ask("GET", "/api/infrastructure/config", "viewer", "", "").await;
    assert!(config.contains("line 3 is wrong"), "{config}");
    let (status, head, _) = admin.ask("HEAD", "/health", "", "", "").await;
    assert_eq!(status, 200, "{head}");
    assert_eq!(admin.ask("OPTIONS", "/health", "", "", "").await.0, 204);
}

#[tokio::test]
async fn certificate_of_the_listener_is_listed_as_long_as_it_is_shown() {
    let admin = Admin::start().await;
    let directory = tempfile::tempdir().unwrap();
    let (cert, key) = (directory.path().join("admin.pem"), directory.path().join("admin.key"));
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2040, 1, 1);
    std::fs::write(&cert, params.self_signed(&pair).unwrap().pem()).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    let listed = |tls: Option<super::Tls>| {
        let prepared = admin.listener.prepare(Config { tls, ..settings() }).unwrap();
        admin.listener.commit(prepared);
        admin.listener.state.parts.certificates.in_force()
    };
    let end = "2040-01-01T00:00:00Z".parse().unwrap();
    let path = cert.display().to_string();
    let tls = super::Tls {
        cert,
        key,
        client_ca: None,
    };
    assert_eq!(listed(Some(tls)), [(path, end)].into());
    assert!(listed(None).is_empty());
}

const BACKUPS: &str = "/api/infrastructure/backups";
/// The order of a backup of the file set of [`Admin::with_files`].
const FILES: &str = r#"{"type":"files","name":"app"}"#;

impl Admin {
    async fn json(&self, method: &str, path: &str, role: &str, body: &str) -> (u16, serde_json::Value) {
        let (status, _, answer) = self.ask(method, path, role, "", body).await;
        (status, serde_json::from_str(&answer).unwrap_or_default())
    }

    /// Orders a run, and waits for its end.
    async fn run(&self, path: &str, role: &str, body: &str) -> serde_json::Value {
        let (status, accepted) = self.json("POST", &format!("{BACKUPS}/{path}"), role, body).await;
        assert_eq!(status, 202, "{accepted}");
        let mut run = serde_json::Value::Null;
        crate::store::testing::until("the end of the run", async || {
            let shown = self
                .json("GET", accepted["status"].as_str().unwrap(), "viewer", "")
                .await;
            run = shown.1;
            run["run"]["state"] != "running"
        })
        .await;
        run
    }

    async fn back_up_files(&self) -> serde_json::Value {
        self.run("create", "operator", FILES).await
    }
}

#[tokio::test]
async fn file_set_is_backed_up_by_its_name_and_what_cannot_be_done_with_it_is_refused_at_once() {
    let admin = Admin::with_files().await;
    let order = FILES;
    assert_eq!(
        admin
            .json("POST", &format!("{BACKUPS}/create"), "viewer", order)
            .await
            .0,
        403
    );
    let made = admin.run("create", "operator", order).await;
    assert_eq!(
        (
            &made["run"]["state"],
            &made["backup"]["content"],
            &made["backup"]["name"]
        ),
        (&"succeeded".into(), &"files".into(), &"app".into()),
        "{made}"
    );
    let id = made["id"].as_str().unwrap();
    for (wanted, told, method, path, body) in [
        (422, "app", "POST", "create", r#"{"type":"files","name":"gone"}"#),
        (422, "app", "POST", "create", r#"{"type":"files"}"#),
        (422, "files alone", "POST", "create", r#"{"type":"daily","name":"app"}"#),
        (422, "file set", "POST", &format!("{id}/verify"), r#"{"restore":true}"#),
        (422, "its id alone", "DELETE", "latest", ""),
        (422, "its id alone", "DELETE", "x", ""),
    ] {
        let (status, problem) = admin.json(method, &format!("{BACKUPS}/{path}"), "admin", body).await;
        assert_eq!(status, wanted, "{path} {body}: {problem}");
        assert!(
            problem["detail"].as_str().unwrap().contains(told),
            "{path} {body}: {problem}"
        );
    }
    drop(admin.run(&format!("{id}/verify"), "operator", "").await);
    let (_, page) = admin
        .json("GET", &format!("{BACKUPS}/runs?limit=1&offset=1"), "viewer", "")
        .await;
    assert_eq!((&page["total"], &page["limit"]), (&2.into(), &1.into()), "{page}");
    assert_eq!(
        (page["runs"].as_array().unwrap().len(), &page["runs"][0]["id"]),
        (1, &id.into())
    );
    let (_, stats) = admin.json("GET", &format!("{BACKUPS}/stats"), "viewer", "").await;
    assert_eq!(stats["fileSets"], serde_json::json!(["app"]), "{stats}");
    let (_, trail) = admin.json("GET", "/api/infrastructure/audit", "viewer", "").await;
    let mut entries = trail["entries"].as_array().unwrap().iter();
    assert!(
        entries.any(|entry| entry["action"] == "backup files" && entry["subject"] == "app"),
        "{trail}"
    );
}

#[tokio::test]
async fn damaged_backup_says_what_is_wrong_with_it_until_it_is_proven_again() {
    let admin = Admin::with_files().await;
    let made = admin.back_up_files().await;
    let (id, path) = (
        made["id"].as_str().unwrap(),
        made["backup"]["filepath"].as_str().unwrap(),
    );
    assert_eq!(made["backup"]["problem"], serde_json::Value::Null);
    let object = std::path::Path::new(path).join("files.zst");
    let whole = std::fs::read(&object).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for (bytes, state, is_good) in [(&damaged, "failed", false), (&whole, "succeeded", true)] {
        std::fs::write(&object, bytes).unwrap();
        let verified = admin.run(&format!("{id}/verify"), "operator", "").await;
        assert_eq!(verified["run"]["state"], state, "{verified}");
        let (_, shown) = admin.json("GET", &format!("{BACKUPS}/{id}"), "viewer", "").await;
        let backup = &shown["backup"];
        assert_eq!(
            (&backup["good"], backup["state"] == "good"),
            (&is_good.into(), is_good),
            "{shown}"
        );
        assert_eq!(
            backup["problem"].as_str().is_some_and(|why| why.contains("files.zst")),
            !is_good,
            "{shown}"
        );
    }
}

#[tokio::test]
async fn backup_that_cannot_be_read_is_shown_beside_those_that_can() {
    let admin = Admin::with_files().await;
    let made = admin.back_up_files().await;
    let id = made["id"].as_str().unwrap();
    let folder = admin.directory.path().join("repository/files").join(id);
    std::fs::write(folder.join("manifest.json"), "{").unwrap();
    crate::store::testing::until("a list that was read anew", async || {
        admin.json("GET", BACKUPS, "viewer", "").await.1["unreadable"][0]["id"] == id
    })
    .await;
    let (_, stats) = admin.json("GET", &format!("{BACKUPS}/stats"), "viewer", "").await;
    assert!(stats["warnings"].to_string().contains(id), "{stats}");
}

#[tokio::test]
async fn another_process_that_is_at_work_is_told_instead_of_a_run_that_fails() {
    let admin = Admin::with_files().await;
    let made = admin.back_up_files().await;
    let id = made["id"].as_str().unwrap();
    let lock = std::fs::File::open(admin.directory.path().join("repository/.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let verify = format!("{id}/verify");
    for (path, body) in [("create", ""), ("create", FILES), (&verify, ""), ("prune", "")] {
        let (status, problem) = admin.json("POST", &format!("{BACKUPS}/{path}"), "admin", body).await;
        assert_eq!(status, 409, "{path}: {problem}");
        assert!(
            problem["detail"].as_str().unwrap().contains("once it has ended"),
            "{problem}"
        );
    }
    let (_, runs) = admin.json("GET", &format!("{BACKUPS}/runs"), "viewer", "").await;
    assert_eq!(runs["total"], 1, "{runs}");
    drop(lock);
    drop(admin.run(&verify, "operator", "").await);
}
