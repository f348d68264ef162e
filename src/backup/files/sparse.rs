//! Where the data of a file lies: holes are neither read nor stored. In an archive such a file is what GNU tar makes of it
//! with `--sparse` (its PAX format 1.0), so that `tar` brings the holes back as well.

use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, Stat, seek};
use rustix::io::Errno;

use super::stream::{BLOCK_BYTES, invalid};

/// A smaller hole is stored as zeros: to name it takes nearly as much.
const HOLE_BYTES_MIN: u64 = 64 * 1024;
/// Beyond so many pieces, what comes behind the last one counts as its data.
const PIECES_MAX: usize = 100_000;
/// As `st_blocks` counts (stat(2)).
const DISK_BLOCK_BYTES: u64 = 512;

/// A file's length, and the pieces of it that are data: in order, apart, none of them empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) bytes: u64,
    pub(super) pieces: Vec<Range<u64>>,
}

impl Map {
    /// All of it is data.
    pub(super) fn dense(bytes: u64) -> Self {
        let whole = 0..bytes;
        let pieces = Vec::from_iter((bytes > 0).then_some(whole));
        Self { bytes, pieces }
    }

    /// As the file system tells it.
    pub(super) fn of(file: BorrowedFd<'_>, stat: &Stat) -> Result<Self, Errno> {
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let on_disk = u64::try_from(stat.st_blocks)
            .unwrap_or(0)
            .saturating_mul(DISK_BLOCK_BYTES);
        if on_disk >= bytes || bytes < HOLE_BYTES_MIN {
            return Ok(Self::dense(bytes));
        }
        let mut map = Self {
            bytes,
            pieces: Vec::new(),
        };
        let mut at = 0;
        while at < bytes {
            let start = match seek(file, SeekFrom::Data(at)) {
                Ok(start) if start < bytes => start,
                // Nothing but a hole is left.
                Ok(_) | Err(Errno::NXIO) => break,
                // It knows of no holes.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Self::dense(bytes)),
                Err(error) => return Err(error),
            };
            // Where it was cut off or made a hole meanwhile, the rest counts as data.
            at = match seek(file, SeekFrom::Hole(start)) {
                Ok(end) if end > start => end.min(bytes),
                Ok(_) | Err(Errno::NXIO) => bytes,
                Err(error) => return Err(error),
            };
            map.push(start..at);
        }
        if let Some(last) = map.pieces.last_mut()
            && bytes - last.end < HOLE_BYTES_MIN
        {
            last.end = bytes;
        }
        Ok(map)
    }

    fn push(&mut self, piece: Range<u64>) {
        let is_full = self.pieces.len() >= PIECES_MAX;
        match self.pieces.last_mut() {
            Some(last) if is_full || piece.start - last.end < HOLE_BYTES_MIN => last.end = piece.end,
            None if piece.start < HOLE_BYTES_MIN => self.pieces.push(0..piece.end),
            _ => self.pieces.push(piece),
        }
    }

    pub(super) fn is_dense(&self) -> bool {
        self.data_bytes() == self.bytes
    }

    pub(super) fn data_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.end - piece.start).sum()
    }

    /// As it stands before the data: numbers in lines, up to the end of a block.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // GNU tar takes the length from the last piece.
        let end = self.bytes..self.bytes;
        let is_cut = self.pieces.last().is_none_or(|last| last.end < self.bytes);
        let pieces: Vec<&Range<u64>> = self.pieces.iter().chain(is_cut.then_some(&end)).collect();
        let mut text = format!("{}\n", pieces.len());
        for piece in pieces {
            text.push_str(&format!("{}\n{}\n", piece.start, piece.end - piece.start));
        }
        let mut bytes = text.into_bytes();
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        bytes
    }

    /// What [`Map::to_bytes`] made of a file of this length; reads up to the end of the block.
    pub(super) fn read(source: &mut impl Read, bytes: u64) -> io::Result<Self> {
        let mut numbers = Numbers {
            source,
            block: [0; BLOCK_BYTES],
            at: BLOCK_BYTES,
        };
        let count = numbers.next()?;
        // With the end.
        if count > PIECES_MAX as u64 + 1 {
            return Err(invalid("a file has too many holes"));
        }
        let mut pieces = Vec::new();
        let mut before = 0;
        for _ in 0..count {
            let (start, length) = (numbers.next()?, numbers.next()?);
            let end = start.checked_add(length).filter(|end| *end <= bytes && start >= before);
            before = end.ok_or_else(|| invalid("the pieces of a file overlap or lie beyond its end"))?;
            if length > 0 {
                pieces.push(start..before);
            }
        }
        Ok(Self { bytes, pieces })
    }
}

