//! The end of a run, and who is told of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Act, PART, Parts, Run, Service, State, lock};
use crate::backup::Error;
use crate::backup::verify::chain;
use crate::telemetry::health::Condition;

/// Writes down how a run ended, also if its task is dropped in the middle.
pub(super) struct Ending {
    pub(super) service: Service,
    pub(super) run: Arc<Run>,
}

impl Ending {
    pub(super) fn end(self, result: Result<String, Error>) {
        let state = match result {
            Ok(line) => {
                self.run.note(self.service.shared.parts.clock.wall(), &line);
                State::Succeeded
            }
            Err(error) => State::Failed {
                step: self.run.step().to_owned(),
                reason: chain(&error),
            },
        };
        self.service.ended(&self.run, state);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.run.is_running() {
            self.service.ended(&self.run, State::Interrupted);
        }
    }
}

impl Service {
    fn ended(&self, run: &Run, state: State) {
        let shared = &self.shared;
        let failed_at = match &state {
            State::Failed { step, .. } => Some(step.clone()),
            State::Interrupted => Some("interrupted".to_owned()),
            State::Running | State::Succeeded => None,
        };
        shared.is_stale.store(true, Ordering::Release);
        shared.metrics.ended(run.act.name(), failed_at.as_deref());
        self.tell(run, &state);
        run.finish(state, shared.parts.clock.wall());
        let mut runs = lock(&shared.runs);
        runs.current = None;
        runs.history.save();
        drop(runs);
        shared.poke.notify_one();
    }

    /// To the log, the board and the alerts.
    fn tell(&self, run: &Run, state: &State) {
        let Parts { alerts, board, .. } = &self.shared.parts;
        let (act, subjects) = (run.act.name(), run.subjects.join(" "));
        let key = format!("backup-{act}");
        match state {
            State::Failed { step, reason } => {
                let text = format!("backup: {act} {subjects} failed at {step}: {reason}");
                alerts.raise(&key, &text);
                if matches!(run.act, Act::Create | Act::Files) {
                    board.set(PART, Condition::Degraded(text));
                }
            }
            State::Succeeded => {
                tracing::info!(run = %run.id, act, subjects, "backup: done");
                alerts.resolve(&key, &format!("backup: {act} works again"));
                if matches!(run.act, Act::Create | Act::Files) {
                    board.set(PART, Condition::Healthy);
                }
            }
            State::Interrupted => tracing::warn!(run = %run.id, act, subjects, "backup: interrupted"),
            State::Running => {}
        }
    }
}
