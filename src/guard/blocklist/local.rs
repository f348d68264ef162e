//! The task that owns the local files: it appends every change to the journal before anybody is answered, and keeps
//! a snapshot of the blocks in force for a start while the store is away. A hung store does not hold it up.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::state::Shared;
use crate::store::journal::{Entry, Journal, Slot, claim};
use crate::store::{Block, snapshot};

const TICK: Duration = Duration::from_secs(1);
/// Saving the snapshot may take one part in so many of the time.
const SAVING_SHARE: u32 = 20;
/// The journal is rewritten when it is longer than what it must hold by this many lines and by half.
const SPARE_LINES: usize = 1_000;

pub(super) struct Local {
    pub(super) shared: Arc<Shared>,
    pub(super) directory: PathBuf,
    pub(super) journal: Option<Journal>,
    /// `None`: the start found no journal to write.
    pub(super) slot: Option<Slot>,
    /// Nothing is written to the store any more.
    pub(super) synced: CancellationToken,
}

/// Whatever ends the task, nobody may wait for it after.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.lock().close();
    }
}

/// When the snapshot was last saved.
#[derive(Default)]
struct Saved {
    generation: u64,
    again_at: Duration,
}

impl Local {
    pub(super) async fn run(mut self) {
        let closing = Closing(Arc::clone(&self.shared));
        let mut saved = Saved::default();
        loop {
            let stopping = tokio::select! {
                () = self.synced.cancelled() => true,
                () = self.shared.local_bell.notified() => false,
                () = tokio::time::sleep(self.pause(&saved)) => false,
            };
            self.append().await;
            self.save(&mut saved, stopping).await;
            self.compact(&saved, stopping).await;
            if stopping {
                break;
            }
        }
        drop(closing);
    }

    fn is_saved(&self, saved: &Saved) -> bool {
        saved.generation == *self.shared.generation.borrow()
    }

    fn pause(&self, saved: &Saved) -> Duration {
        if self.is_saved(saved) {
            return TICK;
        }
        saved.again_at.saturating_sub(self.shared.clock.tick()).min(TICK)
    }

    async fn append(&mut self) {
        let (lines, through) = self.shared.lock().unrecorded();
        if lines.len() == 0 {
            return;
        }
        let again = lines.clone();
        let written = self.with_journal(move |journal| journal.append(&lines)).await;
        let mut waiting = self.shared.lock();
        if written {
            waiting.recorded(through);
        } else {
            waiting.not_recorded(again);
        }
    }

    async fn save(&mut self, saved: &mut Saved, stopping: bool) {
        let start = self.shared.clock.tick();
        if self.is_saved(saved) || (start < saved.again_at && !stopping) {
            return;
        }
        let generation = *self.shared.generation.borrow();
        let table = self.shared.table.load_full();
        let path = snapshot_path(&self.directory);
        let written = tokio::task::spawn_blocking(move || {
            let blocks = table.entries().map(|entry| &entry.block);
            snapshot::write(&path, blocks)
        });
        if self.worked(written.await) {
            saved.generation = generation;
        }
        let end = self.shared.clock.tick();
        saved.again_at = end.saturating_add(end.saturating_sub(start).saturating_mul(SAVING_SHARE));
    }

    /// Forgets the changes that the store has, once the snapshot holds them as well.
    async fn compact(&mut self, saved: &Saved, stopping: bool) {
        let lines = self.journal.as_ref().map_or(0, Journal::lines);
        let spare = if stopping { 0 } else { SPARE_LINES };
        if lines <= spare || !self.is_saved(saved) {
            return;
        }
        let Some(entries) = self.shared.lock().to_keep() else {
            return;
        };
        if lines > entries.len().saturating_mul(2).saturating_add(spare) || entries.is_empty() {
            self.with_journal(move |journal| journal.rewrite(&entries)).await;
        }
    }

    async fn with_journal<F>(&mut self, work: F) -> bool
    where
        F: FnOnce(&mut Journal) -> std::io::Result<()> + Send + 'static,
    {
        if self.slot.is_none() {
            let directory = self.directory.clone();
            let claimed = tokio::task::spawn_blocking(move || claim(&directory));
            match claimed.await {
                // What it holds was not known at the start; the next one will know it.
                Ok(Ok((slot, journal, _))) => (self.slot, self.journal) = (Some(slot), Some(journal)),
                failed => return self.worked(failed.map(|claimed| claimed.map(drop))),
            }
        }
        let Some(path) = self.slot.as_ref().map(|slot| slot.path.clone()) else {
            return false;
        };
        let journal = self.journal.take();
        let done = tokio::task::spawn_blocking(move || {
            let mut journal = match journal {
                Some(journal) => journal,
                None => Journal::open(&path)?.0,
            };
            work(&mut journal).map(|()| journal)
        });
        match done.await {
            Ok(Ok(journal)) => {
                self.journal = Some(journal);
                true
            }
            // The next call opens it anew, and cuts off what this one has left behind.
            failed => self.worked(failed.map(|journal| journal.map(drop))),
        }
    }

    fn worked(&self, outcome: Result<std::io::Result<()>, tokio::task::JoinError>) -> bool {
        let error = match outcome {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        self.shared.metrics.journal_failures.inc();
        tracing::error!(error, directory = %self.directory.display(), "blocks cannot be written to the local disk");
        false
    }
}

fn snapshot_path(directory: &Path) -> PathBuf {
    directory.join("blocks-snapshot.jsonl")
}

/// The journal and what it holds; without one, changes are kept by the store alone.
pub(super) fn open_journal(directory: &Path) -> (Option<(Slot, Journal)>, Vec<Entry>) {
    match claim(directory) {
        Ok((slot, journal, entries)) => (Some((slot, journal)), entries),
        Err(error) => {
            tracing::error!(%error, directory = %directory.display(), "the journal of blocks cannot be opened");
            (None, Vec::new())
        }
    }
}

pub(super) fn recall(directory: &Path, now: Timestamp) -> Vec<Block> {
    let path = snapshot_path(directory);
    let mut blocks = snapshot::read(&path).unwrap_or_else(|error| {
        tracing::error!(%error, file = %path.display(), "the snapshot of blocks cannot be read");
        Vec::new()
    });
    blocks.retain(|block| block.expires_at.is_none_or(|end| end > now));
    blocks
}
