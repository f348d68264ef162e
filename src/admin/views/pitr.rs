//! What the API says of point-in-time recovery.

use jiff::Timestamp;
use serde::Serialize;

use crate::pitr::config::Config;
use crate::pitr::keeper;
use crate::pitr::setup::{Check, Verdict, Way};

/// `GET …/pitr/config`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct Setup {
    wal: &'static str,
    window_seconds: u64,
    heartbeat_seconds: u64,
    /// Whether nothing is wrong and nothing waits for a restart.
    ready: bool,
    settings: Vec<Setting>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Setting {
    name: &'static str,
    found: String,
    verdict: &'static str,
    why: &'static str,
    /// For `postgresql.conf`.
    line: Option<String>,
    /// For `psql`.
    statement: Option<String>,
    needs_restart: bool,
}

impl Setup {
    pub(in crate::admin) fn new(config: &Config, checks: &[Check]) -> Self {
        Self {
            wal: match config.wal {
                Way::ArchiveCommand => "archive_command",
                Way::Stream => "stream",
            },
            window_seconds: config.window.as_secs(),
            heartbeat_seconds: config.heartbeat.as_secs(),
            ready: checks
                .iter()
                .all(|check| matches!(check.verdict, Verdict::Good | Verdict::Advice)),
            settings: checks.iter().map(Setting::new).collect(),
        }
    }
}

impl Setting {
    fn new(check: &Check) -> Self {
        Self {
            name: check.name,
            found: check.found.clone(),
            verdict: match check.verdict {
                Verdict::Good => "good",
                Verdict::Advice => "advice",
                Verdict::Wrong => "wrong",
                Verdict::Restart => "restart",
            },
            why: check.why,
            line: check.line(),
            statement: check.statement(),
            needs_restart: check.needs_restart,
        }
    }
}

/// `GET …/pitr/stats`. `null`: not known yet.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct Stats {
    archive: Option<Archive>,
    last_archived: Option<LastArchived>,
    server: Option<Server>,
    last_heartbeat: Option<Heartbeat>,
    /// What is wrong, as sentences.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Archive {
    segments: u64,
    stored_bytes: u64,
    timelines: Vec<u32>,
    /// Up to where the newest timeline's log is there without a break.
    reach: String,
    newest_segment: Option<String>,
    gaps: Vec<Gap>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Gap {
    timeline: u32,
    first_segment: u64,
    segments: u64,
    disputed: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LastArchived {
    file: String,
    at: String,
    age_seconds: u64,
}

/// As `pg_stat_archiver` and the archive's status directory say.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Server {
    standby: bool,
    ready_files: u64,
    ready_age_seconds: u64,
    archived_count: u64,
    failed_count: u64,
    last_archived_wal: Option<String>,
    last_failed_wal: Option<String>,
    slot: Option<Slot>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Slot {
    active: bool,
    lost: bool,
    retained_bytes: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Heartbeat {
    at: String,
    lsn: String,
    timeline: u32,
}

impl Stats {
    pub(in crate::admin) fn new(stats: &keeper::Stats, now: Timestamp) -> Self {
        let age = |at: Timestamp| u64::try_from(now.duration_since(at).as_secs()).unwrap_or(0);
        Self {
            archive: stats.inventory.as_ref().map(Archive::new),
            last_archived: stats.last_archived.as_ref().map(|(file, at)| LastArchived {
                file: file.clone(),
                at: at.to_string(),
                age_seconds: age(*at),
            }),
            server: stats.seen.as_ref().map(|seen| Server {
                standby: seen.is_standby,
                ready_files: seen.ready_files,
                ready_age_seconds: seen.ready_age.as_secs(),
                archived_count: seen.archived.count,
                failed_count: seen.failed.count,
                last_archived_wal: seen.archived.last.clone(),
                last_failed_wal: seen.failed.last.clone(),
                slot: seen.slot.as_ref().map(|slot| Slot {
                    active: slot.is_active,
                    lost: slot.is_lost,
                    retained_bytes: slot.retained_bytes,
                }),
            }),
            last_heartbeat: stats.last_beat.map(|beat| Heartbeat {
                at: beat.at.to_string(),
                lsn: beat.lsn.to_string(),
                timeline: beat.timeline.0,
            }),
            problems: stats.problems.clone(),
        }
    }
}

impl Archive {
    fn new(inventory: &crate::pitr::inventory::Inventory) -> Self {
        Self {
            segments: inventory.segments,
            stored_bytes: inventory.stored_bytes,
            timelines: inventory.timelines.iter().map(|timeline| timeline.0).collect(),
            reach: inventory.reach.to_string(),
            newest_segment: inventory.newest.as_ref().map(|archived| archived.file.to_string()),
            gaps: inventory.gaps.iter().map(Gap::new).collect(),
        }
    }
}

impl Gap {
    fn new(gap: &crate::pitr::chain::Gap) -> Self {
        Self {
            timeline: gap.timeline.0,
            first_segment: gap.first,
            segments: gap.segments(),
            disputed: gap.is_disputed,
        }
    }
}
