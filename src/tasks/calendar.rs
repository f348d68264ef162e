//! When periodic work is due, as civil periods in a named time zone. Pure: time is an argument.
//!
//! A period is named (`daily:2026-03-29`, `weekly:2026-W13`, `monthly:2026-03`), and work is due when the newest period
//! that has begun has not been served. A restart, a long sleep or several missed periods therefore come to one run.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// When in its period a kind of work begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    Daily(Time),
    Weekly(Weekday, Time),
    /// The day of the month; a month that is too short begins on its last day.
    Monthly(i8, Time),
}

/// A period that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Period {
    pub key: String,
    pub begins: Timestamp,
}

/// Why a text is no schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a time (\"03:00\"), a weekday and a time (\"Sun 02:00\") or a day of the month and a time (\"1 01:00\")"
)]
pub struct NoSchedule;

const WEEKDAYS: [(&str, Weekday); 7] = [
    ("Mon", Weekday::Monday),
    ("Tue", Weekday::Tuesday),
    ("Wed", Weekday::Wednesday),
    ("Thu", Weekday::Thursday),
    ("Fri", Weekday::Friday),
    ("Sat", Weekday::Saturday),
    ("Sun", Weekday::Sunday),
];

impl FromStr for Schedule {
    type Err = NoSchedule;

