//! A lookup among 100,000 blocks, one change of them, and the start that loads them: from the embedded store, and
//! from PostgreSQL where `FOREGATE_BENCH_POSTGRES` holds the address of a database to fill.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark prints its figures and may fail"
)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use foregate::clock::Clock;
use foregate::guard::blocklist::{Block, Blocklist, Order, Source};
use foregate::secret::Secret;
use foregate::store::{Change, Config, Store};
use foregate::telemetry::health::Board;
use futures_util::FutureExt as _;

const BLOCKS: u32 = 100_000;
const LOOKUPS: u32 = 1_000_000;
const REBUILDS: u32 = 200;

fn address(number: u32) -> IpAddr {
    // Odd multiplication spreads the numbers over all addresses without meeting one twice.
    Ipv4Addr::from(number.wrapping_mul(2_654_435_761)).into()
}

async fn filled(config: &Config, clock: Clock) -> Store {
    let store = Store::open(config, Board::default()).await.expect("a store");
    let block = |number| Block {
        reference: ulid::Ulid::nil(),
        network: address(number).into(),
        reason: "bench".into(),
        source: Source::Manual,
        created_by: "bench".into(),
        created_at: clock.wall(),
        expires_at: None,
    };
    let before = clock.tick();
    for start in (0..BLOCKS).step_by(10_000) {
        let changes = (start..start + 10_000)
            .map(|number| Change::Block(block(number)))
            .collect();
        drop(store.apply(changes).await.expect("stored"));
    }
    let took = clock.tick().saturating_sub(before);
    println!("{}: filled with {BLOCKS} blocks: {took:?}", store.kind());
    store
}

fn lookups(list: &Blocklist, clock: Clock, when: &str) {
    let now = clock.wall();
    for (what, first) in [("hit", 0), ("miss", BLOCKS)] {
        let before = clock.tick();
        for number in 0..LOOKUPS {
            black_box(list.find(black_box(address(first + number % BLOCKS)), now));
        }
        println!("{what} {when}: {:?}", clock.tick().saturating_sub(before) / LOOKUPS);
    }
}

fn rebuilds(list: &Blocklist, clock: Clock) {
    let mut slowest = Duration::ZERO;
    let start = clock.tick();
    for number in 0..REBUILDS {
        let before = clock.tick();
        // The first poll puts the block in force; the rest is waiting for the store.
        let ordered = list.block(Order {
            network: address(2 * BLOCKS + number).into(),
            reason: "bench".into(),
            source: Source::Automatic,
            created_by: "bench".into(),
            duration: None,
        });
        drop(ordered.now_or_never());
        slowest = slowest.max(clock.tick().saturating_sub(before));
    }
    let mean = clock.tick().saturating_sub(start) / REBUILDS;
    println!("one change: {mean:?}, slowest {slowest:?}");
}

async fn run(postgres: Option<Secret>, clock: Clock) {
    let state = tempfile::tempdir().expect("a directory");
    let config = Config {
        postgres,
        pool_size: 2,
        state_dir: state.path().to_owned(),
    };
    let store = filled(&config, clock).await;
    let before = clock.tick();
    let registry = prometheus::Registry::new();
    let kind = store.kind();
    let opened = Blocklist::open(store, state.path(), &registry).await;
    let (list, keeper) = opened.expect("metrics register");
    let took = clock.tick().saturating_sub(before);
    println!("{kind}: start with {} blocks: {took:?}", list.page(0, 0).total);
    lookups(&list, clock, "after a start");
    rebuilds(&list, clock);
    lookups(&list, clock, "after changes");
    assert!(keeper.shutdown(Duration::from_secs(30)).await);
}

#[tokio::main]
async fn main() {
    let clock = Clock::system();
    run(None, clock).await;
    if let Ok(address) = std::env::var("FOREGATE_BENCH_POSTGRES") {
        run(Some(Secret::new(address)), clock).await;
    }
}
