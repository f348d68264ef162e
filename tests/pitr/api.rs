//! The API of point-in-time recovery: who may, what it says, what it leaves in the audit trail.

#![expect(
    clippy::indexing_slicing,
    reason = "a test that finds another shape than it wants shall fail"
)]

use serde_json::{Value, json};

use crate::support::cluster::Cluster;
use crate::support::server::{Server, archive_through, token};
use crate::support::until;

const VIEWER: &str = "a-token-that-may-look-and-nothing-else";
const OPERATOR: &str = "a-token-that-may-order-work-as-well";

fn server(cluster: &Cluster) -> Server {
    let more = format!(
        "heartbeat = \"2s\"\n{}{}",
        token("viewer", VIEWER),
        token("operator", OPERATOR)
    );
    Server::start_with(cluster, &more, &[])
}

fn seen(server: &Server, path: &str) -> Value {
    let (status, body) = server.ask("GET", &format!("pitr/{path}"), VIEWER, "");
    assert_eq!(status, 200, "{path}: {body}");
    body
}

fn ordered(server: &Server, path: &str) -> Value {
    let (status, body) = server.ask("POST", &format!("pitr/{path}"), OPERATOR, "");
    assert_eq!(status, 202, "{path}: {body}");
    body
}

fn command(config: &Value) -> Value {
    let settings = config["settings"].as_array().expect("settings");
    let found = settings.iter().find(|setting| setting["name"] == "archive_command");
    found.expect("it is judged").clone()
}

#[test]
fn a_command_whose_program_is_not_there_is_not_ready() {
    let cluster = Cluster::new();
    cluster.archive_command("/nowhere/foregate wal push %p");
    let server = server(&cluster);
    let config = seen(&server, "config");
    assert_eq!(config["ready"], false, "{config}");
    let judged = command(&config);
    assert_eq!(judged["verdict"], "wrong", "{judged}");
    assert!(
        judged["note"]
            .as_str()
            .is_some_and(|note| note.contains("/nowhere/foregate")),
        "{judged}"
    );
    cluster.archive_command("foregate wal push %p");
    let judged = command(&seen(&server, "config"));
    assert_eq!(judged["verdict"], "advice", "{judged}");
    assert!(
        judged["note"].as_str().is_some_and(|note| note.contains("not tried")),
        "{judged}"
    );
    archive_through(&cluster);
    cluster.sql("ALTER SYSTEM SET fsync = on");
    cluster.sql("SELECT pg_reload_conf()");
    until("the server reads its settings", || cluster.sql("SHOW fsync") == "on");
    let config = seen(&server, "config");
    assert_eq!(
        (command(&config)["verdict"].as_str(), &config["ready"]),
        (Some("good"), &json!(true)),
        "{config}"
    );
}

#[test]
fn every_verb_answers_whom_it_may_and_a_drill_proves_the_beat_of_its_instant() {
    let cluster = Cluster::new();
    archive_through(&cluster);
    let first = server(&cluster);
    only_for_those_who_may(&first);
    assert_eq!(ordered(&first, "base-backup")["ordered"], true);
    until("the base backup", || {
        let list = seen(&first, "base-backups");
        list["baseBackups"].as_array().is_some_and(|bases| bases.len() == 1) && list["running"] == false
    });
    assert_eq!(seen(&first, "base-backups")["run"]["last"]["passed"], true);
    let beats = "SELECT count(*) FROM foregate.heartbeat WHERE at > clock_timestamp() - interval '1 hour'";
    let enough: u64 = cluster.sql(beats).parse::<u64>().expect("a count") + 3;
    until("it beats", || {
        cluster.sql(beats).parse::<u64>().expect("a count") >= enough
    });
    cluster.finish_segment();
    cluster.wait_until_archived();
    // An orderly end writes down what was beaten; the next one has to read it.
    first.stop();
    let server = server(&cluster);
    until("the window", || seen(&server, "window")["latest"].is_string());
    assert_eq!(ordered(&server, "drill")["result"], "ordered");
    until("the drill", || {
        seen(&server, "drills")["drills"]
            .as_array()
            .is_some_and(|drills| !drills.is_empty())
    });
    let drills = seen(&server, "drills");
    let drill = &drills["drills"][0];
    assert_eq!(drill["passed"], true, "{drill}");
    let beat = drill["findings"].as_array().and_then(|findings| {
        findings
            .iter()
            .find(|finding| finding["what"] == "heartbeat of the instant")
            .cloned()
    });
    assert!(
        beat.is_some_and(|beat| beat["found"].to_string().contains("known before the target")),
        "{drill}"
    );
    assert!(drill["phases"]["planSeconds"].as_f64() > Some(0.0), "{drill}");
    plans_and_refusals(&server, &cluster.key());
    everything_is_counted(&server);
}

