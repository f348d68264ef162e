//! WAL push and WAL get, one process per segment as PostgreSQL starts them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, program};
use crate::support::run;
use crate::support::server::{Server, socket};

/// Segments of 16 MiB: enough that one slow sync does not decide.
const SEGMENTS: usize = 24;
const SIDES: usize = 5;
const SEGMENT_BYTES: f64 = 16.0 * 1024.0 * 1024.0;
const ZSTD: [(&str, &str); 2] = [("compress-type", "zst"), ("compress-level", "1")];

/// One way to push and get, and what came of it.
struct Side {
    what: &'static str,
    push: Vec<String>,
    get: Vec<String>,
    /// Whose time of the processors counts besides that of what we start.
    server: Option<u32>,
    /// Where its segments lie.
    stored: PathBuf,
    /// By segment.
    pushed: Vec<Duration>,
    got: Duration,
    /// Of all pushes and of all gets, all processes together.
    cpu_ms: (f64, f64),
    /// It differs from another in its gets only.
    is_for_gets: bool,
    /// Its gets have a helper that is nobody's child, whose time we cannot count.
    has_helper: bool,
}

impl Side {
    fn new(what: &'static str, push: Vec<String>, get: Vec<String>, stored: PathBuf) -> Self {
        Self {
            what,
            push,
            get,
            server: None,
            stored,
            pushed: Vec::new(),
            got: Duration::ZERO,
            cpu_ms: (0.0, 0.0),
            is_for_gets: false,
            has_helper: false,
        }
    }
}

