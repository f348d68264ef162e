//! Since when each kind of backup is looked after, in a file: a kind that has never succeeded is overdue some time after
//! that, however often the process is started anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::history::{read_json, write_json};

/// More kinds than anybody configures.
const KINDS_MAX: usize = 1_000;

#[derive(Debug)]
pub(super) struct Since {
    file: PathBuf,
    kinds: BTreeMap<String, Timestamp>,
}

impl Since {
    pub(super) fn open(state_dir: &Path) -> Self {
        let file = state_dir.join("backup").join("kinds.json");
        // One that is not there or cannot be read begins anew.
        let kinds = read_json(&file).unwrap_or_default();
        Self { file, kinds }
    }

    /// When each of `kinds` was first seen. Others are forgotten, and so is a time that is yet to come.
    pub(super) fn of(&mut self, kinds: impl Iterator<Item = String>, now: Timestamp) -> BTreeMap<String, Timestamp> {
        let seen = kinds.take(KINDS_MAX).map(|kind| {
            let at = self.kinds.get(&kind).copied().filter(|at| *at <= now);
            (kind, at.unwrap_or(now))
        });
        let seen: BTreeMap<String, Timestamp> = seen.collect();
        if seen != self.kinds {
            self.kinds.clone_from(&seen);
            if let Err(error) = write_json(&self.file, &seen) {
                tracing::warn!(%error, file = %self.file.display(), "it cannot be noted since when backups are looked after");
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_does_not_begin_anew_and_a_time_to_come_does() {
        let directory = tempfile::tempdir().expect("a private folder");
        let at = |second| Timestamp::from_second(second).expect("in range");
        let seen = |second| {
            let kinds = ["daily".to_owned(), "files:app".to_owned()];
            Since::open(directory.path()).of(kinds.into_iter(), at(second))
        };
        assert_eq!(seen(100)["daily"], at(100));
        assert_eq!(seen(200)["daily"], at(100));
        assert_eq!(seen(50)["files:app"], at(50), "the clock was wrong");
        assert_eq!(seen(300)["files:app"], at(50));
    }
}
