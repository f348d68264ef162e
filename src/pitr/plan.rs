//! What a recovery will do, decided before anything starts. Pure: what is in the repository, what the log says and what
//! time it is are arguments.

use std::time::Duration;

use jiff::Timestamp;
use ulid::Ulid;

use super::archive::Archived;
use super::base::Base;
use super::history::{History, Leg};
use super::name::{Lsn, SegmentSize, Timeline};
use super::records::{Demands, Event, Record};
use crate::repository::layout::Cluster;

/// The log that lies beside the data directory during replay, at most: what the server keeps between two restartpoints,
/// half as much again while it writes one, and what is fetched ahead.
const LOG_BESIDE_BYTES: u64 = 6 << 30;

/// Where recovery shall stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// With every transaction that had committed by then.
    Time(Timestamp),
    /// Behind the record that begins at this position, or the next one.
    Lsn(Lsn),
    /// `pg_create_restore_point` was called with this name.
    Name(String),
    /// Behind this transaction.
    Transaction(u32),
    /// The latest instant that can be reached.
    Latest,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub goal: Goal,
    /// A base backup by its id; `None`: the plan chooses.
    pub base: Option<Ulid>,
    /// `None`: the newest.
    pub timeline: Option<Timeline>,
}

/// Where in the log recovery will stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    pub lsn: Lsn,
    /// Of the transaction in front of which it stops, or at which.
    pub at: Option<Timestamp>,
    /// The transaction in front of which recovery to an instant stops.
    pub transaction: Option<u32>,
}

impl Stop {
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let transaction = match record.event {
            Event::Commit(xid) | Event::Abort(xid) => (xid != 0).then_some(xid),
            Event::RestorePoint(_) => None,
        };
        Self {
            lsn: record.lsn,
            at: Some(record.at),
            transaction,
        }
    }
}

/// A file of the archive that the recovery will ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// As PostgreSQL asks for it.
    pub name: String,
    pub archived: Archived,
}

/// Something that was looked at before the plan was given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub what: &'static str,
    pub found: String,
}

/// How long past drills took: bytes per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    pub unpack: f64,
    pub replay: f64,
    /// Start, checks, stop.
    pub rest: Duration,
}

/// The recovery, before it happens.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub id: Ulid,
    pub made_at: Timestamp,
    pub cluster: Cluster,
    /// What PostgreSQL will be told; never [`Goal::Latest`].
    pub goal: Goal,
    pub stop: Stop,
    pub base: Base,
    /// Given to PostgreSQL explicitly.
    pub timeline: Timeline,
    pub path: Vec<Leg>,
    pub segment_size: SegmentSize,
    /// Segments in the order of replay.
    pub segments: Vec<Needed>,
    pub histories: Vec<Needed>,
    /// The last transactions that will be there, oldest first.
    pub recent: Vec<Stop>,
    /// What the log asks of a server that replays it.
    pub demands: Demands,
    /// From the copy's start to the stop.
    pub replay_bytes: u64,
    pub disk_bytes: u64,
    /// `None`: no drill has been made yet.
    pub expected: Option<Duration>,
    pub checks: Vec<Check>,
}

impl Plan {
    #[must_use]
    pub fn log_stored_bytes(&self) -> u64 {
        self.segments.iter().map(|needed| needed.archived.stored_bytes).sum()
    }
}

/// Why a target cannot be reached, and what can.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub before: Option<Timestamp>,
    pub after: Option<Timestamp>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.reason)?;
        match (self.before, self.after) {
            (Some(before), Some(after)) if before != after => {
                write!(f, "; the nearest that can be reached are {before} and {after}")
            }
            (Some(nearest), _) | (None, Some(nearest)) => write!(f, "; the nearest that can be reached is {nearest}"),
            (None, None) => Ok(()),
        }
    }
}

/// How a base backup stands to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    Usable,
    /// It ended after the target.
    TooLate,
    /// Its timeline was left before it was taken, as the wanted path has it.
    Elsewhere,
}

fn fit(base: &Base, path: &History, goal: &Goal, stop: Option<Lsn>) -> Fit {
    if path.legs_from(base.timeline, base.start).is_none() {
        return Fit::Elsewhere;
    }
    let in_time = match goal {
        Goal::Time(at) => base.stopped_at <= *at,
        Goal::Lsn(lsn) => base.stop <= *lsn,
        Goal::Name(_) | Goal::Transaction(_) => stop.is_none_or(|stop| base.stop <= stop),
        Goal::Latest => true,
    };
    if in_time { Fit::Usable } else { Fit::TooLate }
}

