//! A private PostgreSQL cluster that archives into a repository, a load on it, and the ledger of what it committed.

#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    reason = "black-box tests start processes, wait by the real clock, and fail by panicking"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;

const PORT: &str = "5433";

pub(crate) struct Bed {
    directory: tempfile::TempDir,
    recipient: String,
}

/// A row of the ledger and when it committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) at: Timestamp,
    pub(crate) id: i64,
}

impl Bed {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().display().to_string();
        run("chown", &["postgres", &root]);
        run("chmod", &["755", &root]);
        // The checkout may lie where the user `postgres` may not go.
        let (ours, program) = (env!("CARGO_BIN_EXE_foregate"), directory.path().join("foregate"));
        if std::fs::hard_link(ours, &program).is_err() {
            std::fs::copy(ours, &program).expect("the program is copied");
        }
        let key = format!("{root}/key");
        run("age-keygen", &["-o", &key]);
        run("chown", &["postgres", &key]);
        let recipient = run("age-keygen", &["-y", &key]).trim().to_owned();
        let bed = Self { directory, recipient };
        as_postgres("mkdir", &[&format!("{root}/scratch")]);
        bed.make_cluster("data");
        bed.start("data");
        bed.sql("postgres", "CREATE DATABASE app");
        bed.sql(
            "app",
            "CREATE TABLE ledger (id bigserial PRIMARY KEY, writer int, padding text)",
        );
        bed
    }

    pub(crate) fn make_cluster(&self, name: &str) {
        let data = self.path(name).display().to_string();
        let initdb = bin("initdb");
        as_postgres(
            &initdb,
            &["-N", "--wal-segsize=1", "-D", &data, "-U", "postgres", "-A", "trust"],
        );
        let root = self.directory.path().display();
        let archive = format!(
            "{} wal push %p --repository {} --recipient {}",
            self.program(),
            self.repository_url(),
            self.recipient
        );
        let text = format!(
            "listen_addresses = ''\nunix_socket_directories = '{root}'\nport = {PORT}\nfsync = off\n\
             track_commit_timestamp = on\nmax_connections = 37\nmax_prepared_transactions = 4\n\
             wal_level = logical\narchive_mode = on\n\
             archive_timeout = 60\nautovacuum = off\narchive_command = '{archive}'\nmax_wal_size = 64MB\n"
        );
        let path = self.path(name).join("postgresql.conf");
        let old = std::fs::read_to_string(&path).expect("a configuration");
        std::fs::write(&path, old + &text).expect("a configuration");
    }

    pub(crate) fn start(&self, name: &str) {
        let (data, log) = (
            self.path(name).display().to_string(),
            self.path("log").display().to_string(),
        );
        as_postgres(&bin("pg_ctl"), &["-D", &data, "-l", &log, "-w", "start"]);
    }

    pub(crate) fn stop(&self, name: &str) {
        let data = self.path(name).display().to_string();
        as_postgres(&bin("pg_ctl"), &["-D", &data, "-m", "fast", "-w", "stop"]);
    }

    /// The running cluster goes on on a timeline of its own.
    pub(crate) fn promote(&self) {
        self.stop("data");
        as_postgres("touch", &[&self.path("data/standby.signal").display().to_string()]);
        self.start("data");
        let data = self.path("data").display().to_string();
        as_postgres(&bin("pg_ctl"), &["-D", &data, "-w", "promote"]);
        until("the promotion", || {
            self.sql("postgres", "SELECT pg_is_in_recovery()") == "f"
        });
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn repository_url(&self) -> String {
        format!("file://{}", self.path("repository").display())
    }

    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        sql_at(self.directory.path(), PORT, database, sql)
    }

    /// Waits until everything that has been written is in the archive.
    pub(crate) fn archive_all(&self) {
        let last = self.sql("postgres", "SELECT pg_walfile_name(pg_current_wal_lsn())");
        self.sql("postgres", "SELECT pg_switch_wal()");
        let archived = "SELECT coalesce(max(last_archived_wal), '') FROM pg_stat_archiver";
        until("the archive", || {
            self.sql("postgres", archived)[..].get(..24) >= last.get(..24)
        });
    }

    /// The archived objects whose names contain `part`.
    pub(crate) fn objects(&self, part: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.path("repository")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.display().to_string().contains(part) {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }

    fn command(&self, args: &[&str]) -> Command {
        let socket = self.directory.path().display().to_string().replace('/', "%2F");
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"])
            .arg(self.program())
            .arg("pitr")
            .args(args)
            .args([
                "--repository",
                &self.repository_url(),
                "--recipient",
                &self.recipient,
                "--identity",
            ])
            .arg(self.path("key"))
            .arg("--scratch")
            .arg(self.path("scratch"))
            .env("DATABASE_URL", format!("postgres://postgres@{socket}:{PORT}/app"))
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn output(&self, args: &[&str]) -> Output {
        // By files, not pipes: a server that is left running would hold them open.
        let (out, err) = (
            tempfile::tempfile().expect("a file"),
            tempfile::tempfile().expect("a file"),
        );
        let copy = |file: &std::fs::File| file.try_clone().expect("a second handle");
        let status = self.command(args).stdout(copy(&out)).stderr(copy(&err)).status();
        Output {
            status: status.expect("foregate starts"),
            stdout: contents(out),
            stderr: contents(err),
        }
    }

    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {log}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let mut all = args.to_vec();
        all.push("--json");
        serde_json::from_str(&self.ok(&all)).expect("JSON")
    }

    pub(crate) fn fails(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(!output.status.success(), "{args:?} was expected to fail");
        String::from_utf8(output.stderr).expect("UTF-8")
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("foregate starts")
    }

    pub(crate) fn program(&self) -> String {
        self.path("foregate").display().to_string()
    }

    /// Whether the server takes questions again.
    pub(crate) fn answers(&self) -> bool {
        let socket = self.directory.path().display().to_string();
        let mut ready = Command::new(bin("pg_isready"));
        ready.args(["-q", "-h", &socket, "-p", PORT]);
        ready.status().is_ok_and(|status| status.success())
    }

    /// A plan's target, refused: the reason.
    pub(crate) fn refused(&self, target: &str) -> serde_json::Value {
        let output = self.output(&["plan", "--target", target, "--json"]);
        assert!(!output.status.success(), "{target} was expected to be refused");
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        value["refused"].clone()
    }

    /// Recovers `target` and returns the directory with the paused server.
    pub(crate) fn recover(&self, name: &str, aim: &[&str]) -> Recovered<'_> {
        let into = self.path(name).display().to_string();
        let mut args = vec!["recover", "--into", &into];
        args.extend(aim);
        let told = self.json(&args);
        Recovered {
            bed: self,
            name: name.to_owned(),
            told,
        }
    }

    /// Every committed row with the instant of its commit, as the server knows it.
    pub(crate) fn commits(&self) -> Vec<Entry> {
        let sql = "SELECT id, (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint FROM ledger";
        let mut entries: Vec<Entry> = self
            .sql("app", sql)
            .lines()
            .map(|line| {
                let (id, micros) = line.split_once('|').expect("two columns");
                Entry {
                    at: Timestamp::from_microsecond(micros.parse().expect("a time")).expect("in range"),
                    id: id.parse().expect("an id"),
                }
            })
            .collect();
        entries.sort();
        entries
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.directory.path()).into_iter().flatten().flatten() {
            if entry.path().join("postmaster.pid").exists() {
                let data = entry.path().display().to_string();
                let mut command = Command::new("setpriv");
                let stop = command
                    .args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"])
                    .arg(bin("pg_ctl"))
                    .args(["-D", &data, "-m", "immediate", "-w", "stop"])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                drop(stop.status());
            }
        }
    }
}

