//! Names and numbers of the write-ahead log: positions, timelines, segments, and what PostgreSQL calls its files.
//! Pure: no clock, no I/O. The segment size is always an argument: `initdb --wal-segsize` takes any power of two from
//! 1 MiB to 1 GiB, and a name means another position under each.

use std::fmt;
use std::str::FromStr;

/// What a name's text was expected to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0:?} is not a log position as 16/B374D848")]
    Lsn(String),
    #[error("{0:?} is not the name of a file that PostgreSQL archives")]
    File(String),
    #[error("{0} bytes is not a segment size: a power of two from 1 MiB to 1 GiB is")]
    Size(u64),
}

/// A position in the log, in bytes since its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (high, low) = text.split_once('/').ok_or_else(|| Error::Lsn(text.to_owned()))?;
        let half = |half: &str| {
            let plain = !half.is_empty() && half.len() <= 8 && half.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(half, 16).ok()).flatten()
        };
        match (half(high), half(low)) {
            (Some(high), Some(low)) => Ok(Self(high << 32 | low)),
            _ => Err(Error::Lsn(text.to_owned())),
        }
    }
}

impl Lsn {
    /// The number of the segment that holds the byte at this position.
    #[must_use]
    pub fn segment(self, size: SegmentSize) -> u64 {
        self.0 / size.bytes()
    }
}

/// One history of the cluster: each promotion or end of recovery begins a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How long a segment is: asked of the cluster, never assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SegmentSize(u64);

impl SegmentSize {
    /// What `initdb` chooses unless told otherwise.
    pub const DEFAULT: Self = Self(16 << 20);

    /// # Errors
    /// A size that no cluster can have.
    pub fn new(bytes: u64) -> Result<Self, Error> {
        let known = bytes.is_power_of_two() && ((1 << 20)..=(1 << 30)).contains(&bytes);
        known.then_some(Self(bytes)).ok_or(Error::Size(bytes))
    }

    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Segments per "log", the middle part of a name: 2³² bytes.
    #[must_use]
    pub fn per_log(self) -> u64 {
        (1 << 32) / self.0
    }
}

/// A segment: its timeline and its number, counted from the beginning of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    pub timeline: Timeline,
    pub number: u64,
}

impl SegmentName {
    #[must_use]
    pub fn at(timeline: Timeline, lsn: Lsn, size: SegmentSize) -> Self {
        Self {
            timeline,
            number: lsn.segment(size),
        }
    }

    /// The file that holds it.
    #[must_use]
    pub fn file(self, size: SegmentSize) -> Stem {
        let part = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Stem {
            timeline: self.timeline,
            log: part(self.number / size.per_log()),
            segment: part(self.number % size.per_log()),
        }
    }

    /// Its first byte.
    #[must_use]
    pub fn first(self, size: SegmentSize) -> Lsn {
        Lsn(self.number.saturating_mul(size.bytes()))
    }

    /// The byte behind its last: the first of the next one.
    #[must_use]
    pub fn end(self, size: SegmentSize) -> Lsn {
        Lsn(self.number.saturating_add(1).saturating_mul(size.bytes()))
    }

    #[must_use]
    pub fn next(self) -> Self {
        Self {
            number: self.number.saturating_add(1),
            ..self
        }
    }
}

/// The 24 digits of a segment's file name, whatever the segment size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stem {
    pub timeline: Timeline,
    pub log: u32,
    pub segment: u32,
}

impl fmt::Display for Stem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.log, self.segment)
    }
}

impl Stem {
    /// The segment that it names; `None`: no cluster with segments of `size` writes such a name.
    #[must_use]
    pub fn name(self, size: SegmentSize) -> Option<SegmentName> {
        (u64::from(self.segment) < size.per_log()).then(|| SegmentName {
            timeline: self.timeline,
            number: u64::from(self.log) * size.per_log() + u64::from(self.segment),
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let word = |from: usize| hex_word(text.get(from..from + 8)?);
        if text.len() != 24 {
            return None;
        }
        Some(Self {
            timeline: Timeline(word(0)?),
            log: word(8)?,
            segment: word(16)?,
        })
    }
}

/// PostgreSQL writes these names in capitals; anything else is not its file.
fn hex_word(text: &str) -> Option<u32> {
    let plain = text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

/// Every kind of file that PostgreSQL hands to `archive_command`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum File {
    /// A whole segment.
    Segment(Stem),
    /// The unfinished last segment of a timeline that a promotion ended.
    Partial(Stem),
    /// Where a timeline began.
    History(Timeline),
    /// The label of a base backup that began in this segment, at this offset.
    Backup(Stem, u32),
}

impl File {
    /// The timeline whose folder it belongs to.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        match self {
            Self::Segment(stem) | Self::Partial(stem) | Self::Backup(stem, _) => stem.timeline,
            Self::History(timeline) => *timeline,
        }
    }

    /// Whether it is as long as a segment.
    #[must_use]
    pub fn is_log(&self) -> bool {
        matches!(self, Self::Segment(_) | Self::Partial(_))
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(stem) => stem.fmt(f),
            Self::Partial(stem) => write!(f, "{stem}.partial"),
            Self::History(timeline) => write!(f, "{:08X}.history", timeline.0),
            Self::Backup(stem, offset) => write!(f, "{stem}.{offset:08X}.backup"),
        }
    }
}

