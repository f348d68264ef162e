//! Attacks over HTTP/2, while another client keeps being answered and memory stays bounded.

use crate::support::client;
use crate::support::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, frame,
};
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::wait;

/// Well above what the gate's allocator and a hundred streams need, far below what an unbounded queue would take.
const GROWTH_BYTES_MAX: u64 = 48 << 20;

struct Scene {
    gate: Gate,
    origin: Origin,
    before: u64,
}

impl Scene {
    async fn new() -> Self {
        let origin = Origin::answering("x").await;
        let gate = Gate::start(&Config::before(&origin)).await;
        assert_eq!(client::get(gate.address, "/", "").await.status, 200);
        let before = gate.resident_bytes();
        Self { gate, origin, before }
    }

    /// Sends `bytes` again and again until the gate ends the connection or `times` are through; another client is served
    /// meanwhile. Returns whether the gate ended it.
    async fn flood(&self, mut attacker: Frames, bytes: &[u8], times: usize) -> bool {
        let (mut refused, mut goaway) = (false, false);
        for round in 0..times {
            // What comes back is read, so that the attack is not throttled by its own deafness.
            let mut scrap = vec![0; 16 << 10];
            while let Ok(count) = attacker.stream.try_read(&mut scrap) {
                refused |= count == 0;
                goaway |= has_goaway(&scrap[..count]);
                if count == 0 {
                    break;
                }
            }
            if refused || attacker.try_send(bytes).await.is_err() {
                refused = true;
                break;
            }
            if round % 16 == 0 {
                assert_eq!(client::get(self.gate.address, "/other", "").await.status, 200);
            }
        }
        assert_eq!(client::get(self.gate.address, "/other", "").await.status, 200);
        let grown = self.gate.resident_bytes().saturating_sub(self.before);
        assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more");
        refused || goaway
    }
}

/// Whether a GOAWAY with an error lies in these bytes, which begin at a frame unless a frame was cut.
fn has_goaway(bytes: &[u8]) -> bool {
    bytes
        .windows(9)
        .any(|head| head[..3] == [0, 0, 8] && head[3] == GOAWAY && head[4..] == [0; 5])
}

#[tokio::test]
async fn rapid_reset_ends_the_connection_and_nobody_else_notices() {
    let scene = Scene::new().await;
    let mut attacker = Frames::open(scene.gate.address).await;
    let mut burst = Vec::new();
    // One write holds many streams, each cancelled at once (CVE-2023-44487).
    for number in 0..20_000_u32 {
        let stream = 1 + 2 * number;
        burst.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &frames::get("/reset")));
        burst.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    drop(attacker.try_send(&burst).await);
    let code = attacker.ended().await;
    assert_ne!(code, Some(0), "the attack was taken for an orderly end");
    assert_eq!(client::get(scene.gate.address, "/other", "").await.status, 200);
    let reached = scene.origin.heads().len();
    assert!(reached < 2_000, "{reached} cancelled requests reached the app");
}

#[tokio::test]
async fn made_you_reset_ends_the_connection() {
    let scene = Scene::new().await;
    let mut attacker = Frames::open(scene.gate.address).await;
    let mut burst = Vec::new();
    // A window update of nothing makes the server reset the stream itself (CVE-2025-8671).
    for number in 0..5_000_u32 {
        let stream = 1 + 2 * number;
        burst.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &frames::get("/reset")));
        burst.extend(frame(WINDOW_UPDATE, 0, stream, &[0; 4]));
    }
    drop(attacker.try_send(&burst).await);
    let code = attacker.ended().await;
    assert_ne!(code, Some(0), "the attack was taken for an orderly end");
    assert_eq!(client::get(scene.gate.address, "/other", "").await.status, 200);
}

