//! The vault inside the server: what runs by itself, what the API promises, who is told when it breaks.

#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "black-box tests start processes, and fail by panicking"
)]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{Bed, PORT, until, until_within};

pub(crate) const BACKUPS: &str = "/api/infrastructure/backups";
/// How long a request waits for a swap.
const HELD_MAX: Duration = Duration::from_secs(5);

/// The server before a sample app, with the cluster of `bed` in its vault.
pub(crate) struct Server<'a> {
    bed: &'a Bed,
    pub(crate) child: Child,
    pub(crate) gate: SocketAddr,
    admin: SocketAddr,
}

/// Twelve hours from now, in UTC: what is planned for it was due long ago and is not due again during a test. The same for all
/// servers of a test.
fn far_time() -> &'static str {
    static TIME: OnceLock<String> = OnceLock::new();
    TIME.get_or_init(|| {
        let far = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(12);
        far.strftime("%H:%M").to_string()
    })
}

/// Collects what is sent to it, and answers 200.
pub(crate) struct Hook {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Hook {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&seen);
        drop(std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let request = read_message(&mut stream);
                shared.lock().expect("no thread panics here").push(request);
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"));
            }
        }));
        Self { address, seen }
    }

    pub(crate) fn wait_for(&self, text: &str) {
        until(&format!("{text:?} at the webhook"), || {
            self.seen
                .lock()
                .expect("no thread panics here")
                .iter()
                .any(|message| message.contains(text))
        });
    }
}

/// A head, and as much of a body as it announces.
pub(crate) fn read_message(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        match stream.read(&mut piece) {
            Ok(length @ 1..) => bytes.extend_from_slice(&piece[..length]),
            // Some other child has ended; with a time-out on the socket the call is not taken up again by itself.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => return text,
        }
    }
}

fn ask(address: SocketAddr, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a timeout");
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer test\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("the server reads");
    let answer = read_message(&mut stream);
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (
        status,
        serde_json::from_str(body).unwrap_or(Value::String(body.to_owned())),
    )
}

impl<'a> Server<'a> {
    pub(crate) fn start(bed: &'a Bed, hook: &Hook) -> Self {
        Self::before(bed, hook, hook.address, &[])
    }

