//! What the log says happened when: commits, aborts and restore points, read out of segments (PostgreSQL 13 to 17;
//! `src/include/access/xlogrecord.h`, `xact.h`, `xlog_internal.h`). Pure.
//!
//! `recovery_target_time` stops at commits and aborts only, so they alone decide which instants can be reached. Asking
//! `pg_waldump` would need the server's programs wherever a plan is made, and a process for each segment.

use jiff::Timestamp;

use super::name::{Lsn, Timeline};
use super::version;

const CONTINUES_RECORD: u16 = 0x0001;
const LONG_HEADER: u16 = 0x0002;
const OVERWRITES_RECORD: u16 = 0x0008;
const SHORT_PAGE_HEADER: usize = 24;
const LONG_PAGE_HEADER: usize = 40;
const RECORD_HEADER: usize = 24;
const MANAGER_XLOG: u8 = 0;
const MANAGER_TRANSACTION: u8 = 1;
/// The operation within `xl_info`: of the transaction manager, and of all others.
const TRANSACTION_OPERATION: u8 = 0x70;
const OPERATION: u8 = 0xf0;
const SWITCH: u8 = 0x40;
const RESTORE_POINT: u8 = 0x70;
const PARAMETER_CHANGE: u8 = 0x60;
/// From here on an extension replays its own records (15 and later).
const FIRST_CUSTOM_MANAGER: u8 = 128;
/// All that a record of ours needs: header, block ids, time, name.
const PREFIX_BYTES: usize = 160;
/// The end of a prepared transaction names it behind its subtransactions, dropped files and invalidations.
const TRANSACTION_BYTES: usize = 256 * 1024;
const HAS_INFO: u8 = 0x80;
const NAME_BYTES: usize = 64;
/// PostgreSQL counts microseconds from here.
const EPOCH_SECONDS: i64 = 946_684_800;

/// An event of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where its record begins.
    pub lsn: Lsn,
    pub at: Timestamp,
    pub event: Event,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A prepared transaction by its own number, as `recovery_target_xid` means it; `0`: it could not be read.
    Commit(u32),
    Abort(u32),
    RestorePoint(String),
}

impl Record {
    /// Whether recovery to an instant can stop here.
    #[must_use]
    pub fn is_stop(&self) -> bool {
        matches!(self.event, Event::Commit(_) | Event::Abort(_))
    }
}

/// Why a segment is not what its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("it does not begin with a WAL page header")]
    Header,
    #[error("it begins at {found} of the log, not at {expected}")]
    Address { found: Lsn, expected: Lsn },
}

/// The settings of the primary that bound what its log can ask of whoever replays it: `max_connections`,
/// `max_worker_processes`, `max_wal_senders`, `max_prepared_transactions`, `max_locks_per_transaction`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits(pub [u32; 5]);

impl Limits {
    /// The larger of both, each by itself.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        let mut larger = self;
        for (mine, others) in larger.0.iter_mut().zip(other.0) {
            *mine = others.max(*mine);
        }
        larger
    }
}

/// What a server must be set to before it can replay what was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demands {
    /// The largest that the log says were set; zero: it does not say, and what the copy says holds.
    pub limits: Limits,
    /// There are records that only an extension can replay, which must be loaded at the start.
    pub custom: bool,
}

/// Reads segments in order; a record that crosses into the next one is carried over.
#[derive(Debug, Default)]
pub struct Scanner {
    /// The record that the last page left unfinished.
    pending: Option<Pending>,
    /// Where the last record of any kind begins: recovery to a position needs one at it or behind it.
    pub last: Lsn,
    /// Of all that was read.
    pub demands: Demands,
    /// Of the last page's head: says which version wrote it.
    magic: u16,
}

#[derive(Debug)]
struct Pending {
    lsn: Lsn,
    prefix: Vec<u8>,
    missing: usize,
}

enum Flow {
    Next,
    /// What follows in this segment is not log: it was switched, or not written yet.
    End,
}

impl Scanner {
    /// Hands every event of the segment that begins at `start` to `visit`.
    ///
    /// # Errors
    /// The segment is none, or another one.
    pub fn feed(&mut self, segment: &[u8], start: Lsn, visit: &mut impl FnMut(Record)) -> Result<(), Error> {
        let (page_bytes, found) = first_page(segment).ok_or(Error::Header)?;
        if found != start {
            return Err(Error::Address { found, expected: start });
        }
        let mut address = start.0;
        for page in segment.chunks_exact(page_bytes) {
            if matches!(self.page(page, address, visit), Flow::End) {
                break;
            }
            address = address.saturating_add(page_bytes as u64);
        }
        Ok(())
    }

