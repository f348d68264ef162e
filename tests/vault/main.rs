//! The vault against a real PostgreSQL and the real programs: what must hold after each fault.

mod bucket;
mod damage;
mod faults;
mod files;
mod machine;
mod memory;
mod refusals;
mod secrets;
mod server;
mod shared;
mod steps;
mod subscriptions;
mod support;
mod traffic;

use std::path::{Path, PathBuf};

use support::Bed;

#[test]
fn a_backup_is_proven_and_restores_what_was_lost() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    bed.sql("app", "DELETE FROM app.t");
    bed.ok(&["restore", "latest"]);
    assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
    assert_eq!(bed.sql("app", "SHOW search_path"), "app, public");
    let owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'app'";
    assert_eq!(bed.sql("postgres", owner), "shop");
    let kept = "SELECT count(*) FROM pg_database WHERE datname LIKE 'app_replaced_%' AND NOT datallowconn";
    assert_eq!(bed.sql("postgres", kept), "1");
}

#[test]
fn a_restore_for_proof_or_beside_leaves_the_live_database_alone() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    bed.sql("app", "DELETE FROM app.t WHERE id > 5");
    bed.ok(&["restore", "latest", "--verify-only"]);
    bed.ok(&["restore", "latest", "--target-database", "beside"]);
    assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "5");
    assert_eq!(bed.sql("beside", "SELECT count(*) FROM app.t"), "20000");
    assert_eq!(
        bed.sql(
            "postgres",
            "SELECT count(*) FROM pg_database WHERE datname LIKE 'foregate%'"
        ),
        "0"
    );
    let refused = bed.fails(&["restore", "latest", "--target-database", "beside"]);
    assert!(refused.contains("refused, nothing was touched"), "{refused}");
}

/// `docs/restore-by-hand.md`, with the real programs.
#[test]
fn age_zstd_and_pg_restore_alone_bring_it_back() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    bed.sql("postgres", "CREATE DATABASE by_hand");
    let script = format!(
        "set -o pipefail; age -d -i {key} {dump} | zstd -d | pg_restore -e -d 'host={socket} port={port} user=postgres dbname=by_hand' \
         && age -d -i {key} {globals} | zstd -d | grep -q 'CREATE ROLE shop'",
        key = bed.key().display(),
        dump = bed.object("dump.zst.age").display(),
        globals = bed.object("globals.zst.age").display(),
        socket = bed.socket().display(),
        port = support::PORT,
    );
    support::run("bash", &["-c", &script]);
    assert_eq!(bed.sql("by_hand", "SELECT count(*) FROM app.t"), "20000");
}

#[test]
fn a_flipped_bit_or_a_cut_in_any_object_is_found() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    for name in ["dump.zst.age", "globals.zst.age", "settings.zst.age"] {
        let path = bed.object(name);
        let whole = std::fs::read(&path).expect("the object is readable");
        let middle = whole.len() / 2;
        let mut flipped = whole.clone();
        flipped[middle] ^= 1;
        let mut last = whole.clone();
        *last.last_mut().expect("not empty") ^= 0x80;
        let mut longer = whole.clone();
        longer.push(0);
        for damaged in [
            flipped,
            last,
            longer,
            whole[..middle].to_vec(),
            whole[..whole.len() - 1].to_vec(),
            Vec::new(),
        ] {
            std::fs::write(&path, damaged).expect("the object is writable");
            bed.fails(&["verify", "latest"]);
            assert_eq!(bed.good(), 0, "{name} is damaged");
            assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
            forget_verifications(&bed);
        }
        std::fs::write(&path, &whole).expect("the object is writable");
        bed.ok(&["verify", "latest"]);
        assert_eq!(bed.good(), 1);
    }
}

fn forget_verifications(bed: &Bed) {
    let is_record = |path: &&PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("verify-"))
    };
    for path in bed.objects().iter().filter(is_record) {
        std::fs::remove_file(path).expect("the record is removable");
    }
}

