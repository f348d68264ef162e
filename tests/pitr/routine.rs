//! What the server does by itself, on its schedule.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use crate::support::cluster::{Cluster, PORT};
use crate::support::server::{Server, archive_through, config, token};
use crate::support::until;

/// Twelve hours from now, in UTC: what is planned for it was due long ago and is not due again during a test.
fn far_time() -> String {
    let far = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(12);
    far.strftime("%H:%M").to_string()
}

fn daily() -> String {
    format!("base_backup = \"{}\"", far_time())
}

/// What was posted to it so far.
fn listener() -> (String, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = format!("http://{}/hook", listener.local_addr().expect("an address"));
    let heard = Arc::new(Mutex::new(String::new()));
    let told = Arc::clone(&heard);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut bytes = [0; 8192];
            let mut request = String::new();
            // A message is short, but head and body may come apart.
            while !request.contains("}") {
                match stream.read(&mut bytes) {
                    Ok(0) | Err(_) => break,
                    Ok(read) => request.push_str(&String::from_utf8_lossy(bytes.get(..read).unwrap_or_default())),
                }
            }
            told.lock().expect("unpoisoned").push_str(&request);
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
        }
    });
    (address, heard)
}

#[test]
fn what_is_due_is_done_and_a_drill_that_fails_is_told_and_remembered() {
    let cluster = Cluster::new();
    archive_through(&cluster);
    let (address, heard) = listener();
    let hook = cluster.root().join("hook");
    std::fs::write(&hook, address).expect("written");
    let more = format!(
        "base_backup = \"{at}\"\ndrill = \"{at}\"\nchecks = [{{ sql = \"SELECT 'right'\", expect = \"wrong\" }}]\n\
         [alerts]\nwebhook = {{ file = \"{}\" }}\n",
        hook.display(),
        at = far_time(),
    );
    let server = Server::start_with(&cluster, &more, &[]);
    until("the base backup that is due", || {
        server.metric("foregate_pitr_base_backups_total{result=\"passed\"}") == Some(1.0)
    });
    cluster.finish_segment();
    until("the drill that is due", || {
        server.metric("foregate_pitr_drills_total{result=\"failed\"}") == Some(1.0)
    });
    assert_eq!(server.metric("foregate_pitr_last_drill_passed"), Some(0.0));
    assert!(server.metric("foregate_pitr_window_latest_timestamp_seconds") > Some(0.0));
    assert!(server.metric("foregate_pitr_recovery_point_seconds") >= Some(0.0));
    until("the webhook", || {
        heard.lock().expect("unpoisoned").contains("the last drill failed")
    });
    // What is known of it lies in the repository.
    server.kill();
    let server = Server::start_with(&cluster, &more, &[]);
    until("it is remembered", || server.get("/health").contains("degraded"));
    until("its metric too", || {
        server.metric("foregate_pitr_last_drill_passed") == Some(0.0)
    });
    assert_eq!(
        server.metric("foregate_pitr_base_backups_total{result=\"passed\"}"),
        Some(0.0),
        "the period has been served"
    );
}

#[test]
fn first_base_backup_of_a_stream_waits_for_its_slot_and_is_no_trouble() {
    let cluster = Cluster::new();
    cluster.stop();
    cluster.add_settings("archive_mode = off\nmax_slot_wal_keep_size = '1GB'\n");
    cluster.start();
    let server = Server::start_with(&cluster, &format!("wal = \"stream\"\n{}", daily()), &[]);
    until("the base backup that is due", || server.metric(TAKEN) == Some(1.0));
    assert_eq!(
        server.metric("foregate_pitr_base_backups_total{result=\"failed\"}"),
        Some(0.0)
    );
    until("it is well", || server.get("/health").contains("\"healthy\""));
}

#[test]
fn base_backup_beside_another_one_of_the_server_is_refused_and_names_who_takes_it() {
    let cluster = Cluster::new();
    cluster.sql("CREATE DATABASE app");
    let root = cluster.root().display().to_string();
    let lock = format!("SELECT pg_advisory_lock({}), pg_sleep(600)", 0x666f_7265_6762_i64);
    let mut other = std::process::Command::new("psql")
        .env("PGAPPNAME", "another machine")
        .args([
            "-XAtq", "-h", &root, "-p", PORT, "-U", "postgres", "-d", "postgres", "-c", &lock,
        ])
        .spawn()
        .expect("psql starts");
    until("it holds the lock", || {
        cluster.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted") == "1"
    });
    let file = cluster.root().join("config.toml");
    std::fs::write(&file, config(&cluster, "")).expect("written");
    let url = cluster.url();
    let url = url.strip_suffix("/postgres").expect("its own database");
    let url = format!("DATABASE_URL={url}/app");
    let taken = crate::support::output(
        "env",
        &[
            &url,
            &cluster.binary(),
            "pitr",
            "base-backup",
            "--config",
            &file.display().to_string(),
        ],
        cluster.root(),
    );
    other.kill().expect("our child");
    other.wait().expect("it ends");
    let said = String::from_utf8_lossy(&taken.stderr);
    assert!(!taken.status.success(), "{said}");
    assert!(said.contains("is running: another machine as postgres from"), "{said}");
}

