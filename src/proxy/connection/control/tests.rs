//! What is a flood over HTTP/2, and what is none.

use proptest::prelude::*;

use super::*;

const START: Duration = Duration::from_secs(5);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame's length").to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn request(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x82])
}

fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

fn begun() -> Control {
    let mut control = Control::default();
    control.received(&[b'P'; PREFACE_BYTES], START);
    control
}

/// The stream of the request with this number.
fn stream(number: u32) -> u32 {
    1 + 2 * number
}

/// So many requests, each followed in both directions by what `after` says: first what is sent, then what is received.
fn requests(count: u32, after: impl Fn(u32) -> (Vec<u8>, Vec<u8>, Duration)) -> Option<Flood> {
    let mut control = begun();
    for number in 0..count {
        control.received(&request(stream(number)), START);
        let (sent, received, age) = after(number);
        control.sent(&sent, START + age);
        control.received(&received, START + age);
    }
    control.flood()
}

const AT_ONCE: Duration = Duration::ZERO;

#[test]
fn requests_cancelled_at_once_are_a_flood() {
    let cancelled = |number| (Vec::new(), reset(stream(number), CANCEL), AT_ONCE);
    assert_eq!(requests(100, cancelled), None);
    assert_eq!(requests(101, cancelled), Some(Flood::Resets));
}

#[test]
fn errors_that_the_client_provokes_are_a_flood_and_what_the_gate_ends_is_none() {
    for (code, flood) in [
        (1, Some(Flood::Resets)),
        (3, Some(Flood::Resets)),
        (5, Some(Flood::Resets)),
        (NO_ERROR, None),
        (INTERNAL_ERROR, None),
        (CANCEL, None),
    ] {
        let spoilt = |number| (reset(stream(number), code), Vec::new(), AT_ONCE);
        assert_eq!(requests(500, spoilt), flood, "{code}");
    }
}

#[test]
fn requests_cancelled_after_their_answer_or_after_long_are_no_flood() {
    let answered = |number| {
        (
            frame(HEADERS, END_HEADERS, stream(number), &[0x88]),
            reset(stream(number), CANCEL),
            AT_ONCE,
        )
    };
    assert_eq!(requests(900, answered), None);
    let patient = |number| (Vec::new(), reset(stream(number), CANCEL), YOUNG);
    assert_eq!(requests(900, patient), None);
}

#[test]
fn client_that_cancels_less_than_half_is_no_flood() {
    let third = |number: u32| {
        if number.is_multiple_of(3) {
            (Vec::new(), reset(stream(number), CANCEL), AT_ONCE)
        } else {
            (
                frame(HEADERS, END_HEADERS, stream(number), &[0x88]),
                Vec::new(),
                AT_ONCE,
            )
        }
    };
    assert_eq!(requests(900, third), None);
}

#[test]
fn refused_streams_do_not_hide_resets() {
    let mut control = begun();
    for number in 0..400 {
        control.received(&request(stream(number)), START);
        if number % 2 == 0 {
            control.sent(&reset(stream(number), REFUSED_STREAM), START);
        } else {
            control.received(&reset(stream(number), CANCEL), START);
        }
    }
    assert_eq!(control.flood(), Some(Flood::Resets));
}

#[test]
fn resets_of_another_window_are_forgotten() {
    let mut control = begun();
    for number in 0..150 {
        let now = START + if number < 100 { Duration::ZERO } else { WINDOW };
        control.received(&request(stream(number)), now);
        control.received(&reset(stream(number), CANCEL), now);
    }
    assert_eq!(control.flood(), None);
}

fn flood_of(frame: &[u8], count: u32) -> Option<Flood> {
    let mut control = begun();
    for _ in 0..count {
        control.received(frame, START);
    }
    control.flood()
}

