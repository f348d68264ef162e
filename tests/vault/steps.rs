//! A restore that is cut short: at every one of its steps, by death or by an orderly end. Either the old database serves
//! or the finished new one, and nothing else is left.
#![cfg(debug_assertions)]

use serde_json::json;

use crate::server::{BACKUPS, Hook, Server};
use crate::support::{Bed, Pause, id_of, run, until};

const STEPS: [&str; 9] = [
    "Noted", "Roles", "Made", "Filled", "Proven", "Carried", "Closed", "Emptied", "Renamed",
];
const ROWS: &str = "SELECT count(*) FROM app.t";
const OPEN: &str = "SELECT string_agg(datname, ',') FROM pg_database WHERE datname = 'app' AND datallowconn";

/// A backup of 20,000 rows, its id, and 5 rows in what serves.
fn bed() -> (Bed, String) {
    let bed = Bed::new();
    let id = id_of(&bed.ok(&["create", "--json"]));
    bed.sql("app", "DELETE FROM app.t WHERE id > 5");
    (bed, id)
}

pub(crate) fn kill_at(bed: &Bed, step: &'static str, args: &[&str]) {
    let pause = Pause::at(step, bed);
    let mut run = bed.start_paused(&pause, args);
    // The server may not have noticed yet that the one before was killed, and then this one is refused.
    until(step, || {
        if !pause.is_reached() && run.try_wait().expect("it can be asked").is_some() {
            run = bed.start_paused(&pause, args);
        }
        pause.is_reached()
    });
    run.kill().expect("it is killed");
    run.wait().expect("it ends");
    pause.let_go();
}

#[test]
fn killed_at_any_step_of_a_swap_the_next_command_leaves_the_old_one_or_the_finished_new_one() {
    let (bed, id) = bed();
    for step in STEPS {
        kill_at(&bed, step, &["restore", &id]);
        let mut next = bed.command(Some(&bed.key()), &["restore", &id, "--verify-only"]);
        let output = next.output().expect("foregate starts");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "killed at {step}: {told}");
        let (wanted, words) = match step {
            "Renamed" => (
                "20000",
                "what was restored; the one that it replaced is kept as \"app_replaced_",
            ),
            _ => ("5", "\"app\" is as it was"),
        };
        assert!(
            told.contains("note: a restore was cut short") && told.contains(words),
            "killed at {step}: {told}"
        );
        assert_eq!(bed.sql("app", ROWS), wanted, "killed at {step}");
        assert_eq!(bed.leftovers(), Vec::<String>::new(), "killed at {step}");
        assert_eq!(bed.sql("postgres", OPEN), "app", "killed at {step}");
    }
}

#[test]
fn killed_in_the_swap_the_next_server_lets_the_app_in_again() {
    let ((bed, id), hook) = (bed(), Hook::start());
    for step in ["Filled", "Closed", "Emptied", "Renamed"] {
        kill_at(&bed, step, &["restore", &id]);
        let server = Server::start(&bed, &hook);
        until("the end of the recovery", || {
            bed.leftovers().is_empty() && bed.sql("postgres", OPEN) == "app"
        });
        let wanted = if step == "Renamed" { "20000" } else { "5" };
        assert_eq!(bed.sql("app", ROWS), wanted, "killed at {step}");
        drop(server);
    }
}

#[test]
fn recovery_waits_for_a_database_server_that_starts_later() {
    let ((bed, id), hook) = (bed(), Hook::start());
    kill_at(&bed, "Emptied", &["restore", &id]);
    bed.stop_server("fast");
    let server = Server::start(&bed, &hook);
    until("the first attempt", || {
        let health = server.get("/health/comprehensive");
        let reason = health["parts"]["backup"].to_string();
        reason.contains("cannot be finished yet")
    });
    bed.start_server();
    until("the end of the recovery", || bed.sql("postgres", OPEN) == "app");
    assert_eq!(bed.sql("app", ROWS), "5");
}

