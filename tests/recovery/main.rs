//! Recovery of real clusters under a write load: right to the transaction, or refused before anything starts.

#![expect(
    clippy::indexing_slicing,
    reason = "a test that finds another shape than it wants shall fail"
)]

mod configuration;
mod elsewhere;
mod interrupted;
mod island;
mod quiet;
mod script;
mod segments;
mod support;

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use support::{Bed, Entry, Load, as_postgres, until};

/// An instant after which at least one row committed, and before which at least one did.
fn instants(commits: &[Entry], from: Timestamp, count: usize) -> Vec<Timestamp> {
    let reachable: Vec<&Entry> = commits.iter().filter(|entry| entry.at > from).collect();
    let steps = reachable.len() / (count + 1);
    assert!(steps > 0, "too few commits: {}", reachable.len());
    // Between two neighbours, and exactly on a commit, by turns.
    (1..=count)
        .map(|number| {
            let at = reachable[number * steps].at;
            if number % 2 == 0 {
                at
            } else {
                at.saturating_sub(SignedDuration::from_micros(1)).expect("in range")
            }
        })
        .collect()
}

fn committed_by(commits: &[Entry], at: Timestamp) -> Vec<i64> {
    let mut ids: Vec<i64> = commits
        .iter()
        .filter(|entry| entry.at <= at)
        .map(|entry| entry.id)
        .collect();
    ids.sort_unstable();
    ids
}

fn stopped_at(base: &serde_json::Value) -> Timestamp {
    let text = base["stoppedAt"].as_str().expect("an instant");
    text.parse().expect("an instant")
}

/// Runs a load with base backups in it, and recovers `count` instants of it.
fn recover_instants(count: usize) {
    let bed = Bed::new();
    let load = Load::start(&bed, 3);
    bed.ok(&["base-backup"]);
    let rows = |wanted: usize| {
        let sql = "SELECT count(*) FROM ledger";
        until("rows", || {
            bed.sql("app", sql).parse::<usize>().expect("a count") >= wanted
        });
    };
    rows(1500);
    bed.ok(&["base-backup"]);
    rows(3000);
    let acknowledged = load.finish();
    bed.archive_all();
    let commits = bed.commits();
    let mut there: Vec<i64> = commits.iter().map(|entry| entry.id).collect();
    there.sort_unstable();
    assert!(
        acknowledged.iter().all(|id| there.binary_search(id).is_ok()),
        "the server kept what it acknowledged"
    );
    let bases = bed.json(&["base-backups"]);
    for at in instants(&commits, stopped_at(&bases[0]), count) {
        let recovered = bed.recover("recovered", &["--target", &at.to_string()]);
        assert_eq!(
            recovered.ids(),
            committed_by(&commits, at),
            "at {at}: {}",
            recovered.told
        );
        assert_eq!(recovered.sql("SHOW archive_mode"), "off");
        assert_eq!(recovered.sql("SELECT pg_is_in_recovery()"), "t");
    }
}

#[test]
fn instants_under_load_are_recovered_right_to_the_transaction() {
    recover_instants(3);
}

#[test]
#[ignore = "twenty recoveries: make drills"]
fn twenty_instants_under_load_are_recovered_right_to_the_transaction() {
    recover_instants(20);
}

#[test]
fn a_position_a_restore_point_and_a_transaction_are_reached_and_promoted() {
    let bed = Bed::new();
    bed.ok(&["base-backup"]);
    let insert = "INSERT INTO ledger (writer) VALUES (1) RETURNING pg_current_xact_id()";
    let wanted = bed.sql("app", insert);
    bed.sql("app", insert);
    let position = bed.sql("postgres", "SELECT pg_create_restore_point('before the accident')");
    bed.sql("app", insert);
    bed.archive_all();
    let rows = |aim: &[&str]| bed.recover("recovered", aim).ids().len();
    assert_eq!(rows(&["--xid", &wanted]), 1);
    assert_eq!(rows(&["--name", "before the accident"]), 2);
    assert_eq!(
        rows(&["--lsn", &position]),
        2,
        "the first record behind it is the third row's own, whose commit comes later"
    );
    let refused = bed.fails(&["plan", "--name", "never made"]);
    assert!(refused.contains("does not hold the restore point"), "{refused}");
    let into = bed.path("promoted").display().to_string();
    bed.ok(&["recover", "--xid", &wanted, "--into", &into]);
    // Nothing of the repository is needed for that.
    as_postgres(&bed.program(), &["pitr", "promote", "--no-config", &into]);
    assert!(!bed.path("promoted/recovery.signal").exists());
    bed.stop("data");
    bed.start("promoted");
    assert_eq!(bed.sql("app", "SELECT count(*) FROM ledger"), "1");
    assert_eq!(
        bed.sql("app", "SHOW archive_mode"),
        "on",
        "it is its own configuration again"
    );
    bed.sql("app", insert);
}