    fn page(&mut self, page: &[u8], address: u64, visit: &mut impl FnMut(Record)) -> Flow {
        let (Some(magic), Some(info)) = (u16_at(page, 0), u16_at(page, 2)) else {
            return Flow::End;
        };
        if magic == 0 || u64_at(page, 8) != Some(address) {
            self.pending = None;
            return Flow::End;
        }
        self.magic = magic;
        let mut at = if info & LONG_HEADER == 0 {
            SHORT_PAGE_HEADER
        } else {
            LONG_PAGE_HEADER
        };
        if info & CONTINUES_RECORD == 0 || info & OVERWRITES_RECORD != 0 {
            self.pending = None;
        }
        if info & CONTINUES_RECORD != 0 {
            let remaining = u32_at(page, 16).map_or(0, |bytes| bytes as usize);
            let here = page.get(at..).unwrap_or_default();
            let here = here.get(..remaining).unwrap_or(here);
            self.carry_on(here, remaining, visit);
            if here.len() < remaining {
                return Flow::Next;
            }
            at = aligned(at.saturating_add(remaining));
        }
        self.records(page, at, address, visit)
    }

    fn carry_on(&mut self, here: &[u8], remaining: usize, visit: &mut impl FnMut(Record)) {
        let Some(mut pending) = self.pending.take_if(|pending| pending.missing == remaining) else {
            self.pending = None;
            return;
        };
        pending.take(here);
        if pending.missing == 0 {
            self.record(&pending.prefix, pending.lsn, visit);
        } else {
            self.pending = Some(pending);
        }
    }

    fn records(&mut self, page: &[u8], mut at: usize, address: u64, visit: &mut impl FnMut(Record)) -> Flow {
        // A length never crosses a page: records begin at multiples of eight.
        while let Some(length) = u32_at(page, at).map(|length| length as usize) {
            if length < RECORD_HEADER {
                return Flow::End;
            }
            let lsn = Lsn(address.saturating_add(at as u64));
            self.last = lsn;
            let rest = page.get(at..).unwrap_or_default();
            let Some(record) = rest.get(..length) else {
                let mut pending = Pending {
                    lsn,
                    prefix: Vec::with_capacity(PREFIX_BYTES),
                    missing: length,
                };
                pending.take(rest);
                self.pending = Some(pending);
                return Flow::Next;
            };
            if is_switch(record) {
                return Flow::End;
            }
            self.record(record, lsn, visit);
            at = aligned(at.saturating_add(length));
        }
        Flow::Next
    }

    fn record(&mut self, record: &[u8], lsn: Lsn, visit: &mut impl FnMut(Record)) {
        match (record.get(17), record.get(16)) {
            (Some(&manager), _) if manager >= FIRST_CUSTOM_MANAGER => self.demands.custom = true,
            (Some(&MANAGER_XLOG), Some(info)) if info & OPERATION == PARAMETER_CHANGE => {
                let limits = limits(record).unwrap_or_default();
                self.demands.limits = self.demands.limits.max(limits);
            }
            _ => {
                if let Some((at, event)) = event(record, self.magic) {
                    visit(Record { lsn, at, event });
                }
            }
        }
    }
}

/// `xl_parameter_change`: five numbers, in the order of [`Limits`].
fn limits(record: &[u8]) -> Option<Limits> {
    let data = data_offset(record)?;
    let mut limits = Limits::default();
    for (number, limit) in limits.0.iter_mut().enumerate() {
        *limit = u32_at(record, data.checked_add(number.checked_mul(4)?)?)?;
    }
    Some(limits)
}

impl Pending {
    fn take(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        for limit in [PREFIX_BYTES, TRANSACTION_BYTES] {
            // Of all others the beginning is enough.
            if limit == PREFIX_BYTES || self.prefix.get(17) == Some(&MANAGER_TRANSACTION) {
                let room = limit.saturating_sub(self.prefix.len());
                let (taken, left) = rest.split_at_checked(room).unwrap_or((rest, &[]));
                self.prefix.extend_from_slice(taken);
                rest = left;
            }
        }
        self.missing = self.missing.saturating_sub(bytes.len());
    }
}

