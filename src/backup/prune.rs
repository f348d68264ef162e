//! Deleting: tombstone, grace, then the manifest, the data, and the tombstone last.

use jiff::Timestamp;
use ulid::Ulid;

use super::retention::{self, Decision};
use super::verify::to_json;
use super::{Entry, Error, Vault};
use crate::repository::layout;
use crate::repository::manifest::{Content, Tombstone};

/// What a clean-up decided and did.
#[derive(Debug, Clone)]
pub struct Pruned {
    pub decisions: Vec<Decision>,
    /// Marked in this run; they go once the grace is over.
    pub marked: Vec<Ulid>,
    pub deleted: Vec<Ulid>,
}

/// Whether a clean-up acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Act,
    DryRun,
}

impl Vault {
    /// Applies retention. A dry run only says what would be marked.
    ///
    /// # Errors
    /// Of the store. A manifest that cannot be read stops it: the unread one may be the only good one's competitor.
    pub async fn prune(&self, dry_run: bool) -> Result<Pruned, Error> {
        let _lock = self.lock()?;
        let mode = if dry_run { Mode::DryRun } else { Mode::Act };
        let now = self.clock.wall();
        let (entries, unreadable) = self.list().await?;
        if let Some(error) = unreadable.into_iter().next() {
            return Err(error.into());
        }
        let decisions = decide(&entries, &self.config.retention, now);
        let mut pruned = Pruned {
            decisions,
            marked: Vec::new(),
            deleted: Vec::new(),
        };
        for (entry, decision) in entries.iter().zip(&pruned.decisions) {
            let id = entry.manifest.id;
            match &entry.tombstone {
                None if !decision.keep => {
                    pruned.marked.push(id);
                    if mode == Mode::Act {
                        self.mark(id, decision.reasons.join("; "), now).await?;
                    }
                }
                Some(tombstone) if self.is_over(tombstone, now) && !is_leased(entry, now) => {
                    pruned.deleted.push(id);
                    if mode == Mode::Act {
                        self.erase(&entry.folder, id).await?;
                    }
                }
                _ => {}
            }
        }
        if mode == Mode::Act {
            self.resume_erasing(&entries).await?;
            self.sweep_unfinished().await?;
        }
        Ok(pruned)
    }

    /// Finishes deletions that a crash cut short: a tombstone whose manifest is gone already.
    async fn resume_erasing(&self, entries: &[Entry]) -> Result<(), Error> {
        let keys = self.keys().await?;
        for (tombstone, _) in &keys {
            let id = tombstone
                .strip_prefix("tombstones/")
                .and_then(|name| name.strip_suffix(".json"));
            let Some(id) = id.and_then(|id| Ulid::from_string(id).ok()) else {
                continue;
            };
            if entries.iter().any(|entry| entry.manifest.id == id) {
                continue;
            }
            let folder = format!("/{id}/");
            for (key, _) in keys.iter().filter(|(key, _)| key.contains(&folder)) {
                self.repository.delete(key).await?;
            }
            self.repository.delete(tombstone).await?;
        }
        Ok(())
    }

    /// Marks one backup for deletion by hand; the last good one is refused.
    ///
    /// # Errors
    /// Unknown, in use, or the last good one.
    pub async fn delete(&self, id: &str) -> Result<(), Error> {
        let _lock = self.lock()?;
        let now = self.clock.wall();
        let entry = self.show(id).await?;
        if is_leased(&entry, now) {
            return Err(Error::Refused("the backup is in use".to_owned()));
        }
        let (entries, _) = self.list().await?;
        let stands_in =
            |other: &Entry| other.is_good() && other.manifest.id != entry.manifest.id && other.has_subject_of(&entry);
        if entry.is_good() && !entries.iter().any(stands_in) {
            return Err(Error::Refused("it is the last good backup".to_owned()));
        }
        self.mark(entry.manifest.id, "deleted by hand".to_owned(), now).await
    }

    async fn mark(&self, id: Ulid, reason: String, at: Timestamp) -> Result<(), Error> {
        let tombstone = Tombstone { id, at, reason };
        self.repository
            .create(&layout::tombstone(id), to_json(&tombstone))
            .await?;
        Ok(())
    }

    fn is_over(&self, tombstone: &Tombstone, now: Timestamp) -> bool {
        let age = now.duration_since(tombstone.at);
        !age.is_negative() && age.unsigned_abs() >= self.config.retention.grace
    }

    /// The manifest goes first: a backup without its parts must not be listed, and what then remains is swept.
    async fn erase(&self, folder: &str, id: Ulid) -> Result<(), Error> {
        self.repository.delete(&layout::manifest(folder)).await?;
        self.repository.remove_folder(folder).await?;
        Ok(self.repository.delete(&layout::tombstone(id)).await?)
    }
}

/// One decision for each of `entries`, in their order: the database's and each file set's by themselves.
fn decide(entries: &[Entry], policy: &retention::Policy, now: Timestamp) -> Vec<Decision> {
    let mut decisions: Vec<Decision> = Vec::new();
    for entry in entries {
        if decisions.iter().any(|decision| decision.id == entry.manifest.id) {
            continue;
        }
        let peers: Vec<&Entry> = entries.iter().filter(|other| other.has_subject_of(entry)).collect();
        let backups: Vec<_> = peers.iter().map(|peer| summary(peer, now)).collect();
        // What the newest good backup was made with is what the operator wants by now.
        let newest = peers.iter().rev().find(|peer| peer.is_good()).unwrap_or(&entry);
        decisions.extend(match &newest.manifest.content {
            Content::Files { keep_days, .. } => retention::plan_files(&backups, *keep_days, now),
            Content::Database { .. } | Content::Base { .. } => retention::plan(&backups, policy, now),
        });
    }
    let place = |decision: &Decision| entries.iter().position(|entry| entry.manifest.id == decision.id);
    decisions.sort_by_key(place);
    decisions
}

fn is_leased(entry: &Entry, now: Timestamp) -> bool {
    entry.leases.iter().any(|lease| lease.expires_at > now)
}

fn summary(entry: &Entry, now: Timestamp) -> retention::Backup {
    retention::Backup {
        id: entry.manifest.id,
        at: entry.manifest.started_at,
        labels: entry.manifest.labels.clone(),
        good: entry.is_good(),
        leased: is_leased(entry, now),
    }
}