#[test]
fn each_kind_of_frame_has_a_budget_of_its_own() {
    for (kind, bytes) in [
        (Kind::Settings, frame(SETTINGS, 0, 0, &[])),
        (Kind::Ping, frame(PING, 0, 0, &[0; 8])),
        (Kind::WindowUpdate, frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        (Kind::EmptyData, frame(DATA, 0, 1, &[])),
        (Kind::EmptyData, frame(DATA, 8, 1, &[3, 0, 0, 0])),
        (Kind::Priority, frame(PRIORITY, 0, 1, &[0; 5])),
        (Kind::Reset, reset(1, CANCEL)),
        (Kind::Other, frame(0x10, 0, 0, &[0; 5])),
    ] {
        assert_eq!(flood_of(&bytes, kind.budget()), None, "{kind:?}");
        let flood = Some(Flood::Frames(kind));
        assert_eq!(flood_of(&bytes, kind.budget() + 1), flood, "{kind:?}");
    }
    for carrying in [
        frame(DATA, 0, 1, &[7]),
        frame(DATA, 8, 1, &[2, 7, 0, 0]),
        frame(DATA, 1, 1, &[]),
    ] {
        assert_eq!(flood_of(&carrying, 100_000), None);
    }
}

#[test]
fn budget_is_for_a_second() {
    let mut control = begun();
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(900);
    for second in 0..10 {
        control.received(&pings, START + SECOND * second);
    }
    assert_eq!(control.flood(), None);
}

#[test]
fn download_brings_its_own_budget_of_window_updates() {
    let mut control = begun();
    let twice = frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(2);
    let data = frame(DATA, 0, 1, &[7; 4096]);
    for _ in 0..50_000 {
        control.sent(&data, START);
        control.received(&twice, START);
    }
    assert_eq!(control.flood(), None);
    control.received(&twice.repeat(100_000), START);
    assert_eq!(
        control.flood(),
        Some(Flood::Frames(Kind::WindowUpdate)),
        "what was saved up is bounded"
    );
}

#[test]
fn farewell_stands_behind_a_whole_frame_only() {
    let mut control = begun();
    control.received(&request(5), START);
    let data = frame(DATA, 0, 5, b"abc");
    control.sent(&data[..10], START);
    assert_eq!(control.farewell(), None);
    control.sent(&data[10..], START);
    let expected = frame(GOAWAY, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 11]);
    assert_eq!(
        control.farewell().as_ref().map(<[u8; 17]>::as_slice),
        Some(expected.as_slice())
    );
}

#[test]
fn header_block_is_under_way_from_its_first_frame_to_the_end_of_its_last() {
    let mut control = begun();
    let later = START + SECOND;
    control.received(&frame(HEADERS, 0, 1, &[0x82]), START);
    assert_eq!(control.block_since(), Some(START));
    let last = frame(CONTINUATION, END_HEADERS, 1, &[0x84; 20]);
    let (some, rest) = last.split_at(15);
    control.received(some, later);
    assert_eq!(control.block_since(), Some(START));
    control.received(rest, later);
    assert_eq!(control.block_since(), None);
    control.received(&[request(3), request(5)].concat(), later);
    assert_eq!(control.block_since(), None);
}

fn session() -> Vec<u8> {
    let mut bytes = vec![b'P'; PREFACE_BYTES];
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    for number in 0..150 {
        bytes.extend(request(stream(number)));
        bytes.extend(frame(DATA, 8, stream(number), &[3, 0, 0, 0]));
        bytes.extend(frame(CONTINUATION, END_HEADERS, stream(number), &[0x84; 20]));
        bytes.extend(reset(stream(number), CANCEL));
    }
    bytes
}

proptest! {
    #[test]
    fn judgement_does_not_depend_on_how_the_bytes_come(sizes in prop::collection::vec(1_usize..40, 1..600), end in 0_usize..7000) {
        let session = session();
        let session = &session[..end.min(session.len())];
        let (mut whole, mut pieces, mut at) = (Control::default(), Control::default(), 0);
        whole.received(session, START);
        for size in sizes.into_iter().chain([session.len()]) {
            let end = session.len().min(at + size);
            pieces.received(&session[at..end], START);
            at = end;
        }
        prop_assert_eq!(whole.tally(), pieces.tally());
        prop_assert_eq!(whole.flood(), pieces.flood());
    }
}
