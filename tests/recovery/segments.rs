//! A server whose segments have become longer.

use crate::support::{Bed, as_postgres, bin};

#[test]
fn after_a_change_of_the_segment_size_the_window_is_that_of_the_new_one_and_the_old_is_had_by_name() {
    let bed = Bed::new();
    let write = || {
        bed.sql("app", "INSERT INTO ledger (writer) VALUES (1)");
        bed.archive_all();
    };
    let first = bed.json(&["base-backup"]);
    (0..5).for_each(|_| write());
    bed.stop("data");
    let data = bed.path("data").display().to_string();
    // Beyond every name that is archived: the longer segments would begin to use them again.
    let longer = ["--wal-segsize=2", "-l", "000000010000000000000040", "-D", &data];
    as_postgres(&bin("pg_resetwal"), &longer);
    bed.start("data");
    bed.ok(&["base-backup"]);
    (0..3).for_each(|_| write());
    let window = bed.json(&["window"]);
    assert_eq!(window["stretches"].as_array().map(Vec::len), Some(1), "{window}");
    assert_eq!(window["gaps"], serde_json::json!([]), "{window}");
    let stats = bed.json(&["stats"]);
    assert_eq!(stats["archive"]["gaps"], serde_json::json!([]), "{stats}");
    assert_eq!(bed.recover("recovered", &["--latest"]).ids().len(), 7);
    let stop = first["content"]["stopLsn"].as_str().expect("a position");
    let id = first["id"].as_str().expect("an id");
    let recovered = bed.recover("recovered", &["--base", id, "--lsn", stop]);
    assert_eq!(recovered.ids().len(), 0);
}