    fn from_str(text: &str) -> Result<Self, NoSchedule> {
        let time = |text: &str| {
            let (hour, minute) = text.split_once(':').ok_or(NoSchedule)?;
            let number = |digits: &str| match digits.len() {
                1 | 2 if digits.bytes().all(|digit| digit.is_ascii_digit()) => digits.parse().map_err(|_| NoSchedule),
                _ => Err(NoSchedule),
            };
            Time::new(number(hour)?, number(minute)?, 0, 0).map_err(|_| NoSchedule)
        };
        let Some((day, at)) = text.split_once(' ') else {
            return Ok(Self::Daily(time(text)?));
        };
        if let Some((_, weekday)) = WEEKDAYS.iter().find(|(name, _)| name.eq_ignore_ascii_case(day)) {
            return Ok(Self::Weekly(*weekday, time(at)?));
        }
        match day.parse() {
            Ok(day @ 1..=31) => Ok(Self::Monthly(day, time(at)?)),
            _ => Err(NoSchedule),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = match self {
            Self::Daily(time) => time,
            Self::Weekly(weekday, time) => {
                let name = WEEKDAYS.iter().find(|(_, known)| known == weekday);
                write!(f, "{} ", name.map_or("", |(name, _)| name))?;
                time
            }
            Self::Monthly(day, time) => {
                write!(f, "{day} ")?;
                time
            }
        };
        write!(f, "{:02}:{:02}", time.hour(), time.minute())
    }
}

impl Schedule {
    /// The usual time between two runs; a month counts 31 days.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        match self {
            Self::Daily(_) => Duration::from_hours(24),
            Self::Weekly(..) => Duration::from_hours(7 * 24),
            Self::Monthly(..) => Duration::from_hours(31 * 24),
        }
    }

    /// The newest period that has begun at `now`. `None` only at the ends of the calendar.
    #[must_use]
    pub fn current(&self, zone: &TimeZone, now: Timestamp) -> Option<Period> {
        let today = now.to_zoned(zone.clone()).date();
        let this = self.anchor(today)?;
        let period = self.period(this, zone)?;
        if period.begins <= now {
            return Some(period);
        }
        self.period(self.neighbour(this, -1)?, zone)
    }

    /// When the next period begins, strictly after `now`.
    #[must_use]
    pub fn next(&self, zone: &TimeZone, now: Timestamp) -> Option<Timestamp> {
        let this = self.anchor(now.to_zoned(zone.clone()).date())?;
        let begins = self.period(this, zone)?.begins;
        if begins > now {
            return Some(begins);
        }
        self.period(self.neighbour(this, 1)?, zone).map(|period| period.begins)
    }

    /// The day on which the period of `day` begins: it may lie after `day`.
    fn anchor(&self, day: Date) -> Option<Date> {
        match *self {
            Self::Daily(_) => Some(day),
            Self::Weekly(weekday, _) => {
                let ahead = day.weekday().until(weekday);
                day.checked_add(Span::new().try_days(ahead).ok()?).ok()
            }
            Self::Monthly(of_month, _) => {
                let last = day.last_of_month().day();
                Date::new(day.year(), day.month(), of_month.clamp(1, last)).ok()
            }
        }
    }

    fn neighbour(&self, anchor: Date, by: i64) -> Option<Date> {
        match self {
            Self::Daily(_) => anchor.checked_add(Span::new().try_days(by).ok()?).ok(),
            Self::Weekly(..) => anchor.checked_add(Span::new().try_weeks(by).ok()?).ok(),
            Self::Monthly(..) => {
                let first = anchor
                    .first_of_month()
                    .checked_add(Span::new().try_months(by).ok()?)
                    .ok()?;
                self.anchor(first)
            }
        }
    }

    fn period(&self, anchor: Date, zone: &TimeZone) -> Option<Period> {
        let (key, time) = match *self {
            Self::Daily(time) => (format!("daily:{anchor}"), time),
            Self::Weekly(_, time) => {
                let week = anchor.iso_week_date();
                (format!("weekly:{}-W{:02}", week.year(), week.week()), time)
            }
            Self::Monthly(_, time) => (format!("monthly:{}-{:02}", anchor.year(), anchor.month()), time),
        };
        let ambiguous = zone.to_ambiguous_timestamp(anchor.to_datetime(time));
        // In a fold the first of the two; in a gap the instant at which the gap ends, not an hour later.
        let begins = match ambiguous.offset() {
            jiff::tz::AmbiguousOffset::Gap { .. } => {
                // The offset of after the gap puts any skipped time, its first one too, before the transition.
                let earlier = ambiguous.earlier().ok()?;
                zone.following(earlier).next()?.timestamp()
            }
            _ => ambiguous.earlier().ok()?,
        };
        Some(Period { key, begins })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp")
    }

    fn berlin() -> TimeZone {
        TimeZone::get("Europe/Berlin").expect("a known zone")
    }

    #[test]
    fn every_time_that_the_clocks_skip_begins_when_they_have_skipped() {
        for skipped in ["02:00", "02:01", "02:30", "02:59", "Sun 02:00", "29 02:00"] {
            let schedule: Schedule = skipped.parse().expect("a schedule");
            let begins = schedule
                .current(&berlin(), at("2026-03-29T12:00:00Z"))
                .map(|period| period.begins);
            assert_eq!(begins, Some(at("2026-03-29T01:00:00Z")), "{skipped}");
        }
        let schedule = Schedule::Daily(Time::constant(2, 0, 0, 0));
        let before = at("2026-03-28T12:00:00Z");
        assert_eq!(schedule.next(&berlin(), before), Some(at("2026-03-29T01:00:00Z")));
        let period = schedule
            .current(&berlin(), at("2026-03-29T01:00:00Z"))
            .expect("a period");
        assert_eq!(period.key, "daily:2026-03-29");
    }

    #[test]
    fn a_time_that_comes_twice_counts_the_first_time_only() {
        let schedule = Schedule::Daily(Time::constant(2, 30, 0, 0));
        let first = schedule
            .current(&berlin(), at("2026-10-25T00:30:00Z"))
            .expect("a period");
        let second = schedule
            .current(&berlin(), at("2026-10-25T01:30:00Z"))
            .expect("a period");
        assert_eq!(first, second);
        assert_eq!(first.begins, at("2026-10-25T00:30:00Z"));
        assert_eq!(schedule.next(&berlin(), first.begins), Some(at("2026-10-26T01:30:00Z")));
    }

    #[test]
    fn schedules_are_read_as_they_are_shown() {
        for text in ["03:00", "Sun 02:05", "31 23:59", "1 00:00"] {
            assert_eq!(
                text.parse::<Schedule>().map(|schedule| schedule.to_string()),
                Ok(text.to_owned())
            );
        }
        for text in [
            "",
            "3",
            "24:00",
            "12:60",
            "Sunday 02:00",
            "0 01:00",
            "32 01:00",
            "Sun",
            "03:00 ",
            "+3:00",
            "03:00:00",
        ] {
            assert_eq!(text.parse::<Schedule>(), Err(NoSchedule), "{text:?}");
        }
    }

    #[test]
    fn missed_periods_come_to_the_newest_one() {
        let schedule = Schedule::Weekly(Weekday::Sunday, Time::constant(2, 0, 0, 0));
        let period = schedule
            .current(&TimeZone::UTC, at("2026-11-23T00:00:00Z"))
            .expect("a period");
        assert_eq!(period.begins, at("2026-11-22T02:00:00Z"));
        assert_eq!(period.key, "weekly:2026-W47");
        let early = schedule
            .current(&TimeZone::UTC, at("2026-11-22T01:59:59Z"))
            .expect("a period");
        assert_eq!(early.key, "weekly:2026-W46");
    }

    #[test]
    fn a_short_month_begins_on_its_last_day() {
        let schedule = Schedule::Monthly(31, Time::constant(1, 0, 0, 0));
        let period = schedule
            .current(&TimeZone::UTC, at("2026-03-01T00:00:00Z"))
            .expect("a period");
        assert_eq!(period.key, "monthly:2026-02");
        assert_eq!(period.begins, at("2026-02-28T01:00:00Z"));
    }
}
