//! Counts the system calls of a subject from outside: with `perf`, or where that is not allowed, with `strace`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;

use super::accounting::Tree;
use super::subject::signal;

/// With what the calls are counted. `strace` stops the subject at each call, so the subject finds more work waiting each
/// time it asks, and needs fewer calls for it than it would by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Perf,
    Strace,
}

#[derive(Debug)]
pub(super) struct Counting {
    method: Method,
    child: Child,
    report: PathBuf,
}

impl Method {
    pub(super) fn available() -> Self {
        let probe = Command::new("perf")
            .args(["stat", "-e", "raw_syscalls:sys_enter", "true"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if probe.is_ok_and(|status| status.success()) {
            Self::Perf
        } else {
            Self::Strace
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Perf => "perf stat -e raw_syscalls:sys_enter",
            Self::Strace => "strace -c (which slows its subject)",
        }
    }

    /// Begins to count, and returns once it does.
    pub(super) async fn begin(self, tree: &Tree, directory: &Path) -> anyhow::Result<Counting> {
        let report = directory.join("syscalls.txt");
        let processes: Vec<_> = tree.processes().iter().map(u32::to_string).collect();
        let processes = processes.join(",");
        let mut command = match self {
            Self::Perf => Command::new("perf"),
            Self::Strace => Command::new("strace"),
        };
        match self {
            Self::Perf => command.args(["stat", "-e", "raw_syscalls:sys_enter", "-x", ",", "-p", &processes]),
            Self::Strace => command.args(["-f", "-c", "-p", &processes]),
        };
        let child = command
            .arg("-o")
            .arg(&report)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("perf (linux-perf) or strace must be installed")?;
        let mut counting = Counting {
            method: self,
            child,
            report,
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !counting.is_attached(tree)? {
            ensure!(counting.child.try_wait()?.is_none(), "{} ended at once", self.name());
            ensure!(Instant::now() < deadline, "{} does not attach", self.name());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Attached to all threads and about to count; the subject is quiet meanwhile.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(counting)
    }
}

impl Counting {
    fn is_attached(&self, tree: &Tree) -> anyhow::Result<bool> {
        match self.method {
            Method::Perf => {
                let descriptors = fs::read_dir(format!("/proc/{}/fd", self.child.id()))?;
                Ok(descriptors
                    .flatten()
                    .filter_map(|entry| fs::read_link(entry.path()).ok())
                    .any(|target| target.to_string_lossy().contains("perf_event")))
            }
            Method::Strace => tree.processes().iter().try_fold(true, |all, process| {
                let status = fs::read_to_string(format!("/proc/{process}/status"))?;
                Ok(all && !status.contains("TracerPid:\t0\n"))
            }),
        }
    }

    /// Stops counting: how many calls there were.
    pub(super) fn end(mut self) -> anyhow::Result<f64> {
        signal(self.child.id(), Signal::INT)?;
        self.child.wait()?;
        let text = fs::read_to_string(&self.report)?;
        let count = match self.method {
            Method::Perf => text
                .lines()
                .find(|line| line.contains("raw_syscalls"))
                .and_then(|line| line.split(',').next()),
            // % time, seconds, usecs/call, calls
            Method::Strace => text
                .lines()
                .find(|line| line.ends_with("total"))
                .and_then(|line| line.split_whitespace().nth(3)),
        };
        let Some(count) = count.and_then(|count| count.parse().ok()) else {
            bail!("no count in what {} reported: {text}", self.method.name());
        };
        Ok(count)
    }
}
