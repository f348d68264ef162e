//! A private PostgreSQL cluster, a repository and a key per test.

#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    reason = "black-box tests start processes, wait by the real clock, and fail by panicking"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Only names the socket: the cluster listens on no address.
pub(crate) const PORT: &str = "5432";

pub(crate) struct Bed {
    directory: tempfile::TempDir,
    recipient: String,
}

impl Bed {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().display().to_string();
        run("chown", &["postgres", &root]);
        run("chmod", &["755", &root]);
        let bin = newest_bin();
        let initdb = bin.join("initdb").display().to_string();
        as_postgres(&[
            &initdb,
            "-N",
            "-D",
            &format!("{root}/data"),
            "-U",
            "postgres",
            "-A",
            "trust",
        ]);
        let options = format!("-k {root} -c listen_addresses='' -p {PORT} -c fsync=off");
        let ctl = bin.join("pg_ctl").display().to_string();
        let log = format!("{root}/log");
        as_postgres(&[
            &ctl,
            "-D",
            &format!("{root}/data"),
            "-o",
            &options,
            "-l",
            &log,
            "-w",
            "start",
        ]);
        let key = format!("{root}/key");
        run("age-keygen", &["-o", &key]);
        let recipient = run("age-keygen", &["-y", &key]).trim().to_owned();
        let bed = Self { directory, recipient };
        bed.sql("postgres", "CREATE ROLE shop");
        bed.sql("postgres", "CREATE DATABASE app OWNER shop");
        bed.sql("postgres", "ALTER DATABASE app SET search_path TO app, public");
        bed.sql("app", "CREATE SCHEMA app CREATE TABLE t (id int PRIMARY KEY, v text)");
        bed.sql(
            "app",
            "INSERT INTO app.t SELECT g, md5(g::text) FROM generate_series(1, 20000) g",
        );
        bed
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn socket(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.directory.path().join("key")
    }

    pub(crate) fn recipient(&self) -> &str {
        &self.recipient
    }

    /// Holds a table so that nobody reads it, until the child is killed.
    pub(crate) fn hold_lock(&self, database: &str, table: &str) -> Child {
        let socket = self.socket().display().to_string();
        let sql = format!("BEGIN; LOCK TABLE {table}; SELECT pg_sleep(3600)");
        let child = Command::new("psql")
            .args([
                "-Xq", "-h", &socket, "-p", PORT, "-U", "postgres", "-d", database, "-c", &sql,
            ])
            .stdout(Stdio::null())
            .spawn()
            .expect("psql starts");
        let held = format!(
            "SELECT count(*) FROM pg_locks WHERE granted AND relation = '{table}'::regclass AND mode = 'AccessExclusiveLock'"
        );
        until("the lock", || self.sql(database, &held) == "1");
        child
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.directory.path().join("repository")
    }

    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        let socket = self.socket().display().to_string();
        let args = [
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            &socket,
            "-p",
            PORT,
            "-U",
            "postgres",
            "-d",
            database,
            "-c",
            sql,
        ];
        run("psql", &args).trim().to_owned()
    }

    /// Backends that run a statement like `pattern` for us.
    pub(crate) fn backends(&self, pattern: &str) -> usize {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'foregate%' AND state = 'active' AND query LIKE '{pattern}'"
        );
        self.sql("postgres", &sql).parse().expect("a count")
    }

    fn command(&self, key: Option<&Path>, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_foregate"));
        let socket = self.socket().display().to_string().replace('/', "%2F");
        command
            .arg("backup")
            .args(args)
            .arg("--repository")
            .arg(format!("file://{}", self.repository().display()))
            .arg("--state-dir")
            .arg(self.directory().join("state"))
            .args(["--recipient", &self.recipient])
            .env("DATABASE_URL", format!("postgres://postgres@{socket}:{PORT}/app"))
            .stdin(Stdio::null());
        if let Some(key) = key {
            command.arg("--identity").arg(key);
        }
        command
    }

    fn output(&self, key: Option<&Path>, args: &[&str]) -> Output {
        self.command(key, args).output().expect("foregate starts")
    }

    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.output(Some(&self.key()), args);
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    pub(crate) fn succeeds(&self, args: &[&str]) -> bool {
        self.output(Some(&self.key()), args).status.success()
    }

    pub(crate) fn fails(&self, args: &[&str]) -> String {
        self.fails_with_key(Some(&self.key()), args)
    }

    pub(crate) fn fails_with_key(&self, key: Option<&Path>, args: &[&str]) -> String {
        let output = self.output(key, args);
        assert!(!output.status.success(), "{args:?} was expected to fail");
        String::from_utf8(output.stderr).expect("UTF-8")
    }

    pub(crate) fn start(&self, args: &[&str]) -> Child {
        self.command(Some(&self.key()), args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("foregate starts")
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let ctl = newest_bin().join("pg_ctl").display().to_string();
        let data = self.directory.path().join("data").display().to_string();
        as_postgres(&[&ctl, "-D", &data, "-m", "immediate", "-w", "stop"]);
    }
}

fn newest_bin() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let mut found: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
    found.sort();
    found.pop().expect("PostgreSQL is installed")
}

fn as_postgres(args: &[&str]) {
    let mut all = vec!["--reuid", "postgres", "--regid", "postgres", "--clear-groups"];
    all.extend(args);
    run("setpriv", &all);
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    // Started by a file, not a pipe: the server that pg_ctl leaves behind would hold the pipe open.
    let out = tempfile::tempfile().expect("a file");
    let mut command = Command::new(program);
    let shared = out.try_clone().expect("a second handle");
    let status = command
        .args(args)
        .stdin(Stdio::null())
        .stdout(shared)
        .stderr(Stdio::null())
        .current_dir("/")
        .status();
    let status = status.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program} {args:?}: {status}");
    let mut text = String::new();
    std::io::Seek::rewind(&mut &out).expect("rewound");
    std::io::Read::read_to_string(&mut &out, &mut text).expect("UTF-8");
    text
}

/// Polls until `condition` holds, at most for a minute.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited for: {what}");
        std::thread::yield_now();
    }
}
