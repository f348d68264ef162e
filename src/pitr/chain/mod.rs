//! Which archived files carry the log along a path of timelines, how far they reach without a break, and what is
//! missing. Pure: no clock, no I/O.
//!
//! A gap is silent loss: PostgreSQL without a target replays up to the first missing segment, promotes and reports
//! success. So the chain is proven before anything starts.

use std::collections::BTreeMap;

use super::history::Leg;
use super::name::{File, Lsn, SegmentName, SegmentSize, Timeline};

/// Gaps beyond this number say no more than the first ones.
const GAPS_MAX: usize = 10_000;

/// Finds archived files by timeline and number. Built once for many questions.
#[derive(Debug)]
pub struct Index {
    size: SegmentSize,
    entries: BTreeMap<SegmentName, Entry>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Entry {
    whole: Option<usize>,
    partial: Option<usize>,
    /// Two different objects claim to be this file: neither can be believed.
    is_disputed: bool,
}

impl Index {
    /// `files` in the order in which [`Link::position`] will count them.
    pub fn new(size: SegmentSize, files: impl IntoIterator<Item = File>) -> Self {
        let mut entries: BTreeMap<SegmentName, Entry> = BTreeMap::new();
        for (position, file) in files.into_iter().enumerate() {
            let (File::Segment(stem) | File::Partial(stem)) = file else {
                continue;
            };
            let Some(name) = stem.name(size) else { continue };
            let entry = entries.entry(name).or_default();
            let place = match file {
                File::Partial(_) => &mut entry.partial,
                _ => &mut entry.whole,
            };
            // Of two partial files either may be the shorter; of two whole ones, either a stranger's.
            if place.replace(position).is_some() {
                entry.is_disputed = true;
            }
        }
        Self { size, entries }
    }

    /// The last segment of `timeline`, whole or partial.
    #[must_use]
    pub fn last(&self, timeline: Timeline) -> Option<SegmentName> {
        let (first, last) = (
            SegmentName { timeline, number: 0 },
            SegmentName {
                timeline,
                number: u64::MAX,
            },
        );
        self.entries.range(first..=last).next_back().map(|(name, _)| *name)
    }

    /// The first segment of `timeline` that ends behind `from`, whole or partial.
    #[must_use]
    pub fn first_since(&self, timeline: Timeline, from: Lsn) -> Option<SegmentName> {
        let first = SegmentName::at(timeline, from, self.size);
        let last = SegmentName {
            number: u64::MAX,
            ..first
        };
        self.entries.range(first..=last).next().map(|(name, _)| *name)
    }

    fn link(&self, name: SegmentName) -> Option<Link> {
        let entry = self.entries.get(&name).filter(|entry| !entry.is_disputed)?;
        let stem = name.file(self.size);
        let whole = entry.whole.map(|position| (File::Segment(stem), position));
        let partial = entry.partial.map(|position| (File::Partial(stem), position));
        let (file, position) = whole.or(partial)?;
        Some(Link { name, file, position })
    }
}

/// A segment of the chain and the file that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub name: SegmentName,
    pub file: File,
    /// Of the file among those that the index was made of.
    pub position: usize,
}

/// Segments without a file that could be used, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    pub timeline: Timeline,
    pub first: u64,
    pub last: u64,
    /// Two different files claim to be the first of them.
    pub is_disputed: bool,
}

impl Gap {
    #[must_use]
    pub fn segments(&self) -> u64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }
}

/// What the archive holds along a path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// Every segment that is there, in the order of replay, those behind a gap as well.
    pub links: Vec<Link>,
    /// Every run of segments that are missing before the last that is there, or before the end of a leg.
    pub gaps: Vec<Gap>,
    /// How many of `links` stand before the first gap.
    pub contiguous: usize,
    /// The log is there without a break up to this position; equal to the start where nothing is.
    pub reach: Lsn,
}

