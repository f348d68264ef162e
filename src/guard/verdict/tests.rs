//! The guard as a whole, with made-up time.

use std::num::NonZeroU32;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::*;
use crate::guard::blocklist::Source;
use crate::guard::limit::{self, Quota};

const MALLORY: &str = "192.0.2.66";

fn config() -> Config {
    Config {
        limits: limit::Config {
            mode: Mode::Enforce,
            default: Quota {
                per_minute: NonZeroU32::new(3),
                per_hour: NonZeroU32::new(5),
            },
            rules: Vec::new(),
            max_tracked_clients: 1000,
        },
        suspicion: suspicion::Config {
            threshold: 3,
            window: Duration::from_secs(600),
            block_duration: Duration::from_secs(3600),
            escalation: 2.0,
            max_block_duration: Duration::from_secs(86_400),
            probe_paths: vec!["/.env".to_owned(), "/.git/".to_owned()],
            failed_logins_per_minute: 2,
        },
        exempt: vec!["10.0.0.0/8".parse().expect("a network")],
        never_block: vec![
            "127.0.0.0/8".parse().expect("a network"),
            "2001:db8::5/128".parse().expect("a network"),
        ],
        ipv6_prefix: 64,
    }
}

fn guard(config: Config) -> Guard {
    Guard::new(config, Blocklist::default())
}

fn at(seconds: u64) -> Now {
    Now::at(Duration::from_secs(10_000 + seconds))
}

fn visit<'a>(address: &str, path: &'a str) -> Visit<'a> {
    Visit {
        address: address.parse().expect("an address"),
        method: "GET",
        path,
    }
}

fn passes(guard: &Guard, address: &str, now: Now) -> bool {
    matches!(guard.admit(visit(address, "/"), now), Verdict::Pass)
}

fn strikes(guard: &Guard, address: &str, now: Now) -> u32 {
    guard.report(address.parse().expect("an address"), now).strikes
}

#[test]
fn flood_is_a_strike_each_second_but_for_those_that_are_never_blocked() {
    let guard = guard(config());
    let (mallory, proxy) = (
        MALLORY.parse().expect("an address"),
        "127.0.0.1".parse().expect("an address"),
    );
    for nth in 0..2 {
        guard.flooded(mallory, at(nth));
        guard.flooded(proxy, at(nth));
    }
    assert_eq!(strikes(&guard, MALLORY, at(3)), 2);
    assert_eq!(strikes(&guard, "127.0.0.1", at(3)), 0);
}

#[test]
fn client_over_its_limit_is_refused_and_gets_a_strike() {
    let guard = guard(config());
    for _ in 0..3 {
        assert!(passes(&guard, MALLORY, at(0)));
    }
    let Verdict::Limited(excess) = guard.admit(visit(MALLORY, "/"), at(0)) else {
        unreachable!("the minute is used up");
    };
    assert_eq!(
        (excess.violated, excess.retry_after),
        (Window::Minute, Duration::from_secs(20))
    );
    assert_eq!(strikes(&guard, MALLORY, at(0)), 1);
    assert!(passes(&guard, "192.0.2.67", at(0)), "others are not concerned");
    let stats = guard.stats();
    assert_eq!(
        (stats.admitted, stats.limited, stats.strikes, stats.tracked_clients),
        (4, 1, 1, 2)
    );
}

#[test]
fn observed_limits_refuse_nothing_and_give_no_strikes() {
    let mut config = config();
    config.limits.mode = Mode::Observe;
    let guard = guard(config);
    for _ in 0..3 {
        assert!(passes(&guard, MALLORY, at(0)));
    }
    for _ in 0..7 {
        assert!(matches!(
            guard.admit(visit(MALLORY, "/"), at(0)),
            Verdict::PassOverLimit(_)
        ));
    }
    let stats = guard.stats();
    assert_eq!((stats.admitted, stats.limited, stats.strikes), (10, 0, 0));
    assert_eq!(guard.tally.total(Act::ObservedOverMinute), 7);
}

#[test]
fn exempt_network_is_never_limited_and_never_suspected() {
    let guard = guard(config());
    for second in 0..100 {
        for address in ["10.1.2.3", "::ffff:10.1.2.3"] {
            assert!(passes(&guard, address, at(second)));
            guard.answered(visit(address, "/.env"), 404, at(second));
            guard.answered(visit(address, "/login"), 401, at(second));
        }
    }
    let report = guard.report("10.1.2.3".parse().expect("an address"), at(100));
    assert!(report.exempt);
    assert_eq!(
        (report.strikes, report.remaining_minute, report.remaining_hour),
        (0, None, None)
    );
    assert_eq!(guard.stats().automatic_blocks, 0);
}