#[test]
fn a_damaged_dump_is_not_restored() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    let path = bed.object("dump.zst.age");
    let mut bytes = std::fs::read(&path).expect("the object is readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).expect("the object is writable");
    bed.fails(&["restore", "latest"]);
    assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
    assert_eq!(
        bed.sql(
            "postgres",
            "SELECT count(*) FROM pg_database WHERE datname LIKE 'app_old%'"
        ),
        "0"
    );
}

#[test]
fn without_its_manifest_a_backup_does_not_exist() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    std::fs::remove_file(bed.object("manifest.json")).expect("the manifest is removable");
    assert_eq!(bed.good(), 0);
    // It may be one all the same, whose manifest was lost.
    let refused = bed.fails(&["restore", "latest"]);
    assert!(refused.contains("holds data and no manifest"), "{refused}");
}

#[test]
fn a_wrong_or_absent_key_blames_the_key_and_not_the_backup() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    let absent = bed.fails_with_key(None, &["restore", "latest"]);
    assert!(absent.contains("no age identity"), "{absent}");
    let other = bed.directory().join("other-key");
    support::run("age-keygen", &["-o", &other.display().to_string()]);
    bed.fails_with_key(Some(&other), &["verify", "latest"]);
    assert_eq!(bed.good(), 1, "the backup is as good as before");
}

#[test]
fn a_dump_that_dies_leaves_no_backup() {
    let bed = Bed::new();
    let run = bed.copying_big_table();
    bed.sql(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY %'",
    );
    assert!(!run.succeeds());
    assert_eq!(bed.good(), 0);
    assert_eq!(bed.objects().len(), 0, "nothing is left behind");
}

#[test]
fn killed_while_it_dumps_it_leaves_no_backup_and_no_child() {
    let bed = Bed::new();
    drop(bed.copying_big_table());
    support::until("its backends end", || bed.backends("COPY%") == 0);
    assert_eq!(bed.good(), 0);
    support::until("the server notices", || bed.succeeds(&["create"]));
    assert_eq!(bed.good(), 1);
}

#[test]
fn two_instances_never_back_up_at_once() {
    let bed = Bed::new();
    let first = bed.copying_big_table();
    let second = bed.fails(&["create"]);
    assert!(second.contains("is running"), "{second}");
    assert!(first.succeeds());
    assert_eq!(bed.good(), 1);
}

#[test]
fn the_last_good_backup_survives_pruning() {
    let bed = Bed::new();
    bed.ok(&["create", "--label", "daily"]);
    bed.ok(&["prune"]);
    bed.ok(&["prune"]);
    assert_eq!(bed.good(), 1);
    assert!(Path::new(&bed.object("manifest.json")).exists());
}

/// A crash between the manifest and the data of a deletion.
#[test]
fn a_deletion_that_was_cut_short_is_finished_by_the_next_one() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    let cut = bed.object("manifest.json");
    let id = cut
        .parent()
        .and_then(Path::file_name)
        .expect("a folder")
        .to_string_lossy()
        .into_owned();
    std::fs::remove_file(&cut).expect("the manifest is removable");
    let tombstones = bed.repository().join("tombstones");
    std::fs::create_dir_all(&tombstones).expect("a folder");
    let note = format!(r#"{{"id":"{id}","at":"2026-01-01T00:00:00Z","reason":"no label holds it"}}"#);
    std::fs::write(tombstones.join(format!("{id}.json")), note).expect("a tombstone");
    bed.ok(&["create"]);
    bed.ok(&["prune"]);
    assert_eq!(bed.good(), 1);
    assert_eq!(bed.objects().len(), 4, "only the second backup is left");
}

/// A backup verified by restore says so, and a scratch disk that is full blames nobody.
#[test]
fn a_restore_for_proof_raises_the_level() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    bed.ok(&["verify", "latest", "--restore"]);
    assert!(bed.ok(&["list", "--json"]).contains("\"level\": \"L3\""));
}
