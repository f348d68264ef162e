//! What a limit means, with made-up time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// Clocks do not start at a round time, and never at 0.
const START: Duration = Duration::from_millis(12_345_678);

fn quota(per_minute: u32, per_hour: u32) -> Quota {
    Quota {
        per_minute: NonZeroU32::new(per_minute),
        per_hour: NonZeroU32::new(per_hour),
    }
}

fn rule(path: &str, methods: &[&str], quota: Quota) -> Rule {
    Rule {
        path: path.to_owned(),
        methods: methods.iter().map(|&method| method.to_owned()).collect(),
        quota,
    }
}

fn config(default: Quota, rules: &[Rule]) -> Config {
    Config {
        mode: Mode::Enforce,
        default,
        rules: rules.to_vec(),
        max_tracked_clients: 1000,
    }
}

fn limiter(default: Quota, rules: &[Rule]) -> Limiter {
    Limiter::new(&config(default, rules), &Memory::new(1000))
}

fn client(number: u32) -> Client {
    Client::of(IpAddr::V4(Ipv4Addr::from_bits(number)), 64)
}

fn get(limiter: &Limiter, client: Client, tick: Duration) -> Result<(), Box<Excess>> {
    limiter.check(client, "GET", "/", tick)
}

/// How many of `requests` at one moment pass.
fn passing(limiter: &Limiter, client: Client, tick: Duration, requests: u32) -> u32 {
    (0..requests)
        .map(|_| u32::from(get(limiter, client, tick).is_ok()))
        .sum()
}

#[test]
fn minute_admits_all_at_once_then_one_each_interval() {
    let limiter = limiter(quota(100, 0), &[]);
    assert_eq!(passing(&limiter, client(1), START, 150), 100);
    let just_before = START + Duration::from_millis(600) - Duration::from_nanos(1);
    assert_eq!(passing(&limiter, client(1), just_before, 5), 0);
    for nth in 1..=20 {
        let tick = START + Duration::from_millis(600) * nth;
        assert_eq!(passing(&limiter, client(1), tick, 5), 1, "after {nth} intervals");
    }
    assert_eq!(passing(&limiter, client(1), START + 12 * SECOND + MINUTE, 150), 100);
}

#[test]
fn hour_admits_up_to_twice_its_quota_within_an_hour() {
    let limiter = limiter(quota(0, 100), &[]);
    let passed: u32 = (0..=3600)
        .map(|second| passing(&limiter, client(1), START + SECOND * second, 101))
        .sum();
    assert_eq!(passed, 200);
    let next: u32 = (3601..=7200)
        .map(|second| passing(&limiter, client(1), START + SECOND * second, 101))
        .sum();
    assert_eq!(next, 100, "the burst comes once");
}

#[test]
fn what_the_minute_refuses_never_touches_the_hour() {
    let limiter = limiter(quota(10, 20), &[]);
    assert_eq!(passing(&limiter, client(1), START, 1000), 10);
    assert_eq!(limiter.remaining(client(1), START), (Some(0), Some(10)));
    assert_eq!(passing(&limiter, client(1), START + MINUTE, 1000), 10);
}

#[test]
fn what_the_hour_refuses_costs_the_minute_only() {
    let limiter = limiter(quota(10, 5), &[]);
    assert_eq!(passing(&limiter, client(1), START, 10), 5);
    assert_eq!(limiter.remaining(client(1), START), (Some(0), Some(0)));
    assert_eq!(limiter.remaining(client(1), START + MINUTE), (Some(10), Some(0)));
}

