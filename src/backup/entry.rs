//! A backup as the repository tells it, and what follows from that. Pure.

use jiff::Timestamp;
use ulid::Ulid;

use super::Error;
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
    pub leases: Vec<Lease>,
    /// The part that is not stored as the manifest says.
    pub incomplete: Option<String>,
    /// Why a record of a verification cannot be read: it may tell of a failure. Until a later one proves the backup again.
    pub unread: Option<String>,
    /// It began later than now: the clock is wrong, or was.
    pub is_ahead: bool,
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
    fn database(&self) -> Option<(&str, &str)> {
        match &self.manifest.content {
            Content::Database {
                database,
                system_identifier,
                ..
            } => Some((database, system_identifier)),
            Content::Files { .. } | Content::Base { .. } => None,
        }
    }

    /// Read back whole, and all there.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.level() >= Level::L2 && self.problem().is_none()
    }

    /// What stands in the way of believing what is recorded.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.incomplete.as_deref().or(self.unread.as_deref())
    }

    #[must_use]
    pub fn is_good(&self) -> bool {
        self.is_proven() && self.tombstone.is_none()
    }

    /// Found damaged, and not proven again since.
    #[must_use]
    pub fn is_condemned(&self) -> bool {
        self.level() < Level::L2 && self.verifications.iter().any(|record| record.failure.is_some())
    }

    #[must_use]
    pub fn is_leased(&self, now: Timestamp) -> bool {
        self.leases.iter().any(|lease| lease.expires_at > now)
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

/// Of which backup `latest` is the name: the newest good one of the subject's database. `None` where several clusters
/// have backups of it and the subject does not say which is ours.
///
/// # Errors
/// There is none, or none that can be told from the others.
pub(super) fn latest<'a>(entries: &'a [Entry], subject: &Subject) -> Result<Option<&'a Entry>, Error> {
    // A vault without a database of its own is for files, or only looks.
    let is_ours = |entry: &&Entry| subject.database.is_empty() || is_of(entry, &subject.database);
    let good = entries
        .iter()
        .filter(|entry| entry.is_good() && !entry.is_files())
        .filter(is_ours);
    let (ahead, known): (Vec<&Entry>, Vec<&Entry>) = good.partition(|entry| entry.is_ahead);
    let Some(newest) = known.last() else {
        return Err(match ahead.last() {
            Some(entry) => Error::Refused(format!(
                "all good backups are from the future (the newest is {}): set the clock right, or name a backup's id",
                entry.manifest.id
            )),
            None => Error::Unknown("latest".to_owned()),
        });
    };
    if let Some(own) = known
        .iter()
        .rev()
        .find(|entry| subject.cluster.is_some() && subject.owns(entry))
    {
        return Ok(Some(own));
    }
    if known.iter().all(|entry| entry.has_subject_of(newest)) {
        return Ok(Some(newest));
    }
    match subject.cluster.is_some() || subject.database.is_empty() {
        false => Ok(None),
        true => Err(Error::Refused(
            "there are backups of several databases or clusters, none of them this one: name a backup's id".to_owned(),
        )),
    }
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

    fn subject(database: &str, cluster: Option<&str>) -> Subject {
        Subject {
            database: database.to_owned(),
            cluster: cluster.map(str::to_owned),
        }
    }

    #[test]
    fn latest_is_never_another_database_nor_one_of_another_cluster_while_ours_has_one() {
        let entries = [
            dump("app", "1", 10),
            dump("app", "2", 20),
            dump("shop", "1", 30),
            files("app", 40),
        ];
        let latest = |database, cluster| {
            latest(&entries, &subject(database, cluster))
                .map(|found| found.map(|entry| entry.manifest.id.timestamp_ms()))
        };
        assert!(matches!(latest("app", Some("1")), Ok(Some(10))));
        assert!(matches!(latest("app", Some("2")), Ok(Some(20))));
        assert!(matches!(latest("app", None), Ok(None)), "only the server can say");
        assert!(matches!(latest("app", Some("3")), Err(Error::Refused(_))));
        assert!(matches!(latest("shop", None), Ok(Some(30))));
        assert!(
            matches!(latest("shop", Some("3")), Ok(Some(30))),
            "the old machine is lost"
        );
        assert!(matches!(latest("other", None), Err(Error::Unknown(_))));
        assert!(matches!(latest("", None), Err(Error::Refused(_))), "which of them?");
        assert!(!entries[0].has_subject_of(&entries[1]) && !entries[0].has_subject_of(&entries[2]));
        assert!(is_of(&entries[1], "app") && !is_of(&entries[3], "app"));
    }

    #[test]
    fn latest_is_never_one_from_the_future_nor_one_that_is_not_good() {
        let mut entries = [dump("app", "1", 10), dump("app", "1", 20), dump("app", "1", 30)];
        entries[2].is_ahead = true;
        let found = |entries: &[Entry]| {
            latest(entries, &subject("app", None)).map(|entry| entry.map(|entry| entry.manifest.id.timestamp_ms()))
        };
        assert!(matches!(found(&entries), Ok(Some(20))));
        entries[1].incomplete = Some("a part is missing".to_owned());
        assert!(matches!(found(&entries), Ok(Some(10))));
        entries[0].is_ahead = true;
        let refused = found(&entries).expect_err("all are from the future").to_string();
        assert!(refused.contains("set the clock right"), "{refused}");
        let states = entries.each_ref().map(Entry::state);
        assert_eq!(states, ["from the future", "incomplete", "from the future"]);
    }
}