/// A recovered server, waiting at its target; stopped when dropped.
pub(crate) struct Recovered<'a> {
    bed: &'a Bed,
    name: String,
    pub(crate) told: serde_json::Value,
}

impl Recovered<'_> {
    pub(crate) fn sql(&self, sql: &str) -> String {
        sql_at(&self.bed.path(&format!("{}.recovery", self.name)), "5432", "app", sql)
    }

    pub(crate) fn ids(&self) -> Vec<i64> {
        let ids = self.sql("SELECT id FROM ledger ORDER BY id");
        ids.lines().map(|id| id.parse().expect("an id")).collect()
    }
}

impl Drop for Recovered<'_> {
    fn drop(&mut self) {
        self.bed.stop(&self.name);
        for ending in ["", ".recovery", ".tablespaces"] {
            let path = self.bed.path(&format!("{}{ending}", self.name));
            if path.exists() {
                std::fs::remove_dir_all(path).expect("it can be removed");
            }
        }
    }
}

/// Writers that commit one row after another and keep a ledger of what was acknowledged.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Vec<i64>>>,
}

impl Load {
    pub(crate) fn start(bed: &Bed, writers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let socket = bed.directory.path().to_owned();
        let writer = |number: usize| {
            let (stop, socket) = (Arc::clone(&stop), socket.clone());
            std::thread::spawn(move || write(&socket, number, &stop))
        };
        let writers = (0..writers).map(writer).collect();
        Self { stop, writers }
    }