#[test]
fn refusal_says_which_quota_and_when_to_return() {
    let limiter = limiter(quota(10, 12), &[]);
    assert_eq!(passing(&limiter, client(1), START, 10), 10);
    let by_minute = get(&limiter, client(1), START).expect_err("the minute is used up");
    let expected = Excess {
        violated: Window::Minute,
        retry_after: 6 * SECOND,
        quota: quota(10, 12),
        remaining_minute: 0,
        remaining_hour: 2,
    };
    assert_eq!(*by_minute, expected);
    assert_eq!(passing(&limiter, client(1), START + 30 * SECOND, 2), 2);
    let by_hour = get(&limiter, client(1), START + 30 * SECOND).expect_err("the hour is used up");
    let expected = Excess {
        violated: Window::Hour,
        retry_after: 270 * SECOND,
        quota: quota(10, 12),
        remaining_minute: 2,
        remaining_hour: 0,
    };
    assert_eq!(*by_hour, expected);
    let back = START + 30 * SECOND + by_hour.retry_after;
    assert!(get(&limiter, client(1), back - Duration::from_nanos(1)).is_err());
    assert!(get(&limiter, client(1), back).is_ok());
}

#[test]
fn retry_after_waits_for_both_windows() {
    let limiter = limiter(quota(10, 10), &[]);
    assert_eq!(passing(&limiter, client(1), START, 10), 10);
    let excess = get(&limiter, client(1), START).expect_err("both are used up");
    assert_eq!((excess.violated, excess.retry_after), (Window::Minute, 360 * SECOND));
}

#[test]
fn no_quota_means_no_limit() {
    let unlimited = limiter(quota(0, 0), &[]);
    assert_eq!(passing(&unlimited, client(1), START, 5000), 5000);
    assert_eq!(unlimited.remaining(client(1), START), (None, None));
    let by_minute = limiter(quota(1, 0), &[]);
    assert!(get(&by_minute, client(1), START).is_ok());
    let excess = get(&by_minute, client(1), START).expect_err("the minute is used up");
    assert_eq!((excess.remaining_minute, excess.remaining_hour), (0, u32::MAX));
}

#[test]
fn clients_are_counted_apart() {
    let limiter = limiter(quota(3, 0), &[]);
    assert_eq!(passing(&limiter, client(1), START, 9), 3);
    assert_eq!(passing(&limiter, client(2), START, 9), 3);
    let v6 = |low: u128| Client::of(IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + low)), 64);
    assert_eq!(passing(&limiter, v6(1), START, 2), 2);
    assert_eq!(passing(&limiter, v6(2), START, 9), 1, "one /64 is one client");
    assert_eq!(passing(&limiter, v6(1 << 64), START, 9), 3);
}

#[test]
fn longest_path_with_its_method_wins_and_rules_are_counted_apart() {
    let rules = [
        rule("/", &[], quota(7, 0)),
        rule("/login", &[], quota(5, 0)),
        rule("/login", &["POST"], quota(2, 0)),
        rule("/login/reset", &["PUT"], quota(1, 0)),
    ];
    let limiter = limiter(quota(9, 0), &rules);
    let count = |method: &str, path: &str| {
        let passes = |_| u32::from(limiter.check(client(1), method, path, START).is_ok());
        (0..20).map(passes).sum::<u32>()
    };
    assert_eq!(count("POST", "/login"), 2);
    assert_eq!(
        count("POST", "/login/reset"),
        0,
        "falls back to the same rule as /login"
    );
    assert_eq!(count("PUT", "/login/reset"), 1);
    assert_eq!(count("GET", "/login-help"), 5, "a prefix is text, not a folder");
    assert_eq!(count("GET", "/other"), 7);
    assert_eq!(count("OPTIONS", "*"), 9);
}

#[test]
fn reload_keeps_counts_through_new_order_and_new_quotas() {
    let memory = Memory::new(1000);
    let login = |quota| rule("/login", &["POST", "PUT"], quota);
    let before = Limiter::new(&config(quota(100, 0), &[login(quota(10, 0))]), &memory);
    assert_eq!(passing(&before, client(1), START, 50), 50);
    for _ in 0..10 {
        assert!(before.check(client(1), "PUT", "/login", START).is_ok());
    }
    let turned = rule("/login", &["PUT", "POST"], quota(20, 0));
    let after = Limiter::new(&config(quota(10, 0), &[rule("/a", &[], quota(1, 1)), turned]), &memory);
    assert_eq!(
        after.remaining(client(1), START).0,
        Some(5),
        "half a quota spent stays half a quota spent"
    );
    assert_eq!(passing(&after, client(1), START, 50), 5);
    assert!(
        after.check(client(1), "POST", "/login", START).is_err(),
        "all spent stays all spent"
    );
    assert!(after.check(client(1), "POST", "/login", START + 3 * SECOND).is_ok());
    let wider = Limiter::new(&config(quota(1000, 0), &[]), &memory);
    assert_eq!(passing(&wider, client(1), START + MINUTE, 2000), 1000);
}