#[test]
fn what_killed_drills_left_goes_at_the_start_and_what_a_living_one_owns_stays() {
    let cluster = Cluster::new();
    let scratch = cluster.root().join("scratch");
    let (left, owned, other) = (
        scratch.join("foregate-drill-01K9ZZZZZZZZZZZZZZZZZZZZZZ"),
        scratch.join("foregate-drill-01K9YYYYYYYYYYYYYYYYYYYYYY"),
        scratch.join("foregate-drill-by-hand"),
    );
    for directory in [&left, &owned, &other] {
        std::fs::create_dir_all(directory.join("data")).expect("made");
        std::fs::write(directory.join("data/PG_VERSION"), "15").expect("written");
    }
    let lock = std::fs::File::open(&owned).expect("opened");
    lock.try_lock().expect("nobody else holds it");
    let server = Server::start_with(&cluster, &format!("scratch = \"{}\"", scratch.display()), &[]);
    until("the end of what was left", || !left.exists());
    assert!(owned.join("data/PG_VERSION").exists() && other.join("data/PG_VERSION").exists());
    drop((lock, server));
}

const VIEWER: &str = "a-token-that-may-look";

fn seen(server: &Server, path: &str) -> serde_json::Value {
    let (status, body) = server.ask("GET", &format!("pitr/{path}"), VIEWER, "");
    assert_eq!(status, 200, "{path}: {body}");
    body
}

const BASES: &str = "foregate_pitr_base_backups";
const BASE_AT: &str = "foregate_pitr_last_base_backup_timestamp_seconds";
const TAKEN: &str = "foregate_pitr_base_backups_total{result=\"passed\"}";

