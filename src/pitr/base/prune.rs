//! Deleting base backups and the log that no kept one needs: tombstone, grace, then the manifest, the data, the
//! tombstone last; and only then the log. History files stay for ever: they are small, and explain the rest.

use std::collections::BTreeSet;

use ulid::Ulid;

use super::{Base, Bases, Error};
use crate::pitr::archive::{Archive, Archived};
use crate::pitr::name::{File, SegmentSize, Timeline};
use crate::pitr::retention::{self, Decision, Histories, Policy};
use crate::repository::layout::{self, Cluster};
use crate::repository::manifest::Tombstone;

/// What a clean-up decided and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    pub decisions: Vec<Decision>,
    /// Why nothing was deleted, neither base backups nor log.
    pub frozen: Option<&'static str>,
    /// Marked before, and kept now: their marks are lifted.
    pub spared: Vec<Ulid>,
    /// Marked in this run; they go once the grace is over.
    pub marked: Vec<Ulid>,
    pub deleted: Vec<Ulid>,
    /// Segments of the log that went.
    pub segments: u64,
    pub segment_bytes: u64,
}

/// Whether a clean-up acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Act,
    DryRun,
}

/// The archived log as it was found.
struct Log {
    files: Vec<Archived>,
    histories: Histories,
}

/// Of every timeline in `log`; of one whose file is missing, or cannot be opened without a key, nobody can say.
pub(in crate::pitr) async fn histories(archive: &Archive, log: &[Archived]) -> Result<Histories, Error> {
    let timelines: BTreeSet<Timeline> = log.iter().map(|archived| archived.file.timeline()).collect();
    let mut histories = Histories::new();
    for timeline in timelines {
        let history = match archive.history(timeline).await {
            Err(error) if error.lacks_identity() => None,
            history => history?,
        };
        histories.insert(timeline, history);
    }
    Ok(histories)
}

impl Bases {
    /// Applies retention to the base backups and the log of `cluster`.
    ///
    /// # Errors
    /// Of the store; a manifest or a history that cannot be read stops it.
    pub async fn prune(&self, cluster: &Cluster, policy: &Policy, mode: Mode) -> Result<Pruned, Error> {
        let now = self.clock.wall();
        let bases = self.list(cluster).await?;
        let archive = self.archive(cluster);
        let log = archive.list().await?;
        let histories = histories(&archive, &log).await?;
        let decisions = retention::plan(&bases, &histories, policy, now);
        let mut pruned = Pruned {
            decisions,
            frozen: retention::frozen(&bases, policy, now),
            spared: Vec::new(),
            marked: Vec::new(),
            deleted: Vec::new(),
            segments: 0,
            segment_bytes: 0,
        };
        let mut remaining = Vec::new();
        for (base, decision) in bases.iter().zip(&pruned.decisions) {
            let is_over = |at| {
                let age = now.duration_since(at);
                !age.is_negative() && age.unsigned_abs() >= policy.grace
            };
            match base.deleted_at {
                None if !decision.keep => {
                    pruned.marked.push(base.id);
                    if mode == Mode::Act {
                        self.mark(cluster, base.id, decision.reasons.join("; ")).await?;
                    }
                }
                Some(_) if decision.lasting => {
                    pruned.spared.push(base.id);
                    if mode == Mode::Act {
                        self.repository
                            .delete(&layout::base_tombstone(cluster, base.id))
                            .await?;
                    }
                }
                Some(at) if is_over(at) && !decision.keep => {
                    pruned.deleted.push(base.id);
                    if mode == Mode::Act {
                        self.erase(cluster, base).await?;
                    }
                    continue;
                }
                _ => {}
            }
            remaining.push(base.clone());
        }
        // Without any base backup the log is all there is; without a recent one it is all there is of late.
        if !remaining.is_empty() && pruned.frozen.is_none() {
            let log = Log { files: log, histories };
            self.prune_log(log, &remaining, policy, mode, &mut pruned).await?;
            let oldest = remaining.iter().map(|base| base.started_at).min();
            if let (Mode::Act, Some(oldest)) = (mode, oldest) {
                archive.delete_beats(oldest).await?;
            }
        }
        Ok(pruned)
    }

    async fn prune_log(
        &self,
        log: Log,
        bases: &[Base],
        policy: &Policy,
        mode: Mode,
        pruned: &mut Pruned,
    ) -> Result<(), Error> {
        let mut sizes: Vec<SegmentSize> = bases.iter().map(|base| base.segment_size).collect();
        sizes.sort_by_key(|size| size.bytes());
        sizes.dedup();
        let holds = retention::holds(bases, &log.histories, policy, self.clock.wall());
        for archived in log.files {
            let (File::Segment(stem) | File::Partial(stem) | File::Backup(stem, _)) = archived.file else {
                continue;
            };
            let history = log.histories.get(&stem.timeline).and_then(Option::as_ref);
            if retention::may_go(stem, history, &holds, &sizes) {
                pruned.segments = pruned.segments.saturating_add(u64::from(archived.file.is_log()));
                pruned.segment_bytes = pruned.segment_bytes.saturating_add(archived.stored_bytes);
                if mode == Mode::Act {
                    self.repository.delete(&archived.key).await?;
                }
            }
        }
        Ok(())
    }

    async fn mark(&self, cluster: &Cluster, id: Ulid, reason: String) -> Result<(), Error> {
        let at = self.clock.wall();
        let json = serde_json::to_vec_pretty(&Tombstone { id, at, reason }).unwrap_or_default();
        self.repository
            .create(&layout::base_tombstone(cluster, id), json)
            .await?;
        Ok(())
    }

    /// The manifest goes first: a base backup without its parts must not be listed; the next one taken sweeps the rest.
    async fn erase(&self, cluster: &Cluster, base: &Base) -> Result<(), Error> {
        self.repository.remove_folder(&base.folder).await?;
        Ok(self
            .repository
            .delete(&layout::base_tombstone(cluster, base.id))
            .await?)
    }
}