/// The size of its pages and its address, from a segment's first page.
fn first_page(segment: &[u8]) -> Option<(usize, Lsn)> {
    let long = u16_at(segment, 2)? & LONG_HEADER != 0;
    let page_bytes = u32_at(segment, 36)? as usize;
    let sound =
        long && u16_at(segment, 0)? != 0 && page_bytes.is_power_of_two() && (1024..=65_536).contains(&page_bytes);
    sound.then_some((page_bytes, Lsn(u64_at(segment, 8)?)))
}

/// The timeline on which a segment's first page was written.
#[must_use]
pub fn timeline(segment: &[u8]) -> Option<Timeline> {
    first_page(segment)?;
    u32_at(segment, 4).map(Timeline)
}

fn is_switch(record: &[u8]) -> bool {
    record.get(17) == Some(&MANAGER_XLOG) && record.get(16).is_some_and(|info| info & OPERATION == SWITCH)
}

fn event(record: &[u8], magic: u16) -> Option<(Timestamp, Event)> {
    let (info, manager) = (*record.get(16)?, *record.get(17)?);
    let xid = u32_at(record, 4)?;
    match (manager, info & TRANSACTION_OPERATION, info & OPERATION) {
        (MANAGER_TRANSACTION, 0x00, _) => Some((time(record)?, Event::Commit(xid))),
        (MANAGER_TRANSACTION, 0x20, _) => Some((time(record)?, Event::Abort(xid))),
        (MANAGER_TRANSACTION, 0x30, _) => Some((time(record)?, Event::Commit(prepared(record, magic).unwrap_or(0)))),
        (MANAGER_TRANSACTION, 0x40, _) => Some((time(record)?, Event::Abort(prepared(record, magic).unwrap_or(0)))),
        (MANAGER_XLOG, _, RESTORE_POINT) => {
            let name = record.get(data_offset(record)?.checked_add(8)?..)?;
            let name = name.get(..NAME_BYTES).unwrap_or(name).split(|byte| *byte == 0).next()?;
            Some((
                time(record)?,
                Event::RestorePoint(String::from_utf8_lossy(name).into_owned()),
            ))
        }
        _ => None,
    }
}

/// The number of the transaction whose second phase this is (`ParseCommitRecord`, `ParseAbortRecord`): behind the lists
/// that the flags announce.
fn prepared(record: &[u8], magic: u16) -> Option<u32> {
    let is_commit = record.get(16)? & TRANSACTION_OPERATION == 0x30;
    let mut at = data_offset(record)?.checked_add(8)?;
    if record.get(16)? & HAS_INFO == 0 {
        return None;
    }
    let flags = u32_at(record, at)?;
    at = at.checked_add(4)?;
    let has = |bit: u32| flags & (1 << bit) != 0;
    if has(0) {
        at = at.checked_add(8)?;
    }
    let statistics = version::dropped_statistics_bytes(version::major_of_page_magic(magic)?);
    // Subtransactions, dropped files, dropped statistics; a commit has invalidations besides.
    for (bit, bytes) in [(1, 4), (2, 12), (8, statistics), (3, 16)] {
        if has(bit) && (bit != 3 || is_commit) {
            let length = usize::try_from(u32_at(record, at)?).ok()?.checked_mul(bytes)?;
            at = at.checked_add(4)?.checked_add(length)?;
        }
    }
    has(4).then(|| u32_at(record, at))?
}

/// All our records begin with their time.
fn time(record: &[u8]) -> Option<Timestamp> {
    let micros = i64::from_le_bytes(record.get(data_offset(record)?..)?.first_chunk().copied()?);
    Timestamp::from_microsecond(micros.checked_add(EPOCH_SECONDS.checked_mul(1_000_000)?)?).ok()
}

/// Where a record without blocks has its main data: behind the ids of origin and of the outer transaction.
fn data_offset(record: &[u8]) -> Option<usize> {
    let mut at = RECORD_HEADER;
    loop {
        at = match *record.get(at)? {
            253 => at.checked_add(3)?,
            252 => at.checked_add(5)?,
            255 => return at.checked_add(2),
            254 => return at.checked_add(5),
            _ => return None,
        };
    }
}

fn aligned(at: usize) -> usize {
    at.saturating_add(7) & !7
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

#[cfg(test)]
mod tests;
