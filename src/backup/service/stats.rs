//! What the catalogue says about each kind of backup. Pure: the time is an argument.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::backup::{Entry, Plan};
use crate::repository::manifest::{Content, Level};
use crate::tasks::calendar::Schedule;

/// A size beyond half or one and a half of what is usual is worth a look.
const USUAL_PERCENT: std::ops::RangeInclusive<u64> = 50..=150;
/// So many earlier ones are needed to know what is usual.
const USUAL_FROM: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindStats {
    /// `daily`, `weekly`, `monthly`, `manual`, or `files:` and the name of the set.
    pub kind: String,
    pub count: usize,
    pub good: usize,
    pub stored_bytes: u64,
    pub newest_good: Option<Newest>,
    /// No good one for twice the interval.
    pub is_overdue: bool,
    pub next_run: Option<Timestamp>,
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

/// A line per kind: those that are scheduled, and those of which there are backups. `since`: when the vault began to
/// look after them; a kind that never had a backup is overdue from then on as well.
#[must_use]
pub fn kinds(entries: &[Entry], plan: &Plan, since: Timestamp, now: Timestamp) -> Vec<KindStats> {
    let mut scheduled: Vec<(String, Option<Schedule>)> = Vec::new();
    for kind in &plan.kinds {
        scheduled.push((kind.label.clone(), Some(kind.schedule)));
    }
    for file in &plan.files {
        scheduled.push((format!("files:{}", file.set.name), Some(file.schedule)));
    }
    for label in entries.iter().flat_map(labels) {
        if !scheduled.iter().any(|(known, _)| *known == label) {
            scheduled.push((label, None));
        }
    }
    scheduled
        .into_iter()
        .map(|(kind, schedule)| one(kind, schedule, entries, &plan.zone, since, now))
        .collect()
}

fn one(
    kind: String,
    schedule: Option<Schedule>,
    entries: &[Entry],
    zone: &TimeZone,
    since: Timestamp,
    now: Timestamp,
) -> KindStats {
    let of_kind: Vec<&Entry> = entries
        .iter()
        .filter(|entry| entry.tombstone.is_none() && labels(entry).contains(&kind))
        .collect();
    let good = of_kind.iter().filter(|entry| entry.is_good());
    let newest = good.clone().max_by_key(|entry| entry.manifest.started_at);
    let last = newest.map_or(since, |entry| entry.manifest.started_at);
    let limit = schedule.map(|schedule| schedule.interval() * 2);
    KindStats {
        count: of_kind.len(),
        good: good.count(),
        stored_bytes: of_kind.iter().map(|entry| entry.manifest.stored_bytes()).sum(),
        newest_good: newest.map(|entry| describe(entry, now)),
        is_overdue: limit.is_some_and(|limit| age(last, now) > limit),
        next_run: schedule.and_then(|schedule| schedule.next(zone, now)),
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
    }
}

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
