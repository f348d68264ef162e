//! A restore that meets damage: the next one must not meet the same.

use std::path::{Path, PathBuf};
use std::process::Child;

use serde_json::json;

use crate::bucket::{Fault, Server};
use crate::server::{self, BACKUPS, Hook};
use crate::support::{Bed, Pause, Store, id_of, until};

/// What a command says to a person, and whether it succeeded.
fn outcome(store: &Store, args: &[&str]) -> (bool, String) {
    let output = store.command(Some(&store.key()), args).output();
    let output = output.expect("foregate starts");
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

pub(crate) fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).expect("readable");
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).expect("not empty") ^= 1;
    std::fs::write(path, bytes).expect("writable");
}

fn two(bed: &Bed) -> (String, String) {
    let create = || id_of(&bed.ok(&["create", "--json"]));
    (create(), create())
}

#[test]
fn restore_that_meets_damage_condemns_the_backup_and_the_next_one_takes_the_older() {
    let bed = Bed::new();
    for args in [&[][..], &["--verify-only"], &["--target-database", "look"]] {
        let (older, newer) = two(&bed);
        flip(&bed.object(&format!("{newer}/dump.zst.age")));
        let good = bed.good();
        let restore = [&["restore"][..], args].concat();
        let (succeeded, told) = outcome(&bed, &restore);
        assert!(!succeeded, "{args:?}");
        let verdict = format!("backup {newer} is damaged; the newest good one besides is {older} of ");
        assert!(told.contains(&verdict), "{args:?}: {told}");
        assert!(
            told.contains("note: a backup seems damaged, and is read again"),
            "{args:?}: {told}"
        );
        assert_eq!(bed.good(), good - 1, "{args:?}");
        assert!(bed.ok(&["show", &newer]).contains("dump.zst.age is damaged"));
        let (succeeded, told) = outcome(&bed, &restore);
        assert!(
            succeeded && told.contains(&format!("note: {older} of ")),
            "{args:?}: {told}"
        );
        assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
    }
}

#[test]
fn settings_that_a_restore_finds_damaged_condemn_the_backup_too() {
    let bed = Bed::new();
    let (_, newer) = two(&bed);
    flip(&bed.object(&format!("{newer}/settings.zst.age")));
    bed.sql("postgres", "ALTER DATABASE app RENAME TO gone");
    let (succeeded, told) = outcome(&bed, &["restore"]);
    assert!(succeeded && told.contains("without its settings and comment"), "{told}");
    assert_eq!(bed.good(), 1);
}

#[test]
fn file_set_that_a_restore_finds_damaged_is_condemned() {
    let store = Store::new();
    let path = store.key().display().to_string();
    let create = || id_of(&store.ok(&["create", "--files", "app", "--path", &path, "--json"]));
    let (older, newer) = (create(), create());
    flip(&store.object(&format!("{newer}/files.zst.age")));
    let into = store.directory().join("into").display().to_string();
    let restore = ["restore", "latest", "--into", &into];
    let told = store.fails(&restore);
    let verdict = format!("backup {newer} is damaged; the newest good one besides is {older} of ");
    assert!(told.contains(&verdict), "{told}");
    assert_eq!(store.good(), 1);
    store.ok(&restore);
}

#[test]
fn restore_that_fails_by_the_servers_fault_condemns_nothing() {
    let bed = Bed::new();
    let here = "CREATE TABLE app.here (x int CONSTRAINT here CHECK (current_database() = 'app')); \
        INSERT INTO app.here VALUES (1)";
    bed.sql("app", here);
    bed.ok(&["create"]);
    for args in [&["restore"][..], &["restore", "--verify-only"]] {
        let told = bed.fails(args);
        assert!(told.contains("violates check constraint"), "{told}");
        assert_eq!(bed.good(), 1, "{told}");
    }
}

/// As one that monitors a server does, again for each attempt.
#[test]
fn table_that_an_agent_makes_in_every_new_database_condemns_no_backup() {
    let bed = Bed::new();
    bed.ok(&["create"]);
    let pause = Pause::at("Filled", &bed);
    let mut restoring = bed.start_paused(&pause, &["restore"]);
    let has_ended = |restoring: &mut Child| restoring.try_wait().expect("it can be asked").is_some();
    loop {
        until("it stands still or has ended", || {
            pause.is_reached() || has_ended(&mut restoring)
        });
        if has_ended(&mut restoring) {
            break;
        }
        let new = "SELECT datname FROM pg_database WHERE datname LIKE 'foregate%'";
        let new = bed.sql("postgres", new);
        bed.sql(&new, "CREATE SCHEMA monitor CREATE TABLE stats (x int)");
        pause.let_go();
    }
    let told = std::fs::read_to_string(bed.directory().join("paused.log")).expect("a log");
    assert!(told.contains("was not in the backup"), "{told}");
    assert!(told.contains("those that were written"), "{told}");
    assert_eq!(bed.good(), 1);
    bed.ok(&["restore"]);
}

