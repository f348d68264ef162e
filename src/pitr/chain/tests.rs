//! The chain against a model that reads the same question byte by byte.

use proptest::prelude::*;

use super::*;
use crate::pitr::history::History;

fn mib() -> SegmentSize {
    SegmentSize::new(1 << 20).expect("1 MiB")
}

fn lsn(segment: u64, offset: u64) -> Lsn {
    Lsn((segment << 20) + offset)
}

fn whole(timeline: u32, number: u64) -> File {
    let timeline = Timeline(timeline);
    File::Segment(SegmentName { timeline, number }.file(mib()))
}

fn partial(timeline: u32, number: u64) -> File {
    let timeline = Timeline(timeline);
    File::Partial(SegmentName { timeline, number }.file(mib()))
}

fn history(timeline: u32, ancestors: &[(u32, Lsn)]) -> History {
    let lines = ancestors
        .iter()
        .map(|(timeline, at)| format!("{timeline}\t{at}\twhy\n"));
    History::parse(Timeline(timeline), &lines.collect::<String>()).expect("a history")
}

fn chain(files: &[File], path: &[Leg], until: Option<Lsn>) -> Chain {
    follow(&Index::new(mib(), files.iter().copied()), path, until)
}

fn from(history: &History, timeline: u32, start: Lsn) -> Vec<Leg> {
    history.legs_from(Timeline(timeline), start).expect("an ancestor")
}

#[test]
fn a_chain_without_a_break_reaches_the_end_of_its_last_segment() {
    let files: Vec<File> = (2..=6).map(|number| whole(1, number)).collect();
    let path = from(&History::first(), 1, lsn(3, 40));
    let chain = chain(&files, &path, None);
    assert_eq!((chain.reach, chain.contiguous, chain.gaps.len()), (lsn(7, 0), 4, 0));
    assert_eq!(chain.links.first().map(|link| link.position), Some(1));
}

#[test]
fn a_missing_segment_ends_the_reach_and_what_lies_behind_is_still_told() {
    let files = [whole(1, 3), whole(1, 4), whole(1, 7), whole(1, 9)];
    let path = from(&History::first(), 1, lsn(3, 0));
    let chain = chain(&files, &path, None);
    assert_eq!((chain.reach, chain.contiguous, chain.links.len()), (lsn(5, 0), 2, 4));
    let gaps: Vec<_> = chain.gaps.iter().map(|gap| (gap.first, gap.last)).collect();
    assert_eq!(gaps, [(5, 6), (8, 8)]);
    assert_eq!(chain.missing(), 3);
}

#[test]
fn the_first_segment_missing_leaves_the_start() {
    let path = from(&History::first(), 1, lsn(3, 40));
    let chain = chain(&[whole(1, 4)], &path, None);
    assert_eq!((chain.reach, chain.contiguous), (lsn(3, 40), 0));
    assert_eq!(chain.missing(), 1);
}

#[test]
fn at_a_switch_the_newer_timeline_is_taken_and_the_older_one_will_do_up_to_it() {
    let history = history(2, &[(1, lsn(5, 100))]);
    let path = from(&history, 1, lsn(4, 0));
    let both = chain(
        &[whole(1, 4), partial(1, 5), whole(1, 5), whole(2, 5), whole(2, 6)],
        &path,
        None,
    );
    assert_eq!((both.reach, both.gaps.len()), (lsn(7, 0), 0));
    let used: Vec<File> = both.links.iter().map(|link| link.file).collect();
    assert_eq!(used, [whole(1, 4), whole(2, 5), whole(2, 6)]);

    for end in [partial(1, 5), whole(1, 5)] {
        let only_older = chain(&[whole(1, 4), end], &path, None);
        assert_eq!((only_older.reach, only_older.gaps.len()), (lsn(5, 100), 0), "{end}");
        let target_before = chain(&[whole(1, 4), end], &path, Some(lsn(5, 60)));
        assert_eq!(
            (target_before.reach, target_before.gaps.len()),
            (lsn(5, 60), 0),
            "{end}"
        );
        let target_behind = chain(&[whole(1, 4), end], &path, Some(lsn(5, 160)));
        assert_eq!(
            (target_behind.reach, target_behind.missing()),
            (lsn(5, 100), 1),
            "{end}"
        );
        let newer_goes_on = chain(&[whole(1, 4), end, whole(2, 6)], &path, None);
        assert_eq!(
            (newer_goes_on.reach, newer_goes_on.missing()),
            (lsn(5, 100), 1),
            "{end}"
        );
    }
}

#[test]
fn a_switch_on_a_boundary_needs_nothing_of_the_older_timeline_behind_it() {
    let history = history(2, &[(1, lsn(5, 0))]);
    let path = from(&history, 1, lsn(4, 0));
    let good = chain(&[whole(1, 4), whole(2, 5)], &path, None);
    assert_eq!((good.reach, good.gaps.len()), (lsn(6, 0), 0));
    let stray = chain(&[whole(1, 4), whole(1, 5), whole(2, 6)], &path, None);
    assert_eq!((stray.reach, stray.missing()), (lsn(5, 0), 1), "1/5 is not on the path");
}

