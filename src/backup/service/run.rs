//! One run of the vault: what it is doing, how far it is, how it ended. Kept while it runs and for a while after.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use ulid::Ulid;

/// The last lines of a run's log.
const LINES_MAX: usize = 100;
/// A run has a handful of steps; a loop must not fill the memory.
const STEPS_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Create,
    Files,
    Verify,
    Restore,
    Prune,
}

impl Act {
    pub const ALL: [Self; 5] = [Self::Create, Self::Files, Self::Verify, Self::Restore, Self::Prune];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Files => "files",
            Self::Verify => "verify",
            Self::Restore => "restore",
            Self::Prune => "prune",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Running,
    Succeeded,
    Failed {
        step: String,
        reason: String,
    },
    /// The process ended in the middle of it.
    Interrupted,
}

/// A part of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub name: &'static str,
    pub started_at: Timestamp,
    pub bytes: u64,
}

#[derive(Debug, Clone)]
pub struct Status {
    pub state: State,
    pub finished_at: Option<Timestamp>,
    pub steps: Vec<Step>,
    pub log: VecDeque<String>,
}

/// A run; the id of one that makes a backup is that of the backup.
#[derive(Debug)]
pub struct Run {
    pub id: Ulid,
    pub act: Act,
    /// The labels of a new backup, the backup that is verified or restored, the file set.
    pub subjects: Vec<String>,
    pub started_at: Timestamp,
    /// What its longest step is expected to read, from the last such run.
    pub expected_bytes: Option<u64>,
    status: Mutex<Status>,
}

impl Run {
    pub(super) fn new(id: Ulid, act: Act, subjects: Vec<String>, at: Timestamp, expected_bytes: Option<u64>) -> Self {
        let status = Status {
            state: State::Running,
            finished_at: None,
            steps: Vec::new(),
            log: VecDeque::new(),
        };
        Self {
            id,
            act,
            subjects,
            started_at: at,
            expected_bytes,
            status: Mutex::new(status),
        }
    }

    /// As a later process finds it in the journal.
    pub(super) fn past(
        id: Ulid,
        act: Act,
        subjects: Vec<String>,
        at: Timestamp,
        state: State,
        finished_at: Option<Timestamp>,
    ) -> Self {
        let run = Self::new(id, act, subjects, at, None);
        let mut status = run.lock();
        status.state = state;
        status.finished_at = finished_at;
        drop(status);
        run
    }

    #[must_use]
    pub fn status(&self) -> Status {
        self.lock().clone()
    }

    #[must_use]
    pub fn is_running(&self) -> bool {
        self.lock().state == State::Running
    }

    /// The step it is in, or was in at the end.
    #[must_use]
    pub fn step(&self) -> &'static str {
        self.lock().steps.last().map_or("start", |step| step.name)
    }

    /// Of the step with the most to do; `None`: there is nothing to compare with.
    #[must_use]
    pub fn percent(&self) -> Option<u8> {
        let status = self.lock();
        let step = status.steps.last()?;
        let expected = self.expected_bytes.filter(|expected| *expected > 0)?;
        let is_long = matches!(step.name, "dump" | "files" | "verify" | "fetch");
        is_long.then(|| u8::try_from((step.bytes.saturating_mul(100) / expected).min(99)).unwrap_or(99))
    }

    pub(super) fn progress(&self, step: &'static str, bytes: u64, at: Timestamp) {
        let mut status = self.lock();
        if let Some(last) = status.steps.last_mut().filter(|last| last.name == step) {
            last.bytes = bytes;
        } else if status.steps.len() < STEPS_MAX {
            status.steps.push(Step {
                name: step,
                started_at: at,
                bytes,
            });
            log(&mut status, at, step);
        }
    }

    pub(super) fn note(&self, at: Timestamp, line: &str) {
        log(&mut self.lock(), at, line);
    }

    pub(super) fn finish(&self, state: State, at: Timestamp) {
        let mut status = self.lock();
        let line = match &state {
            State::Failed { step, reason } => format!("failed at {step}: {reason}"),
            _ => "done".to_owned(),
        };
        log(&mut status, at, &line);
        status.state = state;
        status.finished_at = Some(at);
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        // A panic while holding the lock cannot leave a status half written.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log(status: &mut Status, at: Timestamp, line: &str) {
    if status.log.len() == LINES_MAX {
        drop(status.log.pop_front());
    }
    status.log.push_back(format!("{} {line}", at.strftime("%H:%M:%S UTC")));
}
