//! What recovery no longer needs. Pure: time is an argument.
//!
//! The anchor of a timeline is the newest base backup on its path that had ended before the window began: with its log it
//! reaches every instant of the window that lies on that timeline. Later ones stay, earlier ones go unless they are pinned; a
//! pinned one keeps the log of its own copying only, and can be restored as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use ulid::Ulid;

use super::base::Base;
use super::history::History;
use super::name::{Lsn, SegmentName, SegmentSize, Stem, Timeline};
use crate::tasks::calendar::Schedule;

/// The label of a base backup that stays until it is deleted by hand.
pub const PINNED: &str = "pinned";

/// How long instants can be reached, and when deletion stops because something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub window: Duration,
    /// While the newest base backup is older than this, nothing is deleted.
    pub stale_after: Duration,
    /// From tombstone to deletion.
    pub grace: Duration,
}

const DAY: Duration = Duration::from_hours(24);
/// Without a schedule nothing says when the next base backup is due.
const STALE_BY_HAND: Duration = Duration::from_hours(14 * 24);

impl Policy {
    /// For a window and the schedule of base backups; `None`: they are taken by hand.
    #[must_use]
    pub fn new(window: Duration, schedule: Option<Schedule>) -> Self {
        Self {
            window,
            stale_after: stale_after(window, schedule),
            grace: DAY,
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(DAY * 7, None)
    }
}

/// At what age the newest base backup is overdue: two intervals of its schedule.
fn stale_after(window: Duration, schedule: Option<Schedule>) -> Duration {
    let by_hand = STALE_BY_HAND.max(window.saturating_mul(2));
    schedule.map_or(by_hand, |schedule| schedule.interval().saturating_mul(2))
}

/// Why nothing at all is deleted now; `None`: deletion goes on.
#[must_use]
pub fn frozen(bases: &[Base], policy: &Policy, now: Timestamp) -> Option<&'static str> {
    let newest = newest(bases);
    match newest {
        None => Some("there is no base backup"),
        Some(newest) if newest.stopped_at > now => {
            Some("the newest base backup lies in the future, so nothing is deleted")
        }
        Some(newest) if now.duration_since(newest.stopped_at).unsigned_abs() > policy.stale_after => {
            Some("the newest base backup is overdue, so nothing is deleted")
        }
        Some(_) => None,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub id: Ulid,
    pub keep: bool,
    /// It is kept for what it is, not only while deletion is frozen or it is in use: a mark on it is lifted.
    pub lasting: bool,
    /// Sentences for the operator.
    pub reasons: Vec<String>,
}

/// Where the timelines of the log came from. `None`: of this one nobody can say.
pub type Histories = BTreeMap<Timeline, Option<History>>;

/// What is there in part stands for nothing.
fn newest(bases: &[Base]) -> Option<&Base> {
    let whole = bases.iter().filter(|base| base.incomplete.is_none());
    whole.max_by_key(|base| (base.stopped_at, base.id))
}

/// When the window begins.
fn begins(policy: &Policy, now: Timestamp) -> Timestamp {
    let window = SignedDuration::try_from(policy.window).unwrap_or(SignedDuration::MAX);
    now.saturating_sub(window).unwrap_or(Timestamp::MIN)
}

/// From which base backups the window begins: one for each timeline that has a part in it, that of the newest log included.
/// A timeline that was left before the window began has none, since whatever it leads to is a timeline of its own.
fn anchors(bases: &[Base], histories: &Histories, begins: Timestamp) -> BTreeSet<Ulid> {
    let newest_of = |chosen: &dyn Fn(&&Base) -> bool| {
        let whole = bases.iter().filter(|base| base.incomplete.is_none());
        let before = whole.filter(|base| base.stopped_at <= begins);
        // Marked ones count as well: where the window has grown, one of them may be the anchor again.
        before.filter(chosen).max_by_key(|base| (base.stopped_at, base.id))
    };
    let overall = newest_of(&|_| true);
    let within = bases.iter().filter(|base| base.stopped_at > begins);
    let timelines: BTreeSet<Timeline> = within
        .chain(overall)
        .map(|base| base.timeline)
        .chain(histories.keys().next_back().copied())
        .collect();
    let first = History::first();
    let mut anchors: BTreeSet<Ulid> = overall.iter().map(|base| base.id).collect();
    for timeline in timelines {
        let history = match timeline {
            Timeline(1) => Some(&first),
            _ => histories.get(&timeline).and_then(Option::as_ref),
        };
        let Some(history) = history else {
            let on_it = newest_of(&|base| base.timeline == timeline);
            // What it came of may be any of the others.
            let others = bases
                .iter()
                .filter(|base| base.stopped_at <= begins && base.timeline < timeline);
            let others = others.filter(|_| on_it.is_none());
            anchors.extend(others.chain(on_it).map(|base| base.id));
            continue;
        };
        let on_path = newest_of(&|base| history.legs_from(base.timeline, base.start).is_some());
        anchors.extend(on_path.map(|base| base.id));
    }
    anchors
}

/// Decides for every base backup of one cluster. The result is in the order of `bases`.
#[must_use]
pub fn plan(bases: &[Base], histories: &Histories, policy: &Policy, now: Timestamp) -> Vec<Decision> {
    let begins = begins(policy, now);
    let newest = newest(bases);
    let anchors = anchors(bases, histories, begins);
    let frozen = frozen(bases, policy, now);
    let decide = |base: &Base| {
        let mut reasons = Vec::new();
        if base.stopped_at > begins {
            reasons.push("it lies within the window".to_owned());
        }
        if anchors.contains(&base.id) {
            reasons.push("the window begins from it".to_owned());
        }
        if newest.is_some_and(|newest| newest.id == base.id) {
            reasons.push("it is the newest".to_owned());
        }
        if base.labels.iter().any(|label| label == PINNED) {
            reasons.push("it is pinned, with the log of its copying only".to_owned());
        }
        let lasting = !reasons.is_empty();
        if base.is_leased(now) {
            reasons.push("it is in use".to_owned());
        }
        reasons.extend(frozen.map(str::to_owned));
        let keep = !reasons.is_empty();
        if !keep {
            reasons.push("a later base backup reaches the whole window".to_owned());
        }
        Decision {
            id: base.id,
            keep,
            lasting,
            reasons,
        }
    };
    bases.iter().map(decide).collect()
}

/// What of the log must stay for one base backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    pub timeline: Timeline,
    pub start: Lsn,
    /// `None`: all that follows, on every timeline that came of it.
    pub stop: Option<Lsn>,
}

