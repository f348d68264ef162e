//! A recovered copy is not the server that it was copied from: it leaves that one's surroundings alone.

use crate::support::{Bed, until};

#[test]
fn a_rehearsed_copy_reads_no_publisher_and_runs_nothing_that_was_preloaded() {
    let bed = Bed::new();
    bed.sql("postgres", "ALTER SYSTEM SET shared_preload_libraries = 'auto_explain'");
    bed.sql("postgres", "ALTER SYSTEM SET huge_pages = 'try'");
    bed.stop("data");
    bed.start("data");
    bed.sql("postgres", "CREATE DATABASE reader");
    bed.sql(
        "reader",
        "CREATE TABLE ledger (id bigint PRIMARY KEY, writer int, padding text)",
    );
    bed.sql("app", "CREATE PUBLICATION ledger FOR TABLE ledger");
    bed.sql("app", "SELECT pg_create_logical_replication_slot('reader', 'pgoutput')");
    let subscribe = format!(
        "CREATE SUBSCRIPTION reader CONNECTION 'host={} port=5433 user=postgres dbname=app' PUBLICATION ledger \
         WITH (create_slot = false, copy_data = false)",
        bed.path("").display()
    );
    bed.sql("reader", &subscribe);
    until("the subscription reads", || {
        bed.sql(
            "postgres",
            "SELECT active FROM pg_replication_slots WHERE slot_name = 'reader'",
        ) == "t"
    });
    bed.ok(&["base-backup"]);
    let insert = "INSERT INTO ledger (writer) VALUES (1)";
    bed.sql("app", insert);
    let target = bed.sql("app", "SELECT to_json(clock_timestamp())#>>'{}'");
    bed.sql("app", insert);
    bed.sql("reader", "ALTER SUBSCRIPTION reader DISABLE");
    until("nobody reads", || {
        bed.sql(
            "postgres",
            "SELECT active FROM pg_replication_slots WHERE slot_name = 'reader'",
        ) == "f"
    });
    bed.sql("app", insert);
    bed.archive_all();
    let slot = || {
        bed.sql(
            "postgres",
            "SELECT confirmed_flush_lsn, active FROM pg_replication_slots WHERE slot_name = 'reader'",
        )
    };
    let before = slot();
    let checks = [
        "SELECT count(*) FROM pg_subscription WHERE subenabled=1",
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'logical replication%'=0",
        "SHOW shared_preload_libraries=",
        "SHOW archive_mode=off",
        "SHOW huge_pages=off",
        "SHOW jit=off",
    ];
    let mut args = vec!["drill", "--target", &target];
    for check in &checks {
        args.extend(["--check", check]);
    }
    let drill = bed.json(&args);
    assert_eq!(drill["passed"], true, "{drill}");
    assert_eq!(
        slot(),
        before,
        "what the subscription has not had yet is still there for it"
    );
}

#[test]
fn limits_that_were_raised_after_the_base_backup_do_not_end_a_recovery() {
    let bed = Bed::new();
    bed.ok(&["base-backup"]);
    bed.sql("postgres", "ALTER SYSTEM SET max_connections = 61");
    bed.sql("postgres", "ALTER SYSTEM SET max_worker_processes = 11");
    bed.stop("data");
    bed.start("data");
    for _ in 0..3 {
        bed.sql("app", "INSERT INTO ledger (writer) VALUES (1)");
    }
    bed.archive_all();
    let recovered = bed.recover("recovered", &["--latest"]);
    assert_eq!(recovered.ids().len(), 2);
    assert_eq!(recovered.sql("SHOW max_connections"), "61");
    assert_eq!(recovered.sql("SHOW max_worker_processes"), "11");
    let last = recovered.told["plan"]["lastTransactions"].as_array().map(Vec::len);
    assert!(last > Some(1), "{}", recovered.told);
}

#[test]
fn a_prepared_transaction_is_a_target_by_its_own_number() {
    let bed = Bed::new();
    bed.ok(&["base-backup"]);
    let prepare =
        "BEGIN; INSERT INTO ledger (writer) VALUES (7); SELECT pg_current_xact_id(); PREPARE TRANSACTION 'two'";
    let wanted = bed.sql("app", prepare);
    bed.sql("app", "INSERT INTO ledger (writer) VALUES (1)");
    bed.sql("app", "COMMIT PREPARED 'two'");
    bed.sql("app", "INSERT INTO ledger (writer) VALUES (2)");
    bed.archive_all();
    let recovered = bed.recover("recovered", &["--xid", &wanted]);
    assert_eq!(
        recovered.sql("SELECT string_agg(writer::text, ' ' ORDER BY writer) FROM ledger"),
        "1 7"
    );
}

#[test]
fn idle_server_is_woken_by_commits_while_a_base_backup_waits_for_its_log() {
    let bed = Bed::new();
    let number = |sql: &str| bed.sql("postgres", sql).parse::<u64>().expect("a number");
    let archive = bed.sql("postgres", "SHOW archive_command");
    let slowly = format!("ALTER SYSTEM SET archive_command = 'sleep 1; {archive}'");
    bed.sql("postgres", &slowly);
    bed.sql("postgres", "SELECT pg_reload_conf()");
    let transactions = || number("SELECT pg_snapshot_xmax(pg_current_snapshot())::text");
    let before = transactions();
    bed.ok(&["base-backup"]);
    let commits = transactions() - before;
    // No other version is woken by a commit, so that none is made.
    let wakes = number("SHOW server_version_num") / 10_000 == 15;
    assert_eq!(commits > 1, wakes, "{commits} commits");
    // It warns that archiving takes long after having been woken sixty times.
    assert!(commits < 60, "{commits} commits");
}
