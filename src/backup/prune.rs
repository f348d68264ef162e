//! Deleting: tombstone, grace, then the manifest, the data, and the tombstone last.

use jiff::Timestamp;
use ulid::Ulid;

use super::entry::BY_HAND;
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
    /// Marked in an earlier run, and needed again since: the mark was taken off.
    pub lifted: Vec<Ulid>,
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
        let (entries, unreadable) = self.list_at(now).await?;
        if let Some(error) = unreadable.into_iter().next() {
            return Err(Error::Refused(error.to_string()));
        }
        let mut pruned = self.plan(&entries, now);
        if mode == Mode::Act {
            for (entry, decision) in entries.iter().zip(&pruned.decisions) {
                let id = entry.manifest.id;
                if pruned.lifted.contains(&id) {
                    self.repository.delete(&layout::tombstone(id)).await?;
                } else if pruned.marked.contains(&id) {
                    self.mark(id, decision.reasons.join("; "), now).await?;
                } else if pruned.deleted.contains(&id) && !self.erase(&entry.folder, id, now).await? {
                    pruned.deleted.retain(|other| *other != id);
                }
            }
            self.resume_erasing(&entries, now).await?;
            self.sweep_unfinished().await?;
        }
        Ok(pruned)
    }

    /// What is to be done. A mark was right when it was made; before anything is erased it is asked again, as if there were
    /// none: what stood in for the backup may have been found damaged since, or nothing new may have come for days.
    fn plan(&self, entries: &[Entry], now: Timestamp) -> Pruned {
        let decisions = decide(entries, &self.config.retention, now);
        let (mut marked, mut deleted, mut lifted) = (Vec::new(), Vec::new(), Vec::new());
        for (entry, decision) in entries.iter().zip(&decisions) {
            match &entry.tombstone {
                None if !decision.keep => marked.push(decision.id),
                Some(_) if decision.needed => lifted.push(decision.id),
                Some(tombstone) if !decision.keep && self.is_over(tombstone, now) => deleted.push(decision.id),
                _ => {}
            }
        }
        Pruned {
            decisions,
            marked,
            deleted,
            lifted,
        }
    }

    /// Finishes deletions that a crash cut short: a tombstone whose manifest is gone already.
    async fn resume_erasing(&self, entries: &[Entry], now: Timestamp) -> Result<(), Error> {
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
            // Nothing is erased before its grace is over: this manifest was lost in some other way. When that is cannot be told
            // of a mark that cannot be read.
            let is_over = |note: Option<Tombstone>| note.is_none_or(|note| self.is_over(&note, now));
            if !self.note(tombstone).await?.is_ok_and(is_over) {
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

    /// Marks one backup for deletion by hand, and says which it was; the last good one is refused.
    ///
    /// # Errors
    /// Unknown, in use, or the last good one.
    pub async fn delete(&self, id: &str) -> Result<Ulid, Error> {
        let _lock = self.lock()?;
        let now = self.clock.wall();
        let entry = self.show(id).await?;
        if entry.is_deleted_by_hand() {
            return Ok(entry.manifest.id);
        }
        if entry.is_leased(now) {
            let unread = entry.unread_note.filter(|_| entry.leases.contains(&None));
            let unread = unread.map_or_else(String::new, |why| format!(", or was: {why}"));
            return Err(Error::Refused(format!("the backup is in use{unread}")));
        }
        let (entries, _) = self.list().await?;
        let is_another = |other: &Entry| other.manifest.id != entry.manifest.id && other.has_subject_of(&entry);
        // One that only a clean-up has marked is asked for again before it goes.
        let stands_in =
            |other: &Entry| other.is_proven() && !other.is_deleted_by_hand() && !other.is_ahead && is_another(other);
        if entry.is_proven() && !entries.iter().any(stands_in) {
            return Err(Error::Refused("it is the last good backup".to_owned()));
        }
        // In the place of a clean-up's mark, which is taken off when the backup is needed again; this one is not.
        self.mark(entry.manifest.id, BY_HAND.to_owned(), now).await?;
        Ok(entry.manifest.id)
    }

    /// Takes the mark off a backup that is to be deleted, and says which it was.
    ///
    /// # Errors
    /// Unknown, or not marked: it may be gone already.
    pub async fn undelete(&self, id: &str) -> Result<Ulid, Error> {
        let _lock = self.lock()?;
        let entry = self.show(id).await?;
        let Some(tombstone) = entry.tombstone else {
            return Err(Error::Refused("the backup is not marked for deletion".to_owned()));
        };
        if tombstone.reason != BY_HAND {
            return Err(Error::Refused(format!(
                "a clean-up has marked it ({}), and would do so again: it takes the mark off itself where more are kept \
                 (backup.keep_daily and its like, keep_days)",
                tombstone.reason
            )));
        }
        self.repository.delete(&layout::tombstone(entry.manifest.id)).await?;
        Ok(entry.manifest.id)
    }

    /// In the place of another mark, also of one that cannot be read.
    async fn mark(&self, id: Ulid, reason: String, at: Timestamp) -> Result<(), Error> {
        let (key, tombstone) = (layout::tombstone(id), to_json(&Tombstone { id, at, reason }));
        self.repository.delete(&key).await?;
        self.repository.create(&key, tombstone).await?;
        Ok(())
    }

    fn is_over(&self, tombstone: &Tombstone, now: Timestamp) -> bool {
        let age = now.duration_since(tombstone.at);
        !age.is_negative() && age.unsigned_abs() >= self.config.retention.grace
    }

    /// The manifest goes first: a backup without its parts must not be listed, and what then remains is swept. `false`: its mark
    /// has been taken off, or made anew, since the list was read, which may have been long ago and elsewhere; it stays.
    pub(super) async fn erase(&self, folder: &str, id: Ulid, now: Timestamp) -> Result<bool, Error> {
        let mark = layout::tombstone(id);
        let note: Result<Option<Tombstone>, String> = self.note(&mark).await?;
        if !note.is_ok_and(|note| note.is_some_and(|note| self.is_over(&note, now))) {
            return Ok(false);
        }
        self.repository.delete(&layout::manifest(folder)).await?;
        self.repository.remove_folder(folder).await?;
        self.repository.delete(&mark).await?;
        Ok(true)
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

pub(super) fn summary(entry: &Entry, now: Timestamp) -> retention::Backup {
    let held = match &entry.unread {
        _ if entry.leases.contains(&None) => Some("it may be in use: a lease on it cannot be read"),
        _ if entry.is_leased(now) => Some("it is in use"),
        // It may be good after all.
        Some(_) => Some("a record of its verification cannot be read"),
        None => None,
    };
    retention::Backup {
        id: entry.manifest.id,
        at: entry.manifest.started_at,
        labels: entry.manifest.labels.clone(),
        good: entry.is_proven(),
        dismissed: entry.is_deleted_by_hand(),
        held,
    }
}