fn config_without_identity(cluster: &Cluster) -> String {
    let text = config(cluster, &format!("{}\n{}", daily(), token("viewer", VIEWER)));
    text.lines()
        .filter(|line| !line.starts_with("identity = "))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn manifests(cluster: &Cluster) -> usize {
    let files = crate::support::run(
        "find",
        &[
            &cluster.repository().display().to_string(),
            "-path",
            "*/bases/*/manifest.json",
        ],
    );
    files.lines().count()
}

#[test]
fn without_an_identity_one_base_backup_is_taken_a_period_and_the_window_is_said_to_be_unknown() {
    let cluster = Cluster::new();
    archive_through(&cluster);
    // A second tablespace needs a place to unpack, which nothing has made yet.
    let space = cluster.root().join("space").display().to_string();
    crate::support::run("install", &["-d", "-o", "postgres", "-m", "700", &space]);
    cluster.sql(&format!("CREATE TABLESPACE space LOCATION '{space}'"));
    let text = config_without_identity(&cluster);
    for taken in [1.0, 0.0] {
        let server = Server::start_configured(&cluster, &text, &[]);
        until("the base backup that is due, at the first start", || {
            server.metric(TAKEN) == Some(taken)
        });
        until("the window is said to be unknown", || {
            let log = std::fs::read_to_string(cluster.root().join("stderr"));
            log.is_ok_and(|log| log.contains("no age identity is configured"))
        });
        until("the base backup is counted all the same", || {
            server.metric(BASES) == Some(1.0) && seen(&server, "stats")["baseBackups"]["count"] == 1
        });
        let stats = seen(&server, "stats");
        assert_eq!(
            (&stats["window"], &stats["baseBackups"]["count"]),
            (&serde_json::Value::Null, &1.into()),
            "what nobody knows is not nothing: {stats}"
        );
        let (window, bases) = (seen(&server, "window"), seen(&server, "base-backups"));
        assert!(
            window["lookedAt"].is_null() && bases["lookedAt"].is_string(),
            "{window} {bases}"
        );
        server.kill();
    }
    assert_eq!(manifests(&cluster), 1, "a period is served once");
}

#[test]
fn base_backup_that_has_lost_a_file_is_counted_nowhere() {
    let cluster = Cluster::new();
    archive_through(&cluster);
    let more = format!("{}\n{}", daily(), token("viewer", VIEWER));
    let server = Server::start_with(&cluster, &more, &[]);
    // One number comes after the other, and what the API tells after both.
    let told = |count: u64| seen(&server, "stats")["baseBackups"]["count"] == count;
    until("the base backup that is due", || told(1));
    assert_eq!(server.metric(BASES), Some(1.0));
    assert!(server.metric(BASE_AT) > Some(0.0));
    let stored = crate::support::files(&cluster.repository());
    let part = stored
        .iter()
        .find(|path| path.display().to_string().contains("/bases/") && path.ends_with("base.tar.zst.age"));
    std::fs::remove_file(part.expect("a part")).expect("removed");
    until("it does not count any more", || told(0));
    assert_eq!((server.metric(BASES), server.metric(BASE_AT)), (Some(0.0), Some(0.0)));
    let short = seen(&server, "stats")["baseBackups"].clone();
    assert_eq!(short["newest"], serde_json::Value::Null, "{short}");
    let bases = seen(&server, "base-backups");
    assert!(bases["baseBackups"][0]["incomplete"].is_string(), "{bases}");
}

#[test]
fn server_that_shares_a_repository_takes_its_own_base_backup() {
    let (first, second) = (Cluster::new(), Cluster::new());
    let daily = daily();
    let text = config(&second, &daily)
        .replace(
            &format!("file://{}", second.repository().display()),
            &format!("file://{}", first.repository().display()),
        )
        .replace(&second.recipient, &first.recipient)
        .replace(&second.key(), &first.key());
    for cluster in [&first, &second] {
        archive_through(cluster);
    }
    let server = Server::start_with(&first, &daily, &[]);
    until("the base backup of the first", || server.metric(TAKEN) == Some(1.0));
    let server = Server::start_configured(&second, &text, &[]);
    until("the base backup of the second", || server.metric(TAKEN) == Some(1.0));
    assert_eq!(manifests(&first), 2);
}

const OPERATOR: &str = "a-token-that-may-order-work";

#[test]
fn base_backup_by_command_ends_the_trouble_of_one_that_failed_and_serves_its_period() {
    let cluster = Cluster::new();
    cluster.archive_command("false");
    let more = format!(
        "{}\n{}{}",
        daily(),
        token("viewer", VIEWER),
        token("operator", OPERATOR)
    );
    let server = Server::start_with(&cluster, &more, &[]);
    until("the base backup that is due fails", || {
        server.metric("foregate_pitr_base_backups_total{result=\"failed\"}") == Some(1.0)
    });
    until("it is told", || server.get("/health").contains("degraded"));
    archive_through(&cluster);
    cluster.wait_until_archived();
    let (url, binary) = (format!("DATABASE_URL={}", cluster.url()), cluster.binary());
    let config = cluster.root().join("config.toml").display().to_string();
    crate::support::run("env", &[&url, &binary, "pitr", "base-backup", "--config", &config]);
    until("it is well", || server.get("/health").contains("\"healthy\""));
    let (status, body) = server.ask("POST", "pitr/base-backup", OPERATOR, "");
    assert_eq!(status, 202, "{body}");
    until("the one that was ordered", || manifests(&cluster) == 2);
    until("both are listed", || {
        seen(&server, "base-backups")["baseBackups"]
            .as_array()
            .is_some_and(|bases| bases.len() == 2)
    });
    let list = seen(&server, "base-backups");
    for base in list["baseBackups"].as_array().expect("a list") {
        assert_eq!(base["labels"], serde_json::json!(["manual"]), "{base}");
    }
}

#[test]
fn drill_before_there_is_anything_to_rehearse_is_no_trouble() {
    let cluster = Cluster::new();
    archive_through(&cluster);
    let more = format!("{}{}", token("viewer", VIEWER), token("operator", OPERATOR));
    let server = Server::start_with(&cluster, &more, &[]);
    until("it is known that there is nothing", || {
        seen(&server, "base-backups")["lookedAt"].is_string()
    });
    let (status, body) = server.ask("POST", "pitr/drill", OPERATOR, "");
    assert_eq!(status, 202, "{body}");
    until("an answer", || {
        seen(&server, "drills")["run"]["last"]["failure"].is_string()
    });
    let drills = seen(&server, "drills");
    assert!(
        drills["run"]["last"]["failure"]
            .to_string()
            .contains("no base backup yet"),
        "{drills}"
    );
    assert_eq!(drills["drills"], serde_json::json!([]));
    until("it is well", || server.get("/health").contains("\"healthy\""));
}
