//! The board on which each part writes how it is, and from which `/health`, the page and the metrics read.
//! Parts never ask each other; a part that has never written is not shown.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How a part is. Degraded parts still do their main work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    Healthy,
    /// What is wrong and what to do, for an operator: no secrets.
    Degraded(String),
}

/// A shared board; clones see the same entries.
#[derive(Debug, Clone, Default)]
pub struct Board {
    entries: Arc<Mutex<BTreeMap<&'static str, Condition>>>,
}

impl Board {
    /// Writes the condition of `part` ("certificates", "config", "store", "upstream").
    pub fn set(&self, part: &'static str, condition: Condition) {
        self.lock().insert(part, condition);
    }

    /// Every part that has written, by name.
    #[must_use]
    pub fn read(&self) -> BTreeMap<&'static str, Condition> {
        self.lock().clone()
    }

    #[must_use]
    pub fn all_healthy(&self) -> bool {
        self.lock().values().all(|condition| *condition == Condition::Healthy)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Condition>> {
        // A panic while holding the lock cannot leave a map half written.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
