//! Segments made by hand, page by page, as PostgreSQL lays them out.

use proptest::prelude::*;

use super::*;

const PAGE: usize = 8192;
const SEGMENT: u64 = 1 << 20;

/// Lays records out over pages, across page and segment boundaries.
struct Log {
    start: u64,
    bytes: Vec<u8>,
}

impl Log {
    fn new(start: u64) -> Self {
        Self {
            start,
            bytes: Vec::new(),
        }
    }

    fn put(&mut self, record: &[u8]) -> Lsn {
        while !self.bytes.len().is_multiple_of(8) {
            self.bytes.push(0);
        }
        self.page_header(0);
        let lsn = Lsn(self.start + self.bytes.len() as u64);
        for (at, byte) in record.iter().enumerate() {
            self.page_header(record.len() - at);
            self.bytes.push(*byte);
        }
        lsn
    }

    fn page_header(&mut self, remaining: usize) {
        if !self.bytes.len().is_multiple_of(PAGE) {
            return;
        }
        let address = self.start + self.bytes.len() as u64;
        let long = address.is_multiple_of(SEGMENT);
        let info = u16::from(remaining > 0) | if long { LONG_HEADER } else { 0 };
        self.bytes.extend(0xD110_u16.to_le_bytes());
        self.bytes.extend(info.to_le_bytes());
        self.bytes.extend(1_u32.to_le_bytes());
        self.bytes.extend(address.to_le_bytes());
        self.bytes
            .extend(u32::try_from(remaining).expect("small").to_le_bytes());
        self.bytes.extend([0; 4]);
        if long {
            self.bytes.extend(7_u64.to_le_bytes());
            self.bytes.extend(u32::try_from(SEGMENT).expect("small").to_le_bytes());
            self.bytes.extend(8192_u32.to_le_bytes());
        }
    }

    /// Whole segments, zeros behind the end.
    fn segments(mut self) -> Vec<(Lsn, Vec<u8>)> {
        let size = usize::try_from(SEGMENT).expect("small");
        self.bytes.resize(self.bytes.len().next_multiple_of(size), 0);
        let pieces = self.bytes.chunks(size).enumerate();
        pieces
            .map(|(at, piece)| (Lsn(self.start + at as u64 * SEGMENT), piece.to_vec()))
            .collect()
    }
}

fn record(xid: u32, info: u8, manager: u8, data: &[u8]) -> Vec<u8> {
    let head = if data.len() < 256 { 2 } else { 5 };
    let length = RECORD_HEADER + head + data.len();
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(length).expect("small").to_le_bytes());
    bytes.extend(xid.to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend([info, manager, 0, 0]);
    bytes.extend([0; 4]);
    if data.len() < 256 {
        bytes.extend([255, u8::try_from(data.len()).expect("short")]);
    } else {
        bytes.push(254);
        bytes.extend(u32::try_from(data.len()).expect("small").to_le_bytes());
    }
    bytes.extend(data);
    bytes
}

/// `second` after PostgreSQL's epoch.
fn commit(xid: u32, second: i64) -> Vec<u8> {
    record(xid, 0x80, MANAGER_TRANSACTION, &(second * 1_000_000).to_le_bytes())
}

fn scan(segments: &[(Lsn, Vec<u8>)]) -> Vec<Record> {
    let mut scanner = Scanner::default();
    let mut found = Vec::new();
    for (start, segment) in segments {
        scanner
            .feed(segment, *start, &mut |record| found.push(record))
            .expect("a segment");
    }
    found
}

#[test]
fn commits_aborts_and_restore_points_are_found_with_their_time_and_place() {
    let mut log = Log::new(3 * SEGMENT);
    let first = log.put(&commit(700, 1));
    log.put(&record(0, 0x00, 9, &[1; 300]));
    log.put(&record(701, 0x20, MANAGER_TRANSACTION, &2_000_000_i64.to_le_bytes()));
    let mut point = 3_000_000_i64.to_le_bytes().to_vec();
    point.extend(b"before the accident");
    point.resize(8 + NAME_BYTES, 0);
    let last = log.put(&record(0, RESTORE_POINT, MANAGER_XLOG, &point));
    let found = scan(&log.segments());
    assert_eq!(found.len(), 3);
    assert_eq!((found[0].lsn, &found[0].event), (first, &Event::Commit(700)));
    assert_eq!(found[0].at.to_string(), "2000-01-01T00:00:01Z");
    assert_eq!(found[1].event, Event::Abort(701));
    assert_eq!(
        (found[2].lsn, &found[2].event),
        (last, &Event::RestorePoint("before the accident".to_owned()))
    );
    assert!(found[0].is_stop() && !found[2].is_stop());
}

