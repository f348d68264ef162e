//! What the API says of point-in-time recovery.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::super::recovery_views as views;
use crate::pitr::config::Config;
use crate::pitr::keeper;
use crate::pitr::routine::Known;
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
    /// What was found out besides; of `archive_command`, why it was not tried.
    note: Option<String>,
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
            note: check.note.clone(),
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
    archive: Option<Value>,
    window: Option<Value>,
    base_backups: Option<Value>,
    last_drill: Option<Value>,
    last_archived: Option<LastArchived>,
    server: Option<Server>,
    last_heartbeat: Option<Heartbeat>,
    /// What is wrong, as sentences.
    problems: Vec<String>,
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
    /// `known`: what the routine knows; `None`: it does not run.
    pub(in crate::admin) fn new(stats: &keeper::Stats, known: Option<&Known>, now: Timestamp) -> Self {
        let seen = known.filter(|known| known.window_at.is_some());
        let listed = known.filter(|known| known.looked_at.is_some());
        let age = |at: Timestamp| u64::try_from(now.duration_since(at).as_secs()).unwrap_or(0);
        Self {
            archive: stats.inventory.as_ref().map(views::archive),
            window: seen.map(|known| views::window(&known.window, now)),
            base_backups: listed.map(|known| views::bases_in_short(&known.bases)),
            last_drill: seen.and_then(|known| known.drills.first()).map(views::drill),
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
