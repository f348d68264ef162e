//! Foregate's server, as a process of its own.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::cluster::Cluster;
use super::until;

pub(crate) struct Server {
    child: Child,
    admin: SocketAddr,
    root: PathBuf,
}

/// A server that archives `cluster`, with more lines in `[pitr]`.
pub(crate) fn config(cluster: &Cluster, more: &str) -> String {
    let root = cluster.root().display();
    // Nothing runs by itself unless the test asks for it: what is due for the first time is due at once.
    let unless_given = |key: &str, value: &str| match more.contains(&format!("{key} = ")) {
        true => String::new(),
        false => format!("{key} = \"{value}\""),
    };
    let (base_backup, drill) = (unless_given("base_backup", ""), unless_given("drill", ""));
    let heartbeat = unless_given("heartbeat", "1s");
    format!(
        r#"
state_dir = "{root}/state"
[server]
listen = ["127.0.0.1:0"]
workers = 1
[tls]
mode = "off"
[upstream]
servers = ["http://127.0.0.1:9"]
[admin]
listen = "127.0.0.1:0"
[database]
url = {{ env = "DATABASE_URL" }}
[backup]
repository = "file://{}"
recipients = ["{}"]
identity = {{ file = "{}" }}
daily = ""
weekly = ""
monthly = ""
[pitr]
enabled = true
user = "postgres"
socket = "{root}/wal.sock"
{heartbeat}
{base_backup}
{drill}
{more}
"#,
        cluster.repository().display(),
        cluster.recipient,
        cluster.key()
    )
}

/// The lines of a token that has its role for a name.
pub(crate) fn token(role: &str, secret: &str) -> String {
    let hash = super::run("sh", &["-c", &format!("printf %s '{secret}' | sha256sum")]);
    let hash = hash.split(' ').next().expect("a hash").to_owned();
    format!("[[admin.tokens]]\nname = \"{role}\"\nrole = \"{role}\"\nsha256 = \"{hash}\"\n")
}

/// The path of the server's socket.
pub(crate) fn socket(cluster: &Cluster) -> String {
    cluster.root().join("wal.sock").display().to_string()
}

/// Lets the cluster archive through the server's socket.
pub(crate) fn archive_through(cluster: &Cluster) {
    cluster.archive_command(&format!(
        "{} wal push --socket {} %p",
        cluster.binary(),
        socket(cluster)
    ));
}

/// Waits until what is told of the archive is told of all that it holds now.
pub(crate) fn until_counted(server: &Server, cluster: &Cluster) {
    until("the archive is counted", || {
        server.metric("foregate_pitr_archive_segments") == Some(cluster.archived_segments())
    });
}

impl Server {
    pub(crate) fn start(cluster: &Cluster) -> Self {
        Self::start_with(cluster, "", &[])
    }

    /// `before`: a program and arguments that replace themselves by the server.
    pub(crate) fn start_with(cluster: &Cluster, more: &str, before: &[&str]) -> Self {
        Self::start_configured(cluster, &config(cluster, more), before)
    }

    pub(crate) fn start_configured(cluster: &Cluster, config: &str, before: &[&str]) -> Self {
        let file = cluster.root().join("config.toml");
        std::fs::write(&file, config).expect("the configuration is written");
        let addresses = cluster.root().join("addresses.json");
        drop(std::fs::remove_file(&addresses));
        let log = |name: &str| std::fs::File::create(cluster.root().join(name)).expect("a log file");
        let binary = cluster.binary();
        let mut words: Vec<&str> = before.to_vec();
        words.push(&binary);
        let (program, args) = words.split_first().expect("a program");
        let mut child = Command::new(program)
            .args(args)
            .args(["run", "--config"])
            .arg(&file)
            .env("FOREGATE_ADDRESS_FILE", &addresses)
            .env("DATABASE_URL", cluster.url())
            .stdin(Stdio::null())
            .stdout(log("stdout"))
            .stderr(log("stderr"))
            .process_group(0)
            .spawn()
            .expect("the server starts");
        let mut admin = None;
        until("the server listens", || {
            let ended = child.try_wait().expect("our child");
            assert!(
                ended.is_none(),
                "the server ended: {}",
                text(cluster.root().join("stderr"))
            );
            let json: serde_json::Value = serde_json::from_str(&text(addresses.clone())).unwrap_or_default();
            let address = json.get("admin").and_then(serde_json::Value::as_str);
            admin = address.and_then(|address| address.parse().ok());
            admin.is_some()
        });
        Self {
            child,
            admin: admin.expect("an address"),
            root: cluster.root().to_owned(),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it is killed");
        self.child.wait().expect("it ends");
    }

    /// Ends it as systemd would, and waits for its end.
    pub(crate) fn stop(mut self) {
        super::run("kill", &["-TERM", &self.pid().to_string()]);
        until("the server ends", || {
            self.child.try_wait().expect("our child").is_some()
        });
    }

    /// Status and body of a call of the API.
    pub(crate) fn ask(&self, method: &str, path: &str, token: &str, body: &str) -> (u16, serde_json::Value) {
        let head = format!(
            "{method} /api/infrastructure/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self.send(&head);
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let body = serde_json::from_str(body).unwrap_or_default();
        (status.expect("a status"), body)
    }

    /// A gauge or counter by its whole name, labels included.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok())
    }

    pub(crate) fn get(&self, path: &str) -> String {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ))
    }

    fn send(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).expect("the admin listener");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed by the test.
        drop(self.child.kill());
        drop(self.child.wait());
        // Shown only where the test fails.
        eprintln!("{}\n{}", text(self.root.join("stdout")), text(self.root.join("stderr")));
    }
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
