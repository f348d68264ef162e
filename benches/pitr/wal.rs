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
    /// Of one push and of one get, all processes together; `None`: some of them are not ours to count.
    cpu_ms: (Option<f64>, Option<f64>),
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
            Some(server.pid()),
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
    // What pgbench has left to be written must not be written during the first row.
    cluster.sql("CHECKPOINT");
    drop(run("sync", &[]));
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

fn ours(what: &'static str, cluster: &Cluster, names: &[String], flags: &[String], server: Option<u32>) -> Row {
    let binary = cluster.binary();
    let command = |verb: &str, flags: &[String]| -> Vec<String> {
        let mut words = vec![binary.clone(), "wal".to_owned(), verb.to_owned()];
        words.extend_from_slice(flags);
        words
    };
    let begun = cpu_ms(server);
    let push = timed_pushes(cluster, names, &command("push", flags));
    let between = cpu_ms(server);
    let stored = bytes(&cluster.repository());
    let get = timed_gets(cluster, names, &command("get", flags));
    let of_get = share(between, cpu_ms(server));
    Row {
        what,
        push: Some(push),
        get: Some(get),
        cpu_ms: (Some(share(begun, between)), Some(of_get)),
        stored,
    }
}

/// What our ended children and `server` have used of the processors.
fn cpu_ms(server: Option<u32>) -> f64 {
    let fields = |who: &str, from: usize| -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{who}/stat")).expect("it runs");
        // The name may hold spaces, so counted from its end; the kernel counts in hundredths of a second.
        let (_, rest) = stat.rsplit_once(')').expect("a name");
        let ticks = rest.split_whitespace().skip(from).take(2);
        ticks.map(|field| field.parse::<f64>().expect("a number") * 10.0).sum()
    };
    fields("self", 13) + server.map_or(0.0, |pid| fields(&pid.to_string(), 11))
}

/// Per segment.
fn share(begun: f64, ended: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a number of segments")]
    let count = SEGMENTS as f64;
    (ended - begun) / count
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
    let row = ours("foregate, without the server", cluster, names, &flags, None);
    Row {
        stored: bytes(&repository),
        // The helper that fetches ahead is nobody's child.
        cpu_ms: (row.cpu_ms.0, None),
        ..row
    }
}

/// As `postgres`, in the data directory: what PostgreSQL's shell would start.
pub(crate) fn timed(cluster: &Cluster, words: &[String]) -> Duration {
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
    // About as much as level 1 leaves of such a segment.
    let bytes = vec![7; 5 << 19];
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

pub(crate) fn pgbackrest(cluster: &Cluster, name: &str, more: &[(&str, &str)]) -> Option<Vec<String>> {
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

pub(crate) fn verb(words: &[String], verb: &str) -> Vec<String> {
    let mut words = words.to_vec();
    words.push(verb.to_owned());
    words
}

fn theirs(what: &'static str, cluster: &Cluster, names: &[String], more: &[(&str, &str)]) -> Row {
    let name = what.replace([' ', ','], "-");
    let words = pgbackrest(cluster, &name, more);
    let begun = cpu_ms(None);
    let push = words
        .as_ref()
        .map(|words| timed_pushes(cluster, names, &verb(words, "archive-push")));
    let of_push = push.as_ref().map(|_| share(begun, cpu_ms(None)));
    let stored = bytes(&cluster.root().join(&name).join("repo"));
    let between = cpu_ms(None);
    let get = words.map(|words| timed_gets(cluster, names, &verb(&words, "archive-get")));
    let of_get = get.map(|_| share(between, cpu_ms(None)));
    Row {
        what,
        push,
        get,
        cpu_ms: (of_push, of_get),
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
        cpu_ms: (None, None),
        stored: bytes(&cluster.root().join("ahead/repo")),
    }
}

pub(crate) fn bytes(folder: &Path) -> u64 {
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
        "{SEGMENTS} segments of pgbench, 16 MiB each; writing and syncing what one is stored as: {:.1} ms\n\n\
         | | push, fastest ms | push, median ms | median less that write, ms | get, MiB/s | CPU ms per push | per get | stored |\n|---|---|---|---|---|---|---|---|\n",
        ms(fsync)
    );
    for row in rows {
        let (fastest, middle) = row.push.as_ref().map_or(("–".to_owned(), "–".to_owned()), |push| {
            let fastest = push.first().copied().unwrap_or_default();
            (format!("{:.1}", ms(fastest)), format!("{:.1}", ms(median(push))))
        });
        let rate = row.get.map_or("–".to_owned(), |took| {
            #[expect(clippy::cast_precision_loss, reason = "a number of segments")]
            let bytes = SEGMENTS as f64 * SEGMENT_BYTES;
            format!("{:.0}", bytes / took.as_secs_f64() / 1024.0 / 1024.0)
        });
        let cpu = |share: Option<f64>| share.map_or("–".to_owned(), |share| format!("{share:.0}"));
        let beyond = row.push.as_ref().map_or("–".to_owned(), |push| {
            format!("{:.1}", ms(median(push).saturating_sub(fsync)))
        });
        let (of_push, of_get) = (cpu(row.cpu_ms.0), cpu(row.cpu_ms.1));
        let stored = bytesize::ByteSize(row.stored);
        writeln!(
            text,
            "| {} | {fastest} | {middle} | {beyond} | {rate} | {of_push} | {of_get} | {stored} |",
            row.what
        )
        .expect("memory");
    }
    let [ours, _, theirs, ..] = rows else {
        unreachable!("the table has these rows")
    };
    let middle = |row: &Row| row.push.as_ref().map_or(0.0, |push| ms(median(push)));
    let time = |row: &Row| row.get.map_or(0.0, ms);
    text.push_str(&verdict("push", middle(ours), middle(theirs), 0.5));
    // Of the fastest of theirs: a rate of at least 1.0 is a time of at most 1.0.
    let fastest = rows.iter().skip(2).map(time).fold(f64::INFINITY, f64::min);
    text.push_str(&verdict("replay feed, by time", time(ours), fastest, 1.0));
    std::io::stdout().write_all(text.as_bytes()).expect("standard output");
}

/// Ours against theirs, and whether that is within the budget.
pub(crate) fn verdict(what: &str, ours: f64, theirs: f64, budget: f64) -> String {
    let ratio = ours / theirs;
    let held = if ratio <= budget { "held" } else { "MISSED" };
    format!("{what}: {ratio:.2} of pgBackRest's, budget {budget:.1}: {held}\n")
}