/// The base backup from which the least log must be replayed. `stop`: where the target stands in the log, for targets
/// that do not say so themselves.
///
/// # Errors
/// No base backup can serve.
pub fn choose<'a>(
    bases: &'a [Base],
    path: &History,
    request: &Request,
    stop: Option<Lsn>,
    now: Timestamp,
) -> Result<&'a Base, Refusal> {
    let refuse = |reason: String| Refusal {
        reason,
        ..Refusal::default()
    };
    if let Goal::Time(at) = request.goal
        && at > now
    {
        return Err(refuse(format!("{at} lies in the future")));
    }
    if let Some(wanted) = request.base {
        let unknown = || refuse(format!("there is no base backup {wanted} in the repository"));
        let base = bases.iter().find(|base| base.id == wanted).ok_or_else(unknown)?;
        return match fit(base, path, &request.goal, stop) {
            Fit::Usable => Ok(base),
            Fit::TooLate => Err(refuse(format!(
                "base backup {wanted} ended at {}, after the target; recovery from it would stop too late",
                base.stopped_at
            ))),
            Fit::Elsewhere => Err(refuse(format!(
                "base backup {wanted} stands on timeline {}, which timeline {} left before it was taken",
                base.timeline, path.timeline
            ))),
        };
    }
    if bases.is_empty() {
        return Err(refuse("there is no base backup in the repository".to_owned()));
    }
    let usable = bases
        .iter()
        .filter(|base| fit(base, path, &request.goal, stop) == Fit::Usable);
    usable.max_by_key(|base| (base.stop, base.id)).ok_or_else(|| {
        let late = bases
            .iter()
            .any(|base| fit(base, path, &request.goal, stop) == Fit::TooLate);
        refuse(match late {
            true => "every base backup ended after the target".to_owned(),
            false => format!("no base backup leads to timeline {}", path.timeline),
        })
    })
}

/// Whether recovery to `goal` from `base` stops at this record, and PostgreSQL's own rule for it.
///
/// # Errors
/// It would stop, or be asked to, before the copy is consistent.
pub fn stops_at(goal: &Goal, base: &Base, record: &Record) -> Result<bool, Refusal> {
    let stops = match (goal, &record.event) {
        (Goal::Time(at), Event::Commit(_) | Event::Abort(_)) => record.at > *at,
        (Goal::Transaction(wanted), Event::Commit(xid) | Event::Abort(xid)) => xid == wanted,
        (Goal::Name(wanted), Event::RestorePoint(name)) => name == wanted,
        _ => false,
    };
    if stops && record.lsn < base.stop {
        return Err(Refusal {
            reason: format!(
                "the target lies at {}, within the copying of base backup {} (up to {})",
                record.lsn, base.id, base.stop
            ),
            ..Refusal::default()
        });
    }
    Ok(stops)
}

/// Disk that the recovered cluster and the log beside it take up. `replay_bytes` of log can add as much data, though
/// a log that is longer than the whole copy mostly wrote over what was there.
#[must_use]
pub fn disk_bytes(base: &Base, segments: u64, replay_bytes: u64) -> u64 {
    let unpacked = base.unpacked_bytes();
    let beside = segments.saturating_mul(base.segment_size.bytes()).min(LOG_BESIDE_BYTES);
    let growth = replay_bytes.min(unpacked);
    unpacked.saturating_add(beside).saturating_add(growth)
}

/// By the rates of past drills.
#[must_use]
pub fn expected(rates: Option<Rates>, unpacked_bytes: u64, replay_bytes: u64) -> Option<Duration> {
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let seconds = |bytes: u64, rate: f64| if rate > 0.0 { bytes as f64 / rate } else { 0.0 };
    let rates = rates?;
    let total = seconds(unpacked_bytes, rates.unpack) + seconds(replay_bytes, rates.replay);
    Duration::try_from_secs_f64(total).ok()?.checked_add(rates.rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(bytes: u64) -> Base {
        let part = crate::repository::manifest::Part {
            name: "base".to_owned(),
            object: String::new(),
            plain_bytes: bytes,
            plain_sha256: None,
            stored_bytes: 0,
            stored_sha256: String::new(),
        };
        Base {
            id: Ulid::nil(),
            cluster: Cluster {
                system_identifier: "1".to_owned(),
                major: 15,
            },
            folder: String::new(),
            timeline: Timeline(1),
            start: Lsn(0),
            stop: Lsn(0),
            started_at: Timestamp::UNIX_EPOCH,
            stopped_at: Timestamp::UNIX_EPOCH,
            segment_size: SegmentSize::DEFAULT,
            server_version: 150_000,
            tablespaces: Vec::new(),
            labels: Vec::new(),
            schedule_keys: Vec::new(),
            parts: vec![part],
            encrypted: true,
            deleted_at: None,
            incomplete: None,
            leased_until: None,
        }
    }

    #[test]
    fn disk_is_counted_for_the_copy_the_log_beside_it_and_what_the_log_adds() {
        let gib = 1_u64 << 30;
        assert_eq!(disk_bytes(&base(gib), 64, 1000), gib + gib + 1000);
        assert_eq!(
            disk_bytes(&base(gib), 128, 2 * gib),
            gib + 2 * gib + gib,
            "more than eighty segments"
        );
        assert_eq!(
            disk_bytes(&base(gib), 100_000, 1600 * gib),
            gib + LOG_BESIDE_BYTES + gib,
            "restartpoints let go of what is replayed"
        );
    }
}