#[test]
fn two_switches_within_one_segment() {
    let history = history(3, &[(1, lsn(5, 100)), (2, lsn(5, 200))]);
    let path = from(&history, 1, lsn(5, 8));
    for (files, reach, missing) in [
        (vec![whole(3, 5)], lsn(6, 0), 0),
        (vec![partial(2, 5)], lsn(5, 200), 0),
        (vec![partial(1, 5)], lsn(5, 100), 0),
        (vec![partial(2, 5), whole(3, 6)], lsn(5, 200), 1),
    ] {
        let chain = chain(&files, &path, None);
        assert_eq!((chain.reach, chain.missing()), (reach, missing), "{files:?}");
    }
}

#[test]
fn what_an_abandoned_timeline_went_on_to_write_is_not_on_the_path() {
    let history = history(2, &[(1, lsn(5, 100))]);
    let path = from(&history, 1, lsn(4, 0));
    let chain = chain(&[whole(1, 4), whole(1, 5), whole(1, 6), whole(1, 7)], &path, None);
    assert_eq!((chain.reach, chain.links.len(), chain.gaps.len()), (lsn(5, 100), 2, 0));
}

#[test]
fn a_partial_file_of_an_open_timeline_proves_nothing_within_it() {
    let path = from(&History::first(), 1, lsn(3, 0));
    let tail = chain(&[whole(1, 3), partial(1, 4)], &path, None);
    assert_eq!((tail.reach, tail.gaps.len()), (lsn(4, 0), 0));
    let wanted = chain(&[whole(1, 3), partial(1, 4)], &path, Some(lsn(4, 9)));
    assert_eq!((wanted.reach, wanted.missing()), (lsn(4, 0), 1));
}

#[test]
fn two_files_of_one_name_are_a_gap_and_say_so() {
    let path = from(&History::first(), 1, lsn(3, 0));
    let chain = chain(&[whole(1, 3), whole(1, 4), whole(1, 4), whole(1, 5)], &path, None);
    assert_eq!(chain.reach, lsn(4, 0));
    assert!(chain.gaps.first().is_some_and(|gap| gap.is_disputed));
}

#[test]
fn a_target_beyond_the_archive_is_told_as_missing() {
    let path = from(&History::first(), 1, lsn(3, 0));
    let on_the_boundary = chain(&[whole(1, 3)], &path, Some(lsn(4, 0)));
    assert_eq!((on_the_boundary.reach, on_the_boundary.missing()), (lsn(4, 0), 0));
    let behind = chain(&[whole(1, 3)], &path, Some(lsn(4, 1)));
    assert_eq!((behind.reach, behind.missing()), (lsn(4, 0), 1));
    assert_eq!(chain(&[], &[], None), Chain::default());
}

#[test]
fn a_hundred_thousand_segments_are_followed() {
    let files: Vec<File> = (0..100_000)
        .filter(|number| *number != 70_000)
        .map(|number| whole(1, number))
        .collect();
    let path = from(&History::first(), 1, lsn(0, 0));
    let chain = chain(&files, &path, None);
    assert_eq!(
        (chain.reach, chain.missing(), chain.links.len()),
        (lsn(70_000, 0), 1, 99_999)
    );
}

/// Whether the byte at `at` of the path can be had: from a whole file of its leg or of any later leg that touches the
/// segment, or from a partial file of a leg that ended there or later.
fn is_there(files: &[File], path: &[Leg], at: Lsn) -> bool {
    let number = at.segment(mib());
    let Some(own) = path
        .iter()
        .position(|leg| leg.begin <= at && leg.end.is_none_or(|end| at < end))
    else {
        return false;
    };
    path.iter().enumerate().skip(own).any(|(_, leg)| {
        leg.begin.segment(mib()) <= number
            && leg.begin < lsn(number + 1, 0)
            && (files.contains(&whole(leg.timeline.0, number))
                || files.contains(&partial(leg.timeline.0, number))
                    && leg.end.is_some_and(|end| end < lsn(number + 1, 0)))
    })
}

proptest! {
    #[test]
    fn the_reach_is_the_first_byte_that_cannot_be_had(
        there in prop::collection::vec((1_u32..=3, 0_u64..8, any::<bool>()), 0..30),
        first_switch in 1_u64..7 * 4, further in 0_u64..3 * 4, start in 0_u64..4,
    ) {
        let quarter = 1 << 18;
        let mut files: Vec<File> = there
            .iter()
            .map(|(timeline, number, is_partial)| match is_partial {
                true => partial(*timeline, *number),
                false => whole(*timeline, *number),
            })
            .collect();
        files.sort();
        files.dedup();
        let history = history(3, &[(1, Lsn(first_switch * quarter)), (2, Lsn((first_switch + further) * quarter))]);
        let Some(path) = history.legs_from(Timeline(1), Lsn(start * quarter)) else { return Ok(()) };
        let mut at = Lsn(start * quarter);
        while is_there(&files, &path, at) {
            at = Lsn(at.0 + quarter);
        }
        let chain = chain(&files, &path, None);
        prop_assert_eq!(chain.reach, at, "{:?} {:?}", files, path);
        for until in 0..32 {
            let until = Lsn(until * quarter);
            if until <= Lsn(start * quarter) {
                continue;
            }
            let chain = follow(&Index::new(mib(), files.iter().copied()), &path, Some(until));
            prop_assert_eq!(chain.reach, at.min(until));
            prop_assert_eq!(chain.gaps.is_empty(), at >= until, "until {}", until);
        }
    }
}