/// Whoever is told of a failure begins another one, over what has been written since.
#[test]
fn swap_that_is_done_is_no_failure_though_what_comes_after_it_cannot_be() {
    let (bed, id) = bed();
    let pause = Pause::at("Renamed", &bed);
    let mut restoring = bed.start_paused(&pause, &["restore", &id]);
    pause.wait();
    let note = bed.directory().join("state/backup/restore.json");
    let written = std::fs::read(&note).expect("it is noted");
    std::fs::write(&note, "{").expect("writable");
    // Neither can the lease be taken off.
    let is_lease = |path: &std::path::PathBuf| path.to_string_lossy().contains("/leases/");
    let lease = bed.objects().into_iter().find(is_lease).expect("it is leased");
    std::fs::remove_file(&lease).expect("removable");
    std::fs::create_dir(&lease).expect("a directory");
    pause.let_go();
    let succeeded = restoring.wait().expect("it ends").success();
    let told = std::fs::read_to_string(bed.directory().join("paused.log")).expect("a log");
    assert!(succeeded, "{told}");
    assert_eq!(bed.sql("app", ROWS), "20000");
    assert!(told.contains("the next look tidies up"), "{told}");
    assert!(told.contains("its lease could not be taken off"), "{told}");
    std::fs::remove_dir(&lease).expect("removable");
    std::fs::write(&note, written).expect("writable");
    bed.ok(&["create"]);
    assert!(!note.exists(), "the next run has tidied up");
    assert_eq!(bed.sql("app", ROWS), "20000");
}

#[test]
fn server_that_starts_in_the_middle_of_a_restore_leaves_it_alone() {
    let ((bed, id), hook) = (bed(), Hook::start());
    let pause = Pause::at("Emptied", &bed);
    let mut restoring = bed.start_paused(&pause, &["restore", &id]);
    pause.wait();
    let server = Server::start(&bed, &hook);
    // What it wants to do first is a backup, after it has looked for what is half done.
    until("its first look is over", || {
        server.log().contains("another instance is at work")
    });
    assert_eq!(bed.sql("postgres", OPEN), "", "the swap still is where it was");
    pause.let_go();
    assert!(restoring.wait().expect("it ends").success());
    assert_eq!(bed.sql("app", ROWS), "20000");
}

/// Starts a restore by the API, which stands still at `step`, and returns the server.
fn restoring<'a>(bed: &'a Bed, hook: &Hook, pause: &Pause, id: &str) -> Server<'a> {
    let server = Server::before(bed, hook, hook.address, &pause.environment());
    until("the restore to be accepted", || {
        let (status, _) = server.post(&format!("{BACKUPS}/restore"), &json!({"id": id}));
        status == 202
    });
    pause.wait();
    server
}

fn terminate(server: &Server<'_>) {
    run("kill", &["-TERM", &server.child.id().to_string()]);
    until("the signal is heard", || server.log().contains("SIGTERM"));
}

#[test]
fn server_that_is_stopped_in_a_swap_finishes_it_first() {
    let ((bed, id), hook) = (bed(), Hook::start());
    let pause = Pause::at("Closed", &bed);
    let mut server = restoring(&bed, &hook, &pause, &id);
    terminate(&server);
    pause.let_go();
    assert!(server.child.wait().expect("it ends").success());
    assert_eq!(bed.sql("postgres", OPEN), "app");
    assert_eq!(bed.sql("app", ROWS), "20000");
    assert_eq!(bed.leftovers(), Vec::<String>::new());
}

#[test]
fn server_that_is_stopped_before_the_swap_undoes_the_restore() {
    let ((bed, id), hook) = (bed(), Hook::start());
    let pause = Pause::at("Filled", &bed);
    let mut server = restoring(&bed, &hook, &pause, &id);
    terminate(&server);
    assert!(server.child.wait().expect("it ends").success());
    assert_eq!(bed.sql("app", ROWS), "5");
    assert_eq!(bed.leftovers(), Vec::<String>::new());
}

#[test]
fn interrupted_command_undoes_what_it_began() {
    let (bed, id) = bed();
    let pause = Pause::at("Carried", &bed);
    let mut restoring = bed.start_paused(&pause, &["restore", &id]);
    pause.wait();
    run("kill", &["-INT", &restoring.id().to_string()]);
    assert!(!restoring.wait().expect("it ends").success());
    assert_eq!(bed.sql("app", ROWS), "5");
    assert_eq!(bed.leftovers(), Vec::<String>::new());
}

#[test]
fn name_given_by_the_operator_appears_only_when_all_is_in_it() {
    let (bed, id) = bed();
    let beside = ["restore", &id, "--target-database", "beside"];
    let there = "SELECT count(*) FROM pg_database WHERE datname = 'beside'";
    for step in ["Made", "Filled", "Carried"] {
        kill_at(&bed, step, &beside);
        assert_eq!(bed.sql("postgres", there), "0", "killed at {step}");
    }
    bed.ok(&beside);
    assert_eq!(bed.sql("beside", ROWS), "20000");
    assert_eq!(bed.leftovers(), Vec::<String>::new());
}

#[test]
fn lost_database_is_there_whole_or_not_at_all() {
    let (bed, id) = bed();
    bed.sql("postgres", "ALTER DATABASE app RENAME TO gone");
    for step in ["Made", "Filled", "Carried"] {
        kill_at(&bed, step, &["restore", &id]);
        assert_eq!(bed.sql("postgres", OPEN), "", "killed at {step}");
    }
    until("the server notices", || bed.succeeds(&["restore", &id]));
    assert_eq!(bed.sql("app", ROWS), "20000");
    assert_eq!(bed.leftovers(), Vec::<String>::new());
}

