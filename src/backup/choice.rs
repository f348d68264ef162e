//! Which backup `latest` is the name of, and what whoever takes it has to know: that there are others which may be the one
//! that is meant. Pure.

use std::borrow::Cow;

use super::{Entry, Error, Subject, is_of};

/// The name of the newest good backup, in the place of its id.
pub(super) const LATEST: &str = "latest";
/// So many are named one by one.
const NAMED_MAX: usize = 5;

/// Of which backup `latest` is the name: the newest good one of the subject's database. `None` where several clusters
/// have backups of it and the subject does not say which is ours.
///
/// # Errors
/// There is none, or none that can be told from the others.
pub(super) fn latest<'a>(entries: &'a [Entry], subject: &Subject) -> Result<Option<&'a Entry>, Error> {
    let dumps: Vec<&Entry> = entries.iter().filter(|entry| !entry.is_files()).collect();
    // A vault without a database of its own is for files, or only looks.
    let is_named = |entry: &&Entry| subject.database.is_empty() || is_of(entry, &subject.database);
    let named: Vec<&Entry> = dumps.iter().copied().filter(is_named).collect();
    let good: Vec<&Entry> = named.iter().copied().filter(stands).collect();
    let Some(newest) = good.last().copied() else {
        return Err(none(&dumps, &named, subject));
    };
    let is_ours = |entry: &&Entry| subject.cluster.is_some() && subject.owns(entry);
    if let Some(own) = good.iter().copied().rfind(is_ours) {
        return Ok(Some(own));
    }
    let is_alone = |among: &[&Entry]| among.iter().all(|entry| entry.has_subject_of(newest));
    if is_alone(&named) {
        return Ok(Some(newest));
    }
    if subject.cluster.is_none() && !subject.database.is_empty() {
        return Ok(None);
    }
    let reason = match named.iter().any(is_ours) {
        true => "no backup of this cluster is good, and there are others",
        false if is_alone(&good) => return Ok(Some(newest)),
        false => "there are backups of several databases or clusters, none of them this one",
    };
    let each = newest_of_each(&named);
    Err(Error::Refused(format!("{reason}: name a backup's id ({each})")))
}

/// That all good ones are, of which `newest` is one.
pub(super) fn from_the_future(newest: &Entry) -> Error {
    Error::Refused(format!(
        "all good backups are from the future (the newest is {}): set the clock right, or name a backup's id",
        newest.manifest.id
    ))
}

/// What whoever restores `taken` as the latest has to know: sentences.
pub(super) fn notes(entries: &[Entry], taken: &Entry) -> Vec<String> {
    let doubts = passed_over(entries, taken).into_iter();
    doubts.chain(elsewhere(entries, taken)).collect()
}

/// What there is where `entry` turned out to be none.
pub(super) fn instead_of(entries: &[Entry], entry: &Entry) -> String {
    let is_another = |other: &&Entry| other.has_subject_of(entry) && other.manifest.id != entry.manifest.id;
    let newest = entries.iter().filter(stands).rfind(is_another);
    newest.map_or("no other backup of this is good".to_owned(), |newest| {
        format!(
            "the newest good one besides is {} of {}",
            newest.manifest.id,
            time(newest)
        )
    })
}

/// Beside which one in the clear stands out.
pub(super) fn newest_sealed(entries: &[Entry], is_alike: impl Fn(&Entry) -> bool) -> Option<&Entry> {
    let is_sealed = |entry: &&Entry| entry.tombstone.is_none() && !entry.manifest.recipients.is_empty();
    entries.iter().filter(is_sealed).rfind(|entry| is_alike(entry))
}

/// Good, and not from the future.
pub(super) fn stands(entry: &&Entry) -> bool {
    entry.is_good() && !entry.is_ahead
}

