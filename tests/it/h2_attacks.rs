//! Attacks over HTTP/2, while another client keeps being answered and memory stays bounded. `make attacks` repeats each for
//! some seconds and writes the table of `docs/limits.md`.

use std::time::Duration;

use crate::support::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Fate, Frames, HEADERS, PADDED, PING,
    PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame,
};
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};
use crate::support::wait;
use crate::support::witness::unharmed_by;
use crate::support::{client, metrics};

/// Well above what the gate's allocator and a hundred streams need (4 MiB measured), far below what an unbounded queue would
/// take.
const GROWTH_BYTES_MAX: u64 = 16 << 20;

struct Scene {
    gate: Gate,
    origin: Origin,
}

impl Scene {
    async fn new() -> Self {
        let origin = Origin::answering("x").await;
        // The attacker comes back as often as it takes for the other client to be measured: it is not to be blocked for that.
        let config = Config::before(&origin).set("blocklist.suspicious_threshold", "0");
        let gate = Gate::start(&config).await;
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

/// A request whose stream is spoilt at once by the frame that `spoil` makes.
fn spoilt(number: u32, spoil: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    let stream = 1 + 2 * number;
    let mut bytes = frame(HEADERS, END_HEADERS | END_STREAM, stream, &frames::get("/spoilt"));
    bytes.extend(spoil(stream));
    bytes
}

fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

/// A window that overflows makes the server reset the stream itself. (One that is opened by nothing, as in the first report
/// of this attack, ends the whole connection.)
fn provoke(stream: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())
}

/// So many may be spoilt in a window of time before the connection ends.
const SPOILT_MAX: usize = 100;

async fn burst_of_spoilt_streams(name: &str, count: u32, spoil: fn(u32) -> Vec<u8>) {
    let scene = Scene::new().await;
    let mut rounds = 0;
    let burst: Vec<u8> = (0..count).flat_map(|number| spoilt(number, spoil)).collect();
    scene
        .attack(name, async || {
            rounds += 1;
            let mut attacker = Frames::open(scene.gate.address).await;
            drop(attacker.try_send(&burst).await);
            assert_eq!(attacker.ended().await, Some(ENHANCE_YOUR_CALM));
        })
        .await;
    let reached = scene.reached("/spoilt");
    assert!(
        reached <= SPOILT_MAX * rounds,
        "{reached} spoilt requests of {rounds} rounds reached the app"
    );
}

// The app must be able to answer while the attacker is at work.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rapid_reset_ends_the_connection_and_nobody_else_notices() {
    // CVE-2023-44487.
    burst_of_spoilt_streams("rapid reset", 20_000, cancel).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn made_you_reset_ends_the_connection() {
    // CVE-2025-8671.
    burst_of_spoilt_streams("made you reset", 5_000, provoke).await;
}

/// One at a time, the next when the last has been read: far below every other limit.
async fn paced_spoilt_streams(name: &str, spoil: fn(u32) -> Vec<u8>) {
    let scene = Scene::new().await;
    let mut rounds = 0;
    scene
        .attack(name, async || {
            rounds += 1;
            let mut attacker = Frames::open(scene.gate.address).await;
            for number in 0..u32::try_from(SPOILT_MAX).expect("a hundred") {
                attacker.send(&spoilt(number, spoil)).await;
                attacker.settle().await;
            }
            attacker.send(&spoilt(1000, spoil)).await;
            assert_eq!(attacker.ended().await, Some(ENHANCE_YOUR_CALM));
        })
        .await;
    assert!(scene.reached("/spoilt") <= SPOILT_MAX * rounds);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn rapid_reset_that_is_paced_ends_the_connection() {
    paced_spoilt_streams("rapid reset, paced", cancel).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn made_you_reset_that_is_paced_ends_the_connection() {
    paced_spoilt_streams("made you reset, paced", provoke).await;
}

#[tokio::test]
async fn browser_that_cancels_a_third_of_its_requests_is_served_on() {
    let answer = ok("x");
    let origin = Origin::start(move |head| {
        if head.starts_with("GET /hidden ") {
            Script::Never
        } else {
            Script::Answer(answer.clone())
        }
    })
    .await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let mut browser = Frames::open(gate.address).await;
    let mut number = 0;
    let mut next = || {
        number += 1;
        2 * number - 1
    };
    for _ in 0..150 {
        for _ in 0..2 {
            let stream = next();
            let shown = frames::get("/shown");
            browser
                .send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &shown))
                .await;
            assert_eq!(browser.fate(stream).await, Fate::Status(200));
        }
        let (stream, hidden) = (next(), frames::get("/hidden"));
        browser
            .send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &hidden))
            .await;
        browser.send(&cancel(stream)).await;
    }
    browser.settle().await;
}

