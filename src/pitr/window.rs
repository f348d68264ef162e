//! Which instants can be reached, to the second. Pure: no clock, no I/O.
//!
//! From a base backup every instant from its end up to the last commit of its unbroken log can be reached. (Recovery
//! stops in front of the first commit *after* the target; without one PostgreSQL gives up. Heartbeats see to it that an
//! idle database has such commits.)

use jiff::{SignedDuration, Timestamp};
use ulid::Ulid;

/// A base backup and how far its log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    pub base: Ulid,
    pub from: Timestamp,
    /// The last commit before its log breaks or ends; `None`: there is none, or the log breaks within the copy.
    pub to: Option<Timestamp>,
    /// What is missing first, as a sentence. `None`: the log goes on to its end.
    pub broken_by: Option<String>,
    /// It is pinned, and retention removed the log behind its own.
    pub is_island: bool,
}

/// An unbroken stretch of instants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    pub from: Timestamp,
    pub to: Timestamp,
}

/// Instants that cannot be reached, between two that can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    pub from: Timestamp,
    pub to: Timestamp,
    pub because: String,
}

/// A pinned base backup that stands apart from the window, with no more of the log than that of its own copying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Island {
    pub base: Ulid,
    /// When it ended.
    pub from: Timestamp,
    /// The last instant that can be reached from it; `None`: its log holds no later commit, so that it can be had only as it
    /// is, at the position at which it ended.
    pub to: Option<Timestamp>,
}

/// The restorable window.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    /// Oldest first; they do not touch.
    pub stretches: Vec<Stretch>,
    pub holes: Vec<Hole>,
    /// Oldest first. What retention removed between them and the window is no hole.
    pub islands: Vec<Island>,
    /// Why nothing after the end can be reached, beyond there being no more log.
    pub ends_because: Option<String>,
    /// When the newest base backup ended whose log is whole, and holds no later commit yet.
    pub waits_since: Option<Timestamp>,
}

impl Window {
    #[must_use]
    pub fn earliest(&self) -> Option<Timestamp> {
        self.stretches.first().map(|stretch| stretch.from)
    }

    #[must_use]
    pub fn latest(&self) -> Option<Timestamp> {
        self.stretches.last().map(|stretch| stretch.to)
    }

    /// Why nothing (later) can be reached, as a sentence; `None`: nothing is known to be in the way.
    #[must_use]
    pub fn because(&self) -> Option<String> {
        let since = self.waits_since.filter(|_| self.stretches.is_empty());
        let waits = |since| {
            format!(
                "no commit after the base backup that ended at {since:.0} is archived yet; the first one begins the window \
                 (`archive_timeout` says how long that takes)"
            )
        };
        self.ends_because.clone().or_else(|| since.map(waits))
    }

    /// Why nothing at all can be reached, as a sentence.
    #[must_use]
    pub fn why_empty(&self) -> String {
        let none = || "there is no base backup with its log".to_owned();
        self.because().unwrap_or_else(none)
    }

    /// Also from pinned base backups that stand apart.
    #[must_use]
    pub fn holds(&self, at: Timestamp) -> bool {
        self.reached()
            .iter()
            .any(|stretch| stretch.from <= at && at <= stretch.to)
    }

    /// All instants that can be reached, those of islands as well; oldest first.
    fn reached(&self) -> Vec<Stretch> {
        let islands = self.islands.iter().filter_map(|island| {
            let (from, to) = (island.from, island.to?);
            Some(Stretch { from, to })
        });
        let mut reached: Vec<Stretch> = islands.chain(self.stretches.iter().copied()).collect();
        reached.sort_by_key(|stretch| stretch.from);
        reached
    }

    /// The nearest instants before and after `at` that can be reached.
    #[must_use]
    pub fn nearest(&self, at: Timestamp) -> (Option<Timestamp>, Option<Timestamp>) {
        let reached = self.reached();
        let before = reached.iter().rev().find(|stretch| stretch.from <= at);
        let after = reached.iter().find(|stretch| at <= stretch.to);
        (
            before.map(|stretch| stretch.to.min(at)),
            after.map(|stretch| stretch.from.max(at)),
        )
    }

    /// What would be lost if the server burned at `now`.
    #[must_use]
    pub fn recovery_point(&self, now: Timestamp) -> Option<SignedDuration> {
        self.latest()
            .map(|latest| now.duration_since(latest).max(SignedDuration::ZERO))
    }

    /// How long all stretches are together.
    #[must_use]
    pub fn length(&self) -> SignedDuration {
        self.stretches
            .iter()
            .map(|stretch| stretch.to.duration_since(stretch.from))
            .fold(SignedDuration::ZERO, SignedDuration::saturating_add)
    }

    /// The instant that lies at `share` (0 to 1) of the whole length.
    #[must_use]
    pub fn at_share(&self, share: f64) -> Option<Timestamp> {
        let mut left = SignedDuration::try_from_secs_f64(self.length().as_secs_f64() * share.clamp(0.0, 1.0)).ok()?;
        for stretch in &self.stretches {
            let length = stretch.to.duration_since(stretch.from);
            if left <= length {
                // PostgreSQL counts in microseconds.
                let at = stretch.from.checked_add(left).ok()?;
                return Timestamp::from_microsecond(at.as_microsecond()).ok();
            }
            left = left.saturating_sub(length);
        }
        self.latest()
    }
}