/// Numbers in lines, read by whole blocks.
struct Numbers<'a, R> {
    source: &'a mut R,
    block: [u8; BLOCK_BYTES],
    at: usize,
}

impl<R: Read> Numbers<'_, R> {
    fn next(&mut self) -> io::Result<u64> {
        let mut number: Option<u64> = None;
        loop {
            if self.at == BLOCK_BYTES {
                self.source.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block.get(self.at).copied().unwrap_or_default();
            self.at += 1;
            let bad = || invalid("where a file has holes cannot be read");
            match byte {
                b'\n' => return number.ok_or_else(bad),
                b'0'..=b'9' => {
                    let shifted = number.unwrap_or(0).checked_mul(10);
                    let next = shifted.and_then(|number| number.checked_add(u64::from(byte - b'0')));
                    number = Some(next.ok_or_else(bad)?);
                }
                _ => return Err(bad()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn back(map: &Map) -> Map {
        let bytes = map.to_bytes();
        assert!(bytes.len().is_multiple_of(BLOCK_BYTES));
        let mut source = bytes.as_slice();
        let back = Map::read(&mut source, map.bytes).expect("it is read");
        assert!(source.is_empty(), "data begins behind it");
        back
    }

    proptest! {
        #[test]
        fn every_map_comes_back(lengths in proptest::collection::vec((1_u64..1 << 40, 1_u64..1 << 40), 0..200), rest in 0_u64..3) {
            let mut at = 0;
            let mut pieces = Vec::new();
            for (hole, data) in lengths {
                pieces.push(at + hole..at + hole + data);
                at += hole + data;
            }
            let map = Map { bytes: at + rest, pieces };
            prop_assert_eq!(back(&map), map);
        }

        #[test]
        fn foreign_bytes_are_refused_and_never_panic(text in "[0-9\n]{0,600}", bytes in any::<u64>()) {
            let mut block = text.into_bytes();
            block.resize(1024, 0);
            if let Ok(map) = Map::read(&mut block.as_slice(), bytes) {
                prop_assert!(map.data_bytes() <= bytes);
            }
        }
    }

    #[test]
    fn small_holes_and_more_than_there_is_room_for_are_data() {
        let mut map = Map {
            bytes: u64::MAX,
            pieces: Vec::new(),
        };
        map.push(10..20);
        map.push(30..40);
        assert_eq!((map.pieces.len(), map.pieces.first()), (1, Some(&(0..40))));
        for number in 1..=PIECES_MAX as u64 {
            let start = number * 2 * HOLE_BYTES_MIN;
            map.push(start..start + 1);
        }
        assert_eq!(map.pieces.len(), PIECES_MAX);
        assert_eq!(back(&map), map);
        let end = map.pieces.last().map(|last| last.end);
        assert_eq!(end, Some(PIECES_MAX as u64 * 2 * HOLE_BYTES_MIN + 1));
    }

    #[test]
    fn pieces_that_overlap_or_lie_beyond_the_end_are_refused() {
        for text in [
            "2\n0\n5\n4\n5\n",
            "1\n8\n3\n",
            "1\n18446744073709551615\n2\n",
            "x\n",
            "\n",
        ] {
            let mut block = text.as_bytes().to_vec();
            block.resize(BLOCK_BYTES, 0);
            assert!(Map::read(&mut block.as_slice(), 10).is_err(), "{text:?}");
        }
    }
}
