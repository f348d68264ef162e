//! Deleting: tombstone, grace, then the manifest, the data, and the tombstone last.

use std::time::Duration;

use jiff::Timestamp;
use ulid::Ulid;

use super::retention::{self, Decision};
use super::verify::to_json;
use super::{Entry, Error, Vault};
use crate::repository::layout;
use crate::repository::manifest::Tombstone;

/// Longer than any run: its steps have limits of their own.
const LONGEST_RUN: Duration = Duration::from_hours(48);

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
        let backups: Vec<_> = entries.iter().map(|entry| summary(entry, now)).collect();
        let decisions = retention::plan(&backups, &self.config.retention, now);
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
            self.sweep_unfinished(&entries, now).await?;
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

    /// Removes what runs left that died before their manifest: no backup, and never one, since no run lasts that long.
    async fn sweep_unfinished(&self, entries: &[Entry], now: Timestamp) -> Result<(), Error> {
        for (key, _) in self.keys().await? {
            let Some((folder, id)) = layout::folder_of_object(&key) else {
                continue;
            };
            let is_backup = entries.iter().any(|entry| entry.folder == folder);
            if !is_backup && is_abandoned(id, now) {
                tracing::info!(key, "removing what an unfinished run left");
                self.repository.delete(&key).await?;
            }
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
        let good = |other: &&Entry| other.is_good() && other.manifest.id != entry.manifest.id;
        if entry.is_good() && !entries.iter().any(|other| good(&other)) {
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
        for (key, _) in self.repository.list(folder).await? {
            self.repository.delete(&key).await?;
        }
        Ok(self.repository.delete(&layout::tombstone(id)).await?)
    }
}

/// Whether a run of this id, which holds the time of its start, must have ended.
fn is_abandoned(id: Ulid, now: Timestamp) -> bool {
    let started = i64::try_from(id.timestamp_ms())
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    started.is_some_and(|started| {
        let age = now.duration_since(started);
        !age.is_negative() && age.unsigned_abs() > LONGEST_RUN
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_older_than_any_run_is_abandoned() {
        let now = Timestamp::from_second(1_790_000_000).expect("in range");
        let started = |hours: u64| Ulid::from_parts(1_790_000_000_000 - hours * 3_600_000, 1);
        assert!(!is_abandoned(started(47), now));
        assert!(is_abandoned(started(49), now));
        let future = Ulid::from_parts(1_790_000_000_000 + 1_000_000_000, 1);
        assert!(!is_abandoned(future, now), "the clock jumped back");
    }
}