/// Joins what the base backups reach. `reaches` in any order.
#[must_use]
pub fn window(reaches: &[Reach]) -> Window {
    let mut sorted: Vec<&Reach> = reaches.iter().collect();
    sorted.sort_by_key(|reach| (reach.from, reach.base));
    let mut window = Window::default();
    for reach in sorted {
        // The last commit itself is what stops recovery in front of it.
        let last = reach.to.filter(|to| *to > reach.from);
        let last = last.map(|to| to.saturating_sub(SignedDuration::from_micros(1)).unwrap_or(to));
        if reach.is_island {
            window.islands.push(Island {
                base: reach.base,
                from: reach.from,
                to: last,
            });
            continue;
        }
        let Some(to) = last else {
            if reach.broken_by.is_none() {
                window.waits_since = Some(reach.from);
            }
            window.ends_because = reach.broken_by.clone().or(window.ends_because);
            continue;
        };
        match window.stretches.last_mut() {
            Some(last) if reach.from <= last.to => {
                if to >= last.to {
                    last.to = to;
                    window.ends_because.clone_from(&reach.broken_by);
                }
            }
            last => {
                if let Some(last) = last {
                    window.holes.push(Hole {
                        from: last.to,
                        to: reach.from,
                        because: window.ends_because.take().unwrap_or_else(|| "the log ends".to_owned()),
                    });
                }
                window.stretches.push(Stretch { from: reach.from, to });
                window.ends_because.clone_from(&reach.broken_by);
            }
        }
    }
    window
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn reach(base: u64, from: i64, to: Option<i64>, broken_by: Option<&str>) -> Reach {
        Reach {
            base: Ulid::from_parts(base, 0),
            from: second(from),
            to: to.map(second),
            broken_by: broken_by.map(str::to_owned),
            is_island: false,
        }
    }

    #[test]
    fn base_backups_of_one_unbroken_log_are_one_stretch() {
        let window = window(&[reach(2, 50, Some(100), None), reach(1, 10, Some(100), None)]);
        assert_eq!(window.stretches.len(), 1);
        assert_eq!(window.earliest(), Some(second(10)));
        assert!(window.latest().expect("a window") < second(100));
        assert!(window.holds(second(99)) && !window.holds(second(100)) && !window.holds(second(9)));
        assert_eq!(window.recovery_point(second(130)).map(|lost| lost.as_secs()), Some(30));
    }

    #[test]
    fn a_gap_ends_a_stretch_and_the_next_base_backup_begins_another() {
        let window = window(&[
            reach(1, 10, Some(40), Some("segment 7 is missing")),
            reach(2, 60, Some(100), None),
        ]);
        assert_eq!(window.holes.len(), 1);
        assert_eq!(window.holes[0].because, "segment 7 is missing");
        assert_eq!(window.ends_because, None);
        let (before, after) = window.nearest(second(50));
        assert!(before < Some(second(40)) && before >= Some(second(39)));
        assert_eq!(after, Some(second(60)));
        assert_eq!(window.nearest(second(5)), (None, Some(second(10))));
        assert_eq!(window.nearest(second(70)), (Some(second(70)), Some(second(70))));
        assert_eq!(window.nearest(second(500)).1, None);
    }

    #[test]
    fn a_pinned_base_backup_apart_from_the_window_makes_no_hole_and_is_not_where_the_window_begins() {
        let island = |base, from, to| Reach {
            is_island: true,
            ..reach(base, from, to, Some("segments 4 to 7 are missing"))
        };
        let window = window(&[
            island(1, 10, None),
            island(2, 20, Some(25)),
            reach(3, 60, Some(100), None),
        ]);
        assert_eq!((window.holes.len(), &window.ends_because), (0, &None));
        assert_eq!(window.earliest(), Some(second(60)));
        let ids: Vec<u64> = window.islands.iter().map(|island| island.base.timestamp_ms()).collect();
        assert_eq!(ids, [1, 2]);
        assert_eq!(window.islands[0].to, None);
        assert!(window.holds(second(20)) && window.holds(second(24)) && !window.holds(second(25)));
        assert!(
            !window.holds(second(10)),
            "nothing in its log could stop a recovery there"
        );
        let (before, after) = window.nearest(second(40));
        assert!(before < Some(second(25)) && before >= Some(second(24)));
        assert_eq!(after, Some(second(60)));
        assert!(window.holds(window.at_share(0.0).expect("an instant")));
        assert_eq!(window.at_share(0.0), Some(second(60)));
    }

    #[test]
    fn a_base_backup_whose_log_is_broken_or_idle_reaches_nothing() {
        let window = window(&[
            reach(1, 10, None, Some("segment 3 is missing")),
            reach(2, 20, Some(20), None),
        ]);
        assert_eq!(window.earliest(), None);
        assert_eq!(window.ends_because.as_deref(), Some("segment 3 is missing"));
        assert_eq!(window.at_share(0.5), None);
    }

    #[test]
    fn first_base_backup_waits_for_a_commit_and_is_not_said_to_be_missing() {
        let told = |reaches: &[Reach]| window(reaches).why_empty();
        assert!(told(&[]).contains("no base backup"));
        let waits = told(&[reach(2, 20, None, None)]);
        assert!(
            waits.contains("ended at 1970-01-01T00:00:20Z is archived yet"),
            "{waits}"
        );
        assert_eq!(
            told(&[reach(1, 10, None, Some("segment 3 is missing"))]),
            "segment 3 is missing"
        );
    }

    #[test]
    fn a_share_of_the_window_is_never_in_a_hole() {
        let window = window(&[reach(1, 0, Some(100), Some("x")), reach(2, 900, Some(1000), None)]);
        for share in 0..=100 {
            let at = window.at_share(f64::from(share) / 100.0).expect("an instant");
            assert!(window.holds(at), "{at}");
        }
    }
}
