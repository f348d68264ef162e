//! The runs of late, also those of earlier processes: a file in the state directory, replaced as a whole.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::run::{Act, Run, State};

/// Runs that are remembered.
const RUNS_MAX: usize = 200;
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A run as the file tells it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    id: Ulid,
    act: String,
    subjects: Vec<String>,
    started_at: Timestamp,
    finished_at: Option<Timestamp>,
    /// `running`, `succeeded`, `failed`, `interrupted`.
    state: String,
    #[serde(default)]
    step: String,
    #[serde(default)]
    reason: String,
}

#[derive(Debug)]
pub(super) struct History {
    file: PathBuf,
    /// The newest last.
    runs: VecDeque<Arc<Run>>,
}

impl History {
    /// What an earlier process left; what it was doing when it ended was interrupted.
    pub(super) fn open(state_dir: &std::path::Path) -> Self {
        let file = state_dir.join("backup").join("runs.json");
        let runs = match read(&file) {
            Ok(records) => records
                .into_iter()
                .filter_map(|record| revive(record).map(Arc::new))
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => VecDeque::new(),
            Err(error) => {
                tracing::warn!(%error, file = %file.display(), "the history of runs cannot be read; it begins anew");
                VecDeque::new()
            }
        };
        Self { file, runs }
    }

    pub(super) fn add(&mut self, run: Arc<Run>) {
        if self.runs.len() == RUNS_MAX {
            drop(self.runs.pop_front());
        }
        self.runs.push_back(run);
        self.save();
    }

    /// The newest first.
    pub(super) fn runs(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.runs.iter().rev()
    }

    /// The history is for people; that it cannot be written stops no backup.
    pub(super) fn save(&self) {
        let records: Vec<Record> = self.runs.iter().map(|run| record(run)).collect();
        if let Err(error) = write_json(&self.file, &records) {
            tracing::warn!(%error, file = %self.file.display(), "the history of runs cannot be written");
        }
    }
}

fn record(run: &Run) -> Record {
    let status = run.status();
    let (state, step, reason) = match status.state {
        State::Running => ("running", String::new(), String::new()),
        State::Succeeded => ("succeeded", String::new(), String::new()),
        State::Failed { step, reason } => ("failed", step, reason),
        State::Interrupted => ("interrupted", String::new(), String::new()),
    };
    Record {
        id: run.id,
        act: run.act.name().to_owned(),
        subjects: run.subjects.clone(),
        started_at: run.started_at,
        finished_at: status.finished_at,
        state: state.to_owned(),
        step,
        reason,
    }
}

fn revive(record: Record) -> Option<Run> {
    let act = Act::ALL.into_iter().find(|act| act.name() == record.act)?;
    let state = match record.state.as_str() {
        "succeeded" => State::Succeeded,
        "failed" => State::Failed {
            step: record.step,
            reason: record.reason,
        },
        _ => State::Interrupted,
    };
    Some(Run::past(
        record.id,
        act,
        record.subjects,
        record.started_at,
        state,
        record.finished_at,
    ))
}

/// A small file of the state directory.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(file: &std::path::Path) -> io::Result<T> {
    let mut bytes = Vec::new();
    let _bytes = File::open(file)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn read(file: &std::path::Path) -> io::Result<Vec<Record>> {
    let mut records: Vec<Record> = read_json(file)?;
    let surplus = records.len().saturating_sub(RUNS_MAX);
    drop(records.drain(..surplus));
    Ok(records)
}

/// Replaces it as a whole.
pub(super) fn write_json(file: &std::path::Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = file.with_extension("json.new");
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut open = OpenOptions::new();
    let mut out = open
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)?;
    out.write_all(&serde_json::to_vec(value)?)?;
    out.sync_all()?;
    std::fs::rename(&temporary, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_outlive_the_process_and_one_that_it_did_not_finish_was_interrupted() {
        let directory = tempfile::tempdir().expect("a private folder");
        let mut history = History::open(directory.path());
        let at = Timestamp::from_second(1_790_000_000).expect("in range");
        for number in 0..u128::try_from(RUNS_MAX).expect("small") + 5 {
            let run = Run::new(
                Ulid::from_parts(1, number),
                Act::Create,
                vec!["daily".to_owned()],
                at,
                None,
            );
            run.finish(State::Succeeded, at);
            history.add(Arc::new(run));
        }
        history.add(Arc::new(Run::new(
            Ulid::from_parts(2, 0),
            Act::Prune,
            Vec::new(),
            at,
            None,
        )));
        let again = History::open(directory.path());
        let states: Vec<State> = again.runs().map(|run| run.status().state).collect();
        assert_eq!(states.len(), RUNS_MAX);
        assert_eq!(states.first(), Some(&State::Interrupted));
        assert_eq!(states.get(1), Some(&State::Succeeded));
    }

    #[test]
    fn broken_history_begins_anew() {
        let directory = tempfile::tempdir().expect("a private folder");
        std::fs::create_dir(directory.path().join("backup")).expect("a folder");
        std::fs::write(directory.path().join("backup/runs.json"), "[{").expect("a file");
        assert_eq!(History::open(directory.path()).runs().count(), 0);
    }
}
