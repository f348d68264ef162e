//! Where the data of each table lies in a dump of `pg_dump -F c`. pg_dump writes that down only in a file in which it can go
//! back, and ours came through a pipe: each process of `pg_restore -j` would read the dump through in search of its tables,
//! and could not begin with the largest. So it is written down while the dump is spooled, as pg_dump would have done.
//!
//! Source: `pg_backup_archiver.c` and `pg_backup_custom.c`; versions 1.14 to 1.16 of the format are those of PostgreSQL 12
//! to 17. A dump of another version, or one that is not understood, stays as it is: `pg_restore` then searches.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;

/// The table of contents of a hundred thousand tables. Of a longer one memory is spared, and `pg_restore` searches.
const CONTENTS_BYTES_MAX: usize = 64 << 20;
/// A sign and four bytes, the lowest first.
const INT_BYTES: usize = 5;
const OFFSET_BYTES: usize = 8;
/// Bytes of a number and of an offset, and the custom format, as the head of a dump says.
const SHAPE: [u8; 3] = [4, 8, 1];
const BLOCK_DATA: u8 = 1;
const BLOCK_LARGE_OBJECTS: u8 = 3;
/// States of an entry's place: data whose place is not known, and data at that place.
const PLACE_UNKNOWN: u8 = 1;
const PLACE_KNOWN: u8 = 2;

/// A dump on its way into a file.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    places: Places,
}

impl Spool {
    pub(super) fn new(file: File) -> Self {
        let places = Places::default();
        Self { file, places }
    }

