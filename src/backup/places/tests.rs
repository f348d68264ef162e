//! A real dump, and one made up.

use proptest::prelude::*;

use super::*;

/// Of PostgreSQL 15, through a pipe: three tables (one of them empty) and three large objects (one of them empty).
const DUMP: &[u8] = include_bytes!("../../../tests/dumps/pg15-through-a-pipe.dump");
/// Where the same dump differs when pg_dump writes it into a file: an entry's slot, and its place.
const PLACES: [(u64, u64); 4] = [(2464, 3210), (2639, 3252), (2812, 4444), (2918, 4465)];

fn found(dump: &[u8], step: usize) -> Vec<(u64, u64)> {
    let mut places = Places::default();
    for piece in dump.chunks(step) {
        places.take(piece);
    }
    let mut found = places.finish();
    found.sort_unstable();
    found
}

#[test]
fn places_are_those_that_pg_dump_writes_into_a_file_however_the_bytes_arrive() {
    for step in [1, 7, 512, 4096, DUMP.len()] {
        assert_eq!(found(DUMP, step), PLACES, "in steps of {step}");
    }
}

#[test]
fn spooled_dump_differs_from_the_stored_one_in_the_places_alone() {
    let path = tempfile::NamedTempFile::new().expect("a file");
    let mut spool = Spool::new(path.reopen().expect("open"));
    spool.write_all(DUMP).expect("written");
    spool.finish().expect("written");
    let spooled = std::fs::read(path.path()).expect("read");
    let mut wanted = DUMP.to_vec();
    for (slot, place) in PLACES {
        let slot = usize::try_from(slot).expect("small");
        wanted[slot] = PLACE_KNOWN;
        wanted[slot + 1..slot + 9].copy_from_slice(&place.to_le_bytes());
    }
    assert!(spooled == wanted);
}

#[test]
fn dump_that_is_not_understood_stays_as_it_is() {
    let mut future = DUMP.to_vec();
    future[6] = 17;
    assert_eq!(found(&future, 512), []);
    // A block of a kind that there is not.
    let mut odd = DUMP.to_vec();
    let last = PLACES.iter().map(|(_, place)| *place).max().expect("some");
    odd[usize::try_from(last).expect("small")] = 9;
    assert_eq!(found(&odd, 512), []);
    assert_eq!(found(b"plain SQL, or nothing that we know", 3), []);
}

fn number(number: i32) -> Vec<u8> {
    let mut bytes = vec![u8::from(number < 0)];
    bytes.extend(number.unsigned_abs().to_le_bytes());
    bytes
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = number(i32::try_from(text.len()).expect("short"));
    bytes.extend(text.as_bytes());
    bytes
}

/// One table of two rows, as a program of PostgreSQL 17 writes it.
fn of_seventeen() -> (Vec<u8>, u64, u64) {
    let mut dump = b"PGDMP\x01\x10\x00\x04\x08\x01\x00".to_vec();
    (0..7).for_each(|part| dump.extend(number(part)));
    ["app", "17.2", "17.2"].iter().for_each(|part| dump.extend(text(part)));
    dump.extend(number(1));
    dump.extend([number(42), number(1)].concat());
    ["1259", "16384", "users", "TABLE DATA"]
        .iter()
        .for_each(|part| dump.extend(text(part)));
    dump.extend(number(3));
    ["", "", "COPY public.users (id) FROM stdin;\n", "public"]
        .iter()
        .for_each(|part| dump.extend(text(part)));
    dump.extend([number(-1), number(-1)].concat());
    // The kind of relation, new in 17.
    dump.extend(number(i32::from(b'r')));
    ["postgres", "false", "217"]
        .iter()
        .for_each(|part| dump.extend(text(part)));
    dump.extend(number(-1));
    let slot = dump.len() as u64;
    dump.push(PLACE_UNKNOWN);
    dump.extend([0; 8]);
    let place = dump.len() as u64;
    dump.push(BLOCK_DATA);
    dump.extend([number(42), text("1\n"), text("2\n"), text("\\.\n"), number(0)].concat());
    (dump, slot, place)
}

#[test]
fn format_of_seventeen_is_known_too() {
    let (dump, slot, place) = of_seventeen();
    for step in [1, 64, dump.len()] {
        assert_eq!(found(&dump, step), [(slot, place)], "in steps of {step}");
    }
}

proptest! {
    #[test]
    fn nothing_panics_and_nothing_is_written_outside(flips in prop::collection::vec((0..DUMP.len(), any::<u8>()), 0..20), step in 1_usize..9000) {
        let mut dump = DUMP.to_vec();
        for (at, byte) in flips {
            dump[at] = byte;
        }
        for (slot, place) in found(&dump, step) {
            prop_assert!(slot + 9 <= place && place < dump.len() as u64);
        }
    }
}