#[test]
fn never_blocked_networks_are_limited_but_not_suspected() {
    let guard = guard(config());
    // The second is another address of the /64 that holds a protected one.
    for address in ["127.0.0.1", "2001:db8::6"] {
        let refused = (0..10).filter(|_| !passes(&guard, address, at(0))).count();
        assert_eq!(refused, 7);
        for second in 0..10 {
            guard.answered(visit(address, "/.env"), 404, at(second));
        }
        assert_eq!(strikes(&guard, address, at(10)), 0, "{address}");
    }
}

#[test]
fn only_the_evidence_counts() {
    let guard = guard(config());
    for second in 0..20 {
        guard.answered(visit(MALLORY, "/.env"), 200, at(second));
        guard.answered(visit(MALLORY, "/missing.png"), 404, at(second));
        guard.answered(visit(MALLORY, "/.github"), 404, at(second));
        guard.answered(visit(MALLORY, "/"), 500, at(second));
    }
    assert_eq!(strikes(&guard, MALLORY, at(20)), 0);
    guard.answered(visit(MALLORY, "/.env.production"), 404, at(21));
    assert_eq!(strikes(&guard, MALLORY, at(21)), 1);
    for status in [401, 403, 401] {
        guard.answered(visit(MALLORY, "/login"), status, at(22));
    }
    assert_eq!(strikes(&guard, MALLORY, at(22)), 2);
}

#[test]
fn reload_swaps_the_policy_and_keeps_counts_and_strikes() {
    let guard = guard(config());
    for _ in 0..5 {
        assert!(matches!(
            guard.admit(visit(MALLORY, "/"), at(0)),
            Verdict::Pass | Verdict::Limited(_)
        ));
    }
    guard.reload(config());
    assert!(!passes(&guard, MALLORY, at(0)));
    assert_eq!(strikes(&guard, MALLORY, at(0)), 1);
    let mut lenient = config();
    lenient.exempt.push("192.0.2.0/24".parse().expect("a network"));
    guard.reload(lenient);
    assert!(passes(&guard, MALLORY, at(0)));
    guard.reload(config());
    assert!(!passes(&guard, MALLORY, at(0)), "what was used up before is remembered");
}

#[test]
fn report_says_what_remains_and_charges_nothing() {
    let guard = guard(config());
    assert!(passes(&guard, MALLORY, at(0)));
    for _ in 0..10 {
        let report = guard.report(MALLORY.parse().expect("an address"), at(0));
        assert_eq!((report.remaining_minute, report.remaining_hour), (Some(2), Some(4)));
        assert_eq!((report.exempt, report.blocked, report.block), (false, false, None));
    }
}

/// A block that nobody has met yet.
fn fresh_entry() -> Entry {
    Entry {
        block: Block {
            reference: ulid::Ulid::nil(),
            network: "192.0.2.66/32".parse().expect("a network"),
            reason: "a test".to_owned(),
            source: Source::Manual,
            created_by: "ops".to_owned(),
            created_at: at(0).wall,
            expires_at: None,
        },
        told: AtomicU32::new(0),
        met: AtomicU32::new(0),
    }
}

#[test]
fn ten_requests_of_a_block_are_told_why() {
    let entry = fresh_entry();
    for nth in 0..10 {
        assert!(!has_been_told(&entry), "request {nth}");
        tell(&entry);
    }
    assert!(has_been_told(&entry));
    for _ in 0..100 {
        tell(&entry);
    }
    assert_eq!(entry.told.load(Ordering::Relaxed), 11, "no writes once cut off");
}

#[test]
fn blocked_client_that_never_asks_is_refused_at_accept_as_well() {
    let entry = fresh_entry();
    let let_in = (0..100).filter(|_| !is_met_too_often(&entry)).count();
    assert_eq!(let_in, 20, "a handshake costs more than a request");
}

#[test]
fn metrics_carry_no_client() {
    let guard = guard(config());
    let registry = prometheus::Registry::new();
    guard.register(&registry).expect("registered once");
    assert!(guard.register(&registry).is_err(), "and only once");
    for _ in 0..5 {
        assert!(matches!(
            guard.admit(visit(MALLORY, "/"), at(0)),
            Verdict::Pass | Verdict::Limited(_)
        ));
    }
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .expect("text");
    for line in [
        "foregate_guard_admitted_requests_total 3",
        "foregate_guard_limited_requests_total{window=\"minute\"} 2",
        "foregate_guard_limited_requests_total{window=\"hour\"} 0",
        "foregate_guard_strikes_total{kind=\"limited\"} 1",
        "foregate_guard_tracked_clients 1",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} in {text}");
    }
    assert!(!text.contains("192.0.2"));
}