impl FromStr for File {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parsed = if let Some(timeline) = text.strip_suffix(".history") {
            hex_word(timeline).map(|number| Self::History(Timeline(number)))
        } else if let Some(stem) = text.strip_suffix(".partial") {
            Stem::parse(stem).map(Self::Partial)
        } else if let Some((stem, offset)) = text.strip_suffix(".backup").and_then(|rest| rest.split_once('.')) {
            Stem::parse(stem)
                .zip(hex_word(offset))
                .map(|(stem, offset)| Self::Backup(stem, offset))
        } else {
            Stem::parse(text).map(Self::Segment)
        };
        // Timelines begin at 1: 0 is what a damaged name reads as.
        parsed
            .filter(|file| file.timeline().0 > 0)
            .ok_or_else(|| Error::File(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size() -> impl Strategy<Value = SegmentSize> {
        (20_u32..=30).prop_map(|bits| SegmentSize::new(1 << bits).expect("a power of two"))
    }

    fn stem() -> impl Strategy<Value = Stem> {
        (1..=u32::MAX, any::<u32>(), any::<u32>()).prop_map(|(timeline, log, segment)| Stem {
            timeline: Timeline(timeline),
            log,
            segment,
        })
    }

    proptest! {
        #[test]
        fn a_position_reads_as_it_was_written(position in any::<u64>()) {
            prop_assert_eq!(Lsn(position).to_string().parse(), Ok(Lsn(position)));
        }

        #[test]
        fn a_segment_survives_its_name_whatever_the_size(size in size(), timeline in 1..=u32::MAX, at in any::<u64>()) {
            let segment = SegmentName::at(Timeline(timeline), Lsn(at), size);
            let text = segment.file(size).to_string();
            prop_assert_eq!(text.len(), 24);
            let read: File = text.parse().expect("a segment");
            prop_assert_eq!(read, File::Segment(segment.file(size)));
            prop_assert_eq!(segment.file(size).name(size), Some(segment));
            prop_assert!(segment.first(size) <= Lsn(at));
            prop_assert!(Lsn(at) < segment.end(size) || segment.end(size).0 == u64::MAX);
            prop_assert_eq!(segment.first(size).segment(size), segment.number);
        }

        #[test]
        fn names_sort_as_their_segments_do(size in size(), timeline in 1..=u32::MAX, a in any::<u64>(), b in any::<u64>()) {
            let name = |at| SegmentName::at(Timeline(timeline), Lsn(at), size);
            let by_text = name(a).file(size).to_string().cmp(&name(b).file(size).to_string());
            prop_assert_eq!(by_text, name(a).cmp(&name(b)));
        }

        #[test]
        fn every_kind_of_file_survives_its_name(stem in stem(), offset in any::<u32>()) {
            for file in [
                File::Segment(stem),
                File::Partial(stem),
                File::History(stem.timeline),
                File::Backup(stem, offset),
            ] {
                prop_assert_eq!(file.to_string().parse::<File>(), Ok(file));
            }
        }

        #[test]
        fn no_text_is_read_as_a_file_that_writes_another(text in "[0-9A-Fa-f]{0,26}(\\.[a-zA-Z0-9.]{0,16})?") {
            if let Ok(file) = text.parse::<File>() {
                prop_assert_eq!(file.to_string(), text);
            }
        }

        #[test]
        fn nothing_panics(text in ".{0,64}") {
            drop(text.parse::<File>());
            drop(text.parse::<Lsn>());
        }
    }

    #[test]
    fn names_as_the_server_writes_them() {
        let size = SegmentSize::DEFAULT;
        let segment = SegmentName::at(Timeline(1), "0/E00100".parse().expect("a position"), size);
        assert_eq!(segment.file(size).to_string(), "000000010000000000000000");
        let segment = SegmentName::at(Timeline(2), "16/B374D848".parse().expect("a position"), size);
        assert_eq!(segment.file(size).to_string(), "0000000200000016000000B3");
        let small = SegmentSize::new(1 << 20).expect("1 MiB");
        assert_eq!(
            segment.file(size).name(small).map(|name| name.number),
            Some(0x16 * 4096 + 0xB3)
        );
        let large = SegmentSize::new(1 << 30).expect("1 GiB");
        assert_eq!(segment.file(size).name(large), None, "only four segments per log");
    }

    #[test]
    fn what_is_no_archive_file_is_refused() {
        for text in [
            "",
            "archive_status",
            "000000010000000000000001.ready",
            "00000001000000000000000",
            "0000000100000000000000011",
            "00000001000000000000000g",
            "0000000100000000000000aB",
            "000000000000000000000001",
            "../00000001.history",
            "1.history",
            "000000010000000000000001.backup",
            "000000010000000000000001.00000028.backup.partial",
        ] {
            assert!(text.parse::<File>().is_err(), "{text}");
        }
        for text in ["", "/", "1/", "/1", "g/1", "1/1/1", "+1/1", "000000001/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
        for bytes in [0, 1, 1 << 19, 3 << 20, 1 << 31] {
            assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
        }
    }
}
