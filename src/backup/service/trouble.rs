//! What is wrong now, by subject. The board shows all of it, so that what works again hides nothing that does not; each
//! trouble is told once, and so is its end.

use super::{PART, Shared, lock};
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

    /// Subjects that are looked after no longer are in no trouble.
    pub(super) fn forget_troubles(&self, is_gone: impl Fn(&str) -> bool) {
        let gone: Vec<String> = lock(&self.troubles)
            .keys()
            .filter(|subject| is_gone(subject))
            .cloned()
            .collect();
        for subject in gone {
            self.well(&subject, &format!("backup: {subject} is not looked after any more"));
        }
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
