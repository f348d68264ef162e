//! A pinned base backup that the window has left behind.

use foregate::repository::manifest::{Content, Manifest};
use jiff::{SignedDuration, Timestamp};

use crate::stopped_at;
use crate::support::Bed;

/// As if it had been taken so long ago.
fn age(bed: &Bed, id: &str, by: SignedDuration) {
    let manifests = bed.objects("manifest.json");
    let path = manifests.iter().find(|path| path.display().to_string().contains(id));
    let path = path.expect("its manifest");
    let mut manifest = Manifest::parse(&std::fs::read(path).expect("readable")).expect("a manifest");
    let Content::Base { stopped_at, .. } = &mut manifest.content else {
        unreachable!("it is a base backup");
    };
    for at in [stopped_at, &mut manifest.started_at, &mut manifest.finished_at] {
        *at -= by;
    }
    std::fs::write(path, manifest.to_bytes()).expect("writable");
}

#[test]
fn what_retention_removed_behind_a_pinned_base_backup_is_told_apart_from_a_gap() {
    let bed = Bed::new();
    let write = || {
        bed.sql("app", "INSERT INTO ledger (writer) VALUES (1)");
        bed.archive_all();
    };
    let pinned = bed.json(&["base-backup", "--label", "pinned"])["id"].clone();
    let pinned = pinned.as_str().expect("an id").to_owned();
    (0..3).for_each(|_| write());
    bed.ok(&["base-backup"]);
    (0..2).for_each(|_| write());
    // Longer ago than the window of a week, whereas the other one has just left it.
    let week = SignedDuration::from_hours(24 * 7);
    age(&bed, &pinned, week + week);
    let other = bed.json(&["base-backups"])[1]["id"].clone();
    age(&bed, other.as_str().expect("an id"), week);
    let removed = bed.json(&["prune"]);
    assert!(removed["segments"].as_u64() >= Some(2), "{removed}");
    let stats = bed.json(&["stats"]);
    assert_eq!(stats["archive"]["gaps"], serde_json::json!([]), "{stats}");
    let bases = bed.json(&["base-backups"]);
    let window = bed.json(&["window"]);
    assert_eq!(window["gaps"], serde_json::json!([]), "{window}");
    assert_eq!(window["endsBecause"], serde_json::Value::Null, "{window}");
    let at = |value: &serde_json::Value| value.as_str().and_then(|at| at.parse::<Timestamp>().ok());
    assert_eq!(at(&window["earliest"]), Some(stopped_at(&bases[1])), "{window}");
    assert_eq!(window["islands"][0]["base"], pinned, "{window}");
    assert_eq!(
        at(&window["islands"][0]["from"]),
        Some(stopped_at(&bases[0])),
        "{window}"
    );
    // It can be had as it was when it ended.
    let stop = bases[0]["stopLsn"].as_str().expect("a position");
    let plan = bed.json(&["plan", "--base", &pinned, "--lsn", stop]);
    assert_eq!(plan["baseBackup"]["id"], pinned, "{plan}");
}