    /// Writes the places down.
    ///
    /// # Errors
    /// Of the file.
    pub(super) fn finish(self) -> io::Result<()> {
        self.places.finish().iter().try_for_each(|(slot, place)| {
            let mut bytes = [PLACE_KNOWN; 1 + OFFSET_BYTES];
            let (_, offset) = bytes.split_at_mut(1);
            offset.copy_from_slice(&place.to_le_bytes());
            self.file.write_all_at(&bytes, *slot)
        })
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.places.take(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Follows a dump in whatever pieces it comes.
#[derive(Debug)]
struct Places {
    stage: Stage,
    /// Where an entry's place belongs, and the place.
    found: Vec<(u64, u64)>,
}

#[derive(Debug)]
enum Stage {
    /// What has come of the table of contents, and how much there must be before it is worth another look.
    Contents {
        head: Vec<u8>,
        wanted: usize,
    },
    Data(Blocks),
    /// It is not what we know.
    Lost,
}

impl Default for Places {
    fn default() -> Self {
        let (head, wanted) = (Vec::new(), 1);
        Self {
            stage: Stage::Contents { head, wanted },
            found: Vec::new(),
        }
    }
}

impl Places {
    fn finish(mut self) -> Vec<(u64, u64)> {
        if let Stage::Contents { wanted, .. } = &mut self.stage {
            *wanted = 0;
            self.take(&[]);
        }
        self.found
    }

    fn take(&mut self, bytes: &[u8]) {
        match &mut self.stage {
            Stage::Contents { head, wanted } => {
                head.extend_from_slice(bytes);
                if head.len() < *wanted {
                    return;
                }
                match Contents::read(head) {
                    Ok(contents) => {
                        let rest = head.split_off(contents.end);
                        self.stage = Stage::Data(Blocks::new(contents));
                        self.take(&rest);
                    }
                    Err(Trouble::Short) if head.len() < CONTENTS_BYTES_MAX => *wanted = head.len().saturating_mul(2),
                    Err(_) => self.stage = Stage::Lost,
                }
            }
            Stage::Data(blocks) => {
                if blocks.take(bytes, &mut self.found).is_none() {
                    // Nothing is better than something wrong.
                    self.found.clear();
                    self.stage = Stage::Lost;
                }
            }
            Stage::Lost => {}
        }
    }
}

/// The table of contents: where the places of entries with data belong, by the entry's number.
#[derive(Debug)]
struct Contents {
    slots: HashMap<i32, u64>,
    end: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// More must come.
    Short,
    /// Another format.
    Unknown,
}

impl Contents {
    fn read(head: &[u8]) -> Result<Self, Trouble> {
        let mut at = Cursor { bytes: head, at: 0 };
        let minor = at.head()?;
        let count = at.int()?;
        let mut slots = HashMap::new();
        for _ in 0..count {
            let number = at.int()?;
            let has_data = at.int()? != 0;
            // Catalogue and object of the entry, its name and kind.
            at.strings(4)?;
            at.int()?;
            // Its definition, how it is dropped and copied, schema, tablespace, access method.
            at.strings(6)?;
            if minor >= 16 {
                at.int()?;
            }
            // Its owner, and what was once "with oids".
            at.strings(2)?;
            while at.string()? {}
            let slot = at.at as u64;
            let state = at.byte()?;
            at.skip(OFFSET_BYTES)?;
            if has_data && state == PLACE_UNKNOWN {
                slots.insert(number, slot);
            }
        }
        Ok(Self { slots, end: at.at })
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    /// What stands before the number of entries. Returns the minor version.
    fn head(&mut self) -> Result<u8, Trouble> {
        let known = [*b"PGDMP\x01\x0e", *b"PGDMP\x01\x0f", *b"PGDMP\x01\x10"];
        let magic = self.slice(7)?;
        if !known.iter().any(|known| known == magic) {
            return Err(Trouble::Unknown);
        }
        let minor = magic.last().copied().unwrap_or_default();
        self.skip(1)?;
        let shape = [self.byte()?, self.byte()?, self.byte()?];
        if shape != SHAPE {
            return Err(Trouble::Unknown);
        }
        // How it is compressed.
        if minor >= 15 {
            self.skip(1)?;
        } else {
            self.int()?;
        }
        // The time, in seven numbers; database, server and program.
        self.skip(7 * INT_BYTES)?;
        self.strings(3)?;
        Ok(minor)
    }

    fn slice(&mut self, count: usize) -> Result<&[u8], Trouble> {
        let end = self.at.checked_add(count).ok_or(Trouble::Unknown)?;
        let slice = self.bytes.get(self.at..end).ok_or(Trouble::Short)?;
        self.at = end;
        Ok(slice)
    }

    fn skip(&mut self, count: usize) -> Result<(), Trouble> {
        self.slice(count).map(drop)
    }

    fn byte(&mut self) -> Result<u8, Trouble> {
        let slice = self.slice(1)?;
        slice.first().copied().ok_or(Trouble::Short)
    }

    fn int(&mut self) -> Result<i32, Trouble> {
        let bytes = self.slice(INT_BYTES)?;
        let bytes = <[u8; INT_BYTES]>::try_from(bytes).map_err(|_| Trouble::Short)?;
        int(bytes).ok_or(Trouble::Unknown)
    }

    /// Whether there is one: a length of -1 says that there is none.
    fn string(&mut self) -> Result<bool, Trouble> {
        match self.int()? {
            -1 => Ok(false),
            length => {
                let length = usize::try_from(length).map_err(|_| Trouble::Unknown)?;
                self.skip(length).map(|()| true)
            }
        }
    }

    fn strings(&mut self, count: usize) -> Result<(), Trouble> {
        (0..count).try_for_each(|_| self.string().map(drop))
    }
}

/// `None`: beyond 31 bits.
fn int([sign, a, b, c, d]: [u8; INT_BYTES]) -> Option<i32> {
    let size = i32::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
    Some(if sign == 0 { size } else { -size })
}

/// Follows the blocks of data behind the table of contents.
#[derive(Debug)]
struct Blocks {
    slots: HashMap<i32, u64>,
    /// Where the next byte stands, and where its block began.
    at: u64,
    begun: u64,
    next: Next,
    holds_large_objects: bool,
    /// What has come of a number.
    number: [u8; INT_BYTES],
    have: usize,
}

/// What the next byte is of.
#[derive(Debug, Clone, Copy)]
enum Next {
    Kind,
    /// The number of the entry whose data it is.
    Entry,
    /// The number of a large object; 0 ends the block.
    LargeObject,
    /// The length of a piece of data; 0 ends it.
    Length,
    Skipped(u64),
}

impl Blocks {
    fn new(contents: Contents) -> Self {
        Self {
            at: contents.end as u64,
            begun: contents.end as u64,
            slots: contents.slots,
            next: Next::Kind,
            holds_large_objects: false,
            number: [0; INT_BYTES],
            have: 0,
        }
    }

    /// `None`: they are not such blocks.
    fn take(&mut self, mut bytes: &[u8], found: &mut Vec<(u64, u64)>) -> Option<()> {
        while let Some(first) = bytes.first() {
            let taken = match self.next {
                Next::Kind => {
                    self.begun = self.at;
                    self.holds_large_objects = match *first {
                        BLOCK_DATA => false,
                        BLOCK_LARGE_OBJECTS => true,
                        _ => return None,
                    };
                    self.next = Next::Entry;
                    1
                }
                Next::Skipped(left) => {
                    let taken = left.min(bytes.len() as u64);
                    self.next = match left - taken {
                        0 => Next::Length,
                        left => Next::Skipped(left),
                    };
                    usize::try_from(taken).ok()?
                }
                Next::Entry | Next::LargeObject | Next::Length => {
                    let room = self.number.get_mut(self.have..)?;
                    let taken = room.len().min(bytes.len());
                    room.get_mut(..taken)?.copy_from_slice(bytes.get(..taken)?);
                    self.have += taken;
                    if self.have == INT_BYTES {
                        self.have = 0;
                        self.read(int(self.number)?, found)?;
                    }
                    taken
                }
            };
            self.at += taken as u64;
            bytes = bytes.get(taken..)?;
        }
        Some(())
    }

    fn read(&mut self, number: i32, found: &mut Vec<(u64, u64)>) -> Option<()> {
        self.next = match (self.next, number) {
            (Next::Entry, entry) => {
                if let Some(slot) = self.slots.remove(&entry) {
                    found.push((slot, self.begun));
                }
                if self.holds_large_objects {
                    Next::LargeObject
                } else {
                    Next::Length
                }
            }
            (Next::LargeObject, 0) => Next::Kind,
            (Next::LargeObject, _) => Next::Length,
            (Next::Length, 0) if self.holds_large_objects => Next::LargeObject,
            (Next::Length, 0) => Next::Kind,
            (Next::Length, length) => Next::Skipped(u64::try_from(length).ok()?),
            (Next::Kind | Next::Skipped(_), _) => return None,
        };
        Some(())
    }
}
