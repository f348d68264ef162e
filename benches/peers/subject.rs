//! The three programs that are compared: started on their own core, asked whether they work, and stopped.

use std::fmt;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::accounting::Tree;
use super::configuration::{self, Scene};
use super::machine::SUBJECT_CORE;
use super::settings::Settings;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Nginx,
    Haproxy,
    Foregate,
}

/// A subject that has been started.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) subject: Subject,
    pub(super) address: SocketAddr,
    child: Child,
    output: PathBuf,
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Foregate => "Foregate",
        })
    }
}

impl Subject {
    pub(super) const ALL: [Self; 3] = [Self::Nginx, Self::Haproxy, Self::Foregate];

    pub(super) fn program(self, settings: &Settings) -> &Path {
        match self {
            Self::Nginx => Path::new("nginx"),
            Self::Haproxy => Path::new("haproxy"),
            Self::Foregate => &settings.foregate,
        }
    }

    pub(super) fn start(self, settings: &Settings, scene: &Scene<'_>) -> anyhow::Result<Running> {
        let file = scene.directory.join("subject.toml");
        fs::write(&file, configuration::text(self, scene))?;
        let output = scene.directory.join("output.txt");
        let log = File::create(&output)?;
        // Dies with this program, however that ends; and never leaves its core.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "taskset", "-c", SUBJECT_CORE])
            .arg(self.program(settings));
        match self {
            Self::Nginx => command.arg("-p").arg(scene.directory).arg("-c").arg(&file),
            Self::Haproxy => command.arg("-db").arg("-f").arg(&file),
            Self::Foregate => command.args(["run", "--config"]).arg(&file),
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting it with setpriv and taskset (util-linux)")?;
        Ok(Running {
            subject: self,
            address: scene.listen,
            child,
            output,
        })
    }

    /// As the program itself says it, in one line.
    pub(super) fn version(self, settings: &Settings) -> anyhow::Result<String> {
        let argument = if self == Self::Foregate { "--version" } else { "-v" };
        let program = self.program(settings);
        let said = Command::new(program)
            .arg(argument)
            .output()
            .with_context(|| format!("{} does not start: is it installed?", program.display()))?;
        let text = [said.stdout, said.stderr].concat();
        Ok(String::from_utf8_lossy(&text)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned())
    }
}

/// An address that is free now. Another program could take it before the subject does; then the trial is void.
pub(super) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

impl Running {
    pub(super) fn tree(&self) -> anyhow::Result<Tree> {
        Tree::of(self.child.id())
    }

    /// Fails if the subject has ended, with its last words.
    pub(super) fn ensure_alive(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let said = fs::read_to_string(&self.output)?;
            let last: Vec<_> = said.lines().rev().take(5).collect();
            bail!("ended by itself ({status}): {}", last.join(" / "));
        }
        Ok(())
    }

    /// Asks it to end, and does not take no for an answer.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.ensure_alive()?;
        let tree = self.tree()?;
        signal(self.child.id(), Signal::TERM)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                for &process in tree.processes() {
                    signal(process, Signal::KILL)?;
                }
                self.child.wait()?;
                bail!("did not end within ten seconds of SIGTERM");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

pub(super) fn signal(process: u32, signal: Signal) -> anyhow::Result<()> {
    let process = Pid::from_raw(i32::try_from(process)?).context("process 0")?;
    let sent = kill_process(process, signal);
    ensure!(
        matches!(sent, Ok(()) | Err(rustix::io::Errno::SRCH)),
        "no signal reaches process {process:?}"
    );
    Ok(())
}
