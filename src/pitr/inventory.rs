//! What the archive holds, in numbers.

use jiff::Timestamp;

use super::archive::{Archive, Archived};
use super::base::{self, Error};
use super::chain::{self, Gap, Index};
use super::history::{History, Leg};
use super::name::{File, Lsn, SegmentSize, Timeline};
use super::retention::{self, Hold, Policy};

/// The archive, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    pub segments: u64,
    pub stored_bytes: u64,
    pub timelines: Vec<Timeline>,
    /// The newest whole segment, by when it was stored.
    pub newest: Option<Archived>,
    /// What is missing of the newest timeline's path, and of what pinned base backups keep of it: where there are base
    /// backups, only what one of them needs; without any, from the first archived segment on.
    pub gaps: Vec<Gap>,
    /// Up to where that path is there without a break, from the oldest base backup on that needs all that follows it.
    pub reach: Lsn,
    /// A history that is missing or cannot be read: the path begins after it.
    pub without_history: Option<Timeline>,
}

/// Counts `archive`, whose log retention thins out by `policy`.
///
/// # Errors
/// Of the repository.
pub async fn take(archive: &Archive, size: SegmentSize, policy: &Policy, now: Timestamp) -> Result<Inventory, Error> {
    let listed = archive.list().await?;
    let mut timelines: Vec<Timeline> = listed
        .iter()
        .filter(|archived| archived.file.is_log())
        .map(|archived| archived.file.timeline())
        .collect();
    timelines.sort();
    timelines.dedup();
    let Some(newest) = timelines.last().copied() else {
        return Ok(Inventory::default());
    };
    let history = archive.history(newest).await.ok().flatten();
    let without_history = history.is_none().then_some(newest);
    let history = history.unwrap_or(History {
        timeline: newest,
        ancestors: Vec::new(),
    });
    let counted = |holds: &[Hold]| count(&listed, &timelines, &history, without_history, holds, size);
    let inventory = counted(&[]);
    if inventory.gaps.is_empty() {
        return Ok(inventory);
    }
    // It may be missing because nobody needs it.
    let mut bases = base::list(archive.repository(), archive.cluster()).await?;
    // By another size of segments, its names mean other places: see the survey.
    bases.retain(|base| base.incomplete.is_none() && base.segment_size == size);
    let histories = base::histories(archive, &listed).await?;
    Ok(counted(&retention::holds(&bases, &histories, policy, now)))
}

fn count(
    listed: &[Archived],
    timelines: &[Timeline],
    history: &History,
    without_history: Option<Timeline>,
    holds: &[Hold],
    size: SegmentSize,
) -> Inventory {
    let whole = listed
        .iter()
        .filter(|archived| matches!(archived.file, File::Segment(_)));
    let index = Index::new(size, listed.iter().map(|archived| archived.file));
    let path = from_oldest_hold(history, holds).unwrap_or_else(|| from_first_archived(&index, &history.legs(), size));
    let chain = chain::follow(&index, &path, None);
    let mut gaps = gaps_of_islands(&index, history, holds, path.first().map(|leg| leg.begin));
    gaps.extend(chain.gaps);
    Inventory {
        segments: whole.clone().count() as u64,
        stored_bytes: listed.iter().map(|archived| archived.stored_bytes).sum(),
        newest: whole.max_by_key(|archived| archived.modified).cloned(),
        timelines: timelines.to_vec(),
        reach: chain.reach,
        gaps,
        without_history,
    }
}

/// The path from the oldest base backup on that needs all that follows it.
fn from_oldest_hold(history: &History, holds: &[Hold]) -> Option<Vec<Leg>> {
    let open = holds.iter().filter(|hold| hold.stop.is_none());
    let paths = open.filter_map(|hold| history.legs_from(hold.timeline, hold.start));
    paths.min_by_key(|path| path.first().map(|leg| leg.begin))
}

/// What is missing of the log of pinned base backups that begin before `window`.
fn gaps_of_islands(index: &Index, history: &History, holds: &[Hold], window: Option<Lsn>) -> Vec<Gap> {
    let before = holds
        .iter()
        .filter(|hold| window.is_none_or(|window| hold.start < window));
    let mut islands: Vec<&Hold> = before.filter(|hold| hold.stop.is_some()).collect();
    islands.sort_by_key(|hold| hold.start);
    let paths = islands
        .into_iter()
        .filter_map(|hold| Some((history.legs_from(hold.timeline, hold.start)?, hold.stop)));
    paths
        .flat_map(|(path, stop)| chain::follow(index, &path, stop).gaps)
        .collect()
}