fn only_for_those_who_may(server: &Server) {
    for path in ["config", "base-backups", "stats", "window", "drills"] {
        assert_eq!(
            server.ask("GET", &format!("pitr/{path}"), "nobody", "").0,
            401,
            "{path}"
        );
        assert_eq!(server.ask("GET", &format!("pitr/{path}"), VIEWER, "").0, 200, "{path}");
    }
    for path in ["base-backup", "recover", "drill"] {
        assert_eq!(
            server.ask("POST", &format!("pitr/{path}"), "nobody", "{}").0,
            401,
            "{path}"
        );
        assert_eq!(
            server.ask("POST", &format!("pitr/{path}"), VIEWER, "{}").0,
            403,
            "{path}"
        );
    }
}

fn plans_and_refusals(server: &Server, key: &str) {
    let window = seen(server, "window");
    let plan = |target: &str| {
        let body = json!({"targetTimestamp": target}).to_string();
        server.ask("POST", "pitr/recover", OPERATOR, &body)
    };
    let (status, refused) = plan("2024-01-15 14:30:00");
    assert_eq!(status, 422, "{refused}");
    assert_eq!(refused["nearestAfter"], window["earliest"], "{refused}");
    assert!(refused.get("nearestBefore").is_none(), "{refused}");
    // Without a zone, and to the second: read in `backup.time_zone`, and said so.
    let latest = window["latest"].as_str().expect("a window");
    let second = latest.get(..19).expect("an instant").replace('T', " ");
    let (status, planned) = plan(&second);
    assert_eq!(status, 200, "{planned}");
    assert!(
        planned["note"].as_str().is_some_and(|note| note.contains("UTC")),
        "{planned}"
    );
    let base = planned["plan"]["baseBackup"]["path"]
        .as_str()
        .expect("a path")
        .to_owned();
    let script = planned["script"].as_str().expect("a script");
    assert!(script.starts_with("#!/bin/bash"), "{script}");
    assert!(script.contains(&format!("IDENTITY=${{IDENTITY:-'{key}'}}")), "{script}");
    let body = json!({"backupPath": base}).to_string();
    let (status, planned) = server.ask("POST", "pitr/recover", OPERATOR, &body);
    assert_eq!(
        (status, &planned["plan"]["baseBackup"]["path"]),
        (200, &json!(base)),
        "{planned}"
    );
    let lsn = planned["plan"]["baseBackup"]["stopLsn"].as_str().expect("a position");
    let body = json!({"targetLsn": lsn}).to_string();
    server.ask("POST", "pitr/recover", OPERATOR, &body);
    let (_, trail) = server.ask("GET", "audit?limit=1", VIEWER, "");
    assert_eq!(trail["entries"][0]["subject"], format!("LSN {lsn}"), "{trail}");
    let (status, wrong) = server.ask("POST", "pitr/recover", OPERATOR, "{\"targetTime\": 1}");
    assert_eq!(status, 422, "{wrong}");
}

fn everything_is_counted(server: &Server) {
    until("the archive is counted", || {
        seen(server, "stats")["archive"]["segments"].as_u64() > Some(0)
    });
    let stats = seen(server, "stats");
    for member in [
        "/window/latest",
        "/window/recoveryPointSeconds",
        "/baseBackups/newest/id",
        "/lastDrill/recoveryTimeSeconds",
        "/lastArchived/ageSeconds",
        "/server/readyAgeSeconds",
        "/archive/storedBytes",
        "/archive/gaps",
    ] {
        assert!(
            stats.pointer(member).is_some_and(|value| !value.is_null()),
            "{member}: {stats}"
        );
    }
    assert_eq!(
        (&stats["baseBackups"]["count"], &stats["lastDrill"]["passed"]),
        (&json!(1), &json!(true))
    );
    let (_, trail) = server.ask("GET", "audit?limit=50", VIEWER, "");
    let told: Vec<String> = trail["entries"]
        .as_array()
        .expect("entries")
        .iter()
        .map(|entry| format!("{} {}", entry["actor"], entry["action"]).replace('"', ""))
        .collect();
    for wanted in [
        "operator base-backup",
        "operator drill",
        "operator recovery plan",
        "viewer forbidden",
    ] {
        assert!(told.iter().any(|entry| entry == wanted), "{wanted}: {told:?}");
    }
}
