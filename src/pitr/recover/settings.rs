//! How a recovering server is started. Everything goes by the command line: it outweighs the files that came with the
//! copy, and nothing has to be cleaned up afterwards.

use std::path::Path;

use jiff::Timestamp;

use crate::pitr::plan::{Goal, Plan};
use crate::pitr::records::Limits;
use crate::pitr::version;

/// The settings under which the primary wrote its log; a server with less refuses to replay it. By the labels of
/// `pg_controldata`.
const REQUIRED: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];
const LABELS: [&str; 5] = [
    "max_connections setting",
    "max_worker_processes setting",
    "max_wal_senders setting",
    "max_prepared_xacts setting",
    "max_locks_per_xact setting",
];

/// The required settings: what the copy's control file says, out of what `pg_controldata` prints, or what the log says
/// that they were raised to since.
#[must_use]
pub fn required(controldata: &str, raised: Limits) -> Vec<(&'static str, String)> {
    let value = |label: &str| {
        controldata.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name == label).then(|| value.trim().parse().ok())?
        })
    };
    let names = REQUIRED.iter().zip(LABELS).zip(raised.0);
    let settings = names.filter_map(|((name, label), raised)| {
        let known: u32 = value(label).unwrap_or(0);
        let needed = known.max(raised);
        (value(label).is_some() || raised > 0).then(|| (*name, needed.to_string()))
    });
    settings.collect()
}

/// The target, exactly one, the others emptied: a file that came with the copy may still hold an older one.
#[must_use]
pub fn target(plan: &Plan) -> Vec<(&'static str, String)> {
    let mut settings = vec![
        ("recovery_target_time", String::new()),
        ("recovery_target_lsn", String::new()),
        ("recovery_target_name", String::new()),
        ("recovery_target_xid", String::new()),
        ("recovery_target", String::new()),
    ];
    let (name, value) = match &plan.goal {
        Goal::Time(at) => ("recovery_target_time", instant(*at)),
        Goal::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
        Goal::Name(name) => ("recovery_target_name", name.clone()),
        Goal::Transaction(xid) => ("recovery_target_xid", xid.to_string()),
        // A plan never holds it; stopping at once is the harmless reading.
        Goal::Latest => ("recovery_target", "immediate".to_owned()),
    };
    settings.retain(|(other, _)| *other != name);
    settings.extend([
        (name, value),
        ("recovery_target_timeline", plan.timeline.to_string()),
        ("recovery_target_inclusive", "on".to_owned()),
        ("recovery_target_action", "pause".to_owned()),
    ]);
    settings
}

/// As PostgreSQL reads it whatever its time zone: with `+00`.
#[must_use]
pub fn instant(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

/// The least and the most memory for the pages of a recovered server.
const BUFFERS_MIN_KIB: u64 = 128 << 10;
const BUFFERS_MAX_KIB: u64 = 1 << 20;

/// An eighth of what `/proc/meminfo` says is free: the copied configuration may name more than this machine has, and the
/// live server may be on it.
fn buffers(meminfo: &str) -> String {
    let free = meminfo.lines().find_map(|line| {
        let kib = line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()
    });
    let kib = (free.unwrap_or(0) / 8).clamp(BUFFERS_MIN_KIB, BUFFERS_MAX_KIB);
    format!("{kib}kB")
}

/// Everything beyond the target. The copy must not act as the server that it was copied from: it may neither archive,
/// nor read other servers' changes, nor run its extensions' jobs, nor open another data directory.
pub(super) fn around(restore_command: String, plan: &Plan, data: &Path) -> Vec<(&'static str, String)> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mut settings = vec![
        ("restore_command", restore_command),
        ("hot_standby", "on".to_owned()),
        // A configuration file may name that of production, which then would be opened.
        ("data_directory", data.display().to_string()),
        // Never into production's archive, whatever the files say.
        ("archive_mode", "off".to_owned()),
        ("archive_command", String::new()),
        ("archive_cleanup_command", String::new()),
        ("recovery_end_command", String::new()),
        ("primary_conninfo", String::new()),
        ("primary_slot_name", String::new()),
        ("synchronous_standby_names", String::new()),
        // A copied subscription would take from its publisher's slot what production has not had yet.
        ("max_logical_replication_workers", "0".to_owned()),
        ("session_preload_libraries", String::new()),
        ("local_preload_libraries", String::new()),
        // Compiled code needs memory that can be written and executed, which our unit forbids.
        ("jit", "off".to_owned()),
        ("shared_buffers", buffers(&meminfo)),
        ("huge_pages", "off".to_owned()),
        // Recovery writes much and answers nobody yet.
        ("max_wal_size", "4GB".to_owned()),
        ("autovacuum", "off".to_owned()),
    ];
    if plan.demands.custom {
        // Without its extension a server gives up at such a record. Of those that run jobs this one is known.
        settings.push(("cron.launch_active_jobs", "off".to_owned()));
    } else {
        // A scheduler among them (pg_cron) would begin to work at the promotion.
        settings.push(("shared_preload_libraries", String::new()));
    }
    settings.extend(version::quiet(plan.cluster.major));
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primarys_limits_are_read_from_its_control_file() {
        let text = "max_connections setting:              500\nmax_worker_processes setting:         8\n\
            max_wal_senders setting:              10\nmax_prepared_xacts setting:           0\nmax_locks_per_xact setting:           64\n";
        let found = required(text, Limits::default());
        assert_eq!(found.len(), REQUIRED.len());
        assert_eq!(found[0], ("max_connections", "500".to_owned()));
        assert!(required("max_connections setting: '; DROP", Limits::default()).is_empty());
        let raised = required(text, Limits([900, 4, 10, 3, 64]));
        assert_eq!(
            raised[0],
            ("max_connections", "900".to_owned()),
            "raised since the copy"
        );
        assert_eq!(
            raised[1],
            ("max_worker_processes", "8".to_owned()),
            "lowered since the copy"
        );
        assert_eq!(raised[3], ("max_prepared_transactions", "3".to_owned()));
    }

    #[test]
    fn a_recovered_server_takes_a_share_of_the_memory_that_is_free() {
        assert_eq!(buffers("MemTotal: 9\nMemAvailable:    4194304 kB\n"), "524288kB");
        assert_eq!(buffers("MemAvailable: 419430400 kB\n"), "1048576kB");
        assert_eq!(buffers(""), "131072kB");
    }

    #[test]
    fn an_instant_is_written_in_utc_and_says_so() {
        let at: Timestamp = "2026-11-22T01:47:29.212836Z".parse().expect("an instant");
        assert_eq!(instant(at), "2026-11-22 01:47:29.212836+00");
    }
}
