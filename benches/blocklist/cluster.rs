//! A private PostgreSQL on a socket in its own folder, with its usual settings for durability.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(super) struct Cluster {
    directory: tempfile::TempDir,
    server: Child,
}

/// The newest version that is installed.
fn program(name: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let programs = versions.flatten().map(|version| version.path().join("bin").join(name));
    programs.filter(|path| path.exists()).max()
}

/// The server refuses to be root, so root hands it to `postgres`. Either way it ends with this process.
fn as_owner(program: &PathBuf) -> Command {
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
    }
    command.args(["--pdeathsig", "INT"]).arg(program).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Cluster {
    /// `None`: not installed.
    pub(super) fn start() -> Option<Self> {
        let (initdb, postgres) = (program("initdb")?, program("postgres")?);
        let directory = tempfile::Builder::new()
            .prefix("foregate-bench-")
            .tempdir_in("/tmp")
            .expect("a directory");
        if rustix::process::geteuid().is_root() {
            let given = Command::new("chown").arg("postgres").arg(directory.path()).status();
            assert!(given.is_ok_and(|status| status.success()), "the folder is given away");
        }
        let data = directory.path().join("data");
        let made = as_owner(&initdb)
            .args(["--auth=trust", "--username=postgres", "--locale=C", "-D"])
            .arg(&data)
            .status();
        assert!(made.is_ok_and(|status| status.success()), "a cluster is made");
        let socket = format!("unix_socket_directories={}", directory.path().display());
        let server = as_owner(&postgres)
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=", "-c", &socket])
            .spawn()
            .expect("the server starts");
        let file = directory.path().join(".s.PGSQL.5432");
        let begin = Instant::now();
        while std::os::unix::net::UnixStream::connect(&file).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(60), "the server does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { directory, server })
    }

    pub(super) fn url(&self) -> String {
        format!("host={} user=postgres dbname=postgres", self.directory.path().display())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.server);
        // An immediate shutdown, which ends its own children as well.
        rustix::process::kill_process(pid, rustix::process::Signal::QUIT).ok();
        drop(self.server.wait());
    }
}
