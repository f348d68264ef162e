//! What is wrong, and what of it has not been told yet. Pure: time is an argument.
//!
//! There is no queue of messages: what is to be told follows from what is wrong and what somebody was told last. So a
//! message that cannot be delivered is never lost, and of what came and went meanwhile only the outcome is told.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

/// Troubles at a time; beyond, further ones are logged and not told.
pub(super) const TROUBLES_MAX: usize = 1_024;
/// A trouble that is raised again and again is told again this often.
const REMIND_AFTER: Duration = Duration::from_hours(24);

/// A trouble that is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    pub text: String,
    pub since: Timestamp,
}

#[derive(Debug)]
struct Trouble {
    text: String,
    since: Timestamp,
    /// How it ended; it stays until that has been told.
    over: Option<String>,
    /// When somebody was told of it last.
    told: Option<Timestamp>,
    /// How often what is to be told now could not be delivered.
    failures: u32,
}

/// By key.
#[derive(Debug, Default)]
pub(super) struct Troubles(BTreeMap<String, Trouble>);

/// What raising a trouble meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    New,
    /// It has lasted so long that it is told again.
    Again,
    Known,
    NoRoom,
}

/// What is to be told next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    key: String,
    pub(super) text: String,
    pub(super) is_end: bool,
}

impl Troubles {
    pub(super) fn raise(&mut self, key: &str, text: &str, now: Timestamp) -> Heard {
        if let Some(known) = self.0.get_mut(key) {
            text.clone_into(&mut known.text);
            if known.over.take().is_some() {
                known.failures = 0;
                return Heard::New;
            }
            let is_stale = |told| now.duration_since(told).unsigned_abs() >= REMIND_AFTER;
            if known.told.is_some_and(is_stale) {
                known.told = None;
                return Heard::Again;
            }
            return Heard::Known;
        }
        if self.0.len() >= TROUBLES_MAX {
            return Heard::NoRoom;
        }
        let trouble = Trouble {
            text: text.to_owned(),
            since: now,
            over: None,
            told: None,
            failures: 0,
        };
        drop(self.0.insert(key.to_owned(), trouble));
        Heard::New
    }

    /// Whether there was such a trouble.
    pub(super) fn resolve(&mut self, key: &str, text: &str) -> bool {
        let Some(trouble) = self.0.get_mut(key).filter(|trouble| trouble.over.is_none()) else {
            return false;
        };
        trouble.over = Some(text.to_owned());
        trouble.failures = 0;
        true
    }

    /// What has failed least often goes first, so that one message that nobody takes does not hold up the others.
    pub(super) fn next(&self) -> Option<News> {
        let due = self.0.iter().filter(|(_, trouble)| trouble.is_due());
        let (key, trouble) = due.min_by_key(|(_, trouble)| (trouble.failures, trouble.since))?;
        Some(News {
            key: key.clone(),
            text: trouble.words(),
            is_end: trouble.over.is_some(),
        })
    }

    /// The news are out. Meanwhile the trouble may have ended, or come back.
    pub(super) fn told(&mut self, news: &News, now: Timestamp) {
        let Some(trouble) = self.0.get_mut(&news.key) else {
            return;
        };
        trouble.failures = 0;
        match (news.is_end, trouble.over.is_some()) {
            (true, true) => drop(self.0.remove(&news.key)),
            (true, false) => trouble.told = None,
            (false, _) => trouble.told = Some(now),
        }
    }

    pub(super) fn failed(&mut self, news: &News) {
        if let Some(trouble) = self.0.get_mut(&news.key) {
            trouble.failures = trouble.failures.saturating_add(1);
        }
    }

    /// There is somebody new to be told, who knows of nothing.
    pub(super) fn forget_who_knows(&mut self) {
        for trouble in self.0.values_mut() {
            trouble.told = None;
        }
    }

    pub(super) fn raised(&self) -> BTreeMap<String, Raised> {
        let lasting = self.0.iter().filter(|(_, trouble)| trouble.over.is_none());
        let raised = lasting.map(|(key, trouble)| {
            let (text, since) = (trouble.text.clone(), trouble.since);
            (key.clone(), Raised { text, since })
        });
        raised.collect()
    }

    pub(super) fn in_force(&self) -> usize {
        self.0.values().filter(|trouble| trouble.over.is_none()).count()
    }
}

impl Trouble {
    fn is_due(&self) -> bool {
        self.over.is_some() || self.told.is_none()
    }