#[tokio::test]
async fn requests_cancelled_at_once_are_charged_all_the_same() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin).set("limits.requests_per_minute", "5")).await;
    let mut attacker = Frames::open(gate.address).await;
    for number in 0..20 {
        attacker.send(&spoilt(number, cancel)).await;
    }
    // Four fifths of them were refused, though nobody was there to be told.
    wait::until("the account of all", async || {
        let text = metrics::scrape(gate.admin).await;
        let limited = r#"foregate_proxy_requests_total{class="4xx",outcome="limited"}"#;
        (metrics::sample(&text, limited) == Some(15.0)).then_some(())
    })
    .await;
    assert_eq!(client::get(gate.address, "/next", "").await.status, 429);
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
            assert_eq!(
                wait::within("the end", attacker.flood(&piece)).await,
                Some(ENHANCE_YOUR_CALM)
            );
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
            let code = wait::within(name, attacker.flood(&bytes)).await;
            assert_eq!(code, Some(ENHANCE_YOUR_CALM), "{name}");
        })
        .await;
}

#[tokio::test]
async fn client_that_floods_is_blocked_in_the_end() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin)
        .set("blocklist.block_loopback", "true")
        .set("blocklist.suspicious_threshold", "1");
    let gate = Gate::start(&config).await;
    let mut attacker = Frames::open(gate.address).await;
    let pings = frame(PING, 0, 0, &[7; 8]).repeat(2000);
    let code = wait::within("the flood", attacker.flood(&pings)).await;
    assert_eq!(code, Some(ENHANCE_YOUR_CALM));
    client::until_status(gate.address, "127.0.0.1", 403).await;
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
async fn flood_of_data_that_is_padding_alone_is_cut_off() {
    flood_ends("padded DATA flood", frame(DATA, PADDED, 1, &[3, 0, 0, 0])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn priority_flood_is_cut_off() {
    flood_ends("PRIORITY flood", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 15])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn flood_of_unknown_frames_is_cut_off() {
    flood_ends("unknown frames", frame(0xbb, 0, 0, b"?")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn body_in_pieces_of_one_byte_harms_nobody() {
    let scene = Scene::new().await;
    let post = frames::block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/bytes"),
    ]);
    // As much as the window of a stream takes.
    let pieces = frame(DATA, 0, 1, b"y").repeat(60_000);
    scene
        .attack("DATA of one byte", async || {
            let mut attacker = Frames::open(scene.gate.address).await;
            attacker.send(&frame(HEADERS, END_HEADERS, 1, &post)).await;
            drop(attacker.try_send(&pieces).await);
            drop(attacker.try_send(&frame(DATA, END_STREAM, 1, &[])).await);
            let fate = attacker.fate(1).await;
            assert!(
                matches!(fate, Fate::Status(200) | Fate::GoAway(ENHANCE_YOUR_CALM)),
                "{fate:?}"
            );
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn client_just_below_every_budget_harms_nobody_and_is_served() {
    let scene = Scene::new().await;
    let each = [
        frame(PING, 0, 0, &[7; 8]),
        frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()),
        frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 15]),
        frame(0xbb, 0, 0, b"?"),
    ]
    .concat();
    scene
        .attack("just below the budgets", async || {
            let mut client = Frames::open(scene.gate.address).await;
            let mut ticker = tokio::time::interval(Duration::from_millis(50));
            ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            // 800 of each in a second, of 1,000; and all of them, where a busy machine reads them at once.
            for _ in 0..24 {
                ticker.tick().await;
                client.send(&each.repeat(40)).await;
            }
            client
                .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::get("/below")))
                .await;
            assert_eq!(client.fate(1).await, Fate::Status(200));
        })
        .await;
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
