//! A private PostgreSQL cluster that a test may stop and start. It listens on a Unix socket in its own folder.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::wait;

pub(crate) struct Cluster {
    directory: PathBuf,
    server: Option<Child>,
}

fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed: make deps");
    let mut found: Vec<PathBuf> = versions
        .flatten()
        .map(|version| version.path().join("bin").join(name))
        .collect();
    found.retain(|path| path.exists());
    found.sort();
    found
        .pop()
        .unwrap_or_else(|| panic!("no {name} below /usr/lib/postgresql"))
}

/// The server refuses to be root, so root hands it to `postgres`. Either way it ends with this process.
fn as_owner(program: PathBuf) -> Command {
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
    }
    command.args(["--pdeathsig", "INT"]).arg(program).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let made = as_owner("/usr/bin/mktemp".into())
            .args(["-d", "/tmp/foregate-pg.XXXXXXXX"])
            .stdout(Stdio::piped())
            .output()
            .expect("mktemp runs");
        let directory = PathBuf::from(String::from_utf8_lossy(&made.stdout).trim());
        assert!(
            made.status.success() && directory.is_dir(),
            "{directory:?} was not made"
        );
        let mut cluster = Self {
            directory,
            server: None,
        };
        let initdb = as_owner(program("initdb"))
            .args([
                "--auth=trust",
                "--no-sync",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C",
                "-D",
            ])
            .arg(cluster.data())
            .status()
            .expect("initdb runs");
        assert!(initdb.success(), "initdb: {initdb}");
        cluster.resume().await;
        cluster
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("host={} user=postgres dbname={database}", self.directory.display())
    }

    pub(crate) async fn resume(&mut self) {
        let server = as_owner(program("postgres"))
            .arg("-D")
            .arg(self.data())
            .args(["-c", "fsync=off", "-c", "listen_addresses=", "-c"])
            .arg(format!("unix_socket_directories={}", self.directory.display()))
            .spawn()
            .expect("postgres starts");
        self.server = Some(server);
        wait::until("PostgreSQL", async || self.query("postgres", "SELECT 1").await.ok()).await;
    }

    /// Ends the server at once, as a failing machine would for its clients.
    pub(crate) fn stop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        let pid = rustix::process::Pid::from_child(&server);
        // An immediate shutdown (SIGQUIT) ends its own children as well; SIGKILL would leave them.
        rustix::process::kill_process(pid, rustix::process::Signal::QUIT).expect("the server is ours");
        server.wait().expect("the server ends");
    }

    /// A fresh database; its name is for `url`.
    pub(crate) async fn database(&self, name: &str) {
        self.query("postgres", &format!("CREATE DATABASE {name}"))
            .await
            .expect("the database is made");
    }

    /// The first column of the rows, as text.
    pub(crate) async fn query(&self, database: &str, sql: &str) -> Result<Vec<String>, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.url(database), tokio_postgres::NoTls).await?;
        let driver = tokio::spawn(connection);
        let messages = client.simple_query(sql).await;
        driver.abort();
        let rows = messages?.into_iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_string()),
            _ => None,
        });
        Ok(rows.collect())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
        drop(std::fs::remove_dir_all(&self.directory));
    }
}
