//! A lookup among 100,000 blocks, and the start that loads them from the embedded store.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark prints its figures and may fail"
)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use foregate::clock::Clock;
use foregate::guard::blocklist::{Block, Blocklist, Source};
use foregate::store::{Change, Config, Store};
use foregate::telemetry::health::Board;

const BLOCKS: u32 = 100_000;
const LOOKUPS: u32 = 1_000_000;

fn address(number: u32) -> IpAddr {
    // Odd multiplication spreads the numbers over all addresses without meeting one twice.
    Ipv4Addr::from(number.wrapping_mul(2_654_435_761)).into()
}

#[tokio::main]
async fn main() {
    let clock = Clock::system();
    let state = tempfile::tempdir().expect("a directory");
    let config = Config {
        postgres: None,
        pool_size: 1,
        state_dir: state.path().to_owned(),
    };
    let store = Store::open(&config, Board::default()).await.expect("a store");
    let block = |number| Block {
        reference: ulid::Ulid::nil(),
        network: address(number).into(),
        reason: "bench".into(),
        source: Source::Manual,
        created_by: "bench".into(),
        created_at: clock.wall(),
        expires_at: None,
    };
    for start in (0..BLOCKS).step_by(10_000) {
        let changes = (start..start + 10_000)
            .map(|number| Change::Block(block(number)))
            .collect();
        store.apply(changes).await.expect("stored");
    }
    let before = clock.tick();
    let registry = prometheus::Registry::new();
    let (list, keeper) = Blocklist::open(store, state.path(), &registry)
        .await
        .expect("metrics register");
    println!(
        "start with {} blocks: {:?}",
        list.page(0, 0).total,
        clock.tick().saturating_sub(before)
    );
    let now = clock.wall();
    for (what, first) in [("hit", 0), ("miss", BLOCKS)] {
        let before = clock.tick();
        for number in 0..LOOKUPS {
            black_box(list.find(black_box(address(first + number % BLOCKS)), now));
        }
        println!("{what}: {:?}", clock.tick().saturating_sub(before) / LOOKUPS);
    }
    assert!(keeper.shutdown(Duration::from_secs(5)).await);
}
