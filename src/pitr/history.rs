//! Timeline history files, and the path that they describe. Pure: no clock, no I/O.
//!
//! The path is computed here and given to PostgreSQL explicitly: left to itself it follows the highest history file
//! that the archive shows it, and thereby any stranger's.

use super::name::{Lsn, Timeline};

/// A cluster that was promoted so often is not one of ours.
const ANCESTORS_MAX: usize = 10_000;

/// What is wrong with a history file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("line {line} of the history of timeline {timeline} is not \"timeline, position, reason\"")]
    Syntax { timeline: Timeline, line: usize },
    #[error("line {line} of the history of timeline {timeline} goes back")]
    Order { timeline: Timeline, line: usize },
    #[error("the history of timeline {timeline} has more than {ANCESTORS_MAX} lines")]
    TooLong { timeline: Timeline },
}

/// Where a timeline came from: each ancestor and the position at which the next one left it, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    pub timeline: Timeline,
    pub ancestors: Vec<Ancestor>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ancestor {
    pub timeline: Timeline,
    /// The first position that no longer belongs to it.
    pub switch: Lsn,
}

/// A stretch of the log on one timeline: from `begin` up to, not including, `end`; `None`: as far as it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    pub timeline: Timeline,
    pub begin: Lsn,
    pub end: Option<Lsn>,
}

impl History {
    /// The first timeline has no file.
    #[must_use]
    pub fn first() -> Self {
        Self {
            timeline: Timeline(1),
            ancestors: Vec::new(),
        }
    }

    /// Reads the history file of `timeline`.
    ///
    /// # Errors
    /// A line that PostgreSQL would not read either.
    pub fn parse(timeline: Timeline, text: &str) -> Result<Self, Error> {
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let (line, number) = (line.trim(), at + 1);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let ancestor = words.next().and_then(|word| word.parse().ok());
            let switch = words.next().and_then(|word| word.parse().ok());
            let Some((ancestor, switch)) = ancestor.zip(switch) else {
                return Err(Error::Syntax { timeline, line: number });
            };
            let ancestor = Ancestor {
                timeline: Timeline(ancestor),
                switch,
            };
            let follows = ancestors
                .last()
                .is_none_or(|before| before.timeline < ancestor.timeline && before.switch <= ancestor.switch);
            if !follows || ancestor.timeline >= timeline || ancestor.timeline.0 == 0 {
                return Err(Error::Order { timeline, line: number });
            }
            ancestors.push(ancestor);
            if ancestors.len() > ANCESTORS_MAX {
                return Err(Error::TooLong { timeline });
            }
        }
        Ok(Self { timeline, ancestors })
    }

    /// The whole path, oldest leg first.
    #[must_use]
    pub fn legs(&self) -> Vec<Leg> {
        let mut begin = Lsn(0);
        let mut legs = Vec::with_capacity(self.ancestors.len() + 1);
        for ancestor in &self.ancestors {
            legs.push(Leg {
                timeline: ancestor.timeline,
                begin,
                end: Some(ancestor.switch),
            });
            begin = ancestor.switch;
        }
        legs.push(Leg {
            timeline: self.timeline,
            begin,
            end: None,
        });
        legs
    }

    /// The path from `start` on timeline `from` to here, oldest leg first. `None`: `from` is no ancestor, or had been
    /// left before `start`: a base backup taken there cannot reach this timeline.
    #[must_use]
    pub fn legs_from(&self, from: Timeline, start: Lsn) -> Option<Vec<Leg>> {
        let mut legs = self.legs();
        let at = legs.iter().position(|leg| leg.timeline == from)?;
        legs.drain(..at);
        let first = legs.first_mut()?;
        if start < first.begin || first.end.is_some_and(|end| end < start) {
            return None;
        }
        first.begin = start;
        Some(legs)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THIRD: &str = "1\t0/3000060\tno recovery target specified\n\n2\t0/50000A0\tbefore 2026-11-22 01:47:29+00\n";

    #[test]
    fn a_path_runs_from_the_first_timeline_to_the_last() {
        let history = History::parse(Timeline(3), THIRD).expect("a history");
        let legs = history.legs();
        let switches: Vec<_> = legs.iter().map(|leg| (leg.timeline.0, leg.begin.0, leg.end)).collect();
        assert_eq!(
            switches,
            [
                (1, 0, Some(Lsn(0x0300_0060))),
                (2, 0x0300_0060, Some(Lsn(0x0500_00A0))),
                (3, 0x0500_00A0, None)
            ]
        );
    }

    #[test]
    fn a_backup_reaches_only_timelines_that_left_its_own_behind_it() {
        let history = History::parse(Timeline(3), THIRD).expect("a history");
        let start = |timeline, lsn| history.legs_from(Timeline(timeline), Lsn(lsn)).map(|legs| legs.len());
        assert_eq!(start(1, 0x0200_0028), Some(3));
        assert_eq!(start(1, 0x0300_0060), Some(3), "at the very switch");
        assert_eq!(start(1, 0x0300_0061), None, "what came after the switch is not in it");
        assert_eq!(start(2, 0x0400_0000), Some(2));
        assert_eq!(start(2, 0x0200_0000), None, "timeline 2 did not exist there yet");
        assert_eq!(start(3, 0x0900_0000), Some(1));
        assert_eq!(start(4, 0x0900_0000), None);
        assert_eq!(
            History::first().legs_from(Timeline(1), Lsn(7)).map(|legs| legs.len()),
            Some(1)
        );
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        let parse = |text| History::parse(Timeline(3), text);
        assert_eq!(
            parse("1 0/1 x\nnonsense"),
            Err(Error::Syntax {
                timeline: Timeline(3),
                line: 2
            })
        );
        for text in ["2 0/5 x\n1 0/6 x", "1 0/5 x\n2 0/4 x", "3 0/5 itself", "0 0/5 x"] {
            assert!(matches!(parse(text), Err(Error::Order { .. })), "{text}");
        }
        assert_eq!(
            parse("# only a remark\n\n").map(|history| history.ancestors.len()),
            Ok(0)
        );
    }

    proptest! {
        #[test]
        fn legs_touch_and_never_overlap(steps in prop::collection::vec((1_u32..5, 0_u64..1 << 40), 0..20)) {
            let (mut timeline, mut at, mut text) = (0, 0, String::new());
            for (more, far) in steps {
                timeline += more;
                at += far;
                text.push_str(&format!("{timeline}\t{}\twhy\n", Lsn(at)));
            }
            let legs = History::parse(Timeline(timeline + 1), &text).expect("a history").legs();
            for pair in legs.windows(2) {
                prop_assert_eq!(pair[0].end, Some(pair[1].begin));
                prop_assert!(pair[0].timeline < pair[1].timeline);
            }
        }

        #[test]
        fn nothing_panics(text in "(?s).{0,200}") {
            drop(History::parse(Timeline(9), &text));
        }
    }
}