#[test]
fn what_follows_a_switch_is_not_log() {
    let mut log = Log::new(SEGMENT);
    log.put(&commit(1, 1));
    log.put(&record(0, SWITCH, MANAGER_XLOG, &[]));
    // The rest of a recycled file may look like log.
    log.put(&commit(2, 2));
    assert_eq!(scan(&log.segments()).len(), 1);
}

#[test]
fn another_segment_and_no_segment_are_refused() {
    let mut log = Log::new(SEGMENT);
    log.put(&commit(1, 1));
    let (start, segment) = log.segments().remove(0);
    let mut scanner = Scanner::default();
    let elsewhere = scanner.feed(&segment, Lsn(start.0 + SEGMENT), &mut |_| {});
    assert!(matches!(elsewhere, Err(Error::Address { .. })));
    assert_eq!(scanner.feed(&[0; PAGE], start, &mut |_| {}), Err(Error::Header));
}

proptest! {
    /// Records of every size, so that they end and begin at every place of a page and of a segment.
    #[test]
    fn no_commit_is_lost_between_records_of_any_size(sizes in prop::collection::vec(0_usize..40_000, 1..80)) {
        let mut log = Log::new(0);
        let mut put = Vec::new();
        for (number, size) in sizes.iter().enumerate() {
            let xid = u32::try_from(number).expect("few") + 3;
            log.put(&record(0, 0x00, 9, &vec![0xAB; *size]));
            put.push((log.put(&commit(xid, i64::from(xid))), Event::Commit(xid)));
        }
        let found = scan(&log.segments());
        let found: Vec<_> = found.into_iter().map(|record| (record.lsn, record.event)).collect();
        prop_assert_eq!(found, put);
    }

    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..4000), flips in prop::collection::vec((0_usize..1 << 20, any::<u8>()), 0..40)) {
        Scanner::default().feed(&bytes, Lsn(0), &mut |_| {}).ok();
        let mut log = Log::new(0);
        for number in 0..400 {
            log.put(&record(0, 0x00, 9, &[1; 200]));
            log.put(&commit(number, 1));
        }
        let (start, mut segment) = log.segments().remove(0);
        for (at, byte) in flips {
            segment[at] = byte;
        }
        Scanner::default().feed(&segment, start, &mut |_| {}).ok();
    }
}

#[test]
fn raised_limits_and_records_of_extensions_are_noticed_wherever_they_stand() {
    let change = |numbers: [u32; 5]| {
        let mut data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        data.extend([1, 0, 0, 0, 0, 0]);
        record(0, PARAMETER_CHANGE, MANAGER_XLOG, &data)
    };
    let mut log = Log::new(SEGMENT);
    log.put(&change([100, 8, 10, 0, 64]));
    // Pushes the next one across a page.
    log.put(&record(0, 0, 10, &vec![0; PAGE - 250]));
    log.put(&change([50, 16, 10, 2, 64]));
    let feed = |log: Log| {
        let mut scanner = Scanner::default();
        for (start, bytes) in log.segments() {
            scanner.feed(&bytes, start, &mut |_| {}).expect("a segment");
        }
        scanner.demands
    };
    let mut demands = Demands {
        limits: Limits([100, 16, 10, 2, 64]),
        custom: false,
    };
    assert_eq!(feed(log), demands);
    let mut log = Log::new(SEGMENT);
    log.put(&record(7, 0x10, 130, &[0; 20]));
    demands = Demands {
        custom: true,
        ..Demands::default()
    };
    assert_eq!(feed(log), demands);
}

#[test]
fn the_second_phase_of_a_prepared_transaction_is_known_by_the_transactions_own_number() {
    let mut data = 1_000_000_i64.to_le_bytes().to_vec();
    // Database, subtransactions, dropped files and statistics, invalidations, the prepared transaction.
    data.extend((0b1_0001_1111_u32).to_le_bytes());
    data.extend([0; 8]);
    for (count, bytes) in [(3_u32, 4), (1, 12), (2, 12), (700, 16)] {
        data.extend(count.to_le_bytes());
        data.extend(vec![0xAB; count as usize * bytes]);
    }
    data.extend(4711_u32.to_le_bytes());
    let mut log = Log::new(SEGMENT);
    log.put(&record(0, 0, 9, &[1; 3000]));
    log.put(&record(0, 0x30 | HAS_INFO, MANAGER_TRANSACTION, &data));
    let mut aborted = 1_000_000_i64.to_le_bytes().to_vec();
    aborted.extend((1_u32 << 4).to_le_bytes());
    aborted.extend(4712_u32.to_le_bytes());
    log.put(&record(0, 0x40 | HAS_INFO, MANAGER_TRANSACTION, &aborted));
    let events: Vec<Event> = scan(&log.segments()).into_iter().map(|record| record.event).collect();
    assert_eq!(events, [Event::Commit(4711), Event::Abort(4712)]);
}
