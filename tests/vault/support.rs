//! A repository and a key per test, and where it is wanted a private PostgreSQL cluster, copied from one that is made once.

#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "black-box tests start processes, wait by the real clock, and fail by panicking"
)]

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use sha2::Digest as _;

/// Only names the socket: the cluster listens on no address.
pub(crate) const PORT: &str = "5432";

/// A directory, a key, a repository, and Foregate as its user runs it.
pub(crate) struct Store {
    directory: tempfile::TempDir,
    recipient: String,
    /// The address of the repository.
    pub(crate) url: String,
    pub(crate) environment: Vec<(String, String)>,
    /// The name of the state directory.
    state: String,
}

impl Store {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().display().to_string();
        run("chown", &["postgres", &root]);
        run("chmod", &["755", &root]);
        let key = format!("{root}/key");
        run("age-keygen", &["-o", &key]);
        let recipient = run("age-keygen", &["-y", &key]).trim().to_owned();
        let url = format!("file://{root}/repository");
        Self {
            directory,
            recipient,
            url,
            environment: Vec::new(),
            state: "state".to_owned(),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.directory.path().join("key")
    }

    pub(crate) fn recipient(&self) -> &str {
        &self.recipient
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.directory.path().join("repository")
    }

    pub(crate) fn command(&self, key: Option<&Path>, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_foregate"));
        command
            .arg("backup")
            .args(args)
            .args(["--repository", &self.url])
            .arg("--state-dir")
            .arg(self.directory().join(&self.state))
            .args(["--recipient", &self.recipient])
            .env_remove("DATABASE_URL")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
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

    /// Every stored object of a repository that is a directory.
    pub(crate) fn objects(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.repository()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if ![".lock", "repository.id"].iter().any(|own| path.ends_with(own)) {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }

    pub(crate) fn object(&self, ending: &str) -> PathBuf {
        let found = self.objects().into_iter().find(|path| path.ends_with(ending));
        found.expect("the object is stored")
    }

    /// How many backups are listed as good.
    pub(crate) fn good(&self) -> usize {
        let list: serde_json::Value = serde_json::from_str(&self.ok(&["list", "--json"])).expect("a list in JSON");
        let entries = list.as_array().expect("an array");
        entries.iter().filter(|entry| entry["good"] == true).count()
    }
}

/// A place in a restore where a process stands still, until it is killed or let go on.
pub(crate) struct Pause {
    step: &'static str,
    file: PathBuf,
}

impl Pause {
    pub(crate) fn at(step: &'static str, store: &Store) -> Self {
        let file = store.directory().join("pause");
        Self { step, file }
    }

    pub(crate) fn environment(&self) -> [(&'static str, String); 2] {
        let file = self.file.display().to_string();
        [
            ("FOREGATE_PAUSE_AT", self.step.to_owned()),
            ("FOREGATE_PAUSE_FILE", file),
        ]
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.file.exists()
    }

    pub(crate) fn wait(&self) {
        until(self.step, || self.is_reached());
    }

    pub(crate) fn let_go(&self) {
        std::fs::remove_file(&self.file).expect("it stood still");
    }
}

/// A store with a PostgreSQL beside it, whose database `app` holds 20,000 rows.
pub(crate) struct Bed {
    store: Store,
}

impl Deref for Bed {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl Bed {
    pub(crate) fn new() -> Self {
        let mut store = Store::new();
        let socket = store.directory().display().to_string().replace('/', "%2F");
        let url = format!("postgres://postgres@{socket}:{PORT}/app");
        store.environment.push(("DATABASE_URL".to_owned(), url));
        let bed = Self { store };
        bed.copy_template("vault-cluster-1", |bed| {
            bed.sql("postgres", "CREATE ROLE shop");
            bed.sql("postgres", "CREATE DATABASE app OWNER shop");
            bed.sql("postgres", "ALTER DATABASE app SET search_path TO app, public");
            bed.sql("app", "CREATE SCHEMA app CREATE TABLE t (id int PRIMARY KEY, v text)");
            let rows = "INSERT INTO app.t SELECT g, md5(g::text) FROM generate_series(1, 20000) g";
            bed.sql("app", rows);
        });
        bed.start_server();
        bed
    }

    /// Another machine with a new cluster, to which only the repository and the key were saved.
    pub(crate) fn rescued(lost: &Store) -> Self {
        let mut store = Store::new();
        store.recipient.clone_from(&lost.recipient);
        let root = store.directory().display().to_string();
        run("cp", &["-a", &lost.repository().display().to_string(), &root]);
        run("cp", &["-a", &lost.key().display().to_string(), &root]);
        let mut bed = Self { store };
        bed.use_database("app");
        bed.copy_template("vault-cluster-empty", |_| {});
        bed.start_server();
        bed
    }

    pub(crate) fn use_database(&mut self, name: &str) {
        let socket = self.directory().display().to_string().replace('/', "%2F");
        let url = format!("postgres://postgres@{socket}:{PORT}/{name}");
        self.use_address(url);
    }

    pub(crate) fn use_address(&mut self, url: String) {
        self.store.environment.retain(|(name, _)| name != "DATABASE_URL");
        self.store.environment.push(("DATABASE_URL".to_owned(), url));
    }

    /// A restore that is to stand still.
    pub(crate) fn start_paused(&self, pause: &Pause, args: &[&str]) -> Child {
        let mut command = self.command(Some(&self.key()), args);
        let output = std::fs::File::create(self.directory().join("paused.log")).expect("a log");
        command
            .envs(pause.environment())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .expect("foregate starts")
    }

    /// As somebody who has a password.
    pub(crate) fn sql_as(&self, role: &str, password: &str, database: &str, sql: &str) -> String {
        let mut command = Command::new("psql");
        let output = command
            .args([
                "-XAtq",
                "-v",
                "ON_ERROR_STOP=1",
                "-w",
                "-p",
                PORT,
                "-U",
                role,
                "-d",
                database,
                "-c",
                sql,
            ])
            .arg("-h")
            .arg(self.socket())
            .env("PGPASSWORD", password)
            .output()
            .expect("psql starts");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{role}: {complaint}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Databases that a restore works on, and decrypted dumps.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let sql = "SELECT datname FROM pg_database WHERE datname LIKE 'foregate%'";
        let mut left: Vec<String> = self.sql("postgres", sql).lines().map(str::to_owned).collect();
        let scratch = std::fs::read_dir(self.directory().join(&self.store.state));
        let names = scratch.into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        left.extend(names.filter(|name| name.starts_with("foregate-restore")));
        left
    }

    pub(crate) fn move_repository(&mut self, url: &str, environment: Vec<(String, String)>) {
        url.clone_into(&mut self.store.url);
        self.store.environment.extend(environment);
    }

    /// From now on the server believes nobody without a password but its own superuser.
    pub(crate) fn demand_passwords(&self) {
        let rules = "local all postgres trust\nlocal all all scram-sha-256\n";
        std::fs::write(Path::new(&self.data()).join("pg_hba.conf"), rules).expect("writable");
        self.sql("postgres", "SELECT pg_reload_conf()");
    }

    /// `user:password`.
    pub(crate) fn connect_as(&mut self, who: &str) {
        let socket = self.directory().display().to_string().replace('/', "%2F");
        self.use_address(format!("postgres://{who}@{socket}:{PORT}/app"));
    }

    /// As on another machine, which shares no lock but those of the database and the repository.
    pub(crate) fn use_state(&mut self, name: &str) {
        name.clone_into(&mut self.store.state);
    }

    pub(crate) fn socket(&self) -> &Path {
        self.directory()
    }

    pub(crate) fn data(&self) -> String {
        self.directory().join("data").display().to_string()
    }

    /// `initdb` takes a second or two; its result is kept between runs.
    fn copy_template(&self, name: &str, fill: impl FnOnce(&Self)) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let guard = ONE_AT_A_TIME.lock();
        let bin = newest_bin();
        let major = bin.parent().and_then(Path::file_name).expect("a version");
        let name = format!("{name}-{}", major.to_string_lossy());
        let template = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name).display().to_string();
        if !Path::new(&template).exists() {
            let initdb = bin.join("initdb").display().to_string();
            as_postgres(&[&initdb, "-N", "-D", &self.data(), "-U", "postgres", "-A", "trust"]);
            self.start_server();
            fill(self);
            self.stop_server("fast");
            let making = format!("{template}.{}", std::process::id());
            run("cp", &["-a", &self.data(), &making]);
            // Another process may have been quicker; its copy is as good.
            drop(std::fs::rename(&making, &template));
            return;
        }
        drop(guard);
        run("cp", &["-a", &template, &self.data()]);
    }

    pub(crate) fn start_server(&self) {
        self.start_server_with(&format!(
            "-c listen_addresses='' -p {PORT} -c max_prepared_transactions=2"
        ));
    }

    pub(crate) fn start_server_with(&self, options: &str) {
        let ctl = newest_bin().join("pg_ctl").display().to_string();
        let root = self.directory().display().to_string();
        let options = format!("-k {root} {options} -c fsync=off -c autovacuum=off");
        let log = format!("{root}/log");
        as_postgres(&[&ctl, "-D", &self.data(), "-o", &options, "-l", &log, "-w", "start"]);
    }

    pub(crate) fn stop_server(&self, mode: &str) {
        let ctl = newest_bin().join("pg_ctl").display().to_string();
        as_postgres(&[&ctl, "-D", &self.data(), "-m", mode, "-w", "stop"]);
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
        ];
        let args = [&args[..], &["-d", database, "-c", sql]].concat();
        run("psql", &args).trim().to_owned()
    }

    /// A table that takes some seconds to dump.
    pub(crate) fn add_big_table(&self) {
        let big = "CREATE TABLE app.big AS SELECT g, repeat(md5(g::text), 30) v FROM generate_series(1, 150000) g";
        self.sql("app", big);
    }

    /// A backup that stands still in the middle of copying this table, for as long as wanted.
    pub(crate) fn copying_big_table(&self) -> Copying {
        self.add_big_table();
        let holder = self.hold_lock("app", "app.big");
        let copying = Copying(self.start(&["create"]));
        until("pg_dump waits", || self.backends("LOCK TABLE%") > 0);
        // Nobody reads what pg_dump will copy.
        copying.signal("STOP");
        self.release(holder);
        until("pg_dump copies", || self.backends("COPY%big%") > 0);
        copying
    }

    /// Ends what [`Bed::hold_lock`] began.
    pub(crate) fn release(&self, mut holder: Child) {
        self.sql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%(3600)%' AND pid <> pg_backend_pid()",
        );
        drop(holder.wait());
    }

