//! What the kernel has noted of a process and all its descendants: CPU time and memory, from `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;

/// A process and everything that it started: nginx works in a child of its master.
#[derive(Debug)]
pub(super) struct Tree(Vec<u32>);

impl Tree {
    pub(super) fn of(root: u32) -> anyhow::Result<Self> {
        let mut parents = Vec::new();
        for entry in fs::read_dir("/proc")? {
            if let Some(process) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
                // A process may end while the list is read.
                && let Ok(stat) = Stat::read(process)
            {
                parents.push((process, stat.parent));
            }
        }
        let mut members = vec![root];
        let mut next = 0;
        while let Some(&member) = members.get(next) {
            members.extend(
                parents
                    .iter()
                    .filter(|(_, parent)| *parent == member)
                    .map(|(process, _)| *process),
            );
            next += 1;
        }
        Ok(Self(members))
    }

    pub(super) fn processes(&self) -> &[u32] {
        &self.0
    }

    /// User and system time of all threads, living or gone, to the kernel's hundredth of a second.
    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        let mut ticks = 0;
        for &process in &self.0 {
            ticks += Stat::read(process)?.ticks;
        }
        Ok(Duration::from_millis(ticks * 1000 / ticks_per_second))
    }

    /// Proportional set size: what is shared with `n` processes counts for one part in `n`, so nginx's master and worker
    /// together count their zones once.
    pub(super) fn memory_bytes(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for &process in &self.0 {
            let path = format!("/proc/{process}/smaps_rollup");
            let text = fs::read_to_string(&path).context(path)?;
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("Pss:"))
                .context("no Pss line")?;
            sum += line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024;
        }
        Ok(sum)
    }
}

#[derive(Debug)]
struct Stat {
    parent: u32,
    ticks: u64,
}

impl Stat {
    /// See proc_pid_stat(5). The second field is a name that may hold anything, but ends with the last parenthesis.
    fn read(process: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{process}/stat");
        let text = fs::read_to_string(&path).context(path)?;
        let (_, rest) = text.rsplit_once(')').context("no name in stat")?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        // Counted from the state, which is field 3.
        let field = |number: usize| fields.get(number - 3).copied().context("stat is too short");
        Ok(Self {
            parent: field(4)?.parse()?,
            ticks: field(14)?.parse::<u64>()? + field(15)?.parse::<u64>()?,
        })
    }
}
