//! A base backup and its restore beside pgBackRest's with two processes: the same cluster, both compressed with zstd,
//! both encrypted. Part of our time is the proof: what is stored is opened and checked file by file before it counts, and
//! every file that is restored likewise.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::cluster::{Cluster, program};
use crate::support::run;
use crate::wal::{bytes, pgbackrest, timed, verb, verdict};

/// Of pgbench: 1.5 GB.
const SCALE: &str = "100";
const ROUNDS: usize = 3;

/// One of the two, ready to run.
struct Side {
    what: &'static str,
    archive_command: String,
    backup: Vec<String>,
    /// Into an empty directory; given the newest backup.
    restore: Box<dyn Fn() -> Vec<String>>,
    into: PathBuf,
    /// Where its backups lie.
    stored: Box<dyn Fn() -> PathBuf>,
    taken: Vec<Duration>,
    restored: Vec<Duration>,
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
    let mut sides = [ours(&cluster), theirs(&cluster)];
    let mut by_hand = Vec::new();
    for _ in 0..ROUNDS {
        for side in &mut sides {
            round(&cluster, side);
        }
        cluster.archive_command("true");
        by_hand.push(timed(&cluster, &copy_by_hand(&cluster)));
    }
    let size = cluster.sql("SELECT pg_size_pretty(sum(pg_tablespace_size(oid))) FROM pg_tablespace");
    print(&sides, &by_hand, &size);
}

/// What a copy costs without encryption, hashes, proof or sync. PostgreSQL asks once a second whether the last of its log is
/// archived, so that a second of it is waiting, as of ours.
fn copy_by_hand(cluster: &Cluster) -> Vec<String> {
    let command = format!(
        "{} -h {root} -U postgres -D - -F tar -X none -c fast --manifest-checksums=SHA256 2>/dev/null | zstd -q -2 -T2 -f -o {root}/copy.zst",
        program("pg_basebackup"),
        root = cluster.root().display(),
    );
    ["bash", "-o", "pipefail", "-c", &command].map(str::to_owned).to_vec()
}

/// Both sides in turn: what else the machine does meets either.
fn round(cluster: &Cluster, side: &mut Side) {
    cluster.archive_command(&side.archive_command);
    side.taken.push(timed(cluster, &side.backup));
    drop(std::fs::remove_dir_all(&side.into));
    let into = side.into.display().to_string();
    drop(run("install", &["-d", "-o", "postgres", "-m", "700", &into]));
    side.restored.push(timed(cluster, &(side.restore)()));
}

fn ours(cluster: &Cluster) -> Side {
    let repository = cluster.root().join("bases");
    let place = format!(
        "--repository file://{} --recipient {} --identity {}",
        repository.display(),
        cluster.recipient,
        cluster.key()
    );
    let archive_command = format!("{} wal push --socket /nowhere {place} %p", cluster.binary());
    let begin = [
        "env".to_owned(),
        format!("DATABASE_URL={}", cluster.url()),
        cluster.binary(),
    ];
    let words = move |verb: &[&str]| -> Vec<String> {
        let verb = verb.iter().map(|word| (*word).to_owned());
        let place = place.split(' ').map(str::to_owned);
        begin.iter().cloned().chain(verb).chain(place).collect()
    };
    let into = cluster.root().join("unpacked");
    let shown = into.display().to_string();
    let folder = repository.clone();
    Side {
        what: "foregate, proven file by file",
        archive_command,
        backup: words(&["pitr", "base-backup"]),
        restore: Box::new(move || words(&["pitr", "unpack", &newest(&bases(&folder)), "--into", &shown])),
        into,
        stored: Box::new(move || bases(&repository)),
        taken: Vec::new(),
        restored: Vec::new(),
    }
}

fn theirs(cluster: &Cluster) -> Side {
    let options = [("compress-type", "zst"), ("process-max", "2"), ("start-fast", "y")];
    let words = pgbackrest(cluster, "base", &options);
    let mut backup = verb(&words, "backup");
    backup.push("--type=full".to_owned());
    let into = cluster.root().join("restored");
    let backups = cluster.root().join("base/repo/backup");
    let mut restore = verb(&words, "restore");
    restore.push(format!("--pg1-path={}", into.display()));
    Side {
        what: "pgBackRest, 2 processes, zstd",
        archive_command: format!("{} %p", verb(&words, "archive-push").join(" ")),
        backup,
        restore: Box::new(move || restore.clone()),
        into,
        stored: Box::new(move || backups.clone()),
        taken: Vec::new(),
        restored: Vec::new(),
    }
}

/// The fastest: everything else that the machine does only adds.
fn best(times: &[Duration]) -> f64 {
    times.iter().min().copied().unwrap_or_default().as_secs_f64()
}

/// Where our base backups of the one cluster lie.
fn bases(repository: &Path) -> PathBuf {
    repository.join(cluster_folder(repository)).join("bases")
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

fn print(sides: &[Side; 2], by_hand: &[Duration], size: &str) {
    let mut text = format!(
        "\na cluster of {size}, {ROUNDS} rounds, fastest (all)\n\n| | base backup, s | restore, s | stored |\n|---|---|---|---|\n"
    );
    for side in sides {
        let (backup, restore) = (shown(&side.taken), shown(&side.restored));
        let stored = bytesize::ByteSize(bytes(&(side.stored)()) / ROUNDS as u64);
        writeln!(text, "| {} | {backup} | {restore} | {stored} |", side.what).expect("memory");
    }
    writeln!(text, "| pg_basebackup and zstd by hand | {} | – | – |", shown(by_hand)).expect("memory");
    let [ours, theirs] = sides;
    text.push_str(&verdict("base backup", best(&ours.taken), best(&theirs.taken), 0.9));
    text.push_str(&verdict("restore", best(&ours.restored), best(&theirs.restored), 1.0));
    std::io::stdout().write_all(text.as_bytes()).expect("standard output");
}

fn shown(times: &[Duration]) -> String {
    let all: Vec<String> = times.iter().map(|time| format!("{:.1}", time.as_secs_f64())).collect();
    format!("{:.1} ({})", best(times), all.join(", "))
}
