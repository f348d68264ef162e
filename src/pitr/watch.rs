//! Whether PostgreSQL's archiver and our slot get on. An archiver that cannot even start its command counts no failure,
//! so what is watched is how long the oldest finished file has waited.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::name::SegmentSize;
use super::setup;
use crate::postgres::{Admin, Error};

/// The longest pause between two counts of the archive, by which it is known what came into it past us.
pub const COUNT_EVERY_MAX: Duration = Duration::from_secs(600);

const ELSEWHERE: &str =
    "archive_command does not run `foregate wal push %p`, and the log does not come here by another way";

/// What the server says at one instant, times by its own clock.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Files that are finished and not yet archived.
    pub ready_files: u64,
    /// How long the oldest of them has waited.
    pub ready_age: Duration,
    pub archived: Tried,
    pub failed: Tried,
    pub handing: Handing,
    /// `None`: there is no such slot.
    pub slot: Option<Slot>,
    pub is_standby: bool,
}

/// What the server is set to do with a finished file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Handing {
    pub mode: String,
    /// "" before 15, which has none.
    pub library: String,
    pub command: String,
}

/// A column pair of `pg_stat_archiver`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tried {
    pub count: u64,
    pub last: Option<String>,
    pub at: Option<Timestamp>,
}

/// A replication slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Log that the server keeps for it.
    pub retained_bytes: u64,
    pub is_active: bool,
    /// The bound was exceeded: what it held is gone, and the archive has a gap.
    pub is_lost: bool,
    /// The server keeps for it whatever it takes, up to the whole disk: `max_slot_wal_keep_size` is not set.
    pub is_unbounded: bool,
}

/// What is to be thought of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// It may pass by itself: bad once it has lasted.
    Absent(String),
    /// A sentence for the operator.
    Bad(String),
}

/// Asks the server. Takes `pg_monitor`.
///
/// # Errors
/// Of the server.
pub async fn look(admin: &Admin, slot: Option<&str>) -> Result<Seen, Error> {
    let act = "watching the archiver";
    let column = |source| Error::Query {
        act: act.to_owned(),
        source,
    };
    let sql = "\
SELECT a.archived_count, a.last_archived_wal, (extract(epoch FROM a.last_archived_time) * 1000000)::bigint,
       a.failed_count, a.last_failed_wal, (extract(epoch FROM a.last_failed_time) * 1000000)::bigint,
       r.files, coalesce(r.age, 0)::bigint, pg_is_in_recovery(), current_setting('archive_mode'),
       coalesce(current_setting('archive_library', true), ''), current_setting('archive_command')
FROM pg_stat_archiver a,
     (SELECT count(*) files, extract(epoch FROM clock_timestamp() - min(modification)) age
      FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') r";
    let rows = admin.query(act, sql, &[]).await?;
    let Some(row) = rows.first() else {
        return Ok(Seen::default());
    };
    let tried = |from: usize| {
        let at: Option<i64> = row.try_get(from + 2).map_err(column)?;
        Ok::<_, Error>(Tried {
            count: u64::try_from(row.try_get::<_, i64>(from).map_err(column)?).unwrap_or(0),
            last: row.try_get(from + 1).map_err(column)?,
            at: at.and_then(|at| Timestamp::from_microsecond(at).ok()),
        })
    };
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(Seen {
        archived: tried(0)?,
        failed: tried(3)?,
        ready_files: positive(row.try_get(6).map_err(column)?),
        ready_age: Duration::from_secs(positive(row.try_get(7).map_err(column)?)),
        is_standby: row.try_get(8).map_err(column)?,
        handing: Handing {
            mode: row.try_get(9).map_err(column)?,
            library: row.try_get(10).map_err(column)?,
            command: row.try_get(11).map_err(column)?,
        },
        slot: match slot {
            Some(name) => look_at_slot(admin, name).await?,
            None => None,
        },
    })
}

async fn look_at_slot(admin: &Admin, name: &str) -> Result<Option<Slot>, Error> {
    let act = "watching the replication slot";
    let sql = "\
SELECT coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn()
       END, restart_lsn), 0)::bigint, active, coalesce(wal_status = 'lost', false),
       current_setting('max_slot_wal_keep_size') = '-1'
