//! A backup as the repository tells it, and what follows from that. Pure.

use jiff::Timestamp;
use ulid::Ulid;

use crate::repository::manifest::{Content, Lease, Level, Manifest, Tombstone, Verification};

/// A backup that began later than this after now is from the future. Two machines' clocks may differ by less.
pub(super) const AHEAD: std::time::Duration = std::time::Duration::from_mins(10);
/// The reason in the tombstone of a backup that somebody did not want any more.
pub(super) const BY_HAND: &str = "deleted by hand";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub folder: String,
    pub manifest: Manifest,
    /// In the order in which they were recorded: their times may lie, if the clock did.
    pub verifications: Vec<Verification>,
    pub tombstone: Option<Tombstone>,
    /// `None`: one that cannot be read. It holds the backup for as long as it stays.
    pub leases: Vec<Option<Lease>>,
    /// The part that is not stored as the manifest says.
    pub incomplete: Option<String>,
    /// Why a record of a verification cannot be read: it may tell of a failure. Until a later one proves the backup again.
    pub unread: Option<String>,
    /// Why a lease or a mark cannot be read. That says nothing against the backup itself.
    pub unread_note: Option<String>,
    /// It began later than now: the clock is wrong, or was.
    pub is_ahead: bool,
}

/// A backup that is there and cannot be read: it is listed with the others, lest it be taken for missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub id: Ulid,
    pub why: String,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "backup {} is there and cannot be read: {}", self.id, self.why)
    }
}

impl Entry {
    /// The level that holds now. A failure undoes what was proven before it, until a later proof of at least what failed.
    #[must_use]
    pub fn level(&self) -> Level {
        let mut level = self.manifest.verified;
        let mut missed: Option<Level> = None;
        for record in &self.verifications {
            match (&record.failure, missed) {
                (Some(_), _) => {
                    // What earlier versions wrote does not say which test failed.
                    let test = if record.level == Level::L0 {
                        Level::L2
                    } else {
                        record.level
                    };
                    missed = missed.max(Some(test));
                    level = Level::L0;
                }
                (None, Some(test)) if record.level < test => {}
                // The stored bytes are those again that were proven before they were named.
                (None, Some(Level::L1)) => (level, missed) = (record.level.max(self.manifest.verified), None),
                (None, Some(_)) => (level, missed) = (record.level, None),
                (None, None) => level = level.max(record.level),
            }
        }
        level
    }

    #[must_use]
    pub fn is_files(&self) -> bool {
        matches!(self.manifest.content, Content::Files { .. })
    }

    #[must_use]
    pub fn is_of_set(&self, set: &str) -> bool {
        matches!(&self.manifest.content, Content::Files { name, .. } if name == set)
    }

    /// Whether both are backups of the same thing, so that one can stand in for the other. Databases of one name in two
    /// clusters are two.
    #[must_use]
    pub fn has_subject_of(&self, other: &Self) -> bool {
        match (&self.manifest.content, &other.manifest.content) {
            (Content::Files { name, .. }, Content::Files { name: theirs, .. }) => name == theirs,
            (Content::Database { .. }, Content::Database { .. }) => self.database() == other.database(),
            _ => false,
        }
    }

    /// The name of the database, and the identifier of its cluster.
    #[must_use]
    pub fn database(&self) -> Option<(&str, &str)> {
        match &self.manifest.content {
            Content::Database {
                database,
                system_identifier,
                ..
            } => Some((database, system_identifier)),
            Content::Files { .. } | Content::Base { .. } => None,
        }
    }

    /// Rows in all tables; 0 for files.
    #[must_use]
    pub fn rows(&self) -> u64 {
        match &self.manifest.content {
            Content::Database { tables, .. } => tables.values().fold(0, |sum, rows| rows.saturating_add(sum)),
            Content::Files { .. } | Content::Base { .. } => 0,
        }
    }

    /// Read back whole, and all there.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.level() >= Level::L2 && self.incomplete.is_none() && self.unread.is_none()
    }

    /// What is wrong with it, or with what is recorded of it.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        let reasons = [
            self.incomplete.as_deref(),
            self.damage(),
            self.unread.as_deref(),
            self.unread_note.as_deref(),
        ];
        reasons.into_iter().flatten().next()
    }

    /// Why it is condemned, if it is.
    fn damage(&self) -> Option<&str> {
        let mut failures = self.verifications.iter().filter_map(|record| record.failure.as_deref());
        failures.next_back().filter(|_| self.level() < Level::L2)
    }

    #[must_use]
    pub fn is_good(&self) -> bool {
        self.is_proven() && self.tombstone.is_none()
    }

    /// Found damaged, and not proven again since.
    #[must_use]
    pub fn is_condemned(&self) -> bool {
        self.damage().is_some()
    }

    #[must_use]
    pub fn is_leased(&self, now: Timestamp) -> bool {
        let holds = |lease: &Option<Lease>| lease.as_ref().is_none_or(|lease| lease.expires_at > now);
        self.leases.iter().any(holds)
    }

    #[must_use]
    pub fn is_deleted_by_hand(&self) -> bool {
        self.tombstone
            .as_ref()
            .is_some_and(|tombstone| tombstone.reason == BY_HAND)
    }

    /// For people, in a word or two.
    #[must_use]
    pub fn state(&self) -> &'static str {
        if self.tombstone.is_some() {
            "to be deleted"
        } else if self.incomplete.is_some() {
            "incomplete"
        } else if self.is_condemned() {
            "damaged"
        } else if !self.is_proven() {
            "not proven"
        } else if self.is_ahead {
            "from the future"
        } else {
            "good"
        }
    }
}