/// The holds of the base backups that are still there, marked ones included: until they are gone they can be restored.
#[must_use]
pub fn holds(bases: &[Base], histories: &Histories, policy: &Policy, now: Timestamp) -> Vec<Hold> {
    let begins = begins(policy, now);
    let anchors = anchors(bases, histories, begins);
    let hold = |base: &Base| {
        let is_pinned = base.labels.iter().any(|label| label == PINNED);
        let is_island = is_pinned && !base.is_leased(now) && base.stopped_at <= begins && !anchors.contains(&base.id);
        Hold {
            timeline: base.timeline,
            start: base.start,
            stop: is_island.then_some(base.stop),
        }
    };
    bases.iter().map(hold).collect()
}

impl Hold {
    /// The last segment that must stay; `None`: there is none.
    pub(super) fn last(&self, size: SegmentSize) -> Option<u64> {
        self.stop.map(|stop| Lsn(stop.0.saturating_sub(1)).segment(size))
    }
}

/// Whether a segment may go. `history`: that of its timeline; a timeline of unknown origin keeps everything. `sizes`: those of
/// the base backups, since `pg_resetwal` may have changed it, and a name means another position under each.
#[must_use]
pub fn may_go(stem: Stem, history: Option<&History>, holds: &[Hold], sizes: &[SegmentSize]) -> bool {
    let names = sizes.iter().filter_map(|size| Some((stem.name(*size)?, *size)));
    let mut needed = names
        .map(|(name, size)| is_needed(name, history, holds, size))
        .peekable();
    needed.peek().is_some() && !needed.any(|is_needed| is_needed)
}

