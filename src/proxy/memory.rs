//! Refuses new connections while memory runs out: better some clients who must come again than the kernel's killer, which
//! ends all of them. Looks once a second, on the control plane; workers read one atomic.
//!
//! The cap is that of the process's cgroup, its ancestors' included: what the kernel enforces. Its page cache does not
//! count, or every backup, which writes more than any memory holds, would shut the gate. Where `server.memory_limit` is
//! set, the process's own resident memory is held against that instead: for machines without a cap, and for a share of
//! one with others. Where neither is, nothing is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus::{IntGauge, Registry};
use tokio::sync::watch::Receiver;

use super::shared::Shared;
use super::snapshot::Snapshot;
use crate::telemetry::health::{Board, Condition};

const LOOK: Duration = Duration::from_secs(1);
/// Of the cap, in percent. The gap between the two keeps the gate from swinging.
const REFUSE_ABOVE: u128 = 95;
const ADMIT_BELOW: u128 = 90;
/// Version 1 of cgroups writes "no cap" as a number of this size.
const NO_CAP: u64 = 1 << 60;
const CGROUPS: &str = "/sys/fs/cgroup";

/// Memory in use, and the cap on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usage {
    used: u64,
    cap: u64,
}

impl Usage {
    fn is_above(self, percent: u128) -> bool {
        u128::from(self.used) * 100 > u128::from(self.cap) * percent
    }

    /// Whether new connections are to be refused.
    fn is_short(self, was_short: bool) -> bool {
        self.is_above(if was_short { ADMIT_BELOW } else { REFUSE_ABOVE })
    }
}

#[derive(Debug)]
pub(super) struct Gauges {
    used: IntGauge,
    cap: IntGauge,
}

impl Gauges {
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauges = Self {
            used: IntGauge::new(
                "foregate_memory_used_bytes",
                "What is held against the cap on memory, without page cache; 0 where there is no cap",
            )?,
            cap: IntGauge::new(
                "foregate_memory_limit_bytes",
                "The cap on memory; 0 where there is none",
            )?,
        };
        registry.register(Box::new(gauges.used.clone()))?;
        registry.register(Box::new(gauges.cap.clone()))?;
        Ok(gauges)
    }

    fn show(&self, usage: Option<Usage>) {
        let bytes = |bytes: Option<u64>| i64::try_from(bytes.unwrap_or(0)).unwrap_or(i64::MAX);
        self.used.set(bytes(usage.map(|usage| usage.used)));
        self.cap.set(bytes(usage.map(|usage| usage.cap)));
    }
}

/// Runs until the gate is gone.
pub(super) async fn watch(snapshots: Receiver<Arc<Snapshot>>, shared: Arc<Shared>, gauges: Gauges, board: Board) {
    let mut ticker = tokio::time::interval(LOOK);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut was_capped = false;
    loop {
        let _tick = ticker.tick().await;
        let limit = snapshots.borrow().config.server.memory_limit;
        // The kernel may take its time to add a cgroup's figures up.
        let Ok(usage) = tokio::task::spawn_blocking(move || look(limit)).await else {
            return;
        };
        gauges.show(usage);
        let was_short = shared.is_short_of_memory.load(Ordering::Relaxed);
        let is_short = usage.is_some_and(|usage| usage.is_short(was_short));
        shared.is_short_of_memory.store(is_short, Ordering::Relaxed);
        if was_short != is_short {
            tracing::warn!(
                ?usage,
                refused = is_short,
                "new connections and the memory that is left"
            );
        }
        if usage.is_some() || was_capped {
            board.set("memory", condition(usage.filter(|_| is_short), limit.is_some()));
            was_capped = true;
        }
    }
}

fn condition(short: Option<Usage>, is_own: bool) -> Condition {
    let Some(Usage { used, cap }) = short else {
        return Condition::Healthy;
    };
    let mib = |bytes: u64| bytes >> 20;
    let (used, cap) = (mib(used), mib(cap));
    let what = if is_own {
        "server.memory_limit"
    } else {
        "the cgroup's limit"
    };
    Condition::Degraded(format!(
        "new connections are refused: {used} MiB are in use, and {what} is {cap} MiB; raise it, or lower \
         server.max_connections"
    ))
}

/// `None`: there is no cap.
fn look(limit: Option<u64>) -> Option<Usage> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    match limit {
        Some(cap) => Some(Usage {
            used: resident(&read("/proc/self/status")?)?,
            cap,
        }),
        None => tightest(&read("/proc/self/cgroup")?, Path::new(CGROUPS)),
    }
}

/// Out of `/proc/PID/status`.
fn resident(status: &str) -> Option<u64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = kib.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The fullest of the cgroups that this process is in, of those that have a cap. Within a container its own paths may not
/// exist, and the mount itself is the cgroup: it is the last of the ancestors.
fn tightest(own: &str, mount: &Path) -> Option<Usage> {
    let mut fullest: Option<Usage> = None;
    for line in own.lines() {
        // number:controllers:path
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let usages: Vec<Usage> = if controllers.is_empty() {
            // "unified": where both versions are mounted.
            let roots = [mount.to_path_buf(), mount.join("unified")];
            roots
                .iter()
                .flat_map(|root| ancestors(root, path))
                .filter_map(|at| version_2(&at))
                .collect()
        } else if controllers.split(',').any(|name| name == "memory") {
            ancestors(&mount.join("memory"), path)
                .into_iter()
                .filter_map(|at| version_1(&at))
                .collect()
        } else {
            Vec::new()
        };
        for usage in usages {
            let fuller = fullest.is_none_or(|other| {
                u128::from(usage.used) * u128::from(other.cap) > u128::from(other.used) * u128::from(usage.cap)
            });
            if fuller {
                fullest = Some(usage);
            }
        }
    }
    fullest
}