#[test]
fn instants_on_every_timeline_are_recovered_across_promotions() {
    let bed = Bed::new();
    bed.ok(&["base-backup"]);
    for _ in 0..2 {
        let load = Load::start(&bed, 2);
        let count = || {
            bed.sql("app", "SELECT count(*) FROM ledger")
                .parse::<usize>()
                .expect("a count")
        };
        let enough = count() + 200;
        until("rows", || count() >= enough);
        load.finish();
        bed.promote();
    }
    let load = Load::start(&bed, 2);
    let before: usize = bed.sql("app", "SELECT count(*) FROM ledger").parse().expect("a count");
    until("rows", || {
        bed.sql("app", "SELECT count(*) FROM ledger")
            .parse::<usize>()
            .expect("a count")
            > before + 200
    });
    load.finish();
    bed.archive_all();
    let commits = bed.commits();
    let bases = bed.json(&["base-backups"]);
    for at in instants(&commits, stopped_at(&bases[0]), 3) {
        let recovered = bed.recover("recovered", &["--target", &at.to_string()]);
        assert_eq!(recovered.ids(), committed_by(&commits, at), "at {at}");
        assert_eq!(recovered.told["plan"]["timeline"], 3);
    }
    let window = bed.json(&["window"]);
    assert_eq!(window["stretches"].as_array().map(Vec::len), Some(1), "{window}");
}