    /// Backends that run a statement like `pattern` for us.
    pub(crate) fn backends(&self, pattern: &str) -> usize {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'foregate%' AND state = 'active' AND query LIKE '{pattern}'"
        );
        self.sql("postgres", &sql).parse().expect("a count")
    }
}

/// Foregate, stopped while pg_dump copies; it ends with the test.
pub(crate) struct Copying(pub(crate) Child);

impl Copying {
    fn signal(&self, name: &str) {
        run("kill", &[&format!("-{name}"), &self.0.id().to_string()]);
    }

    /// Lets it go on, and returns whether it succeeded.
    pub(crate) fn succeeds(mut self) -> bool {
        self.signal("CONT");
        self.0.wait().expect("it ends").success()
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let ctl = newest_bin().join("pg_ctl").display().to_string();
        let args = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups", &ctl];
        // A test may have stopped it itself.
        let stopped = Command::new("setpriv")
            .args(args)
            .args(["-D", &self.data(), "-m", "immediate", "-w", "stop"])
            .current_dir("/")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        drop(stopped);
    }
}

pub(crate) fn newest_bin() -> PathBuf {
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
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut &out).expect("rewound");
    std::io::Read::read_to_end(&mut &out, &mut bytes).expect("readable");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Polls until `condition` holds, at most for a minute.
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(Duration::from_secs(60), what, condition);
}

