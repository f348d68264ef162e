//! The gate as a process of its own, with a private folder; it ends with the test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::certificates::Files;
use super::client::{self, Answer};
use super::notify::Manager;
use super::origin::Origin;
use super::wait;

/// What the tests' admin token is; the gate knows its hash only.
pub(crate) const TOKEN: &str = "fg_test_token_of_the_administrator";

/// `config.toml` as a table, so that a test changes single keys.
#[derive(Clone)]
pub(crate) struct Config(toml::Table);

impl Config {
    /// Plain HTTP on a free port before this upstream; limits far away.
    pub(crate) fn before(origin: &Origin) -> Self {
        let hash = hex::encode(Sha256::digest(TOKEN));
        Self(toml::Table::new())
            .set("server.listen", r#"["127.0.0.1:0"]"#)
            .set("server.workers", "2")
            .set("tls.mode", r#""off""#)
            .set("upstream.servers", &format!("[{:?}]", origin.url()))
            .set("limits.requests_per_minute", "1000000")
            .set("limits.requests_per_hour", "10000000")
            .set("blocklist.block_loopback", "true")
            .set("admin.listen", r#""127.0.0.1:0""#)
            .set(
                "admin.tokens",
                &format!(r#"[{{ name = "test", role = "admin", sha256 = "{hash}" }}]"#),
            )
    }

    /// TLS with these certificates in the place of plain HTTP.
    pub(crate) fn tls(self, leaves: &[&Files]) -> Self {
        let text = |path: &Path| format!("{:?}", path.display().to_string());
        let pair = |leaf: &&Files| format!("{{ cert = {}, key = {} }}", text(&leaf.cert), text(&leaf.key));
        let pairs: Vec<String> = leaves.iter().map(pair).collect();
        self.set("tls.mode", r#""files""#)
            .set("tls.certificates", &format!("[{}]", pairs.join(", ")))
    }

    /// Sets `section.key` to a value in TOML.
    pub(crate) fn set(mut self, path: &str, value: &str) -> Self {
        let parsed: toml::Table = format!("{path} = {value}").parse().expect("a TOML value");
        merge(&mut self.0, parsed);
        self
    }
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

pub(crate) struct Gate {
    directory: TempDir,
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Gate {
    pub(crate) async fn start(config: &Config) -> Self {
        Self::start_in(tempfile::tempdir().expect("a private folder"), config).await
    }

    /// Starts over the state of an earlier process.
    pub(crate) async fn start_in(directory: TempDir, config: &Config) -> Self {
        Self::start_shaped(directory, config, |_| ()).await
    }

    /// Starts with another environment or other streams.
    pub(crate) async fn start_shaped(directory: TempDir, config: &Config, shape: impl FnOnce(&mut Command)) -> Self {
        Self::launch(directory, config, Self::command(), shape).await
    }

    /// Starts as systemd starts a service of this socket (sd_listen_fds(3)): descriptor 3, and environment variables of which
    /// one is the process's own id, so that only a shell in its place can set it.
    pub(crate) async fn start_activated(config: &Config, socket: std::net::TcpListener) -> Self {
        let script = r#"LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" run --config "$1" 3<&0 </dev/null"#;
        let mut command = Command::new("sh");
        command
            .args(["-c", script, env!("CARGO_BIN_EXE_foregate")])
            .stdin(std::os::fd::OwnedFd::from(socket));
        let directory = tempfile::tempdir().expect("a private folder");
        Self::launch(directory, config, command, |_| ()).await
    }

    /// Starts as systemd starts a service with a watchdog (sd_watchdog_enabled(3)), which names the process as above.
    pub(crate) async fn start_watched(config: &Config, manager: &Manager, limit: Duration) -> Self {
        let script = r#"WATCHDOG_PID=$$ exec "$0" run --config "$1""#;
        let mut command = Command::new("sh");
        command
            .args(["-c", script, env!("CARGO_BIN_EXE_foregate")])
            .env("WATCHDOG_USEC", limit.as_micros().to_string())
            .stdin(Stdio::null());
        let directory = tempfile::tempdir().expect("a private folder");
        Self::launch(directory, config, command, |command| manager.is_told_by(command)).await
    }

    /// Starts, and does not wait: it has no addresses until it is [`Self::ready`].
    pub(crate) fn begin(config: &Config) -> Self {
        let directory = tempfile::tempdir().expect("a private folder");
        Self::spawn(directory, config, Self::command(), |_| ())
    }

    fn command() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_foregate"));
        command.args(["run", "--config"]).stdin(Stdio::null());
        command
    }

    async fn launch(directory: TempDir, config: &Config, command: Command, shape: impl FnOnce(&mut Command)) -> Self {
        let mut gate = Self::spawn(directory, config, command, shape);
        gate.ready().await;
        gate
    }

    /// `command` but for the path of the configuration; `shape` has the last word.
    fn spawn(directory: TempDir, config: &Config, mut command: Command, shape: impl FnOnce(&mut Command)) -> Self {
        write(&directory, config);
        let addresses = directory.path().join("addresses.json");
        drop(std::fs::remove_file(&addresses));
        // Files rather than pipes: nobody has to read them for the gate to go on.
        let output = |name: &str| std::fs::File::create(directory.path().join(name)).expect("a log file");
        command
            .arg(directory.path().join("config.toml"))
            .env("FOREGATE_ADDRESS_FILE", &addresses)
            .stdout(output("stdout"))
            .stderr(output("stderr"));
        shape(&mut command);
        let nowhere = SocketAddr::from(([0; 4], 0));
        Self {
            directory,
            child: command.spawn().expect("the gate starts"),
            address: nowhere,
            admin: nowhere,
        }
    }

    /// Waits until it serves.
    pub(crate) async fn ready(&mut self) {
        let (addresses, stderr) = (self.path("addresses.json"), self.path("stderr"));
        let ready = wait::until("the addresses of the gate", async || {
            if let Some(status) = self.child.try_wait().expect("the gate is our child") {
                panic!(
                    "the gate ended ({status}): {}",
                    std::fs::read_to_string(&stderr).unwrap_or_default()
                );
            }
            serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(&addresses).ok()?).ok()
        });
        let ready = ready.await;
        let address =
            |value: &serde_json::Value| value.as_str().and_then(|text| text.parse().ok()).expect("an address");
        self.address = address(&ready["gate"][0]);
        self.admin = address(&ready["admin"]);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory, as the kernel counts it.
    pub(crate) fn resident_bytes(&self) -> u64 {
        status_bytes(self.pid(), "VmRSS:")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn log(&self) -> String {
        ["stdout", "stderr"]
            .map(|name| std::fs::read_to_string(self.path(name)).unwrap_or_default())
            .concat()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the gate is our child");
    }

    /// Replaces the configuration by a rename; the gate notices by itself.
    pub(crate) fn rewrite(&self, config: &Config) {
        write(&self.directory, config);
    }

    /// The configuration as it is written for this gate.
    pub(crate) fn text_of(&self, config: &Config) -> String {
        text(&self.directory, config)
    }

    pub(crate) async fn exited(&mut self) -> ExitStatus {
        wait::until("the end of the gate", async || {
            self.child.try_wait().expect("the gate is our child")
        })
        .await
    }

    /// `kill -9`; the folder with its state is for the next process.
    pub(crate) fn kill(mut self) -> TempDir {
        self.child.kill().expect("the gate is our child");
        self.child.wait().expect("the gate ends");
        std::mem::replace(&mut self.directory, tempfile::tempdir().expect("a private folder"))
    }

    pub(crate) async fn admin(&self, method: &str, path: &str, body: &str) -> Answer {
        let headers = format!("authorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n");
        client::request(self.admin, method, path, &headers, body).await
    }
}

/// What it said last is shown with a failed test, whose machine may be out of reach.
impl Drop for Gate {
    fn drop(&mut self) {
        drop(self.child.kill());
        let ended = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
            eprintln!("the gate ({ended:?}) said last:\n{last}");
        }
    }
}

/// Of a log, with a failed test.
const LINES_SHOWN: usize = 30;

/// The most that was resident since [`reset_peak`].
pub(crate) fn peak_bytes(pid: u32) -> u64 {
    status_bytes(pid, "VmHWM:")
}

/// proc(5), `clear_refs`.
pub(crate) fn reset_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the gate is our child");
}

fn status_bytes(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the gate runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line
        .and_then(|line| line.trim().strip_suffix("kB"))
        .expect("a figure in kB");
    kib.trim().parse::<u64>().expect("a number") * 1024
}

fn text(directory: &TempDir, config: &Config) -> String {
    let state = format!("{:?}", directory.path().join("state").display().to_string());
    config.clone().set("state_dir", &state).0.to_string()
}

fn write(directory: &TempDir, config: &Config) {
    let text = text(directory, config);
    let fresh = directory.path().join("config.toml.new");
    std::fs::write(&fresh, text).expect("the configuration is written");
    std::fs::rename(&fresh, directory.path().join("config.toml")).expect("the configuration is in place");
}