#[tokio::test]
async fn continuation_flood_is_cut_off() {
    let scene = Scene::new().await;
    let mut attacker = Frames::open(scene.gate.address).await;
    attacker.send(&frame(HEADERS, END_STREAM, 1, &frames::get("/"))).await;
    let piece = frame(CONTINUATION, 0, 1, &frames::block(&[("x-flood", &"y".repeat(8000))]));
    assert!(scene.flood(attacker, &piece, 4000).await);
}

#[tokio::test]
async fn header_table_bomb_is_refused_without_being_unpacked() {
    let scene = Scene::new().await;
    let mut attacker = Frames::open(scene.gate.address).await;
    // 4,000 bytes go into the dynamic table once, and are then named by one byte 15,000 times: 60 MB unpacked.
    let mut bomb = frames::get("/bomb");
    bomb.extend([0x40, 1, b'z', 0x7f]);
    bomb.extend([0xa1, 0x1e]);
    bomb.extend(vec![b'y'; 127 + 0x21 + (0x1e << 7)]);
    bomb.extend(vec![0xbe; 11_000]);
    attacker.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)).await;
    let fate = attacker.fate(1).await;
    assert!(!matches!(fate, frames::Fate::Status(200)), "{fate:?}");
    let grown = scene.gate.resident_bytes().saturating_sub(scene.before);
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more");
    assert_eq!(client::get(scene.gate.address, "/other", "").await.status, 200);
}

#[tokio::test]
async fn thousands_of_cookie_crumbs_are_431() {
    let scene = Scene::new().await;
    let mut attacker = Frames::open(scene.gate.address).await;
    let mut fields = frames::get("/cookies");
    let crumbs: Vec<(&str, &str)> = vec![("cookie", "a"); 1000];
    fields.extend(frames::block(&crumbs));
    attacker
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields))
        .await;
    assert_eq!(attacker.fate(1).await, frames::Fate::Status(431));
}

#[tokio::test]
async fn floods_of_empty_frames_leave_others_unharmed() {
    let scene = Scene::new().await;
    let post = frames::block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/c"),
    ]);
    let many = |one: Vec<u8>| one.repeat(2000);
    let floods = [
        ("PING", many(frame(PING, 0, 0, &[7; 8]))),
        ("SETTINGS", many(frame(SETTINGS, 0, 0, &[]))),
        ("empty DATA", many(frame(DATA, 0, 1, &[]))),
        ("WINDOW_UPDATE", many(frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()))),
    ];
    for (name, bytes) in floods {
        let mut attacker = Frames::open(scene.gate.address).await;
        attacker.send(&frame(HEADERS, END_HEADERS, 1, &post)).await;
        // Only empty DATA is known to be cut off by h2 itself, when the gate gets round to reading it; the others are
        // bounded by what the peer reads.
        let is_cut_off = name == "empty DATA";
        let times = if is_cut_off { usize::MAX } else { 40 };
        let ended = wait::within(name, scene.flood(attacker, &bytes, times)).await;
        assert!(ended || !is_cut_off, "{name} goes on for ever");
    }
}

#[tokio::test]
async fn frames_of_one_byte_are_a_request_like_any_other() {
    let scene = Scene::new().await;
    let mut attacker = Frames::open(scene.gate.address).await;
    let fields = frames::get("/bytes");
    let (last, first) = fields.split_last().expect("a block");
    attacker.send(&frame(HEADERS, END_STREAM, 1, &first[..1])).await;
    for byte in &first[1..] {
        attacker.send(&frame(CONTINUATION, 0, 1, &[*byte])).await;
    }
    drop(attacker.try_send(&frame(CONTINUATION, END_HEADERS, 1, &[*last])).await);
    let fate = attacker.fate(1).await;
    // Too many CONTINUATION frames are an attack to h2; either way the gate goes on.
    assert!(
        matches!(fate, frames::Fate::Status(200) | frames::Fate::GoAway(_)),
        "{fate:?}"
    );
    assert_eq!(client::get(scene.gate.address, "/other", "").await.status, 200);
}
