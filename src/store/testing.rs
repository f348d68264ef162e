//! A private PostgreSQL for the tests of this crate: it listens on a Unix socket in its own folder, ends with the
//! test process, and leaves nothing behind.
#![expect(clippy::disallowed_methods, reason = "a test starts its own server")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) use crate::secret::Secret;

pub(crate) struct Cluster {
    directory: PathBuf,
    server: Option<Child>,
    settings: Vec<String>,
    pub(crate) port: u16,
}

fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let mut found: Vec<PathBuf> = versions
        .flatten()
        .map(|version| version.path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().expect("a version of PostgreSQL")
}

/// The server refuses to be root, so root hands it to `postgres`. Either way it ends with this process.
fn as_owner(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
    }
    command.arg(program).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    waited.expect(what);
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let made = as_owner(Path::new("/usr/bin/mktemp"))
            .args(["-d", "/tmp/foregate-pg.XXXXXXXX"])
            .stdout(Stdio::piped())
            .output()
            .expect("mktemp runs");
        assert!(made.status.success(), "a folder is made");
        let directory = PathBuf::from(String::from_utf8_lossy(&made.stdout).trim());
        let mut cluster = Self {
            directory,
            server: None,
            settings: Vec::new(),
            port: 5432,
        };
        let initdb = as_owner(&program("initdb"))
            .args([
                "--auth=trust",
                "--no-sync",
                "--username=postgres",
                "--locale=C",
                "-E",
                "UTF8",
                "-D",
            ])
            .arg(cluster.data())
            .status()
            .expect("initdb runs");
        assert!(initdb.success(), "initdb: {initdb}");
        cluster.up().await;
        cluster
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Lets the server own a file in its folder.
    pub(crate) fn give(&self, name: &str, content: &str) {
        let path = self.data().join(name);
        std::fs::write(&path, content).expect("written");
        let mode = Command::new("chmod").arg("600").arg(&path).status();
        assert!(mode.expect("chmod runs").success());
        if rustix::process::geteuid().is_root() {
            let owner = Command::new("chown").arg("postgres:postgres").arg(&path).status();
            assert!(owner.expect("chown runs").success());
        }
    }

    /// From the next start on, the server speaks TLS on a port of the loopback address.
    pub(crate) fn speak_tls(&mut self, certificate: &str, key: &str) {
        self.give("server.crt", certificate);
        self.give("server.key", key);
        // Below those that the kernel gives to anybody.
        self.port = u16::try_from(20_000 + std::process::id() % 10_000).expect("a port");
        let port = format!("port={}", self.port);
        self.settings = vec!["ssl=on".into(), "listen_addresses=127.0.0.1".into(), port];
    }

    pub(crate) async fn up(&mut self) {
        // The shell reads a pipe that only this process can close: its end, however it comes, is the server's end. The
        // kernel's signal for that (PR_SET_PDEATHSIG) follows the thread, and a test's thread may end early.
        let script = r#"exec 3<&0; "$@" </dev/null 3<&- & read -r never <&3; kill -QUIT $!; wait $!"#;
        let mut command = as_owner(Path::new("/bin/sh"));
        command.args(["-c", script, "watchdog"]);
        command.arg(program("postgres")).arg("-D").arg(self.data());
        command.args(["-c", "fsync=off", "-c", "listen_addresses=", "-c"]);
        command.arg(format!("unix_socket_directories={}", self.directory.display()));
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        self.server = Some(command.stdin(Stdio::piped()).spawn().expect("postgres starts"));
        until("PostgreSQL answers", async || self.ask("SELECT 1").await.is_ok()).await;
    }

    /// Ends the server at once, as a failing machine would for its clients.
    pub(crate) fn down(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        drop(server.stdin.take());
        server.wait().expect("the server ends");
    }

    pub(crate) fn text(&self) -> String {
        format!(
            "host={} port={} user=postgres dbname=postgres",
            self.directory.display(),
            self.port
        )
    }

    #[expect(clippy::unnecessary_wraps, reason = "the shape of the configuration")]
    pub(crate) fn address(&self) -> Option<Secret> {
        Some(Secret::new(self.text()))
    }

    /// The first column of the rows, as text.
    pub(crate) async fn ask(&self, sql: &str) -> Result<Vec<String>, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.text(), tokio_postgres::NoTls).await?;
        let asking = async {
            let rows = client.simple_query(sql).await;
            drop(client);
            rows
        };
        let (rows, ended) = tokio::join!(asking, connection);
        // A session that ended itself has answered all the same.
        drop(ended);
        let rows = rows?.into_iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        });
        Ok(rows.collect())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.down();
        drop(std::fs::remove_dir_all(&self.directory));
    }
}
