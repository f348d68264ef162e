//! A database that subscribes to another: the server drops no database with a subscription in it, not even by force.

use crate::support::{Bed, id_of, until};

const SUBSCRIPTIONS: &str =
    "SELECT count(*) FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE datname = 'app'";

/// A backup of a database with a subscription, and its id. No publisher is ever asked.
fn bed() -> (Bed, String) {
    let bed = Bed::new();
    let subscribe = r#"CREATE SUBSCRIPTION "odd ""name" CONNECTION 'host=/nowhere' PUBLICATION p
        WITH (connect = false, slot_name = 's')"#;
    bed.sql("app", subscribe);
    let id = id_of(&bed.ok(&["create", "--json"]));
    (bed, id)
}

#[test]
fn proof_of_a_backup_with_a_subscription_leaves_nothing_behind() {
    let (bed, id) = bed();
    bed.ok(&["verify", &id, "--restore"]);
    assert_eq!(bed.leftovers(), Vec::<String>::new());
    bed.ok(&["create"]);
    assert_eq!(bed.sql("postgres", SUBSCRIPTIONS), "1");
}

#[cfg(debug_assertions)]
#[test]
fn restore_with_a_subscription_that_is_killed_stops_no_later_run() {
    let (bed, id) = bed();
    for args in [&["create"][..], &["restore", &id, "--verify-only"]] {
        crate::steps::kill_at(&bed, "Filled", &["restore", &id]);
        until("the server notices", || bed.succeeds(args));
        assert_eq!(bed.leftovers(), Vec::<String>::new());
    }
    assert_eq!(bed.sql("postgres", SUBSCRIPTIONS), "1");
}

#[test]
fn replaced_database_with_a_subscription_is_dropped_although_another_one_cannot_be() {
    let (bed, id) = bed();
    bed.ok(&["restore", &id]);
    assert_eq!(bed.sql("postgres", SUBSCRIPTIONS), "1");
    let replaced = "SELECT datname FROM pg_database WHERE datname LIKE 'app_replaced_%' ORDER BY 1";
    let name = bed.sql("postgres", replaced);
    bed.sql(
        "postgres",
        &format!("ALTER DATABASE {name} RENAME TO app_replaced_20200101t000000z"),
    );
    // Older, so that it is tried first.
    let stuck = "app_replaced_20190101t000000z";
    bed.sql("postgres", &format!("CREATE DATABASE {stuck}"));
    bed.sql(stuck, "BEGIN; CREATE TABLE t (id int); PREPARE TRANSACTION 'held'");
    bed.sql(
        "postgres",
        &format!("ALTER DATABASE {stuck} WITH ALLOW_CONNECTIONS false"),
    );
    let complaint = bed.fails(&["prune"]);
    assert!(complaint.contains(stuck), "{complaint}");
    assert_eq!(bed.sql("postgres", replaced), stuck);
    bed.sql(
        "postgres",
        &format!("ALTER DATABASE {stuck} WITH ALLOW_CONNECTIONS true"),
    );
    bed.sql(stuck, "ROLLBACK PREPARED 'held'");
    bed.sql(
        "postgres",
        &format!("ALTER DATABASE {stuck} WITH ALLOW_CONNECTIONS false"),
    );
    bed.ok(&["prune"]);
    assert_eq!(bed.sql("postgres", replaced), "");
}

#[cfg(debug_assertions)]
#[test]
fn database_that_a_restore_left_and_that_cannot_be_dropped_stops_no_backup() {
    let (bed, id) = bed();
    crate::steps::kill_at(&bed, "Filled", &["restore", &id]);
    let left = bed.sql(
        "postgres",
        "SELECT datname FROM pg_database WHERE datname LIKE 'foregate%'",
    );
    bed.sql(&left, "BEGIN; CREATE TABLE held (id int); PREPARE TRANSACTION 'held'");
    until("the server notices", || bed.succeeds(&["create"]));
    let complaint = bed.fails(&["restore", &id]);
    assert!(complaint.contains(&left), "{complaint}");
    bed.sql(&left, "ROLLBACK PREPARED 'held'");
    bed.ok(&["create"]);
    assert_eq!(bed.leftovers(), Vec::<String>::new());
}
