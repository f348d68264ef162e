//! What the catalogue says about each kind of backup. Pure: the time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{Act, Run, State};
use crate::backup::{Entry, Plan, Subject};
use crate::repository::manifest::{Content, Level};
use crate::tasks::calendar::Schedule;

/// A size beyond half or one and a half of what is usual is worth a look.
const USUAL_PERCENT: std::ops::RangeInclusive<u64> = 50..=150;
/// Kinds that nobody planned: labels are free, and a command may give each backup one of its own.
const OTHERS_MAX: usize = 50;
/// So many earlier ones are needed to know what is usual.
const USUAL_FROM: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindStats {
    /// `daily`, `weekly`, `monthly`, `manual`, or `files:` and the name of the set.
    pub kind: String,
    pub count: usize,
    pub good: usize,
    /// Listed, and not all there.
    pub incomplete: usize,
    pub stored_bytes: u64,
    pub newest_good: Option<Newest>,
    /// No good one for twice the interval.
    pub is_overdue: bool,
    pub next_run: Option<Timestamp>,
    /// Of the remembered runs.
    pub succeeded_runs: usize,
    pub failed_runs: usize,
}

impl KindStats {
    /// How the remembered runs of this kind ended.
    pub(super) fn count_runs(&mut self, past: &[Arc<Run>]) {
        let of_kind = |run: &&Arc<Run>| match run.act {
            Act::Create => run.subjects.contains(&self.kind),
            Act::Files => run.subjects.iter().any(|set| self.kind == format!("files:{set}")),
            Act::Verify | Act::Restore | Act::Prune => false,
        };
        let (mut succeeded, mut failed) = (0, 0);
        for run in past.iter().filter(of_kind) {
            match run.status().state {
                State::Running => {}
                State::Succeeded => succeeded += 1,
                State::Failed { .. } | State::Interrupted => failed += 1,
            }
        }
        (self.succeeded_runs, self.failed_runs) = (succeeded, failed);
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Newest {
    pub id: ulid::Ulid,
    pub at: Timestamp,
    pub age: Duration,
    pub took: Duration,
    pub stored_bytes: u64,
    /// 2 or 3.
    pub level: u8,
}

/// What is made by schedule, and when.
pub(super) fn scheduled(plan: &Plan) -> Vec<(String, Schedule)> {
    let kinds = plan.kinds.iter().map(|kind| (kind.label.clone(), kind.schedule));
    let files = plan.files.iter();
    let files = files.map(|file| (format!("files:{}", file.set.name), file.schedule));
    kinds.chain(files).collect()
}

/// A line per kind: those that are scheduled, and those of which there are backups, the newest of them. `since`: when the
/// vault began to look after each; a kind that never had a backup is overdue some time after that.
#[must_use]
pub fn kinds(
    entries: &[Entry],
    subject: &Subject,
    plan: &Plan,
    since: &BTreeMap<String, Timestamp>,
    now: Timestamp,
) -> Vec<KindStats> {
    let ours: Vec<&Entry> = entries
        .iter()
        .filter(|entry| entry.is_files() || subject.owns(entry))
        .collect();
    let mut kinds: Vec<(String, Option<Schedule>)> = scheduled(plan)
        .into_iter()
        .map(|(kind, schedule)| (kind, Some(schedule)))
        .collect();
    let mut others = BTreeSet::new();
    for label in ours.iter().rev().flat_map(|entry| labels(entry)) {
        if others.len() == OTHERS_MAX {
            break;
        }
        if !kinds.iter().any(|(known, _)| *known == label) {
            others.insert(label);
        }
    }
    kinds.extend(others.into_iter().map(|label| (label, None)));
    kinds
        .into_iter()
        .map(|(kind, schedule)| {
            let since = since.get(&kind).copied().unwrap_or(now);
            one(kind, schedule, &ours, &plan.zone, since, now)
        })
        .collect()
}

fn one(
    kind: String,
    schedule: Option<Schedule>,
    ours: &[&Entry],
    zone: &TimeZone,
    since: Timestamp,
    now: Timestamp,
) -> KindStats {
    let of_kind: Vec<&Entry> = ours
        .iter()
        .copied()
        .filter(|entry| entry.tombstone.is_none() && labels(entry).contains(&kind))
        .collect();
    let good = of_kind.iter().filter(|entry| entry.is_good());
    // One from the future would be the newest for ever, and hide that no other comes.
    let newest = good.clone().rfind(|entry| !entry.is_ahead);
    let last = newest.map_or(since, |entry| entry.manifest.started_at);
    let limit = schedule.map(|schedule| schedule.interval() * 2);
    KindStats {
        count: of_kind.len(),
        good: good.count(),
        incomplete: of_kind.iter().filter(|entry| entry.incomplete.is_some()).count(),
        stored_bytes: stored_bytes(of_kind.iter().copied()),
        newest_good: newest.map(|entry| describe(entry, now)),
        is_overdue: limit.is_some_and(|limit| age(last, now) > limit),
        next_run: schedule.and_then(|schedule| schedule.next(zone, now)),
        succeeded_runs: 0,
        failed_runs: 0,
        kind,
    }
}

fn describe(entry: &Entry, now: Timestamp) -> Newest {
    let manifest = &entry.manifest;
    Newest {
        id: manifest.id,
        at: manifest.started_at,
        age: age(manifest.started_at, now),
        took: age(manifest.started_at, manifest.finished_at),
        stored_bytes: manifest.stored_bytes(),
        level: match entry.level() {
            Level::L0 => 0,
            Level::L1 => 1,
            Level::L2 => 2,
            Level::L3 => 3,
        },
    }
}

/// By what a backup is counted.
fn labels(entry: &Entry) -> Vec<String> {
    match &entry.manifest.content {
        Content::Database { .. } => entry.manifest.labels.clone(),
        Content::Files { name, .. } => vec![format!("files:{name}")],
        // Those of point-in-time recovery have a schedule and a retention of their own.
        Content::Base { .. } => Vec::new(),
    }
}

/// A manifest may come from elsewhere and claim anything.
pub(super) fn stored_bytes<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> u64 {
    let sizes = entries.into_iter().map(|entry| entry.manifest.stored_bytes());
    sizes.fold(0, u64::saturating_add)
}

/// None is younger than nothing: clocks of two machines may differ a little.
fn age(then: Timestamp, now: Timestamp) -> Duration {
    let age = now.duration_since(then);
    if age.is_negative() {
        Duration::ZERO
    } else {
        age.unsigned_abs()
    }
}

/// Why the size of the newest of `entries` is worth a look; they are those of one content, oldest first.
#[must_use]
pub fn unusual_size(entries: &[&Entry]) -> Option<String> {
    let (newest, earlier) = entries.split_last()?;
    let mut sizes: Vec<u64> = earlier
        .iter()
        .filter(|entry| entry.is_good())
        .map(|entry| entry.manifest.stored_bytes())
        .collect();
    if sizes.len() < USUAL_FROM {
        return None;
    }
    sizes.sort_unstable();
    let median = *sizes.get(sizes.len() / 2)?;
    let size = newest.manifest.stored_bytes();
    let percent = size.saturating_mul(100) / median.max(1);
    (!USUAL_PERCENT.contains(&percent)).then(|| {
        format!(
            "backup {} holds {size} bytes, {percent} % of the usual {median}: see whether the app lost or gained so much",
            newest.manifest.id
        )
    })
}

/// `of` among both; `None`: there was neither.
#[must_use]
pub fn rate(of: usize, others: usize) -> Option<f64> {
    let total = of + others;
    #[expect(clippy::cast_precision_loss, reason = "a few hundred runs at most")]
    (total > 0).then(|| of as f64 / total as f64)
}