#[test]
fn asking_what_remains_charges_nothing() {
    let limiter = limiter(quota(10, 100), &[]);
    for _ in 0..50 {
        assert_eq!(limiter.remaining(client(1), START), (Some(10), Some(100)));
    }
    assert_eq!(limiter.memory.tracked(START), 0);
    assert_eq!(passing(&limiter, client(1), START, 4), 4);
    assert_eq!(limiter.remaining(client(1), START), (Some(6), Some(96)));
}

#[test]
fn client_is_tracked_until_its_quotas_are_full_again() {
    let limiter = limiter(quota(60, 60), &[]);
    assert_eq!(passing(&limiter, client(1), START, 2), 2);
    assert_eq!(limiter.memory.tracked(START), 1);
    assert_eq!(limiter.memory.tracked(START + 119 * SECOND), 1);
    assert_eq!(limiter.memory.tracked(START + 120 * SECOND), 0);
}

#[test]
fn a_million_clients_stay_within_the_cap_and_are_tracked_one_by_one() {
    let count = 1_000_000;
    let memory = Memory::new(count);
    let both = Config {
        max_tracked_clients: count,
        ..config(quota(100, 1000), &[])
    };
    let limiter = Limiter::new(&both, &memory);
    assert!(memory.bytes() < 2 << 20, "an idle gate pays little: {}", memory.bytes());
    for number in 0..1_000_000 {
        assert!(get(&limiter, client(number), START).is_ok());
    }
    let tracked = memory.tracked(START);
    assert!((950_000..=1_050_000).contains(&tracked), "{tracked}");
    assert!(memory.bytes_max() <= 60 * count, "{} bytes", memory.bytes_max());
    for number in 1_000_000..1_300_000 {
        passing(&limiter, client(number), START, 1);
    }
    assert!(memory.bytes() <= memory.bytes_max());
    let own = (0..1_000_000).filter(|&number| {
        let fingerprint = memory.fingerprint(client(number), 0);
        memory.table.slot(fingerprint, || 1, nanos(START)).is_own()
    });
    let own = own.count();
    assert!(own > 999_000, "{own}: hardly anybody shares below the cap");
}

#[test]
fn flood_of_addresses_neither_resets_a_quota_nor_buys_a_fresh_one() {
    let memory = Memory::new(64);
    let limiter = Limiter::new(&config(quota(3, 0), &[]), &memory);
    let known = client(0xC000_0207);
    assert_eq!(passing(&limiter, known, START, 9), 3);
    // As many addresses of one /24 and of many others as would fill the table a hundred times.
    let flood: u32 = (0..20_000)
        .map(|number| passing(&limiter, client(0x0A00_0000 + number), START, 1))
        .sum();
    assert_eq!(passing(&limiter, known, START, 9), 0, "still used up");
    let (own_slots, neighbourhoods) = (128, 20_000_u32.div_ceil(256));
    assert!(flood <= own_slots + 3 * neighbourhoods, "{flood} passed");
    let late = (0..200).map(|number| passing(&limiter, client(0x0A00_0000 + 19_900 + number), START, 9));
    assert_eq!(late.sum::<u32>(), 0, "neighbours share what is used up");
    assert_eq!(memory.bytes(), memory.bytes_max(), "and no memory beyond the cap");
    assert_eq!(
        passing(&limiter, client(0x0A00_0000 + 30_000), START + MINUTE, 9),
        3,
        "slots are used again"
    );
}

#[test]
fn threads_together_never_admit_more_than_the_quota() {
    for round in 0..50 {
        let limiter = limiter(quota(100, 0), &[]);
        let passed = AtomicU32::new(0);
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    passed.fetch_add(passing(&limiter, client(round), START, 60), Ordering::Relaxed);
                });
            }
        });
        assert_eq!(passed.into_inner(), 100);
    }
}

