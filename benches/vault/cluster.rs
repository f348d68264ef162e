//! A private cluster with a database of a given size: half pgbench tables, half wide JSON rows.

use std::path::PathBuf;
use std::process::{Command, Stdio};

const PORT: &str = "5432";

pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    bin: PathBuf,
    recipient: String,
}

impl Cluster {
    pub(crate) fn new(mebibytes: u64) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
        let bin = versions.flatten().map(|entry| entry.path().join("bin")).max();
        let mut cluster = Self {
            directory,
            bin: bin.expect("PostgreSQL is installed"),
            recipient: String::new(),
        };
        cluster.start();
        let key = cluster.path("key");
        output(Command::new("age-keygen").args(["-o", &key]));
        cluster.recipient = output(Command::new("age-keygen").args(["-y", &key])).trim().to_owned();
        cluster.sql("postgres", "CREATE DATABASE app");
        // 15 MiB of tables and indexes for each unit of scale.
        let scale = (mebibytes / 30).max(1).to_string();
        output(cluster.program("pgbench").args(["-i", "-q", "-s", &scale, "app"]));
        let rows = mebibytes / 2 * 1024 * 1024 / 2_500;
        let json = format!(
            "CREATE TABLE documents AS SELECT g AS id, jsonb_build_object('id', g, 'email', md5(g::text) || '@example.com', \
             'name', 'user ' || g, 'tags', jsonb_build_array('a' || g % 97, 'b' || g % 13, md5((g % 1000)::text)), \
             'text', (SELECT string_agg(md5((g * 31 + n)::text) || ' lorem ipsum dolor ' || n, ' ') FROM generate_series(1, 40) n)) AS body \
             FROM generate_series(1, {rows}) g"
        );
        cluster.sql("app", "ALTER DATABASE app SET default_toast_compression = 'pglz'");
        cluster.sql("app", &json);
        cluster.sql("app", "VACUUM ANALYZE");
        cluster.sql("app", "CHECKPOINT");
        cluster
    }

    fn start(&self) {
        let root = self.directory.path().display().to_string();
        let data = self.path("data");
        output(Command::new("chmod").args(["755", &root]));
        output(Command::new("chown").args(["postgres", &root]));
        output(
            self.as_postgres("initdb")
                .args(["-D", &data, "-U", "postgres", "-A", "trust"]),
        );
        let options = format!("-k {root} -c listen_addresses='' -p {PORT} -c max_wal_size=8GB -c shared_buffers=512MB");
        let log = self.path("log");
        let mut start = self.as_postgres("pg_ctl");
        output(start.args(["-D", &data, "-o", &options, "-l", &log, "-w", "start"]));
    }

    fn as_postgres(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"])
            .arg(self.bin.join(program))
            .current_dir("/");
        command
    }

    /// A client program that finds the server.
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command
            .env("PGHOST", self.directory.path())
            .env("PGPORT", PORT)
            .env("PGUSER", "postgres")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn foregate(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_foregate"));
        command
            .arg("backup")
            .args(args)
            .arg("--repository")
            .arg(format!("file://{}", self.path("repository")))
            .args(["--state-dir", &self.path("state"), "--identity", &self.path("key")])
            .args(["--recipient", &self.recipient])
            .env("DATABASE_URL", self.address())
            .env("TMPDIR", self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    pub(crate) fn address(&self) -> String {
        let socket = self.directory.path().display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{socket}:{PORT}/app")
    }

    pub(crate) fn recipient(&self) -> &str {
        &self.recipient
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        output(
            self.program("psql")
                .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]),
        )
    }

    pub(crate) fn megabytes(&self) -> String {
        let size = self.sql("app", "SELECT pg_database_size('app') / 1048576");
        size.trim().to_owned()
    }

    /// Restores `peer.dump` and drops the result.
    pub(crate) fn restored_by_pg_restore(&self) -> f64 {
        self.sql("postgres", "CREATE DATABASE peer TEMPLATE template0");
        let dump = self.path("peer.dump");
        let mut restore = self.program("pg_restore");
        let seconds = super::timed(restore.args(["-j", "2", "-d", "peer", &dump]));
        self.sql("postgres", "DROP DATABASE peer");
        seconds
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let data = self.path("data");
        let mut stop = self.as_postgres("pg_ctl");
        drop(
            stop.args(["-D", &data, "-m", "immediate", "-w", "stop"])
                .stdout(Stdio::null())
                .status(),
        );
    }
}

/// Runs it to its end. By a file, not a pipe: the server that pg_ctl leaves behind would hold the pipe open.
fn output(command: &mut Command) -> String {
    let mut file = tempfile::tempfile().expect("a file");
    let shared = file.try_clone().expect("a second handle");
    let status = command
        .stdout(shared)
        .stderr(Stdio::null())
        .status()
        .expect("it starts");
    assert!(status.success(), "{command:?}: {status}");
    let mut text = String::new();
    std::io::Seek::rewind(&mut file).expect("rewound");
    std::io::Read::read_to_string(&mut file, &mut text).expect("UTF-8");
    text
}