/// Why there is no latest one.
fn none(dumps: &[&Entry], named: &[&Entry], subject: &Subject) -> Error {
    let database = &subject.database;
    if dumps.is_empty() {
        return Error::Unknown(LATEST.to_owned());
    }
    if named.is_empty() {
        return Error::Refused(format!(
            "there is no backup of database {database:?}: name a backup's id, or say that another database's is meant \
             (--from-database, \"fromDatabase\" in the API): {}",
            newest_of_each(dumps)
        ));
    }
    if let Some(ahead) = named.iter().rfind(|entry| entry.is_good()) {
        return from_the_future(ahead);
    }
    none_good(&format!("database {database:?}"), named)
}

/// None of `entries`, which are all that there are of it.
pub(super) fn none_good(what: &str, entries: &[&Entry]) -> Error {
    let bad = several(entries.iter().rev().map(|entry| described(entry)));
    Error::Refused(format!("no backup of {what} is good: {bad}"))
}

/// That newer ones are not good, also those of a cluster that has no good one: what was written since is lost with them.
pub(super) fn passed_over(entries: &[Entry], taken: &Entry) -> Option<String> {
    let newer = entries
        .iter()
        .rev()
        .take_while(|entry| entry.manifest.id != taken.manifest.id);
    let is_alike = |entry: &Entry| taken.database().is_some_and(|(database, _)| is_of(entry, database));
    let bad = newer.filter(|entry| entry.has_subject_of(taken) || (is_alike(entry) && !stands(entry)));
    let newer = several(bad.map(|entry| match entry.has_subject_of(taken) {
        true => described(entry),
        false => format!("{}, of another cluster", described(entry)),
    }));
    let (id, at) = (taken.manifest.id, time(taken));
    (!newer.is_empty()).then(|| format!("{id} of {at} is not the newest backup, but the newest good one: {newer}"))
}

/// That another cluster may have the data that is meant: on a new machine the service backs up the empty database at once, and
/// that is the latest one then. Told where the other's newest has more than twice the rows, or not less than half of them and is
/// newer than all of ours but one. Not where a cluster has long taken over from one before it, as after an upgrade of the server,
/// nor for a machine on trial beside the one that serves.
fn elsewhere(entries: &[Entry], taken: &Entry) -> Option<String> {
    let (database, _) = taken.database()?;
    let good: Vec<&Entry> = entries.iter().filter(stands).collect();
    let is_likely = |theirs: &&Entry| {
        let of_ours = good.iter().filter(|entry| entry.has_subject_of(taken));
        let newer = of_ours.filter(|entry| entry.manifest.started_at > theirs.manifest.started_at);
        let twice = |entry: &Entry| entry.rows().saturating_mul(2);
        theirs.rows() > twice(taken) || (twice(theirs) >= taken.rows() && newer.count() <= 1)
    };
    let others = good
        .iter()
        .copied()
        .filter(|entry| is_of(entry, database) && !entry.has_subject_of(taken));
    let likely = newest_by_subject(others).into_iter().filter(is_likely).map(|theirs| {
        let (id, cluster) = (theirs.manifest.id, theirs.database().map_or("", |(_, cluster)| cluster));
        format!(
            "{id} of {} with {} rows, of cluster {cluster}",
            time(theirs),
            theirs.rows()
        )
    });
    let likely = several(likely);
    let (id, at, rows) = (taken.manifest.id, time(taken), taken.rows());
    (!likely.is_empty()).then(|| {
        format!(
            "{id} of {at} with {rows} rows is of this cluster, and another cluster had a database {database:?} too; if its data \
             is meant, name that backup's id: {likely}"
        )
    })
}

/// The newest good one of each database and cluster, or else the newest, the newest of all first.
fn newest_of_each(entries: &[&Entry]) -> String {
    let good = newest_by_subject(entries.iter().copied().filter(stands));
    let any = newest_by_subject(entries.iter().copied());
    let others = any
        .into_iter()
        .filter(|one| !good.iter().any(|known| known.has_subject_of(one)));
    let each = good.iter().copied().chain(others).map(|entry| {
        let (database, cluster) = entry.database().unwrap_or_default();
        format!("database {database:?} of cluster {cluster}: {}", described(entry))
    });
    several(each)
}