/// Whatever is flipped on the way is whole where it is stored.
#[test]
fn one_bad_read_condemns_nothing() {
    let mut bed = Bed::new();
    let server = Server::start(&bed);
    bed.move_repository("s3://backups", server.environment());
    bed.ok(&["create"]);
    server.fail("GET", "dump.zst.age", Fault::Flipped, 1);
    let told = bed.fails(&["restore"]);
    assert!(told.contains("a second time it was whole"), "{told}");
    assert_eq!(bed.good(), 1);
    bed.ok(&["restore"]);
    bed.sql("postgres", "ALTER DATABASE app RENAME TO gone");
    server.fail("GET", "settings.zst.age", Fault::Flipped, 1);
    bed.ok(&["restore"]);
    assert_eq!(bed.sql("app", "SHOW search_path"), "app, public");
    assert_eq!(bed.good(), 1);
}

#[test]
fn damaged_settings_are_an_alarm_although_the_database_is_back() {
    let (bed, hook) = (Bed::new(), Hook::start());
    let server = server::Server::start(&bed, &hook);
    until("the first backup", || bed.good() == 1);
    flip(&bed.object("settings.zst.age"));
    bed.sql("postgres", "ALTER DATABASE app RENAME TO gone");
    until("a restore begins", || {
        server.post(&format!("{BACKUPS}/restore"), &json!({"id": "latest"})).0 == 202
    });
    hook.wait_for("settings.zst.age is damaged");
    hook.wait_for("is not what it was");
    until("the database is back", || {
        bed.sql("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'app'") == "1"
    });
    assert_eq!(bed.good(), 0);
}

/// What is known by then is not lost on whoever holds keys that only read.
#[test]
fn damage_that_cannot_be_recorded_is_told_with_what_there_is_instead() {
    let mut bed = Bed::new();
    let server = Server::start(&bed);
    bed.move_repository("s3://backups", server.environment());
    let (older, newer) = two(&bed);
    let is_it = |path: &PathBuf| path.ends_with(format!("{newer}/dump.zst.age"));
    flip(&server.objects().into_iter().find(is_it).expect("it is stored"));
    for method in ["PUT", "POST", "DELETE"] {
        server.fail(method, "", Fault::Status(403), usize::MAX);
    }
    let told = bed.fails(&["restore"]);
    for text in [
        format!("besides is {older} of "),
        "could not be recorded".to_owned(),
        "dump.zst.age is damaged".to_owned(),
    ] {
        assert!(told.contains(&text), "{text}: {told}");
    }
    server.heal();
    assert_eq!(bed.good(), 2);
}

#[test]
fn store_that_is_gone_when_it_is_read_again_condemns_nothing() {
    let mut bed = Bed::new();
    let server = Server::start(&bed);
    bed.move_repository("s3://backups", server.impatient_environment());
    bed.ok(&["create"]);
    server.fail("GET", "dump.zst.age", Fault::Flipped, 1);
    server.fail("GET", "zst.age", Fault::Status(500), usize::MAX);
    let told = bed.fails(&["restore"]);
    assert!(told.contains("whether it is damaged cannot be told"), "{told}");
    server.heal();
    until("it is as good as before", || bed.good() == 1);
}

/// A clean-up must not erase what is being judged; whoever restores another one must not wait for the verdict.
#[test]
fn second_reading_keeps_the_backup_holds_no_lock_and_condemns_nothing_once_it_is_interrupted() {
    let mut bed = Bed::new();
    let server = Server::start(&bed);
    bed.move_repository("s3://backups", server.environment());
    let (older, newer) = two(&bed);
    server.heal();
    server.fail("GET", "dump.zst.age", Fault::Flipped, 1);
    server.fail("GET", "dump.zst.age", Fault::Hang, usize::MAX);
    let mut restoring = bed.start(&["restore"]);
    until("it is read again", || {
        let script = server.script.lock().expect("not poisoned");
        let is_read = |seen: &&String| seen.starts_with("GET") && seen.contains("/dump.zst.age");
        script.seen.iter().filter(is_read).count() > 1
    });
    let told = bed.fails(&["delete", &newer]);
    assert!(told.contains("the backup is in use"), "{told}");
    server.heal();
    bed.ok(&["restore", &older]);
    restoring.kill().expect("it is killed");
    restoring.wait().expect("it ends");
    assert_eq!(bed.good(), 2);
}

#[test]
fn record_that_cannot_be_written_hides_no_whole_second_reading() {
    let mut bed = Bed::new();
    let server = Server::start(&bed);
    bed.move_repository("s3://backups", server.impatient_environment());
    bed.ok(&["create"]);
    server.fail("GET", "dump.zst.age", Fault::Flipped, 1);
    server.fail("PUT", "verify-", Fault::Status(500), usize::MAX);
    let told = bed.fails(&["restore"]);
    assert!(told.contains("a second time it was whole"), "{told}");
    assert!(told.contains("not recorded"), "{told}");
}