/// The database that a vault looks after. Others may share its repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    pub database: String,
    /// The system identifier of its cluster. `None`: not known, and the name alone tells.
    pub cluster: Option<String>,
}

impl Subject {
    /// Whether `entry` is a backup of this database.
    #[must_use]
    pub fn owns(&self, entry: &Entry) -> bool {
        entry.database().is_some_and(|(database, cluster)| {
            database == self.database && self.cluster.as_deref().is_none_or(|ours| ours == cluster)
        })
    }
}

/// Whether `entry` is a backup of a database of this name, in whatever cluster: after a machine is lost, another cluster
/// takes the old one's backups.
#[must_use]
pub fn is_of(entry: &Entry, database: &str) -> bool {
    entry.database().is_some_and(|(name, _)| name == database)
}

/// The id of the next record: behind all of `records`, whatever the clock says.
pub(super) fn next_record(records: impl Iterator<Item = Ulid>, fresh: Ulid) -> Ulid {
    let after = records.max().and_then(|last| last.increment().ok());
    after.map_or(fresh, |after| fresh.max(after))
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A good backup of `database` in the cluster `cluster`, begun at this second.
    pub(in crate::backup) fn dump(database: &str, cluster: &str, second: i64) -> Entry {
        let content = Content::Database {
            database: database.to_owned(),
            system_identifier: cluster.to_owned(),
            server_version: 150_018,
            client_version: "15".to_owned(),
            tables: BTreeMap::new(),
            database_bytes: 0,
            character: None,
        };
        entry(content, "daily", second)
    }

    pub(in crate::backup) fn files(name: &str, second: i64) -> Entry {
        let content = Content::Files {
            name: name.to_owned(),
            paths: Vec::new(),
            entries: 1,
            keep_days: 30,
            notes: Vec::new(),
            more_notes: 0,
        };
        entry(content, "files", second)
    }

    fn entry(content: Content, label: &str, second: i64) -> Entry {
        let at = Timestamp::from_second(second).expect("in range");
        let id = Ulid::from_parts(u64::try_from(second).expect("positive"), 1);
        let manifest = Manifest {
            format: crate::repository::manifest::FORMAT,
            id,
            content,
            labels: vec![label.to_owned()],
            schedule_keys: vec![format!("{label}:x")],
            started_at: at,
            finished_at: at,
            verified: Level::L2,
            parts: Vec::new(),
            recipients: Vec::new(),
            foregate: "0".to_owned(),
        };
        Entry {
            folder: format!("x/dumps/{id}"),
            manifest,
            verifications: Vec::new(),
            tombstone: None,
            leases: Vec::new(),
            incomplete: None,
            unread: None,
            unread_note: None,
            is_ahead: false,
        }
    }

    fn level_after(records: &[(Level, bool)]) -> Level {
        let mut entry = dump("app", "1", 1);
        let record = |(index, (level, passed)): (i64, &(Level, bool))| Verification {
            // Each earlier than the one before: the clock went back.
            at: Timestamp::from_second(1_000 - index).expect("in range"),
            level: *level,
            failure: (!passed).then(|| "damaged".to_owned()),
        };
        entry.verifications = (0..).zip(records).map(record).collect();
        entry.level()
    }

    #[test]
    fn failure_undoes_what_was_proven_until_it_is_proven_again() {
        use Level::{L0, L1, L2, L3};
        for (records, level) in [
            (&[][..], L2),
            (&[(L3, true)], L3),
            (&[(L1, true)], L2),
            (&[(L2, false)], L0),
            (&[(L3, true), (L2, false)], L0),
            (&[(L3, true), (L2, false), (L2, true)], L2),
            (&[(L2, false), (L3, true)], L3),
            // The stored bytes are those that were proven at first, or they are not.
            (&[(L3, true), (L1, false), (L1, true)], L2),
            (&[(L2, false), (L1, true)], L0),
            // It did not restore: that it can be read is no answer to that.
            (&[(L3, false), (L2, true)], L0),
            (&[(L3, false), (L1, false), (L2, true)], L0),
            (&[(L3, false), (L3, true)], L3),
            // As earlier versions wrote a failure.
            (&[(L0, false), (L1, true)], L0),
            (&[(L0, false), (L2, true)], L2),
        ] {
            assert_eq!(level_after(records), level, "{records:?}");
        }
    }

    #[test]
    fn record_stands_behind_all_others_whatever_the_clock_says() {
        let id = |ms, random| Ulid::from_parts(ms, random);
        assert_eq!(next_record(std::iter::empty(), id(5, 5)), id(5, 5));
        assert_eq!(next_record([id(9, 1), id(3, 7)].into_iter(), id(5, 5)), id(9, 2));
        assert_eq!(next_record([id(3, 7)].into_iter(), id(5, 5)), id(5, 5));
    }
}
