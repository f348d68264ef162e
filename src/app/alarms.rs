//! From the health board to the alerts: what an operator should be told of at night, whichever part says it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::clock::Clock;
use crate::telemetry::alert::Alerts;
use crate::telemetry::certificates::Certificates;
use crate::telemetry::health::{Board, Condition};

const LOOK: Duration = Duration::from_secs(5);
/// Trouble that goes by itself within so many looks is not told.
const LASTS: u32 = 3;
/// Not told from here: the vault tells of its own runs, with more detail, and so is each certificate; whoever edits the
/// configuration is awake.
const SILENT: [&str; 4] = ["backup", "certificates", "config", "files"];
/// Certificates are told of from so long before their end, under this and their path.
const CERTIFICATE_NOTICE: SignedDuration = SignedDuration::from_hours(14 * 24);
const CERTIFICATE: &str = "certificate-";

/// Watches for ever.
pub(super) async fn watch(board: Board, alerts: Alerts, certificates: Certificates, clock: Clock) {
    let mut lasting = BTreeMap::new();
    let mut ticker = tokio::time::interval(LOOK);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let _tick = ticker.tick().await;
        look_at_certificates(&board, &alerts, &certificates.in_force(), clock.wall());
        look_at_parts(&board, &alerts, &mut lasting);
    }
}

/// `lasting` counts the looks at which each part was in trouble, one after the other.
fn look_at_parts(board: &Board, alerts: &Alerts, lasting: &mut BTreeMap<&'static str, u32>) {
    for (part, condition) in board.read() {
        if SILENT.contains(&part) {
            continue;
        }
        let key = format!("health-{part}");
        let count = lasting.entry(part).or_default();
        if let Condition::Degraded(text) = condition {
            *count = count.saturating_add(1);
            if *count >= LASTS {
                alerts.raise(&key, &format!("{part}: {text}"));
            }
        } else {
            *count = 0;
            alerts.resolve(&key, &format!("{part} is well again"));
        }
    }
}

/// Each has an alert of its own; the board names those that clients refuse already.
fn look_at_certificates(board: &Board, alerts: &Alerts, in_force: &BTreeMap<String, Timestamp>, now: Timestamp) {
    let mut over = Vec::new();
    for (path, at) in in_force {
        let key = format!("{CERTIFICATE}{path}");
        let left = at.duration_since(now);
        if left.is_negative() {
            over.push(expired(path, *at));
            alerts.raise(&key, &expired(path, *at));
        } else if left < CERTIFICATE_NOTICE {
            let days = left.as_hours() / 24;
            alerts.raise(&key, &format!("the certificate {path} expires in {days} days"));
        } else {
            alerts.resolve(&key, &format!("the certificate {path} is renewed"));
        }
    }
    alerts.forget(
        CERTIFICATE,
        |path| !in_force.contains_key(path),
        |path| format!("the certificate {path} is not used any more"),
    );
    board.set(
        "certificates",
        match over.is_empty() {
            true => Condition::Healthy,
            false => Condition::Degraded(over.join("; ")),
        },
    );
}

/// As it is told everywhere.
pub(super) fn expired(path: &str, at: Timestamp) -> String {
    format!("the certificate {path} expired at {at:.0}: clients refuse it")
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;
    use crate::telemetry::alert;

    #[tokio::test]
    async fn a_failed_drill_that_lasts_is_told_once_and_its_end_too() {
        let board = Board::default();
        let (alerts, _sender) =
            Alerts::start(alert::Config::default(), Clock::system(), &Registry::new()).expect("alerts start");
        let mut lasting = BTreeMap::new();
        board.set("drill", Condition::Degraded("the last drill failed".to_owned()));
        board.set("config", Condition::Degraded("line 3 is wrong".to_owned()));
        for _ in 1..LASTS {
            look_at_parts(&board, &alerts, &mut lasting);
            assert!(alerts.raised().is_empty(), "what may pass by itself is not told");
        }
        look_at_parts(&board, &alerts, &mut lasting);
        let raised = alerts.raised();
        assert_eq!(raised.keys().collect::<Vec<_>>(), ["health-drill"]);
        board.set("drill", Condition::Healthy);
        look_at_parts(&board, &alerts, &mut lasting);
        assert!(alerts.raised().is_empty());
    }

    #[tokio::test]
    async fn certificate_is_told_of_before_its_end_and_no_longer_once_it_is_renewed_or_not_used() {
        let board = Board::default();
        let (alerts, _sender) =
            Alerts::start(alert::Config::default(), Clock::system(), &Registry::new()).expect("alerts start");
        let now: Timestamp = "2026-01-10T12:00:00Z".parse().expect("a time");
        let look = |certificates: &[(&str, i64)]| {
            let days = |days: i64| now + SignedDuration::from_hours(24 * days);
            let in_force = certificates
                .iter()
                .map(|(path, left)| ((*path).to_owned(), days(*left)));
            look_at_certificates(&board, &alerts, &in_force.collect(), now);
            let raised = alerts.raised().into_values().map(|raised| raised.text);
            (raised.collect::<Vec<_>>(), board.all_healthy())
        };
        assert_eq!(look(&[("a", 90), ("b", 90)]), (vec![], true));
        let soon = "the certificate a expires in 10 days".to_owned();
        assert_eq!(look(&[("a", 10), ("b", 90)]), (vec![soon], true));
        let over = "the certificate b expired at 2026-01-09T12:00:00Z: clients refuse it".to_owned();
        assert_eq!(look(&[("a", 90), ("b", -1)]), (vec![over], false));
        assert_eq!(look(&[("a", 90)]), (vec![], true), "b is out of the configuration");
    }
}
