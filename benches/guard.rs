//! What the guard costs a request: `cargo bench --bench guard`.
//!
//! Each figure is the median over rounds, with the fastest and the slowest beside it. Clients come in random order, so
//! that a large table shows what it costs to miss the caches. Budgets: a check with a million clients within 300 ns,
//! 100 bytes per client with both limits.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use foregate::clock::{Clock, Now};
use foregate::guard::blocklist::Blocklist;
use foregate::guard::client::Client;
use foregate::guard::limit::{self, Limiter, Memory, Mode, Quota, Rule};
use foregate::guard::{Config, Guard, Visit, suspicion};

const ROUNDS: usize = 15;
const CHECKS_PER_ROUND: usize = 1_000_000;
const TRACKED_MAX: usize = 1_000_000;

fn main() {
    println!(
        "{:<50} {:>9} {:>9} {:>9}",
        "ns per operation", "median", "fastest", "slowest"
    );
    report("reading the clock (part of each line below)", &clock_alone());
    for clients in [1, 1_000, 1_000_000] {
        let order = shuffled(clients);
        let guard = Guard::new(config(clients), Blocklist::default());
        report(
            &format!("limit check, {clients} clients"),
            &limit_check(clients, &order),
        );
        report(&format!("whole admit, {clients} clients"), &admit(&guard, &order));
    }
    report("whole admit, refused over the limit", &refused());
    report("limit check, new clients beyond the cap (no clock)", &overflow());
    bytes_per_client();
}

/// Both limits, and a rule that does not apply. So many requests that none is refused, and so few that each of `clients`
/// stays tracked from one round to the next.
fn limits(clients: u32) -> limit::Config {
    let generous = (100_000_000 / clients).max(300);
    let quota = |per_minute, per_hour| Quota {
        per_minute: NonZeroU32::new(per_minute),
        per_hour: NonZeroU32::new(per_hour),
    };
    limit::Config {
        mode: Mode::Enforce,
        default: quota(generous, generous * 10),
        rules: vec![Rule {
            path: "/login".to_owned(),
            methods: vec!["POST".to_owned()],
            quota: quota(10, 60),
        }],
        max_tracked_clients: TRACKED_MAX,
    }
}

fn config(clients: u32) -> Config {
    let network = |text: &str| text.parse().expect("a network");
    Config {
        limits: limits(clients),
        suspicion: suspicion::Config {
            threshold: 5,
            window: Duration::from_secs(600),
            block_duration: Duration::from_secs(3600),
            escalation: 2.0,
            max_block_duration: Duration::from_secs(86_400),
            probe_paths: vec!["/.env".to_owned()],
            failed_logins_per_minute: 10,
        },
        exempt: vec![network("192.168.0.0/16"), network("fd00::/8")],
        never_block: vec![network("127.0.0.0/8"), network("::1/128")],
        ipv6_prefix: 64,
    }
}

/// As many checks as a round has, of so many clients in random order.
fn shuffled(clients: u32) -> Vec<IpAddr> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u32::try_from((state >> 33) % u64::from(clients)).unwrap_or(0)
    };
    (0..CHECKS_PER_ROUND).map(|_| address(next())).collect()
}

fn address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0A00_0000 + number))
}

fn clock_alone() -> Vec<f64> {
    let clock = Clock::system();
    measured(CHECKS_PER_ROUND, || {
        for _ in 0..CHECKS_PER_ROUND {
            black_box(clock.tick());
        }
    })
}

fn limit_check(clients: u32, order: &[IpAddr]) -> Vec<f64> {
    let memory = Memory::new(TRACKED_MAX);
    let limiter = Limiter::new(&limits(clients), &memory);
    let clock = Clock::system();
    measured(order.len(), || {
        for address in order {
            let client = Client::of(*address, 64);
            assert!(black_box(limiter.check(client, "GET", "/index.html", clock.tick())).is_ok());
        }
    })
}

fn admit(guard: &Guard, order: &[IpAddr]) -> Vec<f64> {
    let clock = Clock::system();
    let wall = clock.wall();
    measured(order.len(), || {
        for &address in order {
            let visit = Visit {
                address,
                method: "GET",
                path: "/index.html",
            };
            let now = Now {
                tick: clock.tick(),
                wall,
            };
            black_box(guard.admit(visit, now));
        }
    })
}

/// One client that hammers: what a 429 costs before it is written.
fn refused() -> Vec<f64> {
    let mut few = config(1);
    // Strikes are given, but none is one too many.
    few.suspicion.threshold = 1000;
    few.limits.default.per_minute = NonZeroU32::new(1);
    let guard = Guard::new(few, Blocklist::default());
    admit(&guard, &shuffled(1))
}

/// Every slot is taken by a client with half its quota spent, and others come.
fn overflow() -> Vec<f64> {
    let memory = Memory::new(TRACKED_MAX);
    let mut few = limits(1);
    few.default.per_minute = NonZeroU32::new(2);
    few.default.per_hour = NonZeroU32::new(2);
    let limiter = Limiter::new(&few, &memory);
    let tick = Duration::from_secs(1);
    for number in 0..2_000_000 {
        drop(limiter.check(Client::of(address(number), 64), "GET", "/", tick));
    }
    let mut number = 2_000_000;
    measured(CHECKS_PER_ROUND, || {
        for _ in 0..CHECKS_PER_ROUND {
            number += 1;
            drop(black_box(limiter.check(
                Client::of(address(number), 64),
                "GET",
                "/",
                tick,
            )));
        }
    })
}

fn bytes_per_client() {
    println!("\n{:<50} {:>9} {:>9}", "memory", "tracked", "B/client");
    for clients in [1_000_u32, 100_000, 1_000_000] {
        let memory = Memory::new(TRACKED_MAX);
        let limiter = Limiter::new(&limits(clients), &memory);
        let tick = Duration::from_secs(1);
        for number in 0..clients {
            drop(limiter.check(Client::of(address(number), 64), "GET", "/", tick));
        }
        let bytes = memory.bytes() as f64 / f64::from(clients);
        println!(
            "{:<50} {clients:>9} {bytes:>9.1}",
            format!("{clients} clients, of a million at most")
        );
    }
    let most = Memory::new(TRACKED_MAX).bytes_max() as f64 / TRACKED_MAX as f64;
    println!("{:<50} {TRACKED_MAX:>9} {most:>9.1}", "whole table");
}

/// Nanoseconds per operation in each round, sorted; a first round warms up and is not kept.
fn measured(operations: usize, mut round: impl FnMut()) -> Vec<f64> {
    let clock = Clock::system();
    round();
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = clock.tick();
            round();
            (clock.tick() - start).as_nanos() as f64 / operations as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds
}

fn report(name: &str, rounds: &[f64]) {
    let nth = |index: usize| rounds.get(index).copied().unwrap_or(f64::NAN);
    let (median, fastest, slowest) = (nth(rounds.len() / 2), nth(0), nth(rounds.len() - 1));
    println!("{name:<50} {median:>9.1} {fastest:>9.1} {slowest:>9.1}");
}