    /// Before the app at `app`.
    pub(crate) fn before(bed: &'a Bed, hook: &Hook, app: SocketAddr, environment: &[(&str, String)]) -> Self {
        let directory = bed.directory();
        let (addresses, config) = (directory.join("addresses.json"), directory.join("config.toml"));
        drop(std::fs::remove_file(&addresses));
        let hash = hex::encode(Sha256::digest("test"));
        // The blocklist beside the app's tables, where a test wants it.
        let store = match environment.iter().any(|(name, _)| *name == "SHARED") {
            true => "store.postgres = { env = \"DATABASE_URL\" }\n",
            false => "",
        };
        let text = format!(
            "state_dir = {state:?}\nserver.listen = [\"127.0.0.1:0\"]\ntls.mode = \"off\"\n\
             limits.requests_per_minute = 0\nlimits.requests_per_hour = 0\nupstream.servers = [\"http://{app}\"]\n\
             {store}database.url = {{ env = \"DATABASE_URL\" }}\nalerts.webhook = {{ env = \"HOOK\" }}\nalerts.ping = {{ env = \"PING\" }}\n\
             [admin]\nlisten = \"127.0.0.1:0\"\ntokens = [{{ name = \"test\", role = \"admin\", sha256 = \"{hash}\" }}]\n\
             [backup]\nrepository = \"file://{repository}\"\nrecipients = [{recipient:?}]\nidentity = {{ file = {key:?} }}\n\
             daily = \"{at}\"\nweekly = \"Sun {at}\"\nmonthly = \"1 {at}\"\ncleanup = \"{at}\"\nverify = \"Wed {at}\"\n",
            at = far_time(),
            state = directory.join("state").display().to_string(),
            repository = bed.repository().display(),
            recipient = bed.recipient(),
            key = bed.key().display().to_string(),
        );
        std::fs::write(&config, text).expect("a config");
        let socket = bed.socket().display().to_string().replace('/', "%2F");
        let log = std::fs::File::create(directory.join("server.log")).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_foregate"))
            .args(["run", "--config"])
            .arg(&config)
            .env("FOREGATE_ADDRESS_FILE", &addresses)
            .env(
                "DATABASE_URL",
                format!("postgres://postgres:hidden-password@{socket}:{PORT}/app"),
            )
            .env("HOOK", format!("http://{}/hidden-hook", hook.address))
            .env("PING", format!("http://{}/alive", hook.address))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("a second handle"))
            .stdout(log)
            .spawn()
            .expect("foregate starts");
        let mut ready = Value::Null;
        until("the addresses of the server", || {
            let text = std::fs::read_to_string(&addresses).unwrap_or_default();
            ready = serde_json::from_str(&text).unwrap_or_default();
            !ready.is_null()
        });
        let address = |value: &Value| value.as_str().and_then(|text| text.parse().ok()).expect("an address");
        Self {
            bed,
            child,
            gate: address(&ready["gate"][0]),
            admin: address(&ready["admin"]),
        }
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        let (status, body) = ask(self.admin, "GET", path, &Value::Null);
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        ask(self.admin, "POST", path, body)
    }

    /// Starts a run and waits for its end.
    fn done(&self, path: &str, body: &Value) -> Value {
        let mut id = Value::Null;
        until("the vault to be free", || {
            let (status, answer) = self.post(path, body);
            assert!(matches!(status, 202 | 409), "{path}: {status} {answer}");
            id = answer["status"].clone();
            status == 202
        });
        let status = id.as_str().expect("a status address").to_owned();
        let mut run = Value::Null;
        until("the end of the run", || {
            run = self.get(&status)["run"].clone();
            run["state"] != "running"
        });
        run
    }

    /// The clean-up that follows a backup is in the way for a moment.
    fn delete(&self, id: &str) -> (u16, Value) {
        let mut answer = (0, Value::Null);
        until("the vault to be free", || {
            answer = ask(self.admin, "DELETE", &format!("{BACKUPS}/{id}"), &Value::Null);
            answer.0 != 409
        });
        answer
    }

    pub(crate) fn good(&self) -> Vec<Value> {
        let list = self.get(BACKUPS)["backups"].as_array().cloned().unwrap_or_default();
        list.into_iter().filter(|backup| backup["good"] == true).collect()
    }

    /// Waits until all that a first start looks at is done; the clean-up after the backup is the last of it.
    pub(crate) fn settle(&self) {
        until("the first backup", || self.good().len() == 1);
        until("the clean-up after it", || self.clean_ups() >= 1);
    }

    /// How many clean-ups have ended, earlier processes' included.
    fn clean_ups(&self) -> usize {
        let runs = self.get(&format!("{BACKUPS}/runs"));
        let has_ended = |run: &&Value| run["act"] == "prune" && run["state"] != "running";
        runs["runs"]
            .as_array()
            .map_or(0, |runs| runs.iter().filter(has_ended).count())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.bed.directory().join("server.log")).unwrap_or_default()
    }

    fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics");
        let lines = text.as_str().unwrap_or_default().lines();
        let mut values = lines.filter_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        values.next()
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn missed_backups_are_made_up_for_at_once_and_only_once() {
    let (bed, hook) = (Bed::new(), Hook::start());
    let server = Server::start(&bed, &hook);
    until("the first backup", || server.good().len() == 1);
    let first = server.good().remove(0);
    assert_eq!(
        first["labels"],
        json!(["daily", "weekly", "monthly"]),
        "one run for all that is due"
    );
    hook.wait_for("GET /alive");
    let stats = server.get(&format!("{BACKUPS}/stats"));
    let kinds = stats["kinds"].as_array().expect("kinds");
    assert_eq!(kinds.len(), 3, "{stats}");
    assert!(
        kinds
            .iter()
            .all(|kind| kind["overdue"] == false && kind["nextRun"].is_string()),
        "{stats}"
    );
    until("the metrics", || {
        server.metric("foregate_backup_good{kind=\"daily\"}") == Some(1.0)
    });
    server.settle();
    drop(server);
    let again = Server::start(&bed, &hook);
    until("the clean-up", || again.clean_ups() == 2);
    assert_eq!(again.good().len(), 1, "a restart repeats no period");
}

