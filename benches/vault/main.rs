//! Backup and restore beside `pg_dump -F c` and `pg_restore -j 2`, on the same database in the same run, and what a backup
//! does to the proxy's latency meanwhile. Needs root or the user that owns no cluster, and PostgreSQL's programs.
//!
//! `VAULT_MIB` (2048) is the database's size, `VAULT_ROUNDS` (3) how often both sides run, in turn. Each budget
//! stands beside its figure with a verdict.

#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a benchmark starts processes, reads the real clock, prints, and fails by panicking"
)]

mod cluster;
mod latency;
mod levels;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use cluster::Cluster;

/// Time until all is stored, of what `pg_dump -F c` takes.
const BACKUP_MAX: f64 = 0.55;
/// Of what `pg_restore -j 2` takes.
const RESTORE_MAX: f64 = 1.1;
const MEMORY_MAX_KIB: u64 = 128 * 1024;

/// A ratio beside its budget.
pub(crate) fn judged(ratio: f64, budget: f64) -> String {
    let verdict = if ratio <= budget { "met" } else { "MISSED" };
    format!("{ratio:.2} (<= {budget}: {verdict})")
}

pub(crate) fn judged_memory(kib: u64) -> String {
    let verdict = if kib <= MEMORY_MAX_KIB { "met" } else { "MISSED" };
    format!("{} MiB (<= {}: {verdict})", kib >> 10, MEMORY_MAX_KIB >> 10)
}

/// One run: seconds until all is stored, until it is proven too, bytes stored, and the highest memory.
struct Backup {
    sealed: f64,
    proven: f64,
    bytes: u64,
    memory_kib: u64,
}

fn main() {
    let number = |name: &str, usual: u64| {
        let text = std::env::var(name).unwrap_or_default();
        text.parse().unwrap_or(usual)
    };
    let cluster = Cluster::new(number("VAULT_MIB", 2048));
    println!("database: {} MiB\n", cluster.megabytes());
    // `cargo bench --profile fast --bench vault -- latency` runs one part.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| word == name);
    if is_wanted("beside") {
        beside(&cluster, number("VAULT_ROUNDS", 3));
    }
    if is_wanted("levels") {
        levels::compare(&cluster);
    }
    if is_wanted("latency") {
        latency::compare(&cluster);
    }
}

/// Both sides in turn.
fn beside(cluster: &Cluster, rounds: u64) {
    println!(
        "| round | pg_dump -F c | sealed | ratio | proven | size | ratio | memory | pg_restore -j 2 | restored | ratio |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for round in 1..=rounds {
        let (dumped, size) = dump(cluster);
        let ours = backup(cluster);
        let theirs = cluster.restored_by_pg_restore();
        let restored = restore(cluster);
        println!(
            "| {round} | {dumped:.1} s | {:.1} s | {} | {:.1} s | {} of {} MiB | {} | {} | {theirs:.1} s | {restored:.1} s | {} |",
            ours.sealed,
            judged(ours.sealed / dumped, BACKUP_MAX),
            ours.proven,
            ours.bytes >> 20,
            size >> 20,
            judged(ratio(ours.bytes, size), 1.0),
            judged_memory(ours.memory_kib),
            judged(restored / theirs, RESTORE_MAX),
        );
    }
    println!();
}

fn dump(cluster: &Cluster) -> (f64, u64) {
    let file = cluster.path("peer.dump");
    let seconds = timed(cluster.program("pg_dump").args(["-F", "c", "-f", &file, "app"]));
    (seconds, std::fs::metadata(&file).expect("a dump").len())
}

fn backup(cluster: &Cluster) -> Backup {
    let begun = SystemTime::now();
    let mut child = cluster
        .foregate(&["create", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("foregate starts");
    let memory_kib = watch(&mut child);
    let output = child.wait_with_output().expect("it ended");
    let proven = begun.elapsed().expect("time goes on").as_secs_f64();
    assert!(output.status.success(), "the backup failed");
    let manifest: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a manifest");
    let id = manifest.get("id").and_then(|id| id.as_str()).expect("an id");
    let parts = manifest.get("parts").and_then(|parts| parts.as_array()).expect("parts");
    let bytes = |part: &serde_json::Value| part.get("storedBytes").and_then(serde_json::Value::as_u64);
    // The last part is complete when its file was last written; what follows is the proof.
    let last = find(Path::new(&cluster.path("repository")), id, "globals.zst.age").expect("a part");
    let sealed = last.duration_since(begun).expect("time goes on").as_secs_f64();
    Backup {
        sealed,
        proven,
        bytes: parts.iter().filter_map(bytes).sum(),
        memory_kib,
    }
}

fn restore(cluster: &Cluster) -> f64 {
    let seconds = timed(&mut cluster.foregate(&["restore", "latest", "--target-database", "ours"]));
    cluster.sql("postgres", "DROP DATABASE ours");
    seconds
}

fn find(folder: &Path, id: &str, name: &str) -> Option<SystemTime> {
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return find(&path, id, name);
        }
        let is_it = path.ends_with(name) && path.parent().is_some_and(|parent| parent.ends_with(id));
        is_it.then(|| entry.metadata().ok()?.modified().ok()).flatten()
    })
}

/// The highest resident size of a child until it ends; its own children (`pg_dump`) are not counted.
fn watch(child: &mut std::process::Child) -> u64 {
    let mut highest = 0;
    while child.try_wait().expect("it can be asked").is_none() {
        highest = highest.max(peak_kib(child.id()));
        pause(Duration::from_millis(50));
    }
    highest
}

/// The highest resident size that the process has had.
pub(crate) fn peak_kib(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0)
}

fn timed(command: &mut Command) -> f64 {
    let begun = Instant::now();
    let status = command.status().expect("it starts");
    assert!(status.success(), "{command:?}: {status}");
    begun.elapsed().as_secs_f64()
}

pub(crate) fn pause(time: Duration) {
    std::thread::park_timeout(time);
}

pub(crate) fn pause_at_least(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
    {
        pause(left);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
pub(crate) fn ratio(ours: u64, theirs: u64) -> f64 {
    ours as f64 / theirs as f64
}
