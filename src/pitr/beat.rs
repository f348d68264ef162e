//! Heartbeats: a committed transaction's time and the position of the log behind it, so that a position means an
//! instant and an idle database has commits for recovery to stop at. Pure: no clock, no I/O.

use jiff::Timestamp;

use super::name::{Lsn, Timeline};

/// One heartbeat: every commit up to `at` stands before `lsn` on `timeline`, and there is a commit at or after `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Beat {
    pub at: Timestamp,
    pub lsn: Lsn,
    pub timeline: Timeline,
}

/// One line per beat: time, position, timeline.
#[must_use]
pub fn write(beats: &[Beat]) -> String {
    beats
        .iter()
        .map(|beat| format!("{} {} {}\n", beat.at, beat.lsn, beat.timeline))
        .collect()
}

/// The beats in `text`; `None`: a line is no beat.
#[must_use]
pub fn read(text: &str) -> Option<Vec<Beat>> {
    let beat = |line: &str| {
        let mut words = line.split(' ');
        let beat = Beat {
            at: words.next()?.parse().ok()?,
            lsn: words.next()?.parse().ok()?,
            timeline: Timeline(words.next()?.parse().ok()?),
        };
        words.next().is_none().then_some(beat)
    };
    text.lines().map(beat).collect()
}

/// The name of the object that holds `beats`: its ends in microseconds since 1970, so that a listing says what to read.
#[must_use]
pub fn object_name(beats: &[Beat]) -> Option<String> {
    let (first, last) = (beats.first()?, beats.last()?);
    Some(format!(
        "{}-{}.txt",
        first.at.as_microsecond(),
        last.at.as_microsecond()
    ))
}

/// The ends of the object `name`.
#[must_use]
pub fn span_of_object(name: &str) -> Option<(Timestamp, Timestamp)> {
    let (first, last) = name.strip_suffix(".txt")?.split_once('-')?;
    let time = |text: &str| Timestamp::from_microsecond(text.parse().ok()?).ok();
    Some((time(first)?, time(last)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_read_as_they_were_written() {
        let beat = |second: i64, lsn| Beat {
            at: Timestamp::from_microsecond(1_800_000_000_000_000 + second * 1_000_000 + 7).expect("a time"),
            lsn: Lsn(lsn),
            timeline: Timeline(2),
        };
        let beats = [beat(0, 1 << 40), beat(15, (1 << 40) + 96)];
        assert_eq!(read(&write(&beats)).as_deref(), Some(&beats[..]));
        let name = object_name(&beats).expect("a name");
        assert_eq!(span_of_object(&name), Some((beats[0].at, beats[1].at)));
    }

    #[test]
    fn what_is_no_beat_is_refused() {
        for text in ["x", "2026-11-22T00:00:00Z 0/1", "2026-11-22T00:00:00Z 0/1 1 1", "\n"] {
            assert_eq!(read(text), None, "{text:?}");
        }
        assert_eq!(read(""), Some(Vec::new()));
        assert_eq!(object_name(&[]), None);
        for name in ["1-2", "a-b.txt", "1.txt"] {
            assert_eq!(span_of_object(name), None, "{name}");
        }
    }
}
