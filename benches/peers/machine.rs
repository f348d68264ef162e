//! The machine: which core does what, how many files may be open, and what it is, in words.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::settings::Settings;
use super::subject::Subject;
use super::syscalls::Method;

/// The subject has this one for itself.
pub(super) const SUBJECT_CORE: &str = "0";
/// Clients and upstream share this one.
const LOAD_CORE: &str = "1";

/// Subjects inherit it: as many as nobody needs.
const FILES_MAX: u64 = 65_536;

pub(super) fn raise_file_limit() -> anyhow::Result<()> {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let limit = |files| Rlimit {
        current: Some(files),
        maximum: Some(files.max(hard)),
    };
    // Only root may go beyond the hard limit.
    setrlimit(Resource::Nofile, limit(FILES_MAX))
        .or_else(|_| setrlimit(Resource::Nofile, limit(hard)))
        .context("raising the number of open files")
}

/// Before any thread is started, since threads inherit it.
pub(super) fn move_to_load_core() -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    ensure!(
        cores >= 2,
        "two cores are needed: one for the subject, one for the load"
    );
    let moved = Command::new("taskset")
        .args(["-a", "-c", "-p", LOAD_CORE, &std::process::id().to_string()])
        .output()
        .context("taskset (util-linux) must be installed")?;
    ensure!(
        moved.status.success(),
        "taskset: {}",
        String::from_utf8_lossy(&moved.stderr)
    );
    Ok(())
}

/// As Markdown: machine, programs, extent of the run.
pub(super) fn description(settings: &Settings) -> anyhow::Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let system = fs::read_to_string("/etc/os-release")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let gibibytes = value(&memory, "MemTotal:").trim_end_matches(" kB").parse::<u64>()? / (1 << 20);
    let today = jiff::Zoned::now().date();
    let mut text = format!(
        "Run on {today}: {} ({cores} cores{}), {gibibytes} GiB, {}, Linux {}; load average at the end {}. \
         {} rounds of {} s, answers of {} bytes.\n\n",
        value(&cpuinfo, "model name").trim_start_matches([':', ' ', '\t']),
        if cpuinfo.contains(" hypervisor") {
            ", virtual"
        } else {
            ""
        },
        value(&system, "PRETTY_NAME=").trim_matches('"'),
        kernel.trim(),
        load.split_whitespace().take(3).collect::<Vec<_>>().join(" "),
        settings.rounds,
        settings.duration.as_secs_f64(),
        settings.body_bytes,
    );
    for subject in Subject::ALL {
        writeln!(text, "- {subject}: {}", subject.version(settings)?)?;
    }
    writeln!(text, "- System calls counted with `{}`", Method::available().name())?;
    Ok(text)
}

fn value<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or("unknown")
        .trim()
}