pub(crate) fn until_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "waited for: {what}");
        // Most conditions start a program to ask: without a rest in between, they keep a core from what is waited for.
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The id in a manifest that was printed.
pub(crate) fn id_of(printed: &str) -> String {
    let manifest: serde_json::Value = serde_json::from_str(printed).expect("a manifest");
    manifest["id"].as_str().expect("an id").to_owned()
}

type Fields = serde_json::Map<String, serde_json::Value>;

/// Changes what a manifest says of its content, and its checksum with it.
pub(crate) fn change_manifest(path: &Path, change: impl FnOnce(&mut Fields)) {
    change_value(path, |value| change(value["content"].as_object_mut().expect("content")));
}

/// The same for what it says of a part.
pub(crate) fn change_part(path: &Path, name: &str, change: impl FnOnce(&mut Fields)) {
    change_value(path, |value| {
        let parts = value["parts"].as_array_mut().expect("parts").iter_mut();
        let part = parts.into_iter().find(|part| part["name"] == name).expect("the part");
        change(part.as_object_mut().expect("fields"));
    });
}

pub(crate) fn change_value(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let text = std::fs::read_to_string(path).expect("readable");
    let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    value
        .as_object_mut()
        .expect("fields")
        .remove("sha256")
        .expect("a checksum");
    change(&mut value);
    let sum = hex::encode(sha2::Sha256::digest(serde_json::to_vec(&value).expect("JSON")));
    value["sha256"] = sum.into();
    std::fs::write(path, value.to_string()).expect("writable");
}