#[test]
fn one_run_at_a_time_and_its_status_address_tells_how_it_goes() {
    let (bed, hook) = (Bed::new(), Hook::start());
    let server = Server::start(&bed, &hook);
    server.settle();
    // pg_dump waits for this lock, so the run lasts as long as we want.
    let holder = bed.hold_lock("app", "app.t");
    let (status, accepted) = server.post(&format!("{BACKUPS}/create"), &json!({"type": "weekly"}));
    assert_eq!(status, 202, "{accepted}");
    let (status, refused) = server.post(&format!("{BACKUPS}/create"), &Value::Null);
    assert_eq!((status, &refused["runningId"]), (409, &accepted["id"]), "{refused}");
    let address = accepted["status"].as_str().expect("an address").to_owned();
    until("the step", || server.get(&address)["run"]["step"] == "dump");
    assert_eq!(
        server.get(&address)["backup"],
        Value::Null,
        "it does not exist before it is proven"
    );
    bed.release(holder);
    until("the end", || server.get(&address)["run"]["state"] == "succeeded");
    let shown = server.get(&address);
    assert_eq!(
        (&shown["backup"]["id"], &shown["backup"]["labels"]),
        (&accepted["id"], &json!(["weekly"]))
    );
    assert!(
        shown["run"]["log"].as_array().is_some_and(|log| log.len() >= 4),
        "{shown}"
    );
    let (status, _) = server.post(&format!("{BACKUPS}/create"), &json!({"type": "hourly"}));
    assert_eq!(status, 422);
}

#[test]
fn whoever_asks_while_a_command_is_at_work_hears_it_at_once() {
    let (bed, hook) = (Bed::new(), Hook::start());
    let server = Server::start(&bed, &hook);
    server.settle();
    let id = server.good()[0]["id"].clone();
    let holder = bed.hold_lock("app", "app.t");
    let mut command = bed.start(&["create"]);
    until("pg_dump waits", || bed.backends("LOCK TABLE%") > 0);
    let count = || server.get(&format!("{BACKUPS}/runs"))["total"].clone();
    let before = count();
    for (path, body) in [
        ("create", Value::Null),
        ("restore", json!({"id": id})),
        ("prune", Value::Null),
    ] {
        let (status, problem) = server.post(&format!("{BACKUPS}/{path}"), &body);
        assert_eq!(status, 409, "{path}: {problem}");
    }
    assert_eq!(count(), before, "nothing was begun");
    bed.release(holder);
    assert!(command.wait().expect("it ends").success());
    // It stands among the backups, with what a person is asked about.
    until("its backup", || server.good().len() == 2);
    let (newest, stats) = (server.good().remove(0), server.get(&format!("{BACKUPS}/stats")));
    assert_eq!(
        (&newest["rows"], newest["cluster"].is_string()),
        (&json!(20_000), true),
        "{newest}"
    );
    assert_eq!(stats["cluster"], newest["cluster"], "{stats}");
}

#[test]
fn restore_by_path_swaps_while_traffic_waits_and_none_fails() {
    let (bed, hook) = (Bed::new(), Hook::start());
    let server = Server::start(&bed, &hook);
    server.settle();
    let path = server.good()[0]["filepath"].clone();
    for outside in ["/etc/passwd", "../x", "dumps/..", ""] {
        let (status, problem) = server.post(&format!("{BACKUPS}/restore"), &json!({"filepath": outside}));
        assert!(matches!(status, 404 | 422), "{outside}: {status} {problem}");
    }
    let (status, preview) = server.post(
        &format!("{BACKUPS}/restore"),
        &json!({"filepath": path, "dryRun": true}),
    );
    assert_eq!(
        (status, &preview["replaces"], &preview["database"]),
        (200, &json!(true), &json!("app")),
        "{preview}"
    );
    drop(bed.sql("app", "DELETE FROM app.t WHERE id > 3"));
    let gate = server.gate;
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let traffic = std::thread::spawn(move || {
        let mut codes = Vec::new();
        while stopped.try_recv().is_err() {
            let begun = Instant::now();
            codes.push((ask(gate, "GET", "/", &Value::Null).0, begun.elapsed()));
        }
        codes
    });
    let run = server.done(&format!("{BACKUPS}/restore"), &json!({"filepath": path}));
    assert_eq!(run["state"], "succeeded", "{run}");
    stop.send(()).ok();
    let codes = traffic.join().expect("the traffic ends");
    // Where the swap takes its time, a request that is held for longer than that is refused, as it is meant to be.
    let is_well = |(code, took): &(u16, Duration)| *code == 200 || (*code == 503 && *took >= HELD_MAX);
    assert!(codes.len() > 10 && codes.iter().all(is_well), "{codes:?}");
    assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
    let replaced = bed.sql(
        "postgres",
        "SELECT datname FROM pg_database WHERE datname LIKE 'app_replaced_%'",
    );
    drop(bed.sql("postgres", &format!("ALTER DATABASE {replaced} ALLOW_CONNECTIONS true")));
    assert_eq!(
        bed.sql(&replaced, "SELECT count(*) FROM app.t"),
        "3",
        "the old one is kept"
    );
}