fn is_needed(segment: SegmentName, history: Option<&History>, holds: &[Hold], size: SegmentSize) -> bool {
    let Some(history) = history else { return true };
    holds.iter().any(|hold| {
        let follows = history.legs_from(hold.timeline, hold.start).is_some();
        let first = hold.start.segment(size);
        let from_there = segment.number >= first && hold.last(size).is_none_or(|last| segment.number <= last);
        // The copy's own log stands on its own timeline; what came of it, on any that follows.
        follows && from_there && (hold.stop.is_none() || segment.timeline == hold.timeline)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::layout::Cluster;

    const DAY: i64 = 86_400;

    fn base(day: i64, timeline: u32, start: u64, labels: &[&str]) -> Base {
        let at = Timestamp::from_second(day * DAY).expect("in range");
        Base {
            id: Ulid::from_parts(u64::try_from(day).expect("positive"), 0),
            cluster: Cluster {
                system_identifier: "1".to_owned(),
                major: 15,
            },
            folder: String::new(),
            timeline: Timeline(timeline),
            start: Lsn(start << 24),
            stop: Lsn((start << 24) + 0x100),
            started_at: at,
            stopped_at: at,
            segment_size: SegmentSize::DEFAULT,
            server_version: 150_000,
            tablespaces: Vec::new(),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            schedule_keys: Vec::new(),
            parts: Vec::new(),
            encrypted: true,
            deleted_at: None,
            incomplete: None,
            leased_until: None,
        }
    }

    fn kept(bases: &[Base], day: i64) -> Vec<u64> {
        let now = Timestamp::from_second(day * DAY + 3600).expect("in range");
        let decisions = plan(bases, &Histories::new(), &Policy::default(), now);
        decisions
            .iter()
            .filter(|decision| decision.keep)
            .map(|decision| decision.id.timestamp_ms())
            .collect()
    }

    #[test]
    fn segment_goes_only_if_no_base_backup_needs_it_by_its_own_segment_size() {
        let [large, usual] = [64 << 20, 16 << 20].map(|bytes| SegmentSize::new(bytes).expect("a size"));
        // Taken while segments had 64 MiB: the sixth of them begins at the twenty-first of the usual ones.
        let holds = [Hold {
            timeline: Timeline(1),
            start: Lsn(5 << 26),
            stop: None,
        }];
        let goes = |number: u64, sizes: &[SegmentSize]| {
            let timeline = Timeline(1);
            let stem = SegmentName { timeline, number }.file(large);
            may_go(stem, Some(&History::first()), &holds, sizes)
        };
        assert!(!goes(5, &[usual, large]), "read as a usual one it stands before");
        assert!(goes(4, &[usual, large]));
        assert!(!goes(4, &[]), "nobody can say where it stands");
    }

    #[test]
    fn the_window_keeps_the_base_backup_from_which_it_begins() {
        let bases: Vec<_> = [1, 8, 15, 22].iter().map(|day| base(*day, 1, 1, &[])).collect();
        assert_eq!(kept(&bases, 22), [15, 22]);
        assert_eq!(
            kept(&bases, 28),
            [15, 22],
            "on the 21st only the one of the 15th is older than a week"
        );
    }

    #[test]
    fn what_a_timeline_in_the_window_came_of_stays_although_a_later_one_was_abandoned() {
        // Daily, on timeline 1 until the 16th; then the server was recovered to just after the 10th, and is timeline 2.
        let mut bases: Vec<_> = (8..17)
            .map(|day| base(day, 1, u64::try_from(day).expect("positive"), &[]))
            .collect();
        let second = History::parse(Timeline(2), "1\t0/A800000\trecovered\n").expect("a history");
        let known = Histories::from([(Timeline(1), Some(History::first())), (Timeline(2), Some(second))]);
        let kept = |bases: &[Base], histories: &Histories, day: i64| -> Vec<u64> {
            let now = Timestamp::from_second(day * DAY + 3600).expect("in range");
            let taken: Vec<_> = bases.iter().filter(|base| base.stopped_at <= now).cloned().collect();
            let decisions = plan(&taken, histories, &Policy::default(), now);
            let kept = decisions.iter().filter(|decision| decision.keep);
            kept.map(|decision| decision.id.timestamp_ms()).collect()
        };
        assert_eq!(
            kept(&bases, &known, 18),
            [10, 11, 12, 13, 14, 15, 16],
            "no copy of timeline 2 yet"
        );
        bases.extend((17..25).map(|day| base(day, 2, 11, &[])));
        assert_eq!(kept(&bases, &known, 18)[..2], [10, 11]);
        let late: Vec<u64> = (17..25).collect();
        assert_eq!(
            kept(&bases, &known, 24),
            late,
            "timeline 1 has no part in the window any more"
        );
        let unknown = Histories::from([(Timeline(2), None)]);
        assert_eq!(
            kept(&bases, &unknown, 18)[..2],
            [8, 9],
            "nobody can say which of them it came of"
        );
        assert_eq!(kept(&bases, &unknown, 24), late);
    }

    #[test]
    fn base_backup_of_which_a_part_is_missing_stands_for_no_other() {
        let mut bases: Vec<_> = [1, 8, 15, 22].iter().map(|day| base(*day, 1, 1, &[])).collect();
        bases[2].incomplete = Some("base.tar is missing".to_owned());
        assert_eq!(kept(&bases, 23), [8, 22]);
        bases[3].incomplete = Some("base.tar is missing".to_owned());
        assert_eq!(kept(&bases, 23).len(), 4, "the newest that is whole is overdue");
    }

    #[test]
    fn pinned_and_leased_stay_and_an_overdue_one_freezes() {
        let mut bases: Vec<_> = [1, 8, 15, 22].iter().map(|day| base(*day, 1, 1, &[])).collect();
        bases[0].labels = vec![PINNED.to_owned()];
        bases[1].leased_until = Some(Timestamp::from_second(30 * DAY).expect("in range"));
        assert_eq!(kept(&bases, 22), [1, 8, 15, 22]);
        let plain: Vec<_> = [1, 8, 15, 22].iter().map(|day| base(*day, 1, 1, &[])).collect();
        assert_eq!(kept(&plain, 40).len(), 4, "the newest is overdue");
        assert_eq!(kept(&plain, 20).len(), 4, "the clock jumped back");
    }

    #[test]
    fn a_mark_is_lifted_where_the_window_has_grown_over_it() {
        let mut bases: Vec<_> = [1, 8, 15, 22].iter().map(|day| base(*day, 1, 1, &[])).collect();
        for marked in &mut bases[..2] {
            marked.deleted_at = Some(Timestamp::from_second(21 * DAY).expect("in range"));
        }
        let now = Timestamp::from_second(23 * DAY).expect("in range");
        let policy = Policy::new(Duration::from_hours(24 * 12), None);
        let lasting: Vec<bool> = plan(&bases, &Histories::new(), &policy, now)
            .iter()
            .map(|decision| decision.lasting)
            .collect();
        assert_eq!(
            lasting,
            [false, true, true, true],
            "the window of twelve days begins from the 8th"
        );
    }

    #[test]
    fn a_base_backup_is_overdue_after_two_intervals_of_its_own_schedule() {
        let at = |day: i64| Timestamp::from_second(day * DAY).expect("in range");
        let bases = [base(1, 1, 1, &[])];
        let frozen_at = |schedule: &str, day| {
            let schedule = schedule.parse().expect("a schedule");
            frozen(&bases, &Policy::new(Duration::from_hours(24), Some(schedule)), at(day)).is_some()
        };
        assert!(!frozen_at("03:00", 2) && frozen_at("03:00", 4));
        assert!(!frozen_at("Sun 05:00", 14) && frozen_at("Sun 05:00", 16));
        assert!(
            !frozen_at("1 05:00", 40),
            "a monthly one is not overdue after a fortnight"
        );
        assert!(frozen_at("1 05:00", 64));
        let by_hand = Policy::new(Duration::from_hours(24 * 30), None);
        assert_eq!(frozen(&bases, &by_hand, at(60)), None);
        assert!(frozen(&bases, &by_hand, at(62)).is_some() && frozen(&[], &by_hand, at(1)).is_some());
    }

    #[test]
    fn the_log_goes_below_the_anchor_and_stays_around_a_pinned_copy() {
        let bases = [base(1, 1, 2, &[PINNED]), base(15, 1, 10, &[]), base(22, 1, 20, &[])];
        let now = Timestamp::from_second(23 * DAY).expect("in range");
        let holds = holds(&bases, &Histories::new(), &Policy::default(), now);
        let first = History::first();
        let needed = |number| {
            let segment = SegmentName {
                timeline: Timeline(1),
                number,
            };
            is_needed(segment, Some(&first), &holds, SegmentSize::DEFAULT)
        };
        let kept: Vec<u64> = (0..25).filter(|number| needed(*number)).collect();
        let expected: Vec<u64> = [2].into_iter().chain(10..25).collect();
        assert_eq!(kept, expected);
    }

    #[test]
    fn each_timeline_keeps_what_came_of_a_kept_base_backup() {
        let text = "1\t0/C000000\tpromoted\n";
        let second = History::parse(Timeline(2), text).expect("a history");
        let holds = [Hold {
            timeline: Timeline(1),
            start: Lsn(10 << 24),
            stop: None,
        }];
        let on = |timeline, number, history: Option<&History>| {
            let segment = SegmentName {
                timeline: Timeline(timeline),
                number,
            };
            is_needed(segment, history, &holds, SegmentSize::DEFAULT)
        };
        assert!(on(2, 12, Some(&second)) && on(2, 10, Some(&second)) && !on(2, 9, Some(&second)));
        assert!(on(3, 1, None), "nobody knows where timeline 3 came from");
        let later = [Hold {
            timeline: Timeline(2),
            start: Lsn(14 << 24),
            stop: None,
        }];
        let old = SegmentName {
            timeline: Timeline(1),
            number: 30,
        };
        assert!(
            !is_needed(old, Some(&History::first()), &later, SegmentSize::DEFAULT),
            "the abandoned branch"
        );
    }
}
