//! A repository that may only be read, and one that holds other clusters.

use crate::support::{Bed, run};

#[test]
fn recovery_needs_no_right_to_write_the_repository() {
    let bed = Bed::new();
    bed.ok(&["base-backup"]);
    bed.sql("app", "INSERT INTO ledger (writer) VALUES (1)");
    bed.archive_all();
    bed.stop("data");
    let repository = bed.path("repository").display().to_string();
    run("chown", &["-R", "root:root", &repository]);
    run("chmod", &["-R", "a-w,a+rX", &repository]);
    let into = bed.path("recovered").display().to_string();
    let output = bed.output(&["recover", "--latest", "--into", &into]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("note: the backup was not kept from a clean-up"), "{said}");
    bed.stop("recovered");
}

#[test]
fn base_backups_of_other_clusters_are_named_where_the_server_has_none() {
    let bed = Bed::new();
    bed.ok(&["base-backup"]);
    let cluster = folders(&bed).pop().expect("its folder");
    bed.stop("data");
    bed.make_cluster("other");
    bed.start("other");
    bed.sql("postgres", "CREATE DATABASE app");
    bed.archive_all();
    assert_eq!(folders(&bed).len(), 2);
    let said = |args: &[&str]| String::from_utf8_lossy(&bed.output(args).stderr).into_owned();
    for args in [&["window"][..], &["base-backups"], &["plan", "--latest"]] {
        let said = said(args);
        assert!(
            said.contains(&format!("{cluster} (1); say --of CLUSTER")),
            "{args:?}: {said}"
        );
    }
    assert!(!said(&["window", "--of", &cluster]).contains("--of"));
}

/// Of the repository's clusters.
fn folders(bed: &Bed) -> Vec<String> {
    let entries = std::fs::read_dir(bed.path("repository")).expect("a repository");
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| name.starts_with(|first: char| first.is_ascii_digit()))
        .collect()
}
