//! The end of a run, and who is told of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Act, Parts, Run, Service, State, lock};
use crate::backup::Error;
use crate::telemetry::cause::chain;

/// Writes down how a run ended, also if its task is dropped in the middle.
pub(super) struct Ending {
    pub(super) service: Service,
    pub(super) run: Arc<Run>,
}

impl Ending {
    pub(super) fn end(self, result: Result<String, Error>) {
        // That another instance was quicker is no trouble; were it to be so always, backups would be overdue.
        let mut is_news = true;
        let state = match result {
            Ok(line) => {
                self.run.note(self.service.shared.parts.clock.wall(), &line);
                State::Succeeded
            }
            Err(error) => {
                is_news = !matches!(error, Error::Busy(_));
                State::Failed {
                    step: self.run.step().to_owned(),
                    reason: chain(&error),
                }
            }
        };
        self.service.ended(&self.run, state, is_news);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.run.is_running() {
            self.service.ended(&self.run, State::Interrupted, true);
        }
    }
}

impl Run {
    /// Under what name the board and the alerts know it: the database's backups and each file set's are apart.
    pub(super) fn subject(&self) -> String {
        match self.act {
            Act::Files => files_subject(&self.subjects.join(" ")),
            act => act.name().to_owned(),
        }
    }
}

pub(super) fn files_subject(set: &str) -> String {
    format!("files-{set}")
}

impl Service {
    fn ended(&self, run: &Run, state: State, is_news: bool) {
        let shared = &self.shared;
        let failed_at = match &state {
            State::Failed { step, .. } => Some(step.clone()),
            State::Interrupted => Some("interrupted".to_owned()),
            State::Running | State::Succeeded => None,
        };
        shared.is_stale.store(true, Ordering::Release);
        shared.metrics.ended(run.act.name(), failed_at.as_deref());
        if is_news {
            self.tell(run, &state);
        } else {
            tracing::info!(run = %run.id, act = run.act.name(), "backup: another instance is at work");
        }
        run.finish(state, shared.parts.clock.wall());
        let mut runs = lock(&shared.runs);
        runs.current = None;
        runs.history.save();
        drop(runs);
        shared.poke.notify_one();
    }

    /// To the log, the board and the alerts.
    fn tell(&self, run: &Run, state: &State) {
        let Parts { alerts, .. } = &self.shared.parts;
        let (act, subjects, subject) = (run.act.name(), run.subjects.join(" "), run.subject());
        let is_on_board = matches!(run.act, Act::Create | Act::Files);
        match state {
            State::Failed { step, reason } => {
                let text = format!("backup: {act} {subjects} failed at {step}: {reason}");
                if is_on_board {
                    self.shared.trouble(&subject, &text);
                } else {
                    alerts.raise(&format!("backup-{subject}"), &text);
                }
            }
            State::Succeeded => {
                tracing::info!(run = %run.id, act, subjects, "backup: done");
                let text = format!("backup: {act} {subjects} works again");
                if is_on_board {
                    self.shared.well(&subject, &text);
                } else {
                    alerts.resolve(&format!("backup-{subject}"), &text);
                }
            }
            State::Interrupted => tracing::warn!(run = %run.id, act, subjects, "backup: interrupted"),
            State::Running => {}
        }
    }
}
