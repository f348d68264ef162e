//! The scheduled run: one idempotent act without input. The catalogue says which periods have been served, so that a
//! restart neither forgets nor repeats one.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{Entry, Subject};
use crate::tasks::calendar::Schedule;

/// A label and when its periods begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    pub label: String,
    pub schedule: Schedule,
}

/// What one run would serve.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    pub labels: Vec<String>,
    pub keys: Vec<String>,
}

/// The labels whose newest period no good backup has served.
#[must_use]
pub fn due<'a>(kinds: &[Kind], zone: &TimeZone, served: impl Fn(&str) -> bool + 'a, now: Timestamp) -> Due {
    let mut due = Due::default();
    for kind in kinds {
        if let Some(period) = kind.schedule.current(zone, now).filter(|period| !served(&period.key)) {
            due.labels.push(kind.label.clone());
            due.keys.push(period.key);
        }
    }
    due
}

/// Whether a good backup of the subject serves the period `key`. That of another database in the same repository does not.
#[must_use]
pub fn served(entries: &[Entry], subject: &Subject, key: &str) -> bool {
    let has_key = |entry: &Entry| entry.manifest.schedule_keys.iter().any(|other| other == key);
    entries
        .iter()
        .any(|entry| entry.is_good() && subject.owns(entry) && has_key(entry))
}

#[cfg(test)]
mod tests {
    use jiff::civil::{Time, Weekday};

    use super::*;

    #[test]
    fn one_run_carries_every_label_that_is_due_and_no_period_is_served_twice() {
        let kinds = [
            Kind {
                label: "daily".to_owned(),
                schedule: Schedule::Daily(Time::constant(3, 0, 0, 0)),
            },
            Kind {
                label: "weekly".to_owned(),
                schedule: Schedule::Weekly(Weekday::Sunday, Time::constant(2, 0, 0, 0)),
            },
        ];
        let now: Timestamp = "2026-11-22T03:00:00Z".parse().expect("a timestamp");
        let first = due(&kinds, &TimeZone::UTC, |_| false, now);
        assert_eq!(first.keys, ["daily:2026-11-22", "weekly:2026-W47"]);
        let again = due(
            &kinds,
            &TimeZone::UTC,
            |key| first.keys.iter().any(|served| served == key),
            now,
        );
        assert_eq!(again, Due::default());
    }
}