#[test]
fn threads_that_meet_new_clients_together_leave_each_of_them_one_slot() {
    let memory = Memory::new(3000);
    let limiter = Limiter::new(&config(quota(3, 0), &[]), &memory);
    let passed: Vec<AtomicU32> = std::iter::repeat_with(AtomicU32::default).take(2000).collect();
    let start = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                for (number, passed) in (0..).zip(&passed) {
                    passed.fetch_add(passing(&limiter, client(number), START, 2), Ordering::Relaxed);
                }
            });
        }
    });
    for (number, passed) in (0..).zip(passed) {
        let passed = passed.into_inner();
        assert!(passed <= 3, "client {number} passed {passed} times");
        let owner = memory.fingerprint(client(number), 0);
        assert_eq!(memory.table.slots_of(owner), 1, "client {number}");
    }
}

#[test]
fn second_slot_of_a_client_is_given_up_and_its_charges_are_kept() {
    let memory = Memory::new(1000);
    let limiter = Limiter::new(&config(quota(10, 20), &[]), &memory);
    assert_eq!(passing(&limiter, client(1), START, 3), 3);
    let owner = memory.fingerprint(client(1), 0);
    // What two workers do that miss each other: the first slot is charged under the owner's name, a second is taken.
    memory.table.take_again(owner, nanos(START));
    assert_eq!(memory.table.slots_of(owner), 1);
    assert_eq!(limiter.remaining(client(1), START), (Some(7), Some(17)));
    assert_eq!(passing(&limiter, client(1), START, 30), 7);
}

#[test]
fn slot_changes_hands_only_when_both_quotas_are_full_again() {
    let memory = Memory::new(64);
    let limiter = Limiter::new(&config(quota(60, 60), &[]), &memory);
    for number in 0..5000 {
        passing(&limiter, client(number), START, 1);
    }
    let owns = |number: u32, tick: Duration| {
        let own = memory.fingerprint(client(number), 0);
        memory.table.slot(own, || 1, nanos(tick)).is_own()
    };
    let half = START + 30 * SECOND;
    assert!(
        (10_000..10_100).all(|number| !owns(number, half)),
        "the minute is full again, the hour is not"
    );
    assert!((10_000..10_010).all(|number| owns(number, START + MINUTE)));
}

/// A bucket of credit that fills with time: the same law, told another way.
struct Credit {
    window: u64,
    quota: u64,
    held: u64,
    at: u64,
}

impl Credit {
    fn new(window: Duration, quota: u32) -> Self {
        let quota = u64::from(quota);
        let price = nanos(window) / quota;
        Self {
            window: price * quota,
            quota,
            held: price * quota,
            at: 0,
        }
    }

    fn spend(&mut self, now: u64) -> bool {
        self.held = self.window.min(self.held + (now - self.at));
        self.at = now;
        let price = self.window / self.quota;
        let passes = self.held >= price;
        self.held -= if passes { price } else { 0 };
        passes
    }
}

proptest! {
    #[test]
    fn limiter_decides_as_a_bucket_of_credit_does(
        per_minute in 1_u32..50,
        per_hour in 1_u32..200,
        pauses in prop::collection::vec(prop_oneof![Just(0), 0_u64..20_000_000_000, 0_u64..600_000_000_000], 1..400),
    ) {
        let limiter = limiter(quota(per_minute, per_hour), &[]);
        let (mut minute, mut hour) = (Credit::new(MINUTE, per_minute), Credit::new(HOUR, per_hour));
        let mut now = nanos(START);
        for pause in pauses {
            now += pause;
            let expected = match (minute.spend(now), now) {
                (false, _) => Some(Window::Minute),
                (true, now) if !hour.spend(now) => Some(Window::Hour),
                _ => None,
            };
            let decided = get(&limiter, client(1), Duration::from_nanos(now));
            prop_assert_eq!(decided.err().map(|excess| excess.violated), expected);
        }
    }
}
