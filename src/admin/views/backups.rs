//! What the API says about backups, and takes.

use serde::{Deserialize, Serialize};

use crate::backup::service::stats::{Newest, rate};
use crate::backup::service::{KindStats, Run, State};
use crate::backup::{Entry, Pruned, Unreadable};
use crate::repository::manifest::{Content, Level};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct Backup {
    id: String,
    /// `database`, `files` or `base`.
    content: &'static str,
    /// Of the database, or of the file set.
    name: String,
    labels: Vec<String>,
    started_at: String,
    finished_at: String,
    duration_seconds: f64,
    stored_bytes: u64,
    /// Before compression.
    plain_bytes: u64,
    level: &'static str,
    good: bool,
    /// `good`, `not proven`, `damaged`, `incomplete`, `from the future` or `to be deleted`.
    state: &'static str,
    /// What is damaged or missing, or why a note beside it (a record of its verification, a lease, a mark) cannot be read.
    problem: Option<String>,
    encrypted: bool,
    /// `null`: a file set.
    server_version: Option<String>,
    /// The system identifier of the database's cluster. `null`: a file set.
    cluster: Option<String>,
    /// In all of its tables. `null`: a file set.
    rows: Option<u64>,
    /// What `restore` takes as `filepath`.
    filepath: String,
}

impl Backup {
    pub(in crate::admin) fn new(entry: &Entry, filepath: String) -> Self {
        let manifest = &entry.manifest;
        let (content, name, version, rows) = match &manifest.content {
            Content::Database {
                database,
                server_version,
                ..
            } => ("database", database, Some(server_version), Some(entry.rows())),
            Content::Files { name, .. } => ("files", name, None, None),
            Content::Base { system_identifier, .. } => ("base", system_identifier, None, None),
        };
        let took = manifest.finished_at.duration_since(manifest.started_at);
        Self {
            id: manifest.id.to_string(),
            content,
            name: name.clone(),
            labels: manifest.labels.clone(),
            started_at: manifest.started_at.to_string(),
            finished_at: manifest.finished_at.to_string(),
            duration_seconds: took.as_secs_f64(),
            stored_bytes: manifest.stored_bytes(),
            plain_bytes: total(manifest.parts.iter().map(|part| &part.plain_bytes)),
            level: level(entry.level()),
            good: entry.is_good(),
            state: entry.state(),
            problem: entry.problem().map(str::to_owned),
            encrypted: !manifest.recipients.is_empty(),
            server_version: version.map(|version| format!("{}.{}", version / 10_000, version % 10_000)),
            cluster: manifest.content.cluster().map(|cluster| cluster.system_identifier),
            rows,
            filepath,
        }
    }
}

/// Of numbers that another may have written.
fn total<'a>(numbers: impl Iterator<Item = &'a u64>) -> u64 {
    numbers.fold(0, |total, number| total.saturating_add(*number))
}