#[test]
fn restore_leaves_blocks_and_audit_trail_as_they_are() {
    let (bed, hook) = (Bed::new(), Hook::start());
    let server = Server::before(&bed, &hook, hook.address, &[("SHARED", "yes".to_owned())]);
    server.settle();
    let id = server.good()[0]["id"].clone();
    drop(bed.sql("app", "DELETE FROM app.t WHERE id > 3"));
    let (status, made) = server.post("/api/infrastructure/ddos/block/198.51.100.7", &Value::Null);
    assert_eq!(status, 201, "{made}");
    let stored = "SELECT count(*) FROM foregate.blocks WHERE network = '198.51.100.7'";
    until("the block is stored", || bed.sql("app", stored) == "1");
    let run = server.done(&format!("{BACKUPS}/restore"), &json!({"id": id}));
    assert_eq!(run["state"], "succeeded", "{run}");
    assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
    assert_eq!(bed.sql("app", stored), "1", "who was blocked since stays blocked");
    let told = "SELECT count(*) FROM foregate.audit WHERE action = 'block'";
    assert_eq!(bed.sql("app", told), "1", "what was done stays written down");
    let aside = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'foregate%'";
    assert_eq!(bed.sql("app", aside), "1");
    let (status, lifted) = server.post("/api/infrastructure/ddos/unblock/198.51.100.7", &Value::Null);
    assert_eq!(status, 200, "{lifted}");
    until("the lift is stored", || bed.sql("app", stored) == "0");
}

#[test]
fn failure_is_told_once_and_so_is_its_end_and_no_secret_with_it() {
    let (bed, hook) = (Bed::new(), Hook::start());
    let server = Server::start(&bed, &hook);
    server.settle();
    drop(bed.sql("postgres", "ALTER DATABASE app RENAME TO gone"));
    let run = server.done(&format!("{BACKUPS}/create"), &Value::Null);
    assert_eq!(run["state"], "failed", "{run}");
    assert!(
        run["reason"].as_str().is_some_and(|reason| reason.contains("app")),
        "{run}"
    );
    hook.wait_for("failed at");
    let health = server.get("/health/comprehensive");
    assert_eq!(health["parts"]["backup"]["status"], "degraded", "{health}");
    drop(bed.sql("postgres", "ALTER DATABASE gone RENAME TO app"));
    let run = server.done(&format!("{BACKUPS}/create"), &Value::Null);
    assert_eq!(run["state"], "succeeded", "{run}");
    hook.wait_for("works again");
    assert_eq!(
        server.get("/health/comprehensive")["parts"]["backup"]["status"],
        "healthy"
    );
    assert_eq!(
        server.metric("foregate_backup_runs_total{act=\"create\",result=\"failed\"}"),
        Some(1.0)
    );
    let stats = server.get(&format!("{BACKUPS}/stats"));
    let kinds = stats["kinds"].as_array().expect("kinds").iter();
    let manual = kinds.clone().find(|kind| kind["kind"] == "manual").expect("a kind");
    assert_eq!(
        (&manual["successRate"], &manual["failureRate"]),
        (&json!(0.5), &json!(0.5)),
        "{stats}"
    );
    let daily = kinds.clone().find(|kind| kind["kind"] == "daily").expect("a kind");
    assert_eq!(
        (&daily["successRate"], &daily["failedRuns"]),
        (&json!(1.0), &json!(0)),
        "{stats}"
    );
    assert!(
        stats["warnings"]
            .to_string()
            .contains("is on the disk that holds the database"),
        "{stats}"
    );
    let told = hook.seen.lock().expect("no thread panics here").join("\n");
    for text in [told, server.log(), run.to_string()] {
        assert!(!text.contains("hidden-password"), "{text}");
    }
    assert!(!server.log().contains("hidden-hook"));
}

#[test]
fn what_is_due_is_begun_soon_after_the_database_server_is_back() {
    let (bed, hook) = (Bed::new(), Hook::start());
    bed.stop_server("fast");
    let server = Server::start(&bed, &hook);
    until("the first attempt", || {
        let health = server.get("/health/comprehensive");
        health["parts"]["backup"].to_string().contains("cannot be begun")
    });
    bed.start_server();
    // The pause between two attempts grows to a minute.
    until_within(Duration::from_secs(150), "the backup", || server.good().len() == 1);
    until("the end of the trouble", || {
        let health = server.get("/health/comprehensive");
        health["parts"]["backup"]["status"] == "healthy"
    });
    let runs = server.get(&format!("{BACKUPS}/runs"));
    let is_failure = |run: &&Value| run["act"] == "create" && run["state"] == "failed";
    let failed = runs["runs"].as_array().expect("runs").iter().filter(is_failure);
    assert_eq!(failed.count(), 0, "{runs}");
}