pub(crate) fn compare() {
    let cluster = Cluster::new();
    let names = fill(&cluster);
    let server = Server::start(&cluster);
    let fsync = durable_write(&cluster, &names);
    let mut sides = [
        through(&cluster, server.pid()),
        alone(&cluster),
        theirs("pgBackRest, zstd 1, encrypted", &cluster, &ZSTD),
        theirs("pgBackRest, its defaults, encrypted", &cluster, &[]),
        theirs_ahead(&cluster),
    ];
    // In turn, since segments differ and so does what else the machine does; and not always the same one first, who finds the
    // segment furthest from the cores.
    for (at, name) in names.iter().enumerate() {
        let (later, first) = sides.split_at_mut(at % SIDES);
        for side in first.iter_mut().chain(later) {
            push(&cluster, side, name);
        }
    }
    for side in &mut sides {
        get_all(&cluster, side, &names);
    }
    drop(server);
    print(&sides, fsync);
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

fn ours(what: &'static str, cluster: &Cluster, flags: &str, server: Option<u32>, stored: PathBuf) -> Side {
    let words = |verb: &str| -> Vec<String> {
        let flags = flags.split(' ').map(str::to_owned);
        [cluster.binary(), "wal".to_owned(), verb.to_owned()]
            .into_iter()
            .chain(flags)
            .collect()
    };
    Side {
        server,
        ..Side::new(what, words("push"), words("get"), stored)
    }
}

fn through(cluster: &Cluster, server: u32) -> Side {
    let flags = format!("--socket {}", socket(cluster));
    ours(
        "foregate, through the server",
        cluster,
        &flags,
        Some(server),
        cluster.repository(),
    )
}

/// Into a second repository, straight.
fn alone(cluster: &Cluster) -> Side {
    let repository = cluster.root().join("alone");
    let flags = format!(
        "--socket /nowhere --repository file://{} --recipient {} --identity {}",
        repository.display(),
        cluster.recipient,
        cluster.key()
    );
    Side {
        has_helper: true,
        ..ours("foregate, without the server", cluster, &flags, None, repository)
    }
}

fn push(cluster: &Cluster, side: &mut Side, name: &str) {
    let mut words = side.push.clone();
    words.push(format!("pg_wal/{name}"));
    let begun = cpu_ms(side.server);
    side.pushed.push(timed(cluster, &words));
    side.cpu_ms.0 += cpu_ms(side.server) - begun;
}

fn get_all(cluster: &Cluster, side: &mut Side, names: &[String]) {
    let (begun, cpu) = (Instant::now(), cpu_ms(side.server));
    for name in names {
        let mut words = side.get.clone();
        words.extend([name.clone(), "pg_wal/RECOVERYXLOG".to_owned()]);
        timed(cluster, &words);
    }
    side.got = begun.elapsed();
    side.cpu_ms.1 = cpu_ms(side.server) - cpu;
    let last = names.last().expect("a segment");
    let same = std::fs::read(cluster.wal().join("RECOVERYXLOG")).ok() == std::fs::read(cluster.wal().join(last)).ok();
    assert!(same, "what came back is not what was sent");
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

/// As `postgres`, in the data directory: what PostgreSQL's shell would start, with nothing in between that takes time itself.
pub(crate) fn timed(cluster: &Cluster, words: &[String]) -> Duration {
    let (program, args) = words.split_first().expect("a program");
    let owner = cluster.data().metadata().expect("the data directory");
    let said = cluster.root().join("said");
    let to = |end: &str| std::fs::File::create(said.with_extension(end)).expect("a file");
    let begun = Instant::now();
    let status = Command::new(program)
        .args(args)
        .uid(owner.uid())
        .gid(owner.gid())
        .current_dir(cluster.data())
        .stdin(Stdio::null())
        .stdout(to("out"))
        .stderr(to("err"))
        .status();
    let took = begun.elapsed();
    let status = status.unwrap_or_else(|error| panic!("{program}: {error}"));
    let complaint = std::fs::read_to_string(said.with_extension("err")).unwrap_or_default();
    assert!(status.success(), "{words:?}: {status} {complaint}");
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

pub(crate) fn pgbackrest(cluster: &Cluster, name: &str, more: &[(&str, &str)]) -> Vec<String> {
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
    words
}

pub(crate) fn verb(words: &[String], verb: &str) -> Vec<String> {
    let mut words = words.to_vec();
    words.push(verb.to_owned());
    words
}

fn theirs(what: &'static str, cluster: &Cluster, more: &[(&str, &str)]) -> Side {
    let name = what.replace([' ', ','], "-");
    let words = pgbackrest(cluster, &name, more);
    let [push, get] = ["archive-push", "archive-get"].map(|act| verb(&words, act));
    Side::new(what, push, get, cluster.root().join(&name).join("repo"))
}

/// With its own fetching ahead; what is to be fetched is pushed at once.
fn theirs_ahead(cluster: &Cluster) -> Side {
    let side = theirs("pgBackRest, zstd 1, encrypted, archive-async", cluster, &ZSTD);
    let ahead = ["--archive-async", "--archive-get-queue-max=128MB", "--process-max=2"];
    let get = side.get.into_iter().chain(ahead.map(str::to_owned)).collect();
    Side {
        get,
        is_for_gets: true,
        has_helper: true,
        ..side
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

fn print(sides: &[Side; SIDES], fsync: Duration) {
    let mut text = format!(
        "{SEGMENTS} segments of pgbench, 16 MiB each; writing and syncing what one is stored as: {:.1} ms\n\n\
         | | push, fastest ms | push, median ms | median less that write, ms | get, MiB/s | CPU ms per push | per get | stored |\n|---|---|---|---|---|---|---|---|\n",
        ms(fsync)
    );
    for side in sides {
        writeln!(text, "{}", row(side, fsync)).expect("memory");
    }
    let [ours, _, theirs, others @ ..] = sides;
    // Segment by segment: one of small changes takes twice the time of a bulk load.
    let pairs = ours.pushed.iter().zip(&theirs.pushed);
    let mut ratios: Vec<f64> = pairs.map(|(ours, theirs)| ms(*ours) / ms(*theirs)).collect();
    ratios.sort_by(f64::total_cmp);
    let middle = ratios.get(ratios.len() / 2).copied().unwrap_or_default();
    text.push_str(&verdict("push, median of the segments' ratios", middle, 1.0, 0.5));
    // Of the fastest of theirs: a rate of at least 1.0 is a time of at most 1.0.
    let fastest = others.iter().map(|side| ms(side.got)).fold(ms(theirs.got), f64::min);
    text.push_str(&verdict("replay feed, by time", ms(ours.got), fastest, 1.0));
    std::io::stdout().write_all(text.as_bytes()).expect("standard output");
}

fn row(side: &Side, fsync: Duration) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a number of segments")]
    let count = SEGMENTS as f64;
    let rate = count * SEGMENT_BYTES / side.got.as_secs_f64() / 1024.0 / 1024.0;
    let of_push = side.cpu_ms.0 / count;
    let of_get = match side.has_helper {
        true => "–".to_owned(),
        false => format!("{:.0}", side.cpu_ms.1 / count),
    };
    let stored = bytesize::ByteSize(bytes(&side.stored));
    let mut sorted = side.pushed.clone();
    sorted.sort();
    let (fastest, middle) = (sorted.first().copied().unwrap_or_default(), median(&sorted));
    let push = match side.is_for_gets {
        true => "– | – | –".to_owned(),
        false => {
            let beyond = middle.saturating_sub(fsync);
            format!("{:.1} | {:.1} | {:.1}", ms(fastest), ms(middle), ms(beyond))
        }
    };
    format!(
        "| {} | {push} | {rate:.0} | {of_push:.0} | {of_get} | {stored} |",
        side.what
    )
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Ours against theirs, and whether that is within the budget.
pub(crate) fn verdict(what: &str, ours: f64, theirs: f64, budget: f64) -> String {
    let ratio = ours / theirs;
    let held = if ratio <= budget { "held" } else { "MISSED" };
    format!("{what}: {ratio:.2} of pgBackRest's, budget {budget:.1}: {held}\n")
}
