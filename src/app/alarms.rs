//! From the health board to the alerts: what an operator should be told of at night, whichever part says it.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::Registry;

use crate::clock::Clock;
use crate::telemetry::alert::Alerts;
use crate::telemetry::health::{Board, Condition};

const LOOK: Duration = Duration::from_secs(5);
/// Trouble that goes by itself within so many looks is not told.
const LASTS: u32 = 3;
/// Not told from here: the vault tells of its own runs, with more detail; whoever edits the configuration is awake.
const SILENT: [&str; 3] = ["backup", "files", "config"];
/// Certificates are looked at once in so many looks (an hour), and told of from so long before their end.
const CERTIFICATES_EVERY: u32 = 720;
const CERTIFICATE_NOTICE: Duration = Duration::from_hours(14 * 24);
const EXPIRY: &str = "foregate_tls_certificate_expiry_seconds";

/// Watches for ever.
pub(super) async fn watch(board: Board, alerts: Alerts, registry: Registry, clock: Clock) {
    let mut lasting = BTreeMap::new();
    let mut ticker = tokio::time::interval(LOOK);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for looks in 0_u32.. {
        let _tick = ticker.tick().await;
        look_at_parts(&board, &alerts, &mut lasting);
        if looks.is_multiple_of(CERTIFICATES_EVERY) {
            look_at_certificates(&alerts, &registry, clock);
        }
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

fn look_at_certificates(alerts: &Alerts, registry: &Registry, clock: Clock) {
    let now = clock.wall().as_second();
    let families = registry.gather();
    let ours = families.iter().filter(|family| family.name() == EXPIRY);
    for metric in ours.flat_map(|family| family.get_metric()) {
        let path = metric.get_label().first().map_or("", |label| label.value());
        let key = format!("certificate-{path}");
        #[expect(clippy::cast_possible_truncation, reason = "seconds since 1970")]
        let left = metric.get_gauge().get_value() as i64 - now;
        let days = left.max(0) / 86_400;
        if left <= 0 {
            alerts.raise(&key, &format!("the certificate {path} has expired: clients refuse it"));
        } else if left < i64::try_from(CERTIFICATE_NOTICE.as_secs()).unwrap_or(i64::MAX) {
            alerts.raise(&key, &format!("the certificate {path} expires in {days} days"));
        } else {
            alerts.resolve(&key, &format!("the certificate {path} is renewed"));
        }
    }
}

#[cfg(test)]
mod tests {
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
}