    /// Whoever was never told of the trouble learns of it with its end.
    fn words(&self) -> String {
        match (&self.over, self.told) {
            (None, _) => self.text.clone(),
            (Some(over), Some(_)) => over.clone(),
            (Some(over), None) => format!("{over} (since {:.0}: {})", self.since, self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::constant(1_800_000_000 + seconds, 0)
    }

    /// Everything that is due, delivered.
    fn told(troubles: &mut Troubles, now: Timestamp) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some(news) = troubles.next() {
            troubles.told(&news, now);
            texts.push(news.text);
        }
        texts
    }

    #[test]
    fn trouble_is_told_once_and_its_end_once() {
        let mut troubles = Troubles::default();
        assert!(!troubles.resolve("backup", "never was broken"));
        assert_eq!(troubles.raise("backup", "broken", at(0)), Heard::New);
        assert_eq!(troubles.raise("backup", "still broken", at(1)), Heard::Known);
        assert_eq!(told(&mut troubles, at(2)), ["still broken"]);
        assert_eq!(troubles.raise("backup", "broken", at(3)), Heard::Known);
        assert_eq!(told(&mut troubles, at(4)), [""; 0]);
        assert_eq!(troubles.in_force(), 1);
        assert!(troubles.resolve("backup", "mended"));
        assert!(!troubles.resolve("backup", "mended again"));
        assert_eq!(troubles.in_force(), 0);
        assert_eq!(told(&mut troubles, at(5)), ["mended"]);
        assert!(troubles.0.is_empty());
    }

    #[test]
    fn trouble_that_could_not_be_told_for_long_is_still_to_be_told() {
        let mut troubles = Troubles::default();
        troubles.raise("store", "down", at(0));
        for second in 0..1_000 {
            let news = troubles.next().expect("not told yet");
            troubles.failed(&news);
            assert_eq!(troubles.raise("store", "down", at(second)), Heard::Known);
        }
        assert_eq!(told(&mut troubles, at(1_000)), ["down"]);
    }

    #[test]
    fn trouble_that_ended_before_it_could_be_told_is_told_with_its_end() {
        let mut troubles = Troubles::default();
        troubles.raise("store", "down", at(0));
        troubles.resolve("store", "up again");
        let expected = format!("up again (since {:.0}: down)", at(0));
        assert_eq!(told(&mut troubles, at(1)), [expected]);
    }

    #[test]
    fn what_changes_while_it_is_being_told_is_not_lost() {
        let mut troubles = Troubles::default();
        troubles.raise("store", "down", at(0));
        let down = troubles.next().expect("news");
        troubles.resolve("store", "up again");
        troubles.told(&down, at(1));
        let up = troubles.next().expect("its end");
        assert_eq!(up.text, "up again");
        assert_eq!(troubles.raise("store", "down once more", at(2)), Heard::New);
        troubles.told(&up, at(3));
        assert_eq!(told(&mut troubles, at(4)), ["down once more"]);
    }

    #[test]
    fn end_that_was_taken_back_before_anybody_heard_of_it_is_no_news() {
        let mut troubles = Troubles::default();
        troubles.raise("store", "down", at(0));
        told(&mut troubles, at(1));
        troubles.resolve("store", "up again");
        troubles.raise("store", "down", at(2));
        assert_eq!(troubles.next(), None);
        assert_eq!(troubles.in_force(), 1);
    }

    #[test]
    fn trouble_that_lasts_is_told_again_every_day() {
        let mut troubles = Troubles::default();
        let day = 24 * 3600;
        troubles.raise("store", "down", at(0));
        told(&mut troubles, at(0));
        assert_eq!(troubles.raise("store", "down", at(day - 1)), Heard::Known);
        assert_eq!(troubles.raise("store", "down", at(day)), Heard::Again);
        assert_eq!(told(&mut troubles, at(day)), ["down"]);
    }

    #[test]
    fn message_that_nobody_takes_does_not_hold_up_the_others() {
        let mut troubles = Troubles::default();
        troubles.raise("a", "refused", at(0));
        troubles.failed(&troubles.next().expect("news"));
        troubles.raise("b", "fine", at(1));
        assert_eq!(troubles.next().expect("news").text, "fine");
    }

    #[test]
    fn somebody_new_is_told_of_all_that_is_wrong() {
        let mut troubles = Troubles::default();
        troubles.raise("store", "down", at(0));
        told(&mut troubles, at(1));
        troubles.forget_who_knows();
        assert_eq!(told(&mut troubles, at(2)), ["down"]);
    }

    #[test]
    fn more_troubles_than_fit_are_refused() {
        let mut troubles = Troubles::default();
        for number in 0..TROUBLES_MAX {
            assert_eq!(troubles.raise(&number.to_string(), "x", at(0)), Heard::New);
        }
        assert_eq!(troubles.raise("one more", "x", at(0)), Heard::NoRoom);
    }
}
