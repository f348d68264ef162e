//! What the archive holds, in numbers.

use super::archive::{Archive, Archived, Error};
use super::chain::{self, Gap, Index};
use super::history::{History, Leg};
use super::name::{File, Lsn, SegmentSize, Timeline};

/// The archive, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    pub segments: u64,
    pub stored_bytes: u64,
    pub timelines: Vec<Timeline>,
    /// The newest whole segment, by when it was stored.
    pub newest: Option<Archived>,
    /// Along the newest timeline's path, from its first archived segment on.
    pub gaps: Vec<Gap>,
    /// Up to where that path is there without a break.
    pub reach: Lsn,
    /// A history that is missing or cannot be read: the path begins after it.
    pub without_history: Option<Timeline>,
}

/// Counts `archive`.
///
/// # Errors
/// Of the repository.
pub async fn take(archive: &Archive, size: SegmentSize) -> Result<Inventory, Error> {
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
    Ok(count(&listed, timelines, &history, without_history, size))
}

fn count(
    listed: &[Archived],
    timelines: Vec<Timeline>,
    history: &History,
    without_history: Option<Timeline>,
    size: SegmentSize,
) -> Inventory {
    let whole = listed
        .iter()
        .filter(|archived| matches!(archived.file, File::Segment(_)));
    let index = Index::new(size, listed.iter().map(|archived| archived.file));
    let path = from_first_archived(&index, &history.legs(), size);
    let chain = chain::follow(&index, &path, None);
    Inventory {
        segments: whole.clone().count() as u64,
        stored_bytes: listed.iter().map(|archived| archived.stored_bytes).sum(),
        newest: whole.max_by_key(|archived| archived.modified).cloned(),
        timelines,
        reach: chain.reach,
        gaps: chain.gaps,
        without_history,
    }
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
    use jiff::Timestamp;

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
        let listed: Vec<Archived> = names
            .iter()
            .zip(0..)
            .map(|(name, second)| archived(name, second))
            .collect();
        count(&listed, Vec::new(), history, None, SegmentSize::DEFAULT)
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
