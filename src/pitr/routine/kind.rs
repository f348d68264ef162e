//! One kind of run: when it is due, its button, how far it is, and how it went.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use crate::tasks::calendar::Schedule;

/// How a run stands, without asking anybody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Run {
    pub running: bool,
    /// Of the run that is under way.
    pub step: Option<&'static str>,
    pub bytes: u64,
    /// How the last one in this process went.
    pub last: Option<Ended>,
}

/// A run that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub at: Timestamp,
    /// Why it failed; `None`: it did what it should.
    pub failure: Option<String>,
}

#[derive(Debug)]
pub(super) struct Kind {
    /// As on the health board.
    pub(super) name: &'static str,
    pub(super) schedule: Option<Schedule>,
    pub(super) poke: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    run: Run,
    /// What is wrong with it, and since when.
    trouble: Option<(Timestamp, String)>,
    /// The period that was served last, by this process.
    served: Option<String>,
}

impl Kind {
    pub(super) fn new(name: &'static str, schedule: Option<Schedule>) -> Self {
        Self {
            name,
            schedule,
            poke: Notify::new(),
            state: Mutex::default(),
        }
    }

    /// `false`: one is running already.
    pub(super) fn order(&self) -> bool {
        let free = !self.lock().run.running;
        if free {
            self.poke.notify_one();
        }
        free
    }

    pub(super) fn run(&self) -> Run {
        self.lock().run.clone()
    }

    pub(super) fn begin(&self) {
        self.lock().run.running = true;
    }

    pub(super) fn progress(&self, step: &'static str, bytes: u64) {
        let mut state = self.lock();
        if state.run.running {
            (state.run.step, state.run.bytes) = (Some(step), bytes);
        }
    }

    /// `failure`: why it failed, if it did.
    pub(super) fn end(&self, at: Timestamp, failure: Option<String>) {
        let mut state = self.lock();
        state.trouble = failure.clone().map(|text| (at, text));
        state.run = Run {
            last: Some(Ended { at, failure }),
            ..Run::default()
        };
    }

    /// A run that was ordered and could not begin: an answer for who asked, and no trouble.
    pub(super) fn decline(&self, at: Timestamp, why: String) {
        self.lock().run = Run {
            last: Some(Ended { at, failure: Some(why) }),
            ..Run::default()
        };
    }

    /// Whether a run of this process was for the period: the repository says so as well, once it can be read.
    pub(super) fn has_served(&self, key: &str) -> bool {
        self.lock().served.as_deref() == Some(key)
    }

    pub(super) fn note_served(&self, key: Option<String>) {
        if key.is_some() {
            self.lock().served = key;
        }
    }

    /// A run that nobody has to hear of: another process does the work.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.run = Run {
            last: state.run.last.take(),
            ..Run::default()
        };
    }

    pub(super) fn trouble(&self, at: Timestamp, text: String) {
        self.lock().trouble = Some((at, text));
    }

    /// What the repository says of the newest run, whoever made it: it counts unless something happened since.
    pub(super) fn heard(&self, at: Timestamp, failure: Option<String>) {
        let mut state = self.lock();
        if state.trouble.as_ref().is_none_or(|(since, _)| *since <= at) {
            state.trouble = failure.map(|text| (at, text));
        }
    }

    /// What is wrong: the last run, or that there has been none for twice its interval since `last`.
    pub(super) fn wrong(&self, last: Option<Timestamp>, now: Timestamp) -> Option<String> {
        let state = self.lock();
        if let Some((_, text)) = &state.trouble {
            return Some(text.clone());
        }
        let patience = self.schedule?.interval().saturating_mul(2);
        let last = last?;
        let is_overdue = now.duration_since(last) > SignedDuration::try_from(patience).unwrap_or(SignedDuration::MAX);
        (is_overdue && !state.run.running).then(|| {
            let name = self.name;
            let days = patience.as_secs() / Duration::from_hours(24).as_secs();
            format!("a {name} is overdue: the last good one is of {last}, more than {days} days ago")
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(day: i64) -> Timestamp {
        Timestamp::from_second(day * 86_400).expect("in range")
    }

    fn weekly() -> Kind {
        Kind::new("drill", Some("Mon 09:00".parse().expect("a schedule")))
    }

    #[test]
    fn what_has_not_been_done_for_two_intervals_is_overdue() {
        let kind = weekly();
        assert_eq!(kind.wrong(Some(day(1)), day(15)), None);
        let wrong = kind.wrong(Some(day(1)), day(16)).expect("overdue");
        assert!(wrong.contains("overdue") && wrong.contains("14 days"), "{wrong}");
        assert_eq!(kind.wrong(None, day(90)), None, "there is nothing to rehearse yet");
        assert_eq!(Kind::new("drill", None).wrong(Some(day(1)), day(90)), None, "by hand");
    }

    #[test]
    fn a_failure_in_the_repository_is_known_after_a_restart_until_a_newer_run_is_good() {
        let kind = weekly();
        kind.heard(day(3), Some("it failed".to_owned()));
        assert_eq!(kind.wrong(Some(day(2)), day(4)).as_deref(), Some("it failed"));
        kind.heard(day(5), None);
        assert_eq!(kind.wrong(Some(day(5)), day(6)), None);
        kind.end(day(7), Some("no plan".to_owned()));
        kind.heard(day(5), None);
        assert_eq!(
            kind.wrong(Some(day(5)), day(8)).as_deref(),
            Some("no plan"),
            "it has no record"
        );
        assert_eq!(
            kind.run().last.and_then(|ended| ended.failure).as_deref(),
            Some("no plan")
        );
    }

    #[test]
    fn failure_is_forgotten_once_another_process_did_what_failed_here() {
        let kind = weekly();
        kind.end(day(3), Some("no base backup could be taken".to_owned()));
        kind.heard(day(2), None);
        assert!(
            kind.wrong(Some(day(2)), day(4)).is_some(),
            "an earlier one is no answer"
        );
        kind.heard(day(4), None);
        assert_eq!(kind.wrong(Some(day(4)), day(5)), None);
        kind.decline(day(5), "nothing to rehearse".to_owned());
        assert_eq!(kind.wrong(Some(day(4)), day(5)), None, "no trouble");
        assert!(kind.run().last.is_some_and(|ended| ended.failure.is_some()));
    }

    #[test]
    fn only_a_run_that_is_under_way_has_progress() {
        let kind = weekly();
        kind.progress("unpack", 7);
        assert_eq!(kind.run(), Run::default());
        kind.begin();
        assert!(!kind.order());
        kind.progress("unpack", 7);
        assert_eq!((kind.run().step, kind.run().bytes), (Some("unpack"), 7));
        kind.end(day(1), None);
        assert!(kind.order() && kind.run().step.is_none());
    }
}
