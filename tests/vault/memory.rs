//! How much memory a run takes: the same whatever the size, at most 128 MiB.

use std::process::{Child, Stdio};

use crate::bucket::Server;
use crate::support::{Bed, Store, run};

const BOUND_KIB: u64 = 128 * 1024;

/// Waits for the end of a run that must succeed. Returns the most that it ever had in memory.
fn peak_kib(mut child: Child) -> u64 {
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        peak = now.unwrap_or(peak);
        if let Some(ended) = child.try_wait().expect("it can be asked") {
            assert!(ended.success(), "{ended}");
            return peak;
        }
        // Memory that grows in the last moment of a run is missed by no more than this.
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
}

fn measure(store: &Store, args: &[&str]) {
    let child = store
        .command(Some(&store.key()), args)
        .stdout(Stdio::null())
        .spawn()
        .expect("foregate starts");
    let peak = peak_kib(child);
    eprintln!("{args:?}: {} MiB", peak / 1024);
    assert!((1..=BOUND_KIB).contains(&peak), "{args:?}: {peak} KiB");
}

/// More than the bound, and it does not compress.
fn blob(store: &Store, mebibytes: u32) -> String {
    let path = store.directory().join("blob").display().to_string();
    run(
        "bash",
        &[
            "-c",
            &format!("head -c {mebibytes}M /dev/urandom > {path} && chmod a+r {path}"),
        ],
    );
    path
}

/// 70 MiB that are 140 in the dump.
fn fill(bed: &Bed) {
    let path = blob(bed, 70);
    let sql = format!(
        "CREATE TABLE app.blobs AS SELECT g, pg_read_binary_file('{path}', g * 1048576, 1048576) FROM generate_series(0, 69) g"
    );
    bed.sql("app", &sql);
}

#[test]
fn database_larger_than_the_bound_is_backed_up_and_restored_within_it() {
    let bed = Bed::new();
    fill(&bed);
    measure(&bed, &["create"]);
    measure(&bed, &["restore", "latest", "--verify-only"]);
}

#[test]
fn database_larger_than_the_bound_goes_to_a_bucket_and_comes_back_within_it() {
    let mut bed = Bed::new();
    fill(&bed);
    let server = Server::start(&bed);
    bed.move_repository("s3://backups", server.environment());
    measure(&bed, &["create"]);
    measure(&bed, &["restore", "latest", "--verify-only"]);
}

#[test]
fn file_set_larger_than_the_bound_is_backed_up_and_restored_within_it() {
    let store = Store::new();
    let path = blob(&store, 160);
    measure(&store, &["create", "--files", "app", "--path", &path]);
    let into = store.directory().join("into").display().to_string();
    measure(&store, &["restore", "latest", "--into", &into]);
}
