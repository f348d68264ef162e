//! Attacks over HTTP/2, while another client keeps being answered and memory stays bounded. `make attacks` repeats each for
//! some seconds and writes the table of `docs/limits.md`.

use crate::support::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, Fate, Frames, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, frame,
};
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::wait;
use crate::support::witness::unharmed_by;

/// Well above what the gate's allocator and a hundred streams need, far below what an unbounded queue would take.
const GROWTH_BYTES_MAX: u64 = 48 << 20;

struct Scene {
    gate: Gate,
    origin: Origin,
}

impl Scene {
    async fn new() -> Self {
        let origin = Origin::answering("x").await;
        let gate = Gate::start(&Config::before(&origin)).await;
        Self { gate, origin }
    }

    async fn attack(&self, name: &str, round: impl AsyncFnMut()) {
        unharmed_by(name, &self.gate, GROWTH_BYTES_MAX, round).await;
    }

    /// How many requests for this path reached the app.
    fn reached(&self, path: &str) -> usize {
        let heads = self.origin.heads();
        heads.iter().filter(|head| head.contains(path)).count()
    }
}

/// Sends `bytes` again and again until the gate ends the connection.
async fn flood(mut attacker: Frames, bytes: &[u8]) {
    loop {
        // What comes back is read, so that the attack is not throttled by its own deafness.
        let mut scrap = vec![0; 16 << 10];
        while let Ok(count) = attacker.stream.try_read(&mut scrap) {
            if count == 0 || has_goaway(&scrap[..count]) {
                return;
            }
        }
        if attacker.try_send(bytes).await.is_err() {
            return;
        }
    }
}

/// Whether a GOAWAY lies in these bytes.
fn has_goaway(bytes: &[u8]) -> bool {
    bytes
        .windows(9)
        .any(|head| head[..3] == [0, 0, 8] && head[3] == GOAWAY && head[4..] == [0; 5])
}

/// A burst of streams, each of which is spoilt at once by the frame that `spoil` makes.
async fn burst_of_spoilt_streams(gate: &Gate, count: u32, spoil: impl Fn(u32) -> Vec<u8>) {
    let mut attacker = Frames::open(gate.address).await;
    let mut burst = Vec::new();
    for number in 0..count {
        let stream = 1 + 2 * number;
        burst.extend(frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            stream,
            &frames::get("/spoilt"),
        ));
        burst.extend(spoil(stream));
    }
    drop(attacker.try_send(&burst).await);
    let code = attacker.ended().await;
    assert_ne!(code, Some(0), "the attack was taken for an orderly end");
}

// The app must be able to answer while the attacker is at work.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rapid_reset_ends_the_connection_and_nobody_else_notices() {
    let scene = Scene::new().await;
    let mut rounds = 0;
    // CVE-2023-44487.
    scene
        .attack("rapid reset", async || {
            rounds += 1;
            burst_of_spoilt_streams(&scene.gate, 20_000, |stream| {
                frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
            })
            .await;
        })
        .await;
    let reached = scene.reached("/spoilt");
    assert!(
        reached < 2_000 * rounds,
        "{reached} cancelled requests of {rounds} rounds reached the app"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn made_you_reset_ends_the_connection() {
    let scene = Scene::new().await;
    // A window update of nothing makes the server reset the stream itself (CVE-2025-8671).
    scene
        .attack("made you reset", async || {
            burst_of_spoilt_streams(&scene.gate, 5_000, |stream| frame(WINDOW_UPDATE, 0, stream, &[0; 4])).await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn continuation_flood_is_cut_off() {
    let scene = Scene::new().await;
    let piece = frame(CONTINUATION, 0, 1, &frames::block(&[("x-flood", &"y".repeat(8000))]));
    scene
        .attack("CONTINUATION flood", async || {
            let mut attacker = Frames::open(scene.gate.address).await;
            attacker
                .send(&frame(HEADERS, END_STREAM, 1, &frames::get("/flood")))
                .await;
            flood(attacker, &piece).await;
        })
        .await;
    assert_eq!(scene.reached("/flood"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn header_table_bomb_is_refused_without_being_unpacked() {
    let scene = Scene::new().await;
    // 4,000 bytes go into the dynamic table once, and are then named by one byte 11,000 times: 44 MB unpacked.
    let mut bomb = frames::get("/bomb");
    bomb.extend([0x40, 1, b'z', 0x7f]);
    bomb.extend([0xa1, 0x1e]);
    bomb.extend(vec![b'y'; 127 + 0x21 + (0x1e << 7)]);
    bomb.extend(vec![0xbe; 11_000]);
    scene
        .attack("HPACK bomb", async || {
            let mut attacker = Frames::open(scene.gate.address).await;
            attacker.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)).await;
            let fate = attacker.fate(1).await;
            assert!(!matches!(fate, Fate::Status(200)), "{fate:?}");
        })
        .await;
    assert_eq!(scene.reached("/bomb"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn thousands_of_cookie_crumbs_are_431() {
    let scene = Scene::new().await;
    let mut fields = frames::get("/cookies");
    let crumbs: Vec<(&str, &str)> = vec![("cookie", "a"); 1000];
    fields.extend(frames::block(&crumbs));
    scene
        .attack("cookie bomb", async || {
            let mut attacker = Frames::open(scene.gate.address).await;
            // As many at a time as one connection may carry; each is answered.
            let all: Vec<u8> = (0..100)
                .flat_map(|number| frame(HEADERS, END_HEADERS | END_STREAM, 1 + 2 * number, &fields))
                .collect();
            attacker.send(&all).await;
            assert_eq!(attacker.fate(1).await, Fate::Status(431));
        })
        .await;
    assert_eq!(scene.reached("/cookies"), 0);
}

/// Nothing of it is forbidden, but so much of it serves no purpose.
async fn flood_ends(name: &str, one: Vec<u8>) {
    let scene = Scene::new().await;
    let post = frames::block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/c"),
    ]);
    let bytes = one.repeat(2000);
    scene
        .attack(name, async || {
            let mut attacker = Frames::open(scene.gate.address).await;
            attacker.send(&frame(HEADERS, END_HEADERS, 1, &post)).await;
            wait::within(name, flood(attacker, &bytes)).await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ping_flood_is_cut_off() {
    flood_ends("PING flood", frame(PING, 0, 0, &[7; 8])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn settings_flood_is_cut_off() {
    flood_ends("SETTINGS flood", frame(SETTINGS, 0, 0, &[])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn flood_of_empty_data_is_cut_off() {
    flood_ends("empty DATA flood", frame(DATA, 0, 1, &[])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn window_update_flood_is_cut_off() {
    flood_ends("WINDOW_UPDATE flood", frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn frames_of_one_byte_are_a_request_like_any_other() {
    let scene = Scene::new().await;
    let fields = frames::get("/bytes");
    let (last, first) = fields.split_last().expect("a block");
    scene
        .attack("frames of one byte", async || {
            let mut attacker = Frames::open(scene.gate.address).await;
            attacker.send(&frame(HEADERS, END_STREAM, 1, &first[..1])).await;
            for byte in &first[1..] {
                attacker.send(&frame(CONTINUATION, 0, 1, &[*byte])).await;
            }
            drop(attacker.try_send(&frame(CONTINUATION, END_HEADERS, 1, &[*last])).await);
            let fate = attacker.fate(1).await;
            // Too many CONTINUATION frames are an attack to h2; either way the gate goes on.
            assert!(matches!(fate, Fate::Status(200) | Fate::GoAway(_)), "{fate:?}");
        })
        .await;
}