/// `legs` from the first segment on that is archived: what retention removed is no gap.
fn from_first_archived(index: &Index, legs: &[Leg], size: SegmentSize) -> Vec<Leg> {
    let found = legs.iter().enumerate().find_map(|(at, leg)| {
        let first = index.first_since(leg.timeline, leg.begin)?.first(size);
        leg.end.is_none_or(|end| first < end).then_some((at, first))
    });
    let Some((at, first)) = found else { return Vec::new() };
    let mut path = legs.get(at..).unwrap_or_default().to_vec();
    if let Some(leg) = path.first_mut() {
        leg.begin = leg.begin.max(first);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archived(name: &str, second: i64) -> Archived {
        Archived {
            file: name.parse().expect("a name"),
            key: String::new(),
            stored_bytes: 100,
            modified: Timestamp::from_second(second).expect("a time"),
        }
    }

    fn counted(names: &[&str], history: &History) -> Inventory {
        needed(names, history, &[])
    }

    fn needed(names: &[&str], history: &History, holds: &[Hold]) -> Inventory {
        let listed: Vec<Archived> = names
            .iter()
            .zip(0..)
            .map(|(name, second)| archived(name, second))
            .collect();
        count(&listed, &[], history, None, holds, SegmentSize::DEFAULT)
    }

    #[test]
    fn what_retention_removed_is_no_gap_and_what_is_missing_between_is_one() {
        let names = [
            "000000010000000000000005",
            "000000010000000000000006",
            "000000010000000000000008",
            "000000010000000000000005.00000028.backup",
        ];
        let inventory = counted(&names, &History::first());
        assert_eq!((inventory.segments, inventory.stored_bytes), (3, 400));
        assert_eq!(inventory.gaps.iter().map(Gap::segments).sum::<u64>(), 1);
        assert_eq!(inventory.reach, Lsn(7 << 24));
        assert_eq!(inventory.newest, Some(archived(names[2], 2)), "a label is no segment");
    }

    #[test]
    fn what_retention_removed_behind_a_pinned_base_backup_is_no_gap() {
        let hold = |start: u64, stop: Option<u64>| Hold {
            timeline: Timeline(1),
            start: Lsn(start << 24),
            stop: stop.map(|stop| Lsn((stop << 24) + 0x100)),
        };
        let holds = [hold(2, Some(3)), hold(8, None)];
        let names = [
            "000000010000000000000002",
            "000000010000000000000003",
            "000000010000000000000008",
            "000000010000000000000009",
        ];
        let first = History::first();
        let numbers = |inventory: &Inventory| -> Vec<u64> { inventory.gaps.iter().map(|gap| gap.first).collect() };
        let inventory = needed(&names, &first, &holds);
        assert_eq!((numbers(&inventory), inventory.reach), (vec![], Lsn(10 << 24)));
        // What one of them needs is missed all the same.
        assert_eq!(numbers(&needed(&names[1..], &first, &holds)), [2]);
        assert_eq!(numbers(&needed(&[names[0], names[2], names[3]], &first, &holds)), [3]);
        assert_eq!(numbers(&needed(&[names[0], names[1], names[3]], &first, &holds)), [8]);
    }

    #[test]
    fn the_path_of_the_newest_timeline_is_what_counts() {
        let history = History::parse(Timeline(2), "1\t0/6000100\tx\n").expect("a history");
        let names = [
            "000000010000000000000005",
            "000000010000000000000006.partial",
            "000000010000000000000009",
            "000000020000000000000006",
            "000000020000000000000007",
        ];
        let inventory = counted(&names, &history);
        assert_eq!(
            (inventory.gaps.len(), inventory.reach),
            (0, Lsn(8 << 24)),
            "1/9 was abandoned"
        );
        assert_eq!(
            counted(&names[3..], &history).reach,
            Lsn(8 << 24),
            "only the new timeline is left"
        );
        assert_eq!(counted(&[], &history), Inventory::default());
    }
}