FROM pg_replication_slots WHERE slot_name = $1";
    let rows = admin.query(act, sql, &[&name]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let column = |source| Error::Query {
        act: act.to_owned(),
        source,
    };
    Ok(Some(Slot {
        retained_bytes: u64::try_from(row.try_get::<_, i64>(0).map_err(column)?).unwrap_or(0),
        is_active: row.try_get(1).map_err(column)?,
        is_lost: row.try_get(2).map_err(column)?,
        is_unbounded: row.try_get(3).map_err(column)?,
    }))
}

/// The segment size of the server.
///
/// # Errors
/// Of the server.
pub async fn segment_size(admin: &Admin) -> Result<SegmentSize, Error> {
    let act = "reading the segment size";
    let sql = "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'";
    let bytes: i64 = admin.value(act, sql, &[]).await?;
    Ok(SegmentSize::new(u64::try_from(bytes).unwrap_or(0)).unwrap_or(SegmentSize::DEFAULT))
}

/// Judges what was seen by `archive_command`: it hands the log to us, and nothing may have waited for longer than `patience`.
/// `newest`: when the newest file came into the archive, which may be long ago where it is empty; `None`: nobody has looked yet.
#[must_use]
pub fn judge_archiver(seen: &Seen, newest: Option<Timestamp>, patience: Duration) -> Verdict {
    if seen.is_standby {
        return Verdict::Good;
    }
    let told = |why| format!("{why}; `foregate pitr setup` says what to set");
    if let Some(why) = goes_nowhere(&seen.handing) {
        return Verdict::Bad(told(why));
    }
    if goes_elsewhere(seen, newest, patience) {
        return Verdict::Absent(told(ELSEWHERE));
    }
    if seen.ready_files == 0 || seen.ready_age <= patience {
        return Verdict::Good;
    }
    let waits = format!(
        "PostgreSQL has {} finished log files that are not archived, the oldest for {} s",
        seen.ready_files,
        seen.ready_age.as_secs()
    );
    // The last failure is newer than the last success: it counts them, so the command runs and says why.
    let fails = seen
        .failed
        .at
        .is_some_and(|failed| seen.archived.at.is_none_or(|archived| archived < failed));
    Verdict::Bad(if fails {
        let file = seen.failed.last.as_deref().unwrap_or("a file");
        format!("{waits}; archive_command fails for {file}, and the server's log says why")
    } else {
        format!(
            "{waits}; no failure is counted, so the archiver could not run archive_command at all (is the binary where \
             it says?) or does not end: `foregate pitr setup` tries it"
        )
    })
}

/// Why the log cannot come to us at all.
fn goes_nowhere(handing: &Handing) -> Option<&'static str> {
    if handing.mode == "off" {
        return Some(
            "archive_mode is off: PostgreSQL hands no log over, and nothing later than a base backup can be recovered",
        );
    }
    if !handing.library.is_empty() {
        return Some("archive_library is set: PostgreSQL does not run archive_command, and its log does not come here");
    }
    handing
        .command
        .is_empty()
        .then_some("archive_command is empty: PostgreSQL keeps its log to itself")
}

/// Whether the log goes where we are not. A command that is not ours may lead here all the same, by a script: what the server
/// counts as archived is in the archive then, once that has been counted. A server that has counted nothing (since its
/// statistics were reset) proves nothing, and no more does an archive that nobody has looked into.
fn goes_elsewhere(seen: &Seen, newest: Option<Timestamp>, patience: Duration) -> bool {
    let lag = SignedDuration::try_from(patience.saturating_add(COUNT_EVERY_MAX)).unwrap_or(SignedDuration::MAX);
    let is_behind = |(archived, newest): (Timestamp, Timestamp)| archived.duration_since(newest) > lag;
    !setup::hands_over(&seen.handing.command) && seen.archived.at.zip(newest).is_some_and(is_behind)
}

