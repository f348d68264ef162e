//! How a recovering server is started. Everything goes by the command line: it outweighs the files that came with the
//! copy, and nothing has to be cleaned up afterwards.

use jiff::Timestamp;

use crate::pitr::plan::{Goal, Plan};

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

/// The required settings out of what `pg_controldata` prints.
#[must_use]
pub fn required(controldata: &str) -> Vec<(&'static str, String)> {
    let value = |label: &str| {
        controldata.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let value = value.trim();
            (name == label && value.bytes().all(|byte| byte.is_ascii_digit())).then(|| value.to_owned())
        })
    };
    let pairs = REQUIRED.iter().zip(LABELS);
    pairs.filter_map(|(name, label)| Some((*name, value(label)?))).collect()
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

/// Everything beyond the target.
pub(super) fn around(restore_command: String) -> Vec<(&'static str, String)> {
    vec![
        ("restore_command", restore_command),
        ("hot_standby", "on".to_owned()),
        // Never into production's archive, whatever the files say.
        ("archive_mode", "off".to_owned()),
        ("archive_command", String::new()),
        ("archive_cleanup_command", String::new()),
        ("recovery_end_command", String::new()),
        ("primary_conninfo", String::new()),
        ("primary_slot_name", String::new()),
        ("synchronous_standby_names", String::new()),
        // Recovery writes much and answers nobody yet.
        ("max_wal_size", "4GB".to_owned()),
        ("autovacuum", "off".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primarys_limits_are_read_from_its_control_file() {
        let text = "max_connections setting:              500\nmax_worker_processes setting:         8\n\
            max_wal_senders setting:              10\nmax_prepared_xacts setting:           0\nmax_locks_per_xact setting:           64\n";
        let found = required(text);
        assert_eq!(found.len(), REQUIRED.len());
        assert_eq!(found[0], ("max_connections", "500".to_owned()));
        assert!(required("max_connections setting: '; DROP").is_empty());
    }

    #[test]
    fn an_instant_is_written_in_utc_and_says_so() {
        let at: Timestamp = "2026-11-22T01:47:29.212836Z".parse().expect("an instant");
        assert_eq!(instant(at), "2026-11-22 01:47:29.212836+00");
    }
}