fn newest_by_subject<'a>(entries: impl DoubleEndedIterator<Item = &'a Entry>) -> Vec<&'a Entry> {
    let mut newest: Vec<&Entry> = Vec::new();
    for entry in entries.rev() {
        if !newest.iter().any(|known| known.has_subject_of(entry)) {
            newest.push(entry);
        }
    }
    newest
}

/// Its id and time, and what is wrong with it, if anything is.
fn described(entry: &Entry) -> String {
    let reason = match &entry.tombstone {
        Some(tombstone) => Some(tombstone.reason.as_str()),
        None => entry.problem(),
    };
    let reason = reason.map_or(Cow::default(), |reason| format!(" ({reason})").into());
    let state = match entry.state() {
        "good" => String::new(),
        state => format!(" is {state}{reason}"),
    };
    format!("{} of {}{state}", entry.manifest.id, time(entry))
}

/// As `foregate backup list` tells it.
fn time(entry: &Entry) -> String {
    entry.manifest.started_at.strftime("%F %T UTC").to_string()
}

fn several(mut texts: impl Iterator<Item = String>) -> String {
    let mut named: Vec<String> = texts.by_ref().take(NAMED_MAX).collect();
    let more = texts.count();
    if more > 0 {
        named.push(format!("and {more} more"));
    }
    named.join("; ")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::backup::entry::BY_HAND;
    use crate::backup::entry::tests::{dump, files};
    use crate::repository::manifest::{Content, Level, Tombstone, Verification};

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

    fn damaged(mut entry: Entry, why: &str) -> Entry {
        entry.verifications.push(Verification {
            at: Timestamp::UNIX_EPOCH,
            level: Level::L2,
            failure: Some(why.to_owned()),
        });
        entry
    }

    fn with_rows(mut entry: Entry, rows: u64) -> Entry {
        if let Content::Database { tables, .. } = &mut entry.manifest.content {
            tables.insert("\"app\".\"t\"".to_owned(), rows);
        }
        entry
    }

    fn id(entry: &Entry) -> String {
        entry.manifest.id.to_string()
    }

    #[test]
    fn what_there_is_instead_of_the_latest_is_named_with_how_to_take_it() {
        let entries = [
            dump("app", "1", 10),
            dump("app", "1", 20),
            dump("app", "2", 30),
            damaged(dump("app", "2", 40), "a bit flipped"),
            damaged(dump("shop", "2", 50), "the disk"),
            files("other", 60),
        ];
        let refused = |entries: &[Entry], database, cluster| {
            let refused = latest(entries, &subject(database, cluster)).expect_err("there is none");
            refused.to_string()
        };
        let other = refused(&entries, "other", None);
        for text in [
            "no backup of database \"other\"",
            "--from-database",
            "cluster 1",
            "cluster 2",
            "\"shop\"",
        ] {
            assert!(other.contains(text), "{text}: {other}");
        }
        let newest = [1, 2, 4].map(|index| other.contains(&id(&entries[index])));
        assert_eq!(newest, [true; 3], "the newest good one of each, if it has one: {other}");
        assert!(
            !other.contains(&id(&entries[0])) && !other.contains(&id(&entries[3])),
            "{other}"
        );
        let several = refused(&entries, "app", Some("3"));
        assert!(
            several.contains(&id(&entries[1])) && several.contains(&id(&entries[2])),
            "{several}"
        );
        let bad = refused(&entries, "shop", None);
        assert!(
            bad.contains(&id(&entries[4])) && bad.contains("is damaged (the disk)"),
            "{bad}"
        );
        let alone = [files("other", 60)];
        let none = latest(&alone, &subject("other", None));
        assert!(matches!(none, Err(Error::Unknown(_))));
        let many: Vec<Entry> = (0..9)
            .map(|number| dump(&format!("db{number}"), "1", 10 + number))
            .collect();
        assert!(refused(&many, "app", None).ends_with("; and 4 more"));
    }

    #[test]
    fn newer_backups_that_are_no_good_are_not_passed_over_in_silence() {
        let mut entries = [
            dump("app", "1", 10),
            dump("app", "1", 20),
            damaged(dump("app", "1", 30), "a bit flipped"),
            dump("app", "1", 40),
            dump("app", "1", 50),
            dump("app", "1", 60),
            damaged(dump("shop", "1", 70), "another's"),
            files("app", 80),
        ];
        entries[3].incomplete = Some("dump.zst is missing".to_owned());
        entries[4].tombstone = Some(Tombstone {
            id: entries[4].manifest.id,
            at: Timestamp::UNIX_EPOCH,
            reason: BY_HAND.to_owned(),
        });
        entries[5].is_ahead = true;
        assert_eq!(notes(&entries[..2], &entries[1]), Vec::<String>::new());
        let told = notes(&entries, &entries[1]).concat();
        for (index, why) in [
            (2, "30 UTC is damaged (a bit flipped)"),
            (3, "40 UTC is incomplete (dump.zst is missing)"),
            (4, "50 UTC is to be deleted (deleted by hand)"),
            (5, "00 UTC is from the future"),
        ] {
            assert!(
                told.contains(&id(&entries[index])) && told.contains(why),
                "{why}: {told}"
            );
        }
        assert!(
            !told.contains(&id(&entries[0])) && !told.contains("another's"),
            "{told}"
        );
    }

    /// The last that the lost machine made were damaged, and an older machine's are whole.
    #[test]
    fn another_clusters_backup_takes_the_place_of_no_bad_one_in_silence() {
        let entries = [dump("app", "1", 10), damaged(dump("app", "2", 20), "a bit flipped")];
        assert!(
            matches!(latest(&entries, &subject("app", None)), Ok(None)),
            "only the server can say"
        );
        let refused = latest(&entries, &subject("app", Some("2")))
            .expect_err("ours is bad")
            .to_string();
        for text in ["no backup of this cluster is good", &id(&entries[0]), &id(&entries[1])] {
            assert!(refused.contains(text), "{text}: {refused}");
        }
        let taken = latest(&entries, &subject("app", Some("3")))
            .expect("one")
            .expect("the only good one");
        let told = notes(&entries, taken).concat();
        assert!(
            told.contains(&id(&entries[1])) && told.contains("of another cluster"),
            "{told}"
        );
    }

    #[test]
    fn data_of_another_cluster_is_told_on_a_new_machine_and_not_once_it_has_taken_over() {
        let old = |second, rows| with_rows(dump("app", "1", second), rows);
        let new = |second, rows| with_rows(dump("app", "2", second), rows);
        let told = |entries: &[Entry]| {
            let taken = latest(entries, &subject("app", Some("2")))
                .expect("there is one")
                .expect("of ours");
            notes(entries, taken).concat()
        };
        // One cluster, whatever becomes of its rows; other databases and files are no matter.
        let alone = [
            with_rows(dump("shop", "1", 5), 900),
            new(10, 500),
            new(20, 3),
            files("app", 30),
        ];
        assert_eq!(told(&alone), "");
        let lost = [old(10, 500), old(20, 510), new(30, 0)];
        let note = told(&lost);
        for text in [&id(&lost[1]), "510 rows, of cluster 1", &id(&lost[2]), "with 0 rows"] {
            assert!(note.contains(text), "{text}: {note}");
        }
        assert!(!note.contains(&id(&lost[0])), "{note}");
        // The service has run for some days on the empty database.
        assert!(told(&[old(20, 510), new(30, 0), new(40, 1), new(50, 1)]).contains("510 rows"));
        // An upgrade of the server: the same rows, more or less.
        assert_ne!(told(&[old(20, 510), new(30, 511)]), "");
        assert_eq!(told(&[old(20, 510), new(30, 511), new(40, 300)]), "");
        assert_eq!(told(&[new(10, 500), new(20, 510), old(30, 0)]), "", "one on trial");
        // The machine that served before last is back, with what it had.
        assert_ne!(told(&[new(10, 500), new(20, 510), old(30, 520), new(40, 510)]), "");
    }
}
