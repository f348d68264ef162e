//! What is wrong now, by subject. The board shows all of it, so that what works again hides nothing that does not; each
//! trouble is told once, and so is its end.

use ulid::Ulid;

use super::{Entry, PART, Shared, lock, stats};
use crate::telemetry::health::Condition;

impl Shared {
    /// `subject` is in trouble, until [`Shared::well`].
    pub(super) fn trouble(&self, subject: &str, text: &str) {
        drop(lock(&self.troubles).insert(subject.to_owned(), text.to_owned()));
        self.parts.alerts.raise(&format!("backup-{subject}"), text);
        self.show_troubles();
    }

    /// `subject` is as it should be; `text` tells so if it was in trouble.
    pub(super) fn well(&self, subject: &str, text: &str) {
        drop(lock(&self.troubles).remove(subject));
        self.parts.alerts.resolve(&format!("backup-{subject}"), text);
        self.show_troubles();
    }

    /// Subjects that are looked after no longer are in no trouble, neither on the board nor for the alerts, more of which
    /// are told than the board shows.
    pub(super) fn forget_troubles(&self, is_gone: impl Fn(&str) -> bool) {
        lock(&self.troubles).retain(|subject, _| !is_gone(subject));
        let text = |subject: &str| format!("backup: {subject}: what it was about is not looked after any more");
        self.parts.alerts.forget("backup-", is_gone, text);
        self.show_troubles();
    }

    /// What is out of the plan is looked after no longer: a file set, or a kind that is made by schedule.
    pub(super) fn forget_unplanned(&self) {
        let settings = self.settings.load();
        let kinds: Vec<String> = stats::scheduled(&settings.plan)
            .into_iter()
            .map(|(kind, _)| kind)
            .collect();
        let is_planned = |kind: &str| kinds.iter().any(|planned| planned == kind);
        self.forget_troubles(|subject| match subject.strip_prefix("overdue-") {
            Some(kind) => !is_planned(kind),
            None => set_of(subject).is_some_and(|set| !is_planned(&format!("files:{set}"))),
        });
    }

    /// A backup that is gone, or is to go, needs nobody's care. None is gone for sure while some cannot be read.
    pub(super) fn forget_deleted(&self, entries: &[Entry]) {
        let stays = |id: Ulid| {
            let mut kept = entries.iter().filter(|entry| entry.tombstone.is_none());
            kept.any(|entry| entry.manifest.id == id)
        };
        self.forget_troubles(|subject| {
            let id = subject
                .strip_prefix("verify-")
                .and_then(|id| Ulid::from_string(id).ok());
            id.is_some_and(|id| !stays(id))
        });
    }

    fn show_troubles(&self) {
        let troubles = lock(&self.troubles);
        let texts: Vec<&str> = troubles.values().map(String::as_str).collect();
        let condition = if texts.is_empty() {
            Condition::Healthy
        } else {
            Condition::Degraded(texts.join("; "))
        };
        self.parts.board.set(PART, condition);
    }
}

/// The file set that a subject is about: its backups as such, or their size.
fn set_of(subject: &str) -> Option<&str> {
    subject.strip_prefix("size-").unwrap_or(subject).strip_prefix("files-")
}