fn level(level: Level) -> &'static str {
    match level {
        Level::L0 => "L0",
        Level::L1 => "L1",
        Level::L2 => "L2",
        Level::L3 => "L3",
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct Backups {
    /// The newest first.
    pub(in crate::admin) backups: Vec<Backup>,
    pub(in crate::admin) total: usize,
    pub(in crate::admin) offset: usize,
    pub(in crate::admin) limit: usize,
    /// Those that are there and cannot be read: any of them may be the newest.
    pub(in crate::admin) unreadable: Vec<UnreadableBackup>,
    /// What is under way.
    pub(in crate::admin) running: Option<RunView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct UnreadableBackup {
    id: String,
    problem: String,
}

impl From<&Unreadable> for UnreadableBackup {
    fn from(unreadable: &Unreadable) -> Self {
        Self {
            id: unreadable.id.to_string(),
            problem: unreadable.why.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct RunView {
    id: String,
    /// `create`, `files`, `verify`, `restore`, `prune`.
    act: &'static str,
    subjects: Vec<String>,
    /// `running`, `succeeded`, `failed`, `interrupted`.
    state: &'static str,
    started_at: String,
    finished_at: Option<String>,
    step: &'static str,
    /// Of the step, where there is an earlier run to compare with.
    percent: Option<u8>,
    failed_step: Option<String>,
    reason: Option<String>,
    steps: Vec<StepView>,
    log: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct StepView {
    name: &'static str,
    started_at: String,
    bytes: u64,
}

impl From<&Run> for RunView {
    fn from(run: &Run) -> Self {
        let status = run.status();
        let (state, failed) = match status.state {
            State::Running => ("running", None),
            State::Succeeded => ("succeeded", None),
            State::Failed { step, reason } => ("failed", Some((step, reason))),
            State::Interrupted => ("interrupted", None),
        };
        let (failed_step, reason) = failed.unzip();
        Self {
            id: run.id.to_string(),
            act: run.act.name(),
            subjects: run.subjects.clone(),
            state,
            started_at: run.started_at.to_string(),
            finished_at: status.finished_at.map(|at| at.to_string()),
            step: run.step(),
            percent: run.percent().filter(|_| state == "running"),
            failed_step,
            reason,
            steps: status
                .steps
                .iter()
                .map(|step| StepView {
                    name: step.name,
                    started_at: step.started_at.to_string(),
                    bytes: step.bytes,
                })
                .collect(),
            log: status.log.into_iter().collect(),
        }
    }
}

/// A backup, a run, or a run that became a backup: they share the id.
#[derive(Debug, Serialize)]
pub(in crate::admin) struct BackupOrRun {
    pub(in crate::admin) id: String,
    pub(in crate::admin) backup: Option<Backup>,
    pub(in crate::admin) run: Option<RunView>,
}

/// Taken up: where to ask how it goes.
#[derive(Debug, Serialize)]
pub(in crate::admin) struct Accepted {
    pub(in crate::admin) id: String,
    pub(in crate::admin) status: String,
}

#[derive(Debug, Serialize)]
pub(in crate::admin) struct Runs {
    /// The newest first.
    pub(in crate::admin) runs: Vec<RunView>,
    pub(in crate::admin) total: usize,
    pub(in crate::admin) offset: usize,
    pub(in crate::admin) limit: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct BackupStats {
    pub(in crate::admin) repository: String,
    pub(in crate::admin) time_zone: String,
    /// That of the database, as `cluster` of a backup. `null`: the server was not asked yet.
    pub(in crate::admin) cluster: Option<String>,
    /// Which `create` takes as `name`.
    pub(in crate::admin) file_sets: Vec<String>,
    pub(in crate::admin) total: usize,
    pub(in crate::admin) good: usize,
    pub(in crate::admin) stored_bytes: u64,
    pub(in crate::admin) kinds: Vec<Kind>,
    /// Of the remembered runs that make backups.
    pub(in crate::admin) succeeded_runs: usize,
    pub(in crate::admin) failed_runs: usize,
    /// Between 0 and 1; `null`: there was none yet.
    pub(in crate::admin) success_rate: Option<f64>,
    pub(in crate::admin) failure_rate: Option<f64>,
    pub(in crate::admin) next_run: Option<String>,
    pub(in crate::admin) running_id: Option<String>,
    pub(in crate::admin) warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct Kind {
    kind: String,
    count: usize,
    good: usize,
    incomplete: usize,
    stored_bytes: u64,
    overdue: bool,
    next_run: Option<String>,
    /// Of the remembered runs.
    succeeded_runs: usize,
    failed_runs: usize,
    /// Between 0 and 1; `null`: there was none yet.
    success_rate: Option<f64>,
    failure_rate: Option<f64>,
    last_good: Option<LastGood>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct LastGood {
    id: String,
    at: String,
    age_seconds: u64,
    duration_seconds: f64,
    stored_bytes: u64,
    level: u8,
}

impl From<&KindStats> for Kind {
    fn from(kind: &KindStats) -> Self {
        Self {
            kind: kind.kind.clone(),
            count: kind.count,
            good: kind.good,
            incomplete: kind.incomplete,
            stored_bytes: kind.stored_bytes,
            overdue: kind.is_overdue,
            next_run: kind.next_run.map(|at| at.to_string()),
            succeeded_runs: kind.succeeded_runs,
            failed_runs: kind.failed_runs,
            success_rate: rate(kind.succeeded_runs, kind.failed_runs),
            failure_rate: rate(kind.failed_runs, kind.succeeded_runs),
            last_good: kind.newest_good.as_ref().map(Into::into),
        }
    }
}

impl From<&Newest> for LastGood {
    fn from(newest: &Newest) -> Self {
        Self {
            id: newest.id.to_string(),
            at: newest.at.to_string(),
            age_seconds: newest.age.as_secs(),
            duration_seconds: newest.took.as_secs_f64(),
            stored_bytes: newest.stored_bytes,
            level: newest.level,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::admin) struct CreateOrder {
    /// `daily`, `weekly`, `monthly`, `manual` or `files`; `manual` if nothing is said.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Of the file set.
    pub(in crate::admin) name: Option<String>,
}

impl CreateOrder {
    pub(in crate::admin) fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("manual")
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::admin) struct RestoreOrder {
    pub(in crate::admin) id: Option<String>,
    pub(in crate::admin) filepath: Option<String>,
    /// Into a new database of this name; the live one is left alone.
    pub(in crate::admin) target_database: Option<String>,
    /// The backup is of this other database, and is meant to take the place of the configured one.
    pub(in crate::admin) from_database: Option<String>,
    /// Into a scratch database that is dropped again.
    #[serde(default)]
    pub(in crate::admin) verify_only: bool,
    /// Only say what would happen.
    #[serde(default)]
    pub(in crate::admin) dry_run: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::admin) struct RestorePreview {
    pub(in crate::admin) backup: Backup,
    /// `null`: a scratch database.
    pub(in crate::admin) database: Option<String>,
    pub(in crate::admin) replaces: bool,
    /// What is to be seen to besides.
    pub(in crate::admin) notes: Vec<String>,
    pub(in crate::admin) dry_run: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::admin) struct VerifyOrder {
    /// Into a scratch database as well.
    #[serde(default)]
    pub(in crate::admin) restore: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::admin) struct PruneOrder {
    #[serde(default)]
    pub(in crate::admin) dry_run: bool,
}

#[derive(Debug, Serialize)]
pub(in crate::admin) struct PrunePreview {
    decisions: Vec<Decision>,
    marked: Vec<String>,
    deleted: Vec<String>,
    /// Marked before, and needed again.
    lifted: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Decision {
    id: String,
    keep: bool,
    reasons: Vec<String>,
}

impl From<&Pruned> for PrunePreview {
    fn from(pruned: &Pruned) -> Self {
        let ids = |ids: &[ulid::Ulid]| ids.iter().map(ToString::to_string).collect();
        Self {
            decisions: pruned
                .decisions
                .iter()
                .map(|decision| Decision {
                    id: decision.id.to_string(),
                    keep: decision.keep,
                    reasons: decision.reasons.clone(),
                })
                .collect(),
            marked: ids(&pruned.marked),
            deleted: ids(&pruned.deleted),
            lifted: ids(&pruned.lifted),
        }
    }
}