#[test]
fn damage_that_a_restore_meets_is_an_alarm_of_its_own() {
    let (bed, hook) = (Bed::new(), Hook::start());
    let server = Server::start(&bed, &hook);
    server.settle();
    let run = server.done(&format!("{BACKUPS}/create"), &Value::Null);
    let id = run["id"].as_str().expect("an id");
    crate::damage::flip(&bed.object(&format!("{id}/dump.zst.age")));
    let run = server.done(&format!("{BACKUPS}/restore"), &json!({"id": "latest"}));
    assert_eq!(run["state"], "failed", "{run}");
    assert!(
        run["reason"].to_string().contains("the newest good one besides is"),
        "{run}"
    );
    hook.wait_for(&format!("backup {id} is not what it was"));
    until("it is listed so", || {
        server.get(&format!("{BACKUPS}/{id}"))["backup"]["state"] == "damaged"
    });
    let run = server.done(&format!("{BACKUPS}/restore"), &json!({"id": "latest"}));
    assert_eq!(run["state"], "succeeded", "{run}");
    let (first, marked) = (server.good()[0]["id"].clone(), format!("{BACKUPS}/{id}"));
    assert_ne!(first, id);
    assert_eq!(server.delete(id).0, 204);
    assert_eq!(server.post(&format!("{marked}/undelete"), &Value::Null).0, 204);
    assert_eq!(server.get(&marked)["backup"]["state"], "damaged");
    assert_eq!(server.post(&format!("{marked}/undelete"), &Value::Null).0, 422);
}

#[test]
fn latest_is_the_database_in_the_api_as_on_the_command_line() {
    let (bed, hook) = (Bed::new(), Hook::start());
    let server = Server::start(&bed, &hook);
    server.settle();
    let first = server.good()[0]["id"].clone();
    let path = bed.key().display().to_string();
    until("a file set", || {
        bed.succeeds(&["create", "--files", "app", "--path", &path])
    });
    until("it is listed", || server.good().len() == 2);
    assert_eq!(server.get(&format!("{BACKUPS}/latest"))["backup"]["id"], first);
    let shown: Value = serde_json::from_str(&bed.ok(&["show", "latest", "--json"])).expect("JSON");
    assert_eq!(shown["manifest"]["id"], first);
}

#[test]
fn last_good_backup_cannot_be_deleted_and_others_go_after_a_grace() {
    let (bed, hook) = (Bed::new(), Hook::start());
    let server = Server::start(&bed, &hook);
    server.settle();
    let first = server.good()[0]["id"].as_str().expect("an id").to_owned();
    let delete = |id: &str| server.delete(id);
    let (status, problem) = delete(&first);
    assert_eq!(status, 422, "{problem}");
    let run = server.done(&format!("{BACKUPS}/create"), &Value::Null);
    assert_eq!(run["state"], "succeeded", "{run}");
    assert_eq!(delete(&first).0, 204);
    assert_eq!(
        server.get(&format!("{BACKUPS}/{first}"))["backup"]["state"],
        "to be deleted"
    );
    assert_eq!(delete("01ARZ3NDEKTSV4RRFFQ69G5FAV").0, 404);
    let run = server.done(&format!("{BACKUPS}/latest/verify"), &json!({"restore": true}));
    assert_eq!(run["state"], "succeeded", "{run}");
    assert_eq!(server.get(&format!("{BACKUPS}/latest"))["backup"]["level"], "L3");
}

#[test]
fn audit_trail_names_the_backup_that_latest_stood_for() {
    let (bed, hook) = (Bed::new(), Hook::start());
    let server = Server::start(&bed, &hook);
    server.settle();
    let run = server.done(&format!("{BACKUPS}/create"), &Value::Null);
    assert_eq!(run["state"], "succeeded", "{run}");
    let latest = server.get(&format!("{BACKUPS}/latest"))["backup"]["id"].clone();
    let run = server.done(&format!("{BACKUPS}/latest/verify"), &Value::Null);
    assert_eq!(run["state"], "succeeded", "{run}");
    let (status, refused) = server.delete("latest");
    assert_eq!(status, 422, "{refused}");
    assert_eq!(server.delete(latest.as_str().expect("an id")).0, 204);
    let trail = server.get("/api/infrastructure/audit");
    let entries = trail["entries"].as_array().expect("entries");
    for action in ["verify backup", "delete backup"] {
        let done = |entry: &&Value| entry["action"] == action && entry["result"].to_string().contains("ok");
        let entry = entries.iter().find(done).expect("an entry");
        assert_eq!(entry["subject"], latest, "{entry}");
    }
}
