//! WAL push and WAL get, one process per segment as PostgreSQL starts them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, program};
use crate::support::server::{Server, socket};
use crate::support::{as_postgres, output, run};

/// Segments of 16 MiB: enough that one slow sync does not decide.
const SEGMENTS: usize = 24;
const SEGMENT_BYTES: f64 = 16.0 * 1024.0 * 1024.0;

/// One row of the table.
struct Row {
    what: &'static str,
    push: Option<Vec<Duration>>,
    get: Option<Duration>,
    stored: u64,
}

pub(crate) fn compare() {
    let cluster = Cluster::new();
    let names = fill(&cluster);
    let server = Server::start(&cluster);
    let fsync = durable_write(&cluster, &names);
    let rows = [
        ours(
            "foregate, through the server",
            &cluster,
            &names,
            &through(&cluster),
            &through(&cluster),
        ),
        alone(&cluster, &names),
        theirs(
            "pgBackRest, zstd 1, encrypted",
            &cluster,
            &names,
            &[("compress-type", "zst"), ("compress-level", "1")],
        ),
        theirs("pgBackRest, its defaults, encrypted", &cluster, &names, &[]),
        theirs_ahead(&cluster, &names),
    ];
    drop(server);
    print(&rows, fsync);
}

/// The log of pgbench: small records and full pages, as a busy application writes it.
fn fill(cluster: &Cluster) -> Vec<String> {
    // Nothing is handed over yet: the segments stay where they are.
    cluster.archive_command("false");
    cluster.sql("ALTER SYSTEM SET max_wal_size = '4GB'");
    cluster.sql("SELECT pg_reload_conf()");
    let root = cluster.root().display().to_string();
    let bench = program("pgbench");
    let with = |more: &[&str]| {
        let mut args = vec!["-h", &root, "-U", "postgres", "postgres"];
        args.extend(more);
        drop(run(&bench, &args));
    };
    with(&["-i", "-q", "-s", "20"]);
    let mut names = Vec::new();
    while names.len() < SEGMENTS {
        with(&["-c", "4", "-T", "3"]);
        names = finished(cluster);
    }
    names.truncate(SEGMENTS);
    names
}

fn finished(cluster: &Cluster) -> Vec<String> {
    let status = crate::support::files(&cluster.wal().join("archive_status"));
    let names = status.iter().filter_map(|path| path.file_stem()?.to_str());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}

fn through(cluster: &Cluster) -> Vec<String> {
    vec!["--socket".to_owned(), socket(cluster)]
}

fn ours(what: &'static str, cluster: &Cluster, names: &[String], push: &[String], get: &[String]) -> Row {
    let binary = cluster.binary();
    let command = |verb: &str, flags: &[String]| -> Vec<String> {
        let mut words = vec![binary.clone(), "wal".to_owned(), verb.to_owned()];
        words.extend_from_slice(flags);
        words
    };
    let push = timed_pushes(cluster, names, &command("push", push));
    let stored = bytes(&cluster.repository());
    let get = timed_gets(cluster, names, &command("get", get));
    Row {
        what,
        push: Some(push),
        get: Some(get),
        stored,
    }
}

/// Into a second repository, straight.
fn alone(cluster: &Cluster, names: &[String]) -> Row {
    let repository = cluster.root().join("alone");
    let flags: Vec<String> = format!(
        "--socket /nowhere --repository file://{} --recipient {} --identity {}",
        repository.display(),
        cluster.recipient,
        cluster.key()
    )
    .split(' ')
    .map(str::to_owned)
    .collect();
    let row = ours("foregate, without the server", cluster, names, &flags, &flags);
    Row {
        stored: bytes(&repository),
        ..row
    }
}

/// As `postgres`, in the data directory: what PostgreSQL's shell would start.
fn timed(cluster: &Cluster, words: &[String]) -> Duration {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let output = output("setpriv", &as_postgres(&words), &cluster.data());
    let took = begun.elapsed();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words:?}: {} {complaint}", output.status);
    took
}

fn timed_pushes(cluster: &Cluster, names: &[String], command: &[String]) -> Vec<Duration> {
    let mut took: Vec<Duration> = names
        .iter()
        .map(|name| {
            let mut words = command.to_vec();
            words.push(format!("pg_wal/{name}"));
            timed(cluster, &words)
        })
        .collect();
    took.sort();
    took
}

fn timed_gets(cluster: &Cluster, names: &[String], command: &[String]) -> Duration {
    let begun = Instant::now();
    for name in names {
        let mut words = command.to_vec();
        words.extend([name.clone(), "pg_wal/RECOVERYXLOG".to_owned()]);
        timed(cluster, &words);
    }
    let took = begun.elapsed();
    let last = names.last().expect("a segment");
    let same = std::fs::read(cluster.wal().join("RECOVERYXLOG")).ok() == std::fs::read(cluster.wal().join(last)).ok();
    assert!(same, "what came back is not what was sent");
    took
}