/// Judges what was seen of the slot of a stream.
#[must_use]
pub fn judge_slot(seen: &Seen, name: &str) -> Verdict {
    match &seen.slot {
        None => Verdict::Absent(format!(
            "the replication slot {name:?} does not exist: nothing holds the log for the stream"
        )),
        Some(slot) if slot.is_lost => Verdict::Bad(format!(
            "the replication slot {name:?} is lost: the server removed log that was not read, so the archive has a gap; \
             the stream begins anew by itself, and then a base backup is needed"
        )),
        Some(slot) if !slot.is_active => Verdict::Absent(format!(
            "nobody reads the replication slot {name:?}; the server keeps {} bytes for it",
            slot.retained_bytes
        )),
        Some(_) => Verdict::Good,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle() -> Seen {
        Seen {
            handing: Handing {
                mode: "on".to_owned(),
                library: String::new(),
                command: "/usr/bin/foregate wal push %p".to_owned(),
            },
            ..Seen::default()
        }
    }

    fn seen(age: u64) -> Seen {
        Seen {
            ready_files: 3,
            ready_age: Duration::from_secs(age),
            ..idle()
        }
    }

    fn judge(seen: &Seen) -> Verdict {
        judge_archiver(seen, None, PATIENCE)
    }

    fn at(second: i64) -> Option<Timestamp> {
        Timestamp::from_second(second).ok()
    }

    const PATIENCE: Duration = Duration::from_secs(300);

    #[test]
    fn a_file_that_waits_too_long_alerts_although_no_failure_is_counted() {
        assert_eq!(judge(&seen(300)), Verdict::Good);
        let Verdict::Bad(text) = judge(&seen(301)) else {
            unreachable!("it has waited too long");
        };
        assert!(text.contains("could not run archive_command"), "{text}");
    }

    #[test]
    fn a_command_that_fails_is_told_from_one_that_cannot_run() {
        let mut failing = seen(1000);
        failing.failed = Tried {
            count: 4,
            last: Some("000000010000000000000007".to_owned()),
            at: at(50),
        };
        failing.archived.at = at(40);
        let Verdict::Bad(text) = judge(&failing) else {
            unreachable!("it has waited too long");
        };
        assert!(text.contains("fails for 000000010000000000000007"), "{text}");
        failing.archived.at = at(60);
        assert!(matches!(judge(&failing), Verdict::Bad(text) if text.contains("at all")));
    }

    #[test]
    fn a_standby_and_an_idle_server_are_well() {
        assert_eq!(judge(&idle()), Verdict::Good);
        let standby = Seen {
            is_standby: true,
            ..seen(9999)
        };
        assert_eq!(judge(&standby), Verdict::Good);
    }

    #[test]
    fn log_that_goes_nowhere_or_elsewhere_is_told_with_what_to_do() {
        let with = |mode: &str, library: &str, command: &str| Seen {
            handing: Handing {
                mode: mode.to_owned(),
                library: library.to_owned(),
                command: command.to_owned(),
            },
            ..idle()
        };
        for (seen, named) in [
            (with("off", "", "(disabled)"), "archive_mode is off"),
            (with("on", "basic_archive", ""), "archive_library is set"),
            (with("on", "", ""), "archive_command is empty"),
        ] {
            let Verdict::Bad(text) = judge(&seen) else {
                unreachable!("{named}");
            };
            assert!(text.contains(named) && text.contains("`foregate pitr setup`"), "{text}");
        }
    }

    #[test]
    fn script_that_leads_here_is_as_good_as_our_command_and_told_only_once_it_is_proven_not_to() {
        let mut script = idle();
        script.handing.command = "/usr/local/bin/archive %p".to_owned();
        script.archived.at = at(1000);
        let judge = |newest| judge_archiver(&script, newest, PATIENCE);
        assert_eq!(judge(at(999)), Verdict::Good);
        assert_eq!(judge(at(100)), Verdict::Good, "the archive was counted some time ago");
        assert_eq!(judge(None), Verdict::Good, "it was not counted yet");
        for newest in [at(99), Some(Timestamp::MIN)] {
            let Verdict::Absent(text) = judge(newest) else {
                unreachable!("{newest:?}");
            };
            assert!(
                text.contains("archive_command does not run") && text.contains("`foregate pitr setup`"),
                "{text}"
            );
        }
        script.archived.at = None;
        let reset = judge_archiver(&script, at(99), PATIENCE);
        assert_eq!(reset, Verdict::Good, "the statistics were reset");
    }

    #[test]
    fn a_slot_is_well_only_while_someone_reads_it() {
        let with = |slot| Seen {
            slot,
            ..Seen::default()
        };
        let slot = Slot {
            retained_bytes: 7,
            is_active: true,
            is_lost: false,
            is_unbounded: false,
        };
        assert_eq!(judge_slot(&with(Some(slot.clone())), "x"), Verdict::Good);
        let idle = Slot {
            is_active: false,
            ..slot.clone()
        };
        let lost = Slot { is_lost: true, ..slot };
        assert!(matches!(judge_slot(&with(Some(lost)), "x"), Verdict::Bad(_)));
        for passing in [None, Some(idle)] {
            assert!(matches!(judge_slot(&with(passing), "x"), Verdict::Absent(_)));
        }
    }
}
