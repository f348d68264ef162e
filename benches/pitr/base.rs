//! A base backup and its restore beside pgBackRest's with two processes: the same cluster, both compressed with zstd,
//! both encrypted. Ours is read back whole and checked file by file before it counts, which is part of its time; so is
//! `pg_verifybackup` of its restore.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::support::cluster::{Cluster, program};
use crate::support::run;
use crate::wal::{bytes, pgbackrest, timed, verb, verdict};

/// Of pgbench: 1.5 GB.
const SCALE: &str = "100";
const ROUNDS: usize = 3;

struct Row {
    what: &'static str,
    backup: Option<Duration>,
    restore: Option<Duration>,
    stored: u64,
}

pub(crate) fn compare() {
    let cluster = Cluster::new();
    let root = cluster.root().display().to_string();
    cluster.sql("ALTER SYSTEM SET max_wal_size = '4GB'");
    cluster.archive_command("true");
    drop(run(
        &program("pgbench"),
        &["-h", &root, "-U", "postgres", "-i", "-q", "-s", SCALE, "postgres"],
    ));
    cluster.sql("CHECKPOINT");
    let rows = [ours(&cluster), theirs(&cluster)];
    let size = cluster.sql("SELECT pg_size_pretty(sum(pg_tablespace_size(oid))) FROM pg_tablespace");
    print(&rows, &size);
}

fn ours(cluster: &Cluster) -> Row {
    let repository = cluster.root().join("bases");
    let place = format!(
        "--repository file://{} --recipient {} --identity {}",
        repository.display(),
        cluster.recipient,
        cluster.key()
    );
    cluster.archive_command(&format!("{} wal push --socket /nowhere {place} %p", cluster.binary()));
    let words = |verb: &[&str]| {
        let url = format!("DATABASE_URL={}", cluster.url());
        let mut words = vec!["env".to_owned(), url, cluster.binary(), "pitr".to_owned()];
        words.extend(verb.iter().map(|word| (*word).to_owned()));
        words.extend(place.split(' ').map(str::to_owned));
        words
    };
    let backup = best(|| timed(cluster, &words(&["base-backup"])));
    let stored = bytes(&repository.join(cluster_folder(&repository)).join("bases")) / ROUNDS as u64;
    let id = newest(&repository.join(cluster_folder(&repository)).join("bases"));
    let into = cluster.root().join("unpacked");
    let restore = best(|| {
        drop(std::fs::remove_dir_all(&into));
        timed(cluster, &words(&["unpack", &id, "--into", &into.display().to_string()]))
    });
    Row {
        what: "foregate, read back and proven",
        backup: Some(backup),
        restore: Some(restore),
        stored,
    }
}

fn theirs(cluster: &Cluster) -> Row {
    let what = "pgBackRest, 2 processes, zstd";
    let words = pgbackrest(
        cluster,
        "base",
        &[("compress-type", "zst"), ("process-max", "2"), ("start-fast", "y")],
    );
    let Some(words) = words else {
        return Row {
            what,
            backup: None,
            restore: None,
            stored: 0,
        };
    };
    cluster.archive_command(&format!("{} %p", verb(&words, "archive-push").join(" ")));
    let mut full = verb(&words, "backup");
    full.push("--type=full".to_owned());
    let backup = best(|| timed(cluster, &full));
    let into = cluster.root().join("restored");
    let mut again = verb(&words, "restore");
    again.push(format!("--pg1-path={}", into.display()));
    let restore = best(|| {
        drop(std::fs::remove_dir_all(&into));
        drop(run(
            "install",
            &["-d", "-o", "postgres", "-m", "700", &into.display().to_string()],
        ));
        timed(cluster, &again)
    });
    Row {
        what,
        backup: Some(backup),
        restore: Some(restore),
        stored: bytes(&cluster.root().join("base/repo/backup")) / ROUNDS as u64,
    }
}

/// The fastest: everything else that the machine does only adds.
fn best(mut act: impl FnMut() -> Duration) -> Duration {
    (0..ROUNDS).map(|_| act()).min().unwrap_or_default()
}

fn cluster_folder(repository: &Path) -> String {
    let folders = std::fs::read_dir(repository)
        .expect("the repository is readable")
        .flatten();
    let mut names = folders.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.find(|name| name.contains('-')).expect("a cluster")
}

fn newest(bases: &Path) -> String {
    let folders = std::fs::read_dir(bases).expect("base backups").flatten();
    let names = folders.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.max().expect("a base backup")
}

fn print(rows: &[Row], size: &str) {
    let seconds = |time: Option<Duration>| time.map_or("–".to_owned(), |time| format!("{:.1}", time.as_secs_f64()));
    let mut text = format!(
        "\na cluster of {size}, best of {ROUNDS}\n\n| | base backup, s | restore, s | stored |\n|---|---|---|---|\n"
    );
    for row in rows {
        let (backup, restore) = (seconds(row.backup), seconds(row.restore));
        let stored = bytesize::ByteSize(row.stored);
        writeln!(text, "| {} | {backup} | {restore} | {stored} |", row.what).expect("memory");
    }
    let [ours, theirs] = rows else {
        unreachable!("two sides are compared")
    };
    let time = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64();
    text.push_str(&verdict("base backup", time(ours.backup), time(theirs.backup), 0.9));
    text.push_str(&verdict("restore", time(ours.restore), time(theirs.restore), 1.0));
    std::io::stdout().write_all(text.as_bytes()).expect("standard output");
}