/// The cgroup at `path` and those that it lies in, down to the mount.
fn ancestors(mount: &Path, path: &str) -> Vec<PathBuf> {
    Path::new(path.trim_start_matches('/'))
        .ancestors()
        .map(|path| mount.join(path))
        .collect()
}

fn version_2(cgroup: &Path) -> Option<Usage> {
    usage(cgroup, "memory.current", "memory.max", ["inactive_file", "active_file"])
}

fn version_1(cgroup: &Path) -> Option<Usage> {
    let cache = ["total_inactive_file", "total_active_file"];
    usage(cgroup, "memory.usage_in_bytes", "memory.limit_in_bytes", cache)
}

fn usage(cgroup: &Path, used: &str, cap: &str, cache: [&str; 2]) -> Option<Usage> {
    let read = |name: &str| std::fs::read_to_string(cgroup.join(name)).ok();
    // "max" is no number.
    let cap = read(cap)?.trim().parse().ok().filter(|cap| (1..NO_CAP).contains(cap))?;
    let used: u64 = read(used)?.trim().parse().ok()?;
    let statistics = read("memory.stat").unwrap_or_default();
    let cached: u64 = statistics
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| cache.contains(name))
        .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
        .sum();
    Some(Usage {
        used: used.saturating_sub(cached),
        cap,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_shuts_above_95_percent_and_opens_at_90() {
        let short = |used, was_short| Usage { used, cap: 1000 }.is_short(was_short);
        assert!(!short(950, false));
        assert!(short(951, false));
        assert!(short(901, true));
        assert!(!short(900, true));
        assert!(!short(0, true));
    }

    #[test]
    fn resident_memory_is_read_in_kib() {
        assert_eq!(resident("Name:\tforegate\nVmRSS:\t   1234 kB\n"), Some(1234 * 1024));
        assert_eq!(resident("Name:\tforegate\n"), None);
    }

    /// A cgroup with this much in use, of which this much is page cache.
    fn cgroup(at: &Path, names: [&str; 3], cap: &str, used: u64, cache: u64) {
        let [used_name, cap_name, cache_name] = names;
        std::fs::create_dir_all(at).expect("a folder");
        let statistics = format!("anon 5\n{cache_name} {cache}\nslab 7\n");
        for (name, text) in [
            (used_name, used.to_string()),
            (cap_name, cap.to_owned()),
            ("memory.stat", statistics),
        ] {
            std::fs::write(at.join(name), format!("{text}\n")).expect("a file");
        }
    }

    const VERSION_2: [&str; 3] = ["memory.current", "memory.max", "inactive_file"];
    const VERSION_1: [&str; 3] = ["memory.usage_in_bytes", "memory.limit_in_bytes", "total_active_file"];

    #[test]
    fn cap_of_an_outer_cgroup_counts_and_page_cache_does_not() {
        let mount = tempfile::tempdir().expect("a folder");
        let (outer, inner) = (
            mount.path().join("system.slice"),
            mount.path().join("system.slice/foregate.service"),
        );
        let own = "0::/system.slice/foregate.service\n";
        cgroup(&inner, VERSION_2, "max", 900, 0);
        cgroup(&outer, VERSION_2, "max", 900, 0);
        assert_eq!(tightest(own, mount.path()), None, "no cap at all");
        cgroup(&outer, VERSION_2, "1000", 990, 300);
        assert_eq!(tightest(own, mount.path()), Some(Usage { used: 690, cap: 1000 }));
        cgroup(&inner, VERSION_2, "500", 480, 100);
        assert_eq!(tightest(own, mount.path()), Some(Usage { used: 380, cap: 500 }));
    }

    #[test]
    fn mount_itself_is_the_cgroup_within_a_container() {
        let mount = tempfile::tempdir().expect("a folder");
        cgroup(mount.path(), VERSION_2, "1000", 100, 0);
        let seen = tightest("0::/not/to/be/seen/from/here\n", mount.path());
        assert_eq!(seen, Some(Usage { used: 100, cap: 1000 }));
    }

    #[test]
    fn version_1_is_read_where_it_holds_the_memory() {
        let mount = tempfile::tempdir().expect("a folder");
        let own = "9:name=systemd:/a\n4:cpu,memory:/a/b\n0::/\n";
        cgroup(
            &mount.path().join("memory/a/b"),
            VERSION_1,
            "9223372036854771712",
            100,
            0,
        );
        assert_eq!(tightest(own, mount.path()), None, "no cap at all");
        cgroup(&mount.path().join("memory/a/b"), VERSION_1, "1000", 100, 30);
        assert_eq!(tightest(own, mount.path()), Some(Usage { used: 70, cap: 1000 }));
    }
}
