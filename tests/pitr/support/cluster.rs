//! A private cluster whose archiver runs our binary.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use super::{as_postgres, files, output, run, until};

/// Only names the socket: the cluster listens on no address.
pub(crate) const PORT: &str = "5432";

pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    /// Of an age key pair.
    pub(crate) recipient: String,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    /// `initdb` with more arguments.
    pub(crate) fn with(more: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().display().to_string();
        run("chown", &["postgres", &root]);
        run("chmod", &["755", &root]);
        // The checkout may lie where the user `postgres` may not go.
        let binary = directory.path().join("foregate");
        if std::fs::hard_link(env!("CARGO_BIN_EXE_foregate"), &binary).is_err() {
            std::fs::copy(env!("CARGO_BIN_EXE_foregate"), &binary).expect("the binary is copied");
        }
        let key = format!("{root}/key");
        run("age-keygen", &["-o", &key]);
        run("chown", &["postgres", &key]);
        let recipient = run("age-keygen", &["-y", &key]).trim().to_owned();
        let cluster = Self { directory, recipient };
        let (initdb, data) = (program("initdb"), cluster.data().display().to_string());
        let mut args = vec![initdb.as_str(), "-N", "-D", &data, "-U", "postgres", "-A", "trust"];
        args.extend(more);
        run("setpriv", &as_postgres(&args));
        let settings = format!(
            "unix_socket_directories = '{root}'\nlisten_addresses = ''\nport = {PORT}\nfsync = off\narchive_mode = on\n"
        );
        let file = cluster.data().join("postgresql.auto.conf");
        std::fs::write(file, settings).expect("settings are written");
        cluster.start();
        cluster
    }

    /// A copy of `first` that follows it, with a socket of its own.
    pub(crate) fn standby_of(first: &Self) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().display().to_string();
        run("chown", &["postgres", &root]);
        run("chmod", &["755", &root]);
        let cluster = Self {
            directory,
            recipient: first.recipient.clone(),
        };
        let (copy, data) = (program("pg_basebackup"), cluster.data().display().to_string());
        let from = first.root().display().to_string();
        let args = [
            copy.as_str(),
            "-R",
            "-c",
            "fast",
            "-h",
            &from,
            "-p",
            PORT,
            "-U",
            "postgres",
            "-D",
            &data,
        ];
        run("setpriv", &as_postgres(&args));
        cluster.add_settings(&format!("unix_socket_directories = '{root}'\n"));
        cluster.start();
        cluster
    }

    pub(crate) fn promote(&self) {
        self.ctl(&["promote"]);
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&self) {
        self.ctl(&["-m", "immediate", "stop"]);
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.root().join("data")
    }

    pub(crate) fn wal(&self) -> PathBuf {
        self.data().join("pg_wal")
    }

    pub(crate) fn binary(&self) -> String {
        self.root().join("foregate").display().to_string()
    }

    pub(crate) fn key(&self) -> String {
        self.root().join("key").display().to_string()
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.root().join("repository")
    }

    /// As `DATABASE_URL`.
    pub(crate) fn url(&self) -> String {
        let socket = self.root().display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{socket}:{PORT}/postgres")
    }

    pub(crate) fn start(&self) {
        self.ctl(&["-l", &format!("{}/log", self.root().display()), "start"]);
    }

    pub(crate) fn stop(&self) {
        self.ctl(&["-m", "fast", "stop"]);
    }

    fn ctl(&self, args: &[&str]) {
        let (ctl, data) = (program("pg_ctl"), self.data().display().to_string());
        let mut all = vec![ctl.as_str(), "-D", &data, "-w"];
        all.extend(args);
        run("setpriv", &as_postgres(&all));
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        let socket = self.root().display().to_string();
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
            "postgres",
            "-c",
            sql,
        ];
        run("psql", &args).trim().to_owned()
    }

    /// Adds settings while the cluster is down.
    pub(crate) fn add_settings(&self, settings: &str) {
        let file = self.data().join("postgresql.auto.conf");
        let mut text = std::fs::read_to_string(&file).expect("settings are read");
        text.push_str(settings);
        std::fs::write(file, text).expect("settings are written");
    }

    pub(crate) fn archive_command(&self, command: &str) {
        self.sql(&format!("ALTER SYSTEM SET archive_command = '{command}'"));
        self.sql("SELECT pg_reload_conf()");
    }

    /// Writes enough that the segment cannot be mistaken for another, finishes it, and returns its name.
    pub(crate) fn finish_segment(&self) -> String {
        self.sql("CREATE TABLE IF NOT EXISTS filler (v text)");
        self.sql("INSERT INTO filler SELECT md5(g::text || random()) FROM generate_series(1, 2000) g");
        self.sql("SELECT pg_walfile_name(pg_switch_wal())")
    }

    /// Waits until the archive command has succeeded for every finished file.
    pub(crate) fn wait_until_archived(&self) {
        until("everything finished is archived", || self.waiting() == 0);
    }

    /// Files that the archiver has not got rid of.
    pub(crate) fn waiting(&self) -> usize {
        let status = files(&self.wal().join("archive_status"));
        status
            .iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "ready"))
            .count()
    }

    /// Runs the client as the archiver would: as `postgres`, in the data directory. Returns exit code and stderr.
    pub(crate) fn client(&self, args: &[&str]) -> (i32, String) {
        let binary = self.binary();
        let mut all = vec![binary.as_str(), "wal"];
        all.extend(args);
        let output = output("setpriv", &as_postgres(&all), &self.data());
        let code = output
            .status
            .code()
            .or(output.status.signal().map(|signal| 128 + signal));
        (
            code.expect("an end"),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// Flags of the client that works alone.
    pub(crate) fn alone(&self) -> String {
        format!(
            "--repository file://{} --recipient {} --identity {}",
            self.repository().display(),
            self.recipient,
            self.key()
        )
    }

    /// How many whole segments the archive holds, as a metric has it.
    pub(crate) fn archived_segments(&self) -> f64 {
        let found = files(&self.repository());
        let names = found.iter().filter_map(|path| path.file_name()?.to_str());
        let segments = names.filter(|name| name.ends_with(".age") && name.find('-') == Some(24));
        f64::from(u32::try_from(segments.count()).expect("few"))
    }

    /// The archived objects of this name.
    pub(crate) fn objects(&self, name: &str) -> Vec<PathBuf> {
        let mut found = files(&self.repository());
        let is_it = |path: &PathBuf| {
            let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
            // Others are unfinished, which no reader sees.
            let is_object = file.ends_with(".age");
            is_object && file.split_once('-').is_some_and(|(before, _)| before == name)
        };
        found.retain(is_it);
        found
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let (ctl, data) = (program("pg_ctl"), self.data().display().to_string());
        // It may be down already, as some tests want it.
        let args = [ctl.as_str(), "-D", &data, "-m", "immediate", "-w", "stop"];
        drop(output("setpriv", &as_postgres(&args), Path::new("/")));
    }
}

pub(crate) fn program(name: &str) -> String {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let mut found: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
    found.sort();
    let newest = found.pop().expect("PostgreSQL is installed");
    newest.join(name).display().to_string()
}
