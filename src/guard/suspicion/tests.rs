//! What counts as evidence, and how long a block lasts, with made-up time.

use std::cell::RefCell;

use super::*;

const START: Duration = Duration::from_secs(5000);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn config() -> Config {
    Config {
        threshold: 5,
        window: Duration::from_secs(600),
        block_duration: HOUR,
        escalation: 2.0,
        max_block_duration: 24 * HOUR,
        probe_paths: vec!["/.env".to_owned()],
        failed_logins_per_minute: 3,
    }
}

fn client(address: &str) -> Client {
    Client::of(address.parse().expect("an address"), 64)
}

fn mallory() -> Client {
    client("192.0.2.66")
}

/// Strikes with a blocklist that takes every order, and the orders that it took.
struct Court {
    suspicion: Suspicion,
    config: Config,
    orders: RefCell<Vec<Order>>,
}

impl Court {
    fn new(config: Config) -> Self {
        Self {
            suspicion: Suspicion::new(&config),
            config,
            orders: RefCell::default(),
        }
    }

    fn strike(&self, kind: Kind, tick: Duration) {
        let block = |order| self.take(order);
        self.suspicion.strike(mallory(), kind, &self.config, tick, block);
    }

    fn failed_login(&self, tick: Duration) {
        let block = |order| self.take(order);
        self.suspicion.failed_login(mallory(), &self.config, tick, block);
    }

    fn take(&self, order: Order) -> bool {
        self.orders.borrow_mut().push(order);
        true
    }

    fn strikes(&self, tick: Duration) -> u32 {
        self.suspicion.strikes(mallory(), &self.config, tick)
    }

    /// Strikes once a second until a block is ordered; says how long it lasts, and when it was ordered.
    fn convict(&self, from: Duration) -> (Duration, Duration) {
        let before = self.orders.borrow().len();
        let mut tick = from;
        while self.orders.borrow().len() == before {
            self.strike(Kind::Limited, tick);
            tick += SECOND;
        }
        let order = self.orders.borrow().last().cloned().expect("an order");
        (order.duration.expect("not permanent"), tick - SECOND)
    }
}

#[test]
fn burst_within_a_second_is_one_strike() {
    let court = Court::new(config());
    for nth in 0..100 {
        court.strike(Kind::Limited, START + Duration::from_millis(9) * nth);
    }
    assert_eq!(court.strikes(START + SECOND), 1);
    assert!(court.orders.borrow().is_empty());
}

#[test]
fn hammering_for_threshold_seconds_blocks_and_names_the_evidence() {
    let court = Court::new(config());
    for nth in 0..500 {
        court.strike(Kind::Limited, START + Duration::from_millis(10) * nth);
        let blocked = !court.orders.borrow().is_empty();
        assert_eq!(
            blocked,
            nth >= 400,
            "the fifth second began at strike 400, this was {nth}"
        );
    }
    let orders = court.orders.borrow();
    let expected = Order {
        network: "192.0.2.66/32".parse().expect("a network"),
        reason: "5 strikes within 600s: over its limit (5)".to_owned(),
        source: Source::Automatic,
        created_by: "foregate".to_owned(),
        duration: Some(HOUR),
    };
    assert_eq!(orders.first(), Some(&expected));
    assert_eq!(orders.len(), 1, "strikes begin anew after a block");
}

#[test]
fn kinds_are_spaced_apart_and_counted_together() {
    let court = Court::new(config());
    court.strike(Kind::Limited, START);
    court.strike(Kind::Probe, START);
    court.strike(Kind::Probe, START + SECOND);
    court.strike(Kind::Limited, START + SECOND);
    assert_eq!(court.strikes(START + SECOND), 4);
    court.strike(Kind::Probe, START + 2 * SECOND);
    let reason = court.orders.borrow().first().map(|order| order.reason.clone());
    let expected = "5 strikes within 600s: over its limit (2), probing for weak spots (3)";
    assert_eq!(reason.as_deref(), Some(expected));
}

#[test]
fn strikes_are_forgotten_after_the_window() {
    let court = Court::new(config());
    for nth in 0..4 {
        court.strike(Kind::Probe, START + SECOND * nth);
    }
    assert_eq!(court.strikes(START + 599 * SECOND), 4);
    assert_eq!(court.strikes(START + 600 * SECOND), 3);
    court.strike(Kind::Probe, START + 601 * SECOND);
    assert!(court.orders.borrow().is_empty());
    assert_eq!(court.strikes(START + 601 * SECOND), 3);
}