#[test]
fn what_cannot_be_reached_is_refused_with_the_nearest_that_can() {
    let bed = Bed::new();
    let before: Timestamp = bed
        .sql("app", "SELECT to_json(clock_timestamp())#>>'{}'")
        .parse()
        .expect("an instant");
    bed.sql("app", "INSERT INTO ledger (writer) VALUES (1)");
    let base = bed.json(&["base-backup"]);
    let ended: Timestamp = base["content"]["stoppedAt"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("an instant");
    let began: Timestamp = base["startedAt"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("an instant");
    let second = SignedDuration::from_secs(1);
    // Idle since the base backup: no commit, so nothing to stop at.
    bed.archive_all();
    let idle = bed.refused(&ended.to_string());
    assert!(
        idle["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("without anything later")),
        "{idle}"
    );
    let because = bed.json(&["window"])["endsBecause"].to_string();
    assert!(because.contains("is archived yet"), "{because}");
    bed.sql("app", "SELECT pg_current_xact_id()");
    let latest = bed.sql(
        "app",
        "INSERT INTO ledger (writer) VALUES (2) RETURNING to_json(clock_timestamp())#>>'{}'",
    );
    bed.archive_all();
    assert_eq!(
        bed.recover("recovered", &["--target", &ended.to_string()]).ids().len(),
        1
    );
    for early in [
        before,
        began,
        ended.saturating_sub(SignedDuration::from_micros(1)).expect("in range"),
    ] {
        let refused = bed.refused(&early.to_string());
        assert_eq!(refused["nearestAfter"], ended.to_string(), "{refused}");
        assert_eq!(refused["nearestBefore"], serde_json::Value::Null);
    }
    let latest: Timestamp = latest.parse().expect("an instant");
    let late = bed.refused(&latest.saturating_add(second).expect("in range").to_string());
    let nearest: Timestamp = late["nearestBefore"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("an instant");
    assert!(
        nearest >= ended && nearest < latest.saturating_add(second).expect("in range"),
        "{late}"
    );
    assert_eq!(
        bed.recover("recovered", &["--target", &nearest.to_string()])
            .ids()
            .len(),
        1
    );
    let future = bed.refused("2099-01-01T00:00:00Z");
    assert!(
        future["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("future")),
        "{future}"
    );
}

#[test]
fn a_missing_torn_doubled_or_flipped_segment_is_found_before_anything_starts() {
    let bed = Bed::new();
    bed.ok(&["base-backup"]);
    for _ in 0..3 {
        bed.sql("app", "INSERT INTO ledger (writer) VALUES (1)");
        bed.archive_all();
    }
    let commits = bed.commits();
    let target = commits
        .last()
        .expect("commits")
        .at
        .saturating_sub(SignedDuration::from_micros(1))
        .expect("in range");
    let target = target.to_string();
    bed.ok(&["plan", "--target", &target]);
    // The segment with the second row: between the base backup and the target.
    let base = bed.json(&["base-backups"]);
    let stop = base[0]["stopLsn"].as_str().expect("a position").to_owned();
    let name = bed.sql(
        "postgres",
        &format!(
            "SELECT pg_walfile_name('{stop}'::pg_lsn + wal_segment_size) FROM (SELECT \
        setting::bigint AS wal_segment_size FROM pg_settings WHERE name = 'wal_segment_size') s"
        ),
    );
    let object = bed
        .objects(&name)
        .into_iter()
        .find(|path| !path.display().to_string().contains(".backup"));
    let object = object.expect("the segment is archived");
    let good = std::fs::read(&object).expect("read");
    let refused = |fault: &str| {
        let refused = bed.refused(&target);
        let reason = refused["reason"].as_str().expect("a reason");
        assert!(reason.contains(&name), "{fault}: {refused}");
        let into = bed.path("never").display().to_string();
        bed.fails(&["recover", "--target", &target, "--into", &into]);
        assert!(!Path::new(&into).exists(), "{fault}: nothing was started");
    };
    std::fs::remove_file(&object).expect("removed");
    refused("missing");
    let window = bed.json(&["window"]);
    assert!(
        window["endsBecause"]
            .as_str()
            .is_some_and(|because| because.contains(&name)),
        "{window}"
    );
    std::fs::write(&object, &good[..good.len() / 2]).expect("written");
    refused("torn");
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(&object, &flipped).expect("written");
    refused("flipped");
    std::fs::write(&object, &good).expect("written");
    let stranger = object
        .display()
        .to_string()
        .replace(&name, &format!("{name}-{}", "0".repeat(64)));
    let stranger = stranger
        .rsplit_once('-')
        .map(|(head, _)| format!("{head}.zst.age"))
        .expect("a name");
    std::fs::write(&stranger, &good).expect("written");
    refused("doubled");
    std::fs::remove_file(&stranger).expect("removed");
    bed.ok(&["plan", "--target", &target]);
}

#[test]
fn tablespaces_come_back_beside_the_new_directory_and_never_onto_the_live_ones() {
    let bed = Bed::new();
    let live = bed.path("space").display().to_string();
    as_postgres("mkdir", &[&live]);
    bed.sql("postgres", &format!("CREATE TABLESPACE space LOCATION '{live}'"));
    bed.sql("app", "CREATE TABLE far (id int) TABLESPACE space");
    bed.sql("app", "INSERT INTO far SELECT generate_series(1, 5000)");
    bed.ok(&["base-backup"]);
    bed.sql("app", "INSERT INTO ledger (writer) VALUES (1)");
    bed.sql("app", "INSERT INTO far VALUES (0)");
    bed.sql("app", "INSERT INTO ledger (writer) VALUES (2)");
    bed.archive_all();
    let files = || support::run("find", &[&live, "-type", "f", "-printf", "%P %s %T@\n"]);
    bed.sql("postgres", "CHECKPOINT");
    let before = files();
    let recovered = bed.recover("recovered", &["--latest"]);
    assert_eq!(recovered.sql("SELECT count(*) FROM far"), "5001");
    let place = recovered.sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'space'");
    assert!(
        place.starts_with(&bed.path("recovered.tablespaces").display().to_string()),
        "{place}"
    );
    assert_eq!(files(), before, "the live tablespace was not touched");
}

#[test]
fn a_drill_proves_the_instant_and_leaves_the_archive_alone() {
    let bed = Bed::new();
    bed.sql(
        "app",
        "CREATE SCHEMA foregate CREATE TABLE heartbeat (at timestamptz NOT NULL)",
    );
    bed.ok(&["base-backup"]);
    for _ in 0..20 {
        bed.sql("app", "INSERT INTO foregate.heartbeat VALUES (clock_timestamp())");
        bed.sql("app", "INSERT INTO ledger (writer) VALUES (1)");
    }
    bed.archive_all();
    let log = bed.objects("/wal/");
    let drill = bed.json(&["drill", "--check", "SELECT count(*) >= 0 FROM ledger=t"]);
    assert_eq!(drill["passed"], true, "{drill}");
    assert!(drill["recoveryTimeSeconds"].as_f64().is_some_and(|time| time > 0.0));
    assert!(drill["recoveryPointSeconds"].as_f64().is_some_and(|point| point >= 0.0));
    let found = drill["findings"].to_string();
    assert!(
        found.contains("heartbeat of the instant") && found.contains("pg_amcheck"),
        "{found}"
    );
    let failed = bed.output(&["drill", "--check", "SELECT 1=2", "--json"]);
    assert!(!failed.status.success(), "a wrong answer fails the drill");
    assert_eq!(bed.objects("/wal/"), log, "nothing was archived by it");
    let drills = bed.json(&["drills"]);
    assert_eq!(
        (&drills[0]["passed"], &drills[1]["passed"]),
        (&false.into(), &true.into()),
        "newest first"
    );
    let left: Vec<_> = std::fs::read_dir(bed.path("scratch"))
        .expect("a directory")
        .flatten()
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // What the drill measured is what the next plan expects.
    assert!(
        bed.json(&["plan", "--latest"])["expectedSeconds"]
            .as_f64()
            .is_some_and(|seconds| seconds > 0.0)
    );
}

#[test]
fn killed_base_backups_and_drills_leave_nothing_behind_that_counts() {
    let bed = Bed::new();
    bed.sql(
        "app",
        "INSERT INTO ledger (writer, padding) SELECT 1, repeat(md5(g::text), 50) FROM generate_series(1, 100000) g",
    );
    let walsenders = "SELECT count(*) FROM pg_stat_replication WHERE application_name LIKE 'foregate base %'";
    let mut child = bed.spawn(&["base-backup"]);
    until("the copy", || bed.sql("postgres", walsenders) != "0");
    child.kill().expect("killed");
    child.wait().expect("reaped");
    assert_eq!(bed.json(&["base-backups"]).as_array().map(Vec::len), Some(0));
    until("the server notices", || bed.output(&["base-backup"]).status.success());
    assert_eq!(bed.json(&["base-backups"]).as_array().map(Vec::len), Some(1));
    assert_eq!(
        bed.objects("/bases/")
            .iter()
            .filter(|path| path.ends_with("manifest.json"))
            .count(),
        1
    );
    let unfinished = bed.objects("/bases/");
    let unfinished = unfinished.iter().find(|path| path.display().to_string().contains('#'));
    assert_eq!(unfinished, None, "uploads without an end");
    until("its walsenders end", || bed.sql("postgres", walsenders) == "0");
    bed.sql("app", "INSERT INTO ledger (writer) VALUES (2)");
    bed.sql("app", "INSERT INTO ledger (writer) VALUES (3)");
    bed.archive_all();
    let mut child = bed.spawn(&["drill"]);
    let pid_file = || {
        let drills = std::fs::read_dir(bed.path("scratch")).ok()?.flatten();
        drills
            .map(|drill| drill.path().join("data/postmaster.pid"))
            .find(|path| path.exists())
    };
    let mut pid = String::new();
    until("the drill's server", || {
        let text = pid_file().and_then(|path| std::fs::read_to_string(path).ok());
        pid = text
            .and_then(|text| Some(text.lines().next()?.to_owned()))
            .unwrap_or_default();
        !pid.is_empty()
    });
    child.kill().expect("killed");
    child.wait().expect("reaped");
    until("the drill's server ends with it", || {
        !Path::new("/proc").join(&pid).exists()
    });
    assert_eq!(bed.json(&["drill"])["passed"], true);
    let left: Vec<_> = std::fs::read_dir(bed.path("scratch"))
        .expect("a directory")
        .flatten()
        .collect();
    assert!(left.is_empty(), "the next drill cleans up: {left:?}");
}

#[test]
fn another_cluster_in_the_same_repository_never_mixes_with_the_first() {
    let bed = Bed::new();
    let first = bed.json(&["base-backup"])["content"]["systemIdentifier"].clone();
    bed.sql("app", "INSERT INTO ledger (writer) VALUES (1)");
    bed.sql("app", "INSERT INTO ledger (writer) VALUES (2)");
    bed.archive_all();
    bed.stop("data");
    bed.make_cluster("upgraded");
    bed.start("upgraded");
    bed.sql("postgres", "CREATE DATABASE app");
    bed.sql("app", "CREATE TABLE ledger (id bigserial PRIMARY KEY, writer int)");
    let second = bed.json(&["base-backup"])["content"]["systemIdentifier"].clone();
    assert_ne!(first, second);
    for _ in 0..5 {
        bed.sql("app", "INSERT INTO ledger (writer) VALUES (1)");
    }
    bed.archive_all();
    assert_eq!(
        bed.recover("recovered", &["--latest"]).ids().len(),
        4,
        "the newest cluster, without its last commit"
    );
    let of_first = format!("{}-15", first.as_str().expect("an identifier"));
    let major = bed.sql("postgres", "SELECT current_setting('server_version_num')::int / 10000");
    let of_first = of_first.replace("-15", &format!("-{major}"));
    assert_eq!(
        bed.recover("recovered", &["--latest", "--of", &of_first]).ids().len(),
        1
    );
}