/// What writing and syncing as many bytes as we store costs by itself: nobody can be faster.
fn durable_write(cluster: &Cluster, names: &[String]) -> Duration {
    let bytes = vec![7; 4 << 20];
    let mut took: Vec<Duration> = (0..names.len())
        .map(|at| {
            let path = cluster.root().join(format!("sync-{at}"));
            let begun = Instant::now();
            let mut file = std::fs::File::create(&path).expect("a file");
            file.write_all(&bytes).expect("written");
            file.sync_all().expect("synced");
            std::fs::File::open(cluster.root())
                .expect("a directory")
                .sync_all()
                .expect("synced");
            begun.elapsed()
        })
        .collect();
    took.sort();
    median(&took)
}

fn pgbackrest(cluster: &Cluster, name: &str, more: &[(&str, &str)]) -> Option<Vec<String>> {
    if !Path::new("/usr/bin/pgbackrest").exists() {
        return None;
    }
    let place = cluster.root().join(name);
    let mut config = format!(
        "[global]\nrepo1-path={0}/repo\nspool-path={0}/spool\nlock-path={0}/lock\nlog-path={0}/log\n\
         log-level-file=off\nlog-level-console=error\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=benchmark\n",
        place.display()
    );
    for (key, value) in more {
        writeln!(config, "{key}={value}").expect("memory");
    }
    let (data, root) = (cluster.data(), cluster.root());
    write!(
        config,
        "[main]\npg1-path={}\npg1-socket-path={}\n",
        data.display(),
        root.display()
    )
    .expect("memory");
    for folder in ["repo", "spool", "lock", "log"] {
        std::fs::create_dir_all(place.join(folder)).expect("a folder");
    }
    std::fs::write(place.join("pgbackrest.conf"), config).expect("written");
    let shown = place.display().to_string();
    drop(run("chown", &["-R", "postgres", &shown]));
    let words = vec![
        "/usr/bin/pgbackrest".to_owned(),
        format!("--config={shown}/pgbackrest.conf"),
        "--stanza=main".to_owned(),
    ];
    let mut create = words.clone();
    create.push("stanza-create".to_owned());
    timed(cluster, &create);
    Some(words)
}

fn verb(words: &[String], verb: &str) -> Vec<String> {
    let mut words = words.to_vec();
    words.push(verb.to_owned());
    words
}

fn theirs(what: &'static str, cluster: &Cluster, names: &[String], more: &[(&str, &str)]) -> Row {
    let name = what.replace([' ', ','], "-");
    let words = pgbackrest(cluster, &name, more);
    let push = words
        .as_ref()
        .map(|words| timed_pushes(cluster, names, &verb(words, "archive-push")));
    let stored = bytes(&cluster.root().join(&name).join("repo"));
    let get = words.map(|words| timed_gets(cluster, names, &verb(&words, "archive-get")));
    Row {
        what,
        push,
        get,
        stored,
    }
}

/// With its own fetching ahead. Its asynchronous push acknowledges later than it returns, so only `get` is compared.
fn theirs_ahead(cluster: &Cluster, names: &[String]) -> Row {
    let what = "pgBackRest, zstd 1, encrypted, archive-async";
    let zstd = [("compress-type", "zst"), ("compress-level", "1")];
    let words = pgbackrest(cluster, "ahead", &zstd);
    let get = words.map(|words| {
        timed_pushes(cluster, names, &verb(&words, "archive-push"));
        let mut ahead = words;
        ahead.extend(["--archive-async", "--archive-get-queue-max=128MB", "--process-max=2"].map(str::to_owned));
        timed_gets(cluster, names, &verb(&ahead, "archive-get"))
    });
    Row {
        what,
        push: None,
        get,
        stored: bytes(&cluster.root().join("ahead/repo")),
    }
}

fn bytes(folder: &Path) -> u64 {
    let files: Vec<PathBuf> = crate::support::files(folder);
    files
        .iter()
        .filter_map(|path| path.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

fn median(sorted: &[Duration]) -> Duration {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn print(rows: &[Row], fsync: Duration) {
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let mut text = format!(
        "{SEGMENTS} segments of pgbench, 16 MiB each; writing and syncing 4 MiB alone: {:.1} ms\n\n\
         | | push, median ms | push, slowest ms | get, MiB/s | stored |\n|---|---|---|---|---|\n",
        ms(fsync)
    );
    for row in rows {
        let (middle, slowest) = row.push.as_ref().map_or(("–".to_owned(), "–".to_owned()), |push| {
            let slowest = push.last().copied().unwrap_or_default();
            (format!("{:.1}", ms(median(push))), format!("{:.1}", ms(slowest)))
        });
        let rate = row.get.map_or("–".to_owned(), |took| {
            #[expect(clippy::cast_precision_loss, reason = "a number of segments")]
            let bytes = SEGMENTS as f64 * SEGMENT_BYTES;
            format!("{:.0}", bytes / took.as_secs_f64() / 1024.0 / 1024.0)
        });
        let stored = bytesize::ByteSize(row.stored);
        writeln!(text, "| {} | {middle} | {slowest} | {rate} | {stored} |", row.what).expect("memory");
    }
    std::io::stdout().write_all(text.as_bytes()).expect("standard output");
}
