//! A recovery that its operator ends.

use crate::support::{Bed, run, until};

#[test]
fn interrupted_recovery_says_what_is_left_and_lets_go_of_the_base_backup() {
    let bed = Bed::new();
    bed.ok(&["base-backup"]);
    for _ in 0..2 {
        bed.sql("app", "INSERT INTO ledger (writer) VALUES (1)");
    }
    bed.archive_all();
    let into = bed.path("recovered");
    let place = into.display().to_string();
    let child = bed.spawn(&["recover", "--latest", "--into", &place]);
    until("it unpacks", || into.exists());
    run("kill", &["-INT", &child.id().to_string()]);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for told in ["interrupted: ", &place, "begin anew"] {
        assert!(said.contains(told), "{said}");
    }
    assert_eq!(bed.objects("/leases/").len(), 0, "a clean-up may have it again");
    for ending in ["", ".recovery", ".tablespaces"] {
        drop(std::fs::remove_dir_all(format!("{place}{ending}")));
    }
    assert_eq!(bed.recover("recovered", &["--latest"]).ids().len(), 1);
}
