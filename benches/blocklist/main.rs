//! `cargo bench --bench blocklist`: a look-up among 100,000 blocks, one change of them, and the start that loads them, up to
//! the first answer of a real process. From the embedded store, and from PostgreSQL where its programs are installed.
//!
//! Each figure is the median over passes, with the fastest and the slowest beside it.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark prints its figures and may fail"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "measures real time, and starts the gate and a database"
)]

mod cluster;
mod start;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use foregate::clock::Clock;
use foregate::guard::blocklist::{Block, Blocklist, Order, Source};
use foregate::secret::Secret;
use foregate::store::{Change, Config, Store};
use foregate::telemetry::health::Board;
use futures_util::FutureExt as _;

const BLOCKS: u32 = 100_000;
const LOOKUPS: u32 = 1_000_000;
const PASSES: u32 = 9;
const REBUILDS: u32 = 200;
const STARTS: usize = 7;

fn address(number: u32) -> IpAddr {
    // Odd multiplication spreads the numbers over all addresses without meeting one twice.
    Ipv4Addr::from(number.wrapping_mul(2_654_435_761)).into()
}

async fn filled(config: &Config, clock: Clock) -> Store {
    let store = Store::open(config, Board::default()).expect("a store");
    let block = |number| Block {
        reference: ulid::Ulid::nil(),
        network: address(number).into(),
        reason: "bench".into(),
        source: Source::Manual,
        created_by: "bench".into(),
        created_at: clock.wall(),
        expires_at: None,
    };
    let before = Instant::now();
    for start in (0..BLOCKS).step_by(10_000) {
        let changes = (start..start + 10_000)
            .map(|number| Change::Block(block(number)))
            .collect();
        drop(store.apply(changes).await.expect("stored"));
    }
    println!(
        "{} is filled with {BLOCKS} blocks in {:?}, once",
        store.kind(),
        before.elapsed()
    );
    store
}

fn lookups(list: &Blocklist, clock: Clock, when: &str) {
    let now = clock.wall();
    for (what, first) in [("hit", 0), ("miss", BLOCKS)] {
        let pass = || {
            let before = Instant::now();
            for number in 0..LOOKUPS {
                black_box(list.find(black_box(address(first + number % BLOCKS)), now));
            }
            before.elapsed() / LOOKUPS
        };
        // The first one warms up.
        black_box(pass());
        report(
            &format!("look-up, {what}, {when}"),
            (0..PASSES).map(|_| pass()).collect(),
        );
    }
}

fn rebuilds(list: &Blocklist) {
    let change = |number| {
        // The first poll puts the block in force; the rest is waiting for the store.
        let ordered = list.block(Order {
            network: address(2 * BLOCKS + number).into(),
            reason: "bench".into(),
            source: Source::Automatic,
            created_by: "bench".into(),
            duration: None,
        });
        let before = Instant::now();
        drop(ordered.now_or_never());
        before.elapsed()
    };
    report("one block more", (0..REBUILDS).map(change).collect());
}

/// Opens the blocklist again and again, and leaves the last one open.
async fn opened(config: &Config) -> (Blocklist, foregate::guard::blocklist::Keeper) {
    let mut taken = Vec::new();
    loop {
        let store = Store::open(config, Board::default()).expect("a store");
        let (registry, before) = (prometheus::Registry::new(), Instant::now());
        let opened = Blocklist::open(store, &config.state_dir, &registry).await;
        let (list, keeper) = opened.expect("metrics register");
        taken.push(before.elapsed());
        assert_eq!(list.page(0, 0).total, BLOCKS as usize, "all blocks are in force");
        if taken.len() == STARTS {
            report("blocks read and in force", taken);
            return (list, keeper);
        }
        assert!(keeper.shutdown(Duration::from_secs(30)).await);
    }
}

async fn run(postgres: Option<&str>) {
    let clock = Clock::system();
    let state = tempfile::tempdir().expect("a directory");
    let config = Config {
        postgres: postgres.map(|url| Secret::new(url.to_owned())),
        pool_size: 2,
        state_dir: state.path().to_owned(),
    };
    drop(filled(&config, clock).await);
    println!("{:<50} {:>12} {:>12} {:>12}", "", "median", "fastest", "slowest");
    let blocked = address(BLOCKS / 2);
    let starts = (0..STARTS).map(|_| start::first_refusal(state.path(), postgres, blocked));
    report("start of the process to its first answer, a 403", starts.collect());
    let (list, keeper) = opened(&config).await;
    lookups(&list, clock, "after a start");
    rebuilds(&list);
    lookups(&list, clock, "after changes");
    assert!(keeper.shutdown(Duration::from_secs(30)).await);
}

fn report(what: &str, mut passes: Vec<Duration>) {
    passes.sort_unstable();
    let nth = |index: usize| format!("{:.1?}", passes.get(index).copied().unwrap_or_default());
    let (median, fastest, slowest) = (nth(passes.len() / 2), nth(0), nth(passes.len() - 1));
    println!("{what:<50} {median:>12} {fastest:>12} {slowest:>12}");
}

#[tokio::main]
async fn main() {
    run(None).await;
    match cluster::Cluster::start() {
        Some(cluster) => run(Some(&cluster.url())).await,
        None => println!("PostgreSQL is not installed: not measured"),
    }
}