/// Follows `path` (see [`super::history::History::legs_from`]) from the begin of its first leg, as far as the archive
/// goes or, with `until`, as far as that position.
///
/// A segment in which one timeline gives way to the next may be archived under either, or as a partial file of the
/// older: the newer one holds all that the older one had before the switch, so it is taken first.
#[must_use]
pub fn follow(index: &Index, path: &[Leg], until: Option<Lsn>) -> Chain {
    let Some(start) = path.first().map(|leg| leg.begin) else {
        return Chain::default();
    };
    let mut chain = Chain {
        reach: start,
        ..Chain::default()
    };
    let Some(end) = last_number(index, path, until) else {
        return chain;
    };
    let size = index.size;
    let mut leg = 0;
    for number in start.segment(size)..=end {
        while path.get(leg + 1).is_some_and(|next| next.begin.segment(size) < number) {
            leg += 1;
        }
        let span = Span {
            number,
            first: Lsn(number.saturating_mul(size.bytes())),
            needed: Lsn(number.saturating_add(1).saturating_mul(size.bytes())).min(until.unwrap_or(Lsn(u64::MAX))),
            // The end of what is archived is no gap, unless more was asked for.
            is_tail: number == end && until.is_none(),
        };
        let legs: Vec<&Leg> = path
            .iter()
            .skip(leg)
            .take_while(|leg| leg.begin.segment(size) <= number)
            .filter(|leg| leg.end.is_none_or(|end| end > span.first))
            .collect();
        chain.add(index, &legs, &span);
        if chain.gaps.len() >= GAPS_MAX {
            break;
        }
    }
    chain
}

/// The last segment to look at: the one before `until` (a target on a boundary does not need what begins there), or
/// the last that is archived anywhere on the path.
fn last_number(index: &Index, path: &[Leg], until: Option<Lsn>) -> Option<u64> {
    let size = index.size;
    let last = match until {
        Some(lsn) => Some(Lsn(lsn.0.saturating_sub(1)).segment(size)),
        None => path
            .iter()
            .filter_map(|leg| {
                let there = index.last(leg.timeline)?.number;
                // What a timeline went on to write behind the switch is not on the path.
                let left = leg
                    .end
                    .map_or(u64::MAX, |end| Lsn(end.0.saturating_sub(1)).segment(size));
                Some(there.min(left))
            })
            .max(),
    };
    last.filter(|last| path.first().is_some_and(|leg| leg.begin.segment(size) <= *last))
}

/// A segment of the path, whatever the timeline.
struct Span {
    number: u64,
    first: Lsn,
    /// Up to where it is needed.
    needed: Lsn,
    is_tail: bool,
}

/// Up to where `link`, a file of `leg`, holds the path's log. What an older timeline's file holds behind the switch is
/// not on the path. A partial file was closed at the switch; without one it ends no one knows where.
fn holds(leg: &Leg, link: &Link, size: SegmentSize) -> Lsn {
    let end = link.name.end(size);
    match (leg.end.filter(|switch| *switch < end), link.file) {
        (Some(switch), _) => switch,
        (None, File::Partial(_)) => link.name.first(size),
        (None, _) => end,
    }
}

impl Chain {
    /// `legs` touch the segment, oldest first. A leg that begins behind what is needed helps all the same: its file
    /// begins with what the older one held.
    fn add(&mut self, index: &Index, legs: &[&Leg], span: &Span) {
        let newest = legs.iter().rev().find(|leg| leg.begin < span.needed);
        let Some(newest) = newest else { return };
        let found = legs.iter().filter_map(|leg| {
            let name = SegmentName {
                timeline: leg.timeline,
                number: span.number,
            };
            let link = index.link(name)?;
            Some((holds(leg, &link, index.size), link))
        });
        // Of equals the last, which is the newest.
        let Some((holds, link)) = found.max_by_key(|(holds, _)| *holds) else {
            return self.miss(index, newest.timeline, span.number);
        };
        self.links.push(link);
        if self.gaps.is_empty() {
            self.contiguous = self.links.len();
            self.reach = self.reach.max(holds.min(span.needed));
        }
        if holds < span.needed && !span.is_tail {
            self.miss(index, newest.timeline, span.number);
        }
    }

    fn miss(&mut self, index: &Index, timeline: Timeline, number: u64) {
        if let Some(gap) = self.gaps.last_mut()
            && gap.timeline == timeline
            && gap.last.checked_add(1) == Some(number)
        {
            gap.last = number;
            return;
        }
        let entry = index.entries.get(&SegmentName { timeline, number });
        self.gaps.push(Gap {
            timeline,
            first: number,
            last: number,
            is_disputed: entry.is_some_and(|entry| entry.is_disputed),
        });
    }

    /// Segments that are missing.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.gaps.iter().map(Gap::segments).sum()
    }
}

#[cfg(test)]
mod tests;