    /// The ids that were acknowledged.
    pub(crate) fn finish(self) -> Vec<i64> {
        self.stop.store(true, Ordering::Relaxed);
        let ids = self
            .writers
            .into_iter()
            .flat_map(|writer| writer.join().expect("the writer lived"));
        let mut ids: Vec<i64> = ids.collect();
        ids.sort_unstable();
        ids
    }
}

fn write(socket: &Path, number: usize, stop: &AtomicBool) -> Vec<i64> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(socket)
            .port(PORT.parse().expect("a port"))
            .user("postgres")
            .dbname("app");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.expect("a connection");
        let work = async {
            let insert =
                "INSERT INTO ledger (writer, padding) VALUES ($1, repeat(md5(random()::text), 30)) RETURNING id";
            let number = i32::try_from(number).expect("few writers");
            let mut acknowledged = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let row = client.query_one(insert, &[&number]).await.expect("a row");
                acknowledged.push(row.get::<_, i64>(0));
                // Commits a little apart, so that instants between them exist.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            acknowledged
        };
        tokio::select! {
            acknowledged = work => acknowledged,
            ended = connection => panic!("the connection ended: {ended:?}"),
        }
    })
}

fn sql_at(socket: &Path, port: &str, database: &str, sql: &str) -> String {
    let socket = socket.display().to_string();
    let args = [
        "-XAtq",
        "-v",
        "ON_ERROR_STOP=1",
        "-h",
        &socket,
        "-p",
        port,
        "-U",
        "postgres",
        "-d",
        database,
        "-c",
        sql,
    ];
    run("psql", &args).trim().to_owned()
}

pub(crate) fn bin(program: &str) -> String {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let mut found: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
    found.sort();
    let newest = found.pop().expect("PostgreSQL is installed");
    newest.join(program).display().to_string()
}

/// What `program` complains of: it must fail.
pub(crate) fn fails_as_postgres(program: &str, args: &[&str]) -> String {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", program]);
    let output = command.args(args).current_dir("/").output().expect("it starts");
    assert!(!output.status.success(), "{program} {args:?} was expected to fail");
    String::from_utf8(output.stderr).expect("UTF-8")
}

pub(crate) fn as_postgres(program: &str, args: &[&str]) -> String {
    let mut all = vec!["--reuid", "postgres", "--regid", "postgres", "--clear-groups", program];
    all.extend(args);
    run("setpriv", &all)
}

fn contents(mut file: std::fs::File) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).expect("rewound");
    std::io::Read::read_to_end(&mut file, &mut bytes).expect("read");
    bytes
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    // Started by a file, not a pipe: the server that pg_ctl leaves behind would hold the pipe open.
    let (out, err) = (
        tempfile::tempfile().expect("a file"),
        tempfile::tempfile().expect("a file"),
    );
    let mut command = Command::new(program);
    let status = command
        .args(args)
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("a second handle"))
        .stderr(err.try_clone().expect("a second handle"))
        .current_dir("/")
        .status();
    let status = status.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&contents(err)).into_owned();
    assert!(status.success(), "{program} {args:?}: {status}: {said}");
    String::from_utf8(contents(out)).expect("UTF-8")
}

/// Long enough for a machine that builds at the same time.
const PATIENCE: Duration = Duration::from_secs(120);

/// Polls until `condition` holds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited for: {what}");
        // Most conditions start a program to ask: without a rest in between, they keep a core from what is waited for.
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