#[test]
fn further_blocks_last_longer_up_to_the_maximum_and_are_forgiven_in_time() {
    let court = Court::new(config());
    let mut from = START;
    for hours in [1, 2, 4, 8, 16, 24, 24] {
        let (duration, ordered) = court.convict(from);
        assert_eq!(duration, HOUR * hours);
        from = ordered + duration + HOUR;
    }
    let last_ended = from - HOUR;
    let (duration, ordered) = court.convict(last_ended + 24 * HOUR - 10 * SECOND);
    assert_eq!(duration, 24 * HOUR, "not yet forgiven");
    let (duration, _) = court.convict(ordered + duration + 24 * HOUR);
    assert_eq!(duration, HOUR);
}

#[test]
fn absurd_escalation_ends_at_the_maximum() {
    for escalation in [f64::INFINITY, f64::MAX, f64::NAN, -3.0, 0.0] {
        let court = Court::new(Config { escalation, ..config() });
        let (first, ordered) = court.convict(START);
        let (second, _) = court.convict(ordered + first);
        assert_eq!(first, HOUR);
        let expected = if escalation > 1.0 { 24 * HOUR } else { HOUR };
        assert_eq!(second, expected, "{escalation}");
    }
}

#[test]
fn more_failed_logins_than_allowed_within_a_minute_are_one_strike() {
    let court = Court::new(config());
    for nth in 0..3 {
        court.failed_login(START + SECOND * nth);
    }
    assert_eq!(court.strikes(START + 2 * SECOND), 0);
    court.failed_login(START + 61 * SECOND);
    assert_eq!(
        court.strikes(START + 61 * SECOND),
        0,
        "the first two are out of the minute"
    );
    court.failed_login(START + 61 * SECOND);
    court.failed_login(START + 61 * SECOND);
    assert_eq!(court.strikes(START + 61 * SECOND), 1);
}

#[test]
fn order_that_is_not_taken_is_tried_again_by_the_next_strike() {
    let court = Court::new(config());
    let refused = RefCell::new(0);
    for nth in 0..8 {
        let refuse = |_| {
            *refused.borrow_mut() += 1;
            false
        };
        court
            .suspicion
            .strike(mallory(), Kind::Limited, &court.config, START + SECOND * nth, refuse);
    }
    assert_eq!(refused.into_inner(), 4, "the fifth and each further strike");
    let (duration, ordered) = court.convict(START + 8 * SECOND);
    assert_eq!(
        (duration, ordered),
        (HOUR, START + 8 * SECOND),
        "what was not taken does not escalate"
    );
}

#[test]
fn detection_can_be_switched_off() {
    let off = Court::new(Config {
        threshold: 0,
        ..config()
    });
    let no_logins = Court::new(Config {
        failed_logins_per_minute: 0,
        ..config()
    });
    for nth in 0..100 {
        off.strike(Kind::Probe, START + SECOND * nth);
        off.failed_login(START + SECOND * nth);
        no_logins.failed_login(START + SECOND * nth);
    }
    assert!(off.orders.borrow().is_empty());
    assert_eq!(no_logins.strikes(START + 100 * SECOND), 0);
}

#[test]
fn ipv6_client_is_blocked_as_its_network() {
    let suspicion = Suspicion::new(&config());
    let orders = RefCell::new(Vec::new());
    for nth in 0..5 {
        let address = format!("2001:db8::{nth:x}");
        let take = |order: Order| {
            orders.borrow_mut().push(order.network.to_string());
            true
        };
        suspicion.strike(client(&address), Kind::Probe, &config(), START + SECOND * nth, take);
    }
    assert_eq!(orders.into_inner(), ["2001:db8::/64"]);
}

#[test]
fn what_is_kept_of_a_client_is_bounded_whatever_the_settings() {
    let generous = Config {
        threshold: u32::MAX,
        failed_logins_per_minute: u32::MAX,
        window: 1000 * HOUR,
        ..config()
    };
    let court = Court::new(generous);
    for nth in 0..3000 {
        court.strike(Kind::Probe, START + SECOND * nth);
        court.failed_login(START + Duration::from_millis(1) * nth);
    }
    let record = court.suspicion.record(mallory());
    let record = record.lock().expect("not poisoned");
    assert!(record.strikes.len() <= KEPT_TIMES_MAX && record.failed_logins.len() <= KEPT_TIMES_MAX);
}

#[test]
fn remembered_clients_are_bounded() {
    let suspicion = Suspicion::new(&config());
    for number in 0..100_000_u32 {
        let address = std::net::IpAddr::V4(std::net::Ipv4Addr::from_bits(number));
        suspicion.strike(Client::of(address, 64), Kind::Probe, &config(), START, |_| false);
    }
    suspicion.records.run_pending_tasks();
    assert!(suspicion.records.entry_count() <= REMEMBERED_CLIENTS_MAX);
    assert_eq!(suspicion.total(Kind::Probe), 100_000);
    let last = Client::of("0.1.134.159".parse().expect("an address"), 64);
    assert_eq!(
        suspicion.strikes(last, &config(), START),
        1,
        "a flood does not keep a newcomer out"
    );
}