#[test]
fn failed_restore_drops_no_database_but_its_own() {
    let (bed, id) = bed();
    let pause = Pause::at("Carried", &bed);
    let mut restoring = bed.start_paused(&pause, &["restore", &id, "--target-database", "beside"]);
    pause.wait();
    // Somebody else is quicker.
    bed.sql("postgres", "CREATE DATABASE beside");
    bed.sql("beside", "CREATE TABLE theirs AS SELECT 1 AS one");
    pause.let_go();
    assert!(!restoring.wait().expect("it ends").success());
    assert_eq!(bed.sql("beside", "SELECT one FROM theirs"), "1");
    assert_eq!(bed.leftovers(), Vec::<String>::new());
}

#[test]
fn two_machines_that_prove_the_same_backup_do_not_disturb_each_other() {
    let (mut bed, id) = bed();
    let pause = Pause::at("Filled", &bed);
    let proof = ["restore", &id, "--verify-only"];
    let mut first = bed.start_paused(&pause, &proof);
    pause.wait();
    move_away(&mut bed);
    bed.ok(&proof);
    pause.let_go();
    assert!(first.wait().expect("it ends").success());
    assert_eq!(bed.leftovers(), Vec::<String>::new());
}

/// As on another machine, whose repository holds the same backups.
fn move_away(bed: &mut Bed) {
    let copy = bed.directory().join("copy").display().to_string();
    run("cp", &["-a", &bed.repository().display().to_string(), &copy]);
    bed.use_state("another machine's");
    bed.move_repository(&format!("file://{copy}"), Vec::new());
}

#[test]
fn two_machines_never_back_up_and_replace_one_database_at_once() {
    let (mut bed, id) = bed();
    let pause = Pause::at("Filled", &bed);
    let mut restoring = bed.start_paused(&pause, &["restore", &id]);
    pause.wait();
    move_away(&mut bed);
    let told = bed.fails(&["create"]);
    assert!(told.contains("is running: foregate restore"), "{told}");
    assert!(told.contains(" as postgres from the server itself since 20"), "{told}");
    pause.let_go();
    assert!(restoring.wait().expect("it ends").success());
    bed.ok(&["create"]);
    let backing_up = bed.copying_big_table();
    bed.use_state("a third one's");
    let told = bed.fails(&["create"]);
    assert!(told.contains(": process ") && told.contains("copy/.lock"), "{told}");
    bed.move_repository(&format!("file://{}", bed.repository().display()), Vec::new());
    let told = bed.fails(&["restore", &id]);
    assert!(told.contains("is running: foregate backup"), "{told}");
    assert!(backing_up.succeeds());
}

#[test]
fn database_named_postgres_and_one_of_a_server_without_it_are_replaced_like_any_other() {
    let (mut bed, id) = bed();
    bed.sql("template1", "DROP DATABASE postgres");
    bed.ok(&["restore", &id]);
    assert_eq!(bed.sql("app", ROWS), "20000");
    bed.sql("template1", "ALTER DATABASE app RENAME TO postgres");
    bed.use_database("postgres");
    let id = id_of(&bed.ok(&["create", "--json"]));
    bed.sql("postgres", "DELETE FROM app.t WHERE id > 5");
    kill_at(&bed, "Emptied", &["restore", &id]);
    until("the server notices", || {
        bed.succeeds(&["restore", &id, "--verify-only"])
    });
    assert_eq!(bed.sql("postgres", ROWS), "5");
    bed.ok(&["restore", &id]);
    assert_eq!(bed.sql("postgres", ROWS), "20000");
    assert_eq!(bed.leftovers(), Vec::<String>::new());
    bed.sql("template1", "DROP DATABASE postgres");
    bed.ok(&["restore", &id]);
    assert_eq!(bed.sql("postgres", ROWS), "20000");
    bed.ok(&["prune"]);
}

/// The dump lies decrypted in the scratch directory while it is restored.
#[test]
fn decrypted_dump_of_a_killed_restore_is_swept_by_the_next_start() {
    let (bed, id) = bed();
    kill_at(&bed, "Filled", &["restore", &id]);
    let is_dump = |name: &&String| name.starts_with("foregate-restore");
    assert_eq!(bed.leftovers().iter().filter(is_dump).count(), 1);
    until("the server notices", || bed.succeeds(&["create"]));
    assert_eq!(bed.leftovers(), Vec::<String>::new());
}
