//! `wal = "stream"`: the log over the replication protocol, for a server whose host we do not share.
//!
//! `pg_receivewal` reads it, supervised: no released Rust client speaks the replication protocol, and the part that
//! matters (sync, then confirm; resume; follow a promotion) is the part that PostgreSQL's own program has long got
//! right. `--synchronous` confirms to the slot only what is durable in the spool directory; from there each finished
//! segment goes to the repository. The newest finished one stays in the spool: it is where the program resumes, and
//! before PostgreSQL 15 an empty directory would make it skip what lies between.
//!
//! After a failover the program follows the new timeline by itself, from where the spool ends. Only where the server cannot go
//! on from there, since it has removed that log or left that timeline earlier, does the stream begin elsewhere.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::archive::Error as ArchiveError;
use super::archiver::{self, Archiver};
use super::name::{File, Lsn, SegmentName, SegmentSize, Timeline};
use super::watch;
use crate::postgres::child::{Child, Command};
use crate::postgres::program::Programs;
use crate::postgres::secrets::make_private;
use crate::postgres::{self, Admin, Target};
use crate::repository::layout::Cluster;

/// As this the stream is known to the server.
const APPLICATION: &str = "foregate wal stream";
/// The child runs until something breaks; this only bounds the call that waits for it.
const RUN_MAX: Duration = Duration::from_hours(24 * 365);
/// More files than this in the spool were not put there by `pg_receivewal`.
const SPOOL_FILES_MAX: usize = 100_000;
/// Of a lost slot nothing is left to hold, and newer servers let nobody read by it any more.
const DROP_LOST: &str = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
    WHERE slot_name = $1 AND slot_type = 'physical' AND wal_status = 'lost'";
/// It holds the log from the last checkpoint on, before anybody reads.
const CREATE: &str = "SELECT pg_create_physical_replication_slot($1, true) \
    WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)";
/// A server's log of a million segments is none that a slot could hold.
const SERVER_FILES: &str = "SELECT name FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$' LIMIT 1000000";

/// What is streamed, and through which directory.
#[derive(Debug, Clone)]
pub struct Config {
    pub target: Target,
    pub slot: String,
    /// Whose log the spool holds.
    pub cluster: Cluster,
    /// Private; holds what is read and not yet archived.
    pub spool: PathBuf,
}

/// Why the stream does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("the server is cluster {found} now, and the stream is that of cluster {streamed}")]
    Another { found: String, streamed: String },
    #[error(
        "this standby does not have the log that follows what was streamed, and its primary may: let database.url lead to the \
         primary; where no server has it any more, move {} aside, and the stream begins anew, with a gap", .spool.display()
    )]
    Standby { spool: PathBuf },
    #[error("the spool {path}")]
    Spool {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Config {
    fn spooled<T>(&self, done: io::Result<T>) -> Result<T, Error> {
        done.map_err(|source| Error::Spool {
            path: self.spool.clone(),
            source,
        })
    }

    /// Lets nobody in but the cluster whose log the spool holds: after `pg_upgrade`, or when the address leads elsewhere, another
    /// one answers before the watch has said so, and its log would be taken for that of ours.
    ///
    /// # Errors
    /// Another one answers, or nobody.
    pub async fn connect(&self) -> Result<Admin, Error> {
        let admin = Admin::connect(&self.target, self.target.database(), APPLICATION).await?;
        let found = archiver::whose(&admin).await?;
        if found == self.cluster {
            return Ok(admin);
        }
        Err(Error::Another {
            found: found.prefix(),
            streamed: self.cluster.prefix(),
        })
    }

    /// Has the server hold the log from here on: makes the slot where there is none, and another one in the place of one that is
    /// lost. Returns whether it was: until then the server went on removing log.
    ///
    /// # Errors
    /// Of the server.
    pub async fn hold(&self, admin: &Admin) -> Result<bool, Error> {
        let lost = admin.query("dropping the lost slot", DROP_LOST, &[&self.slot]).await?;
        admin
            .query("making the replication slot", CREATE, &[&self.slot])
            .await?;
        Ok(!lost.is_empty())
    }

    /// Starts reading. Makes the spool where it is missing.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn start(&self) -> Result<Child, Error> {
        self.spooled(make_private(&self.spool))?;
        let programs = Programs::find(self.cluster.major)?;
        let child = Command::new(programs.path("pg_receivewal"))
            .arg("--no-password")
            .arg("--slot")
            .arg(&self.slot)
            .target(&self.target, APPLICATION)?
            .arg("--directory")
            .arg(self.spool.as_os_str())
            .arg("--synchronous")
            // Its own retries would hide that it does not get on.
            .arg("--no-loop")
            .start()?;
        Ok(child)
    }

    /// Has the stream begin elsewhere where the server cannot go on from the end of the spool; else changes nothing. To be asked
    /// when the slot was lost, or the stream has failed again and again. What is in the spool goes to the archive, unfinished as it
    /// may be: nobody has more of it. The stream begins anew with the earliest log that the server has to follow. A standby proves
    /// nothing: what it has removed, its primary may still keep for us, as long as there is a spool that could go on there.
    ///
    /// # Errors
    /// Of server, spool or archive; asked again, it goes on.
    pub async fn renew(&self, admin: &Admin, archiver: &Archiver) -> Result<(), Error> {
        let there = self.spooled(list(&self.spool))?;
        let size = watch::segment_size(admin).await?;
        let rows = admin
            .query("looking for the log to go on with", SERVER_FILES, &[])
            .await?;
        let named = rows.iter().filter_map(|row| row.try_get::<_, String>(0).ok());
        let on_server = named.filter_map(|name| match name.parse() {
            Ok(File::Segment(stem)) => stem.name(size),
            _ => None,
        });
        let on_server: Vec<SegmentName> = on_server.collect();
        let spooled = resumes_with(&there, size);
        let resumes = match (spooled, on_server.iter().map(|name| name.timeline).max()) {
            (None, Some(newest)) => self.held(admin).await?.map(|at| SegmentName::at(newest, at, size)),
            _ => spooled,
        };
        let begins = resumes.and_then(|resumes| goes_on_with(resumes, on_server.into_iter()));
        let (Some(resumes), Some(begins)) = (resumes, begins) else {
            return Ok(());
        };
        let standby = "SELECT pg_is_in_recovery()";
        if spooled.is_some() && admin.value("asking whether it is a standby", standby, &[]).await? {
            return Err(Error::Standby {
                spool: self.spool.clone(),
            });
        }
        let (ended, begins) = (resumes.file(size), begins.file(size));
        if begins.timeline > ended.timeline {
            tracing::warn!(%ended, %begins, "the server left the timeline of the stream earlier: it goes on along the new one");
        } else {
            tracing::warn!(%ended, %begins, "the server has lost log that was not streamed: the archive has a gap there");
        }
        // An empty file tells pg_receivewal where to begin, once it is the last: so it comes first, and nothing is ever skipped.
        let first = File::Partial(begins);
        self.spooled(make_private(&self.spool))?;
        let path = self.spool.join(first.to_string());
        self.spooled(OpenOptions::new().create(true).append(true).open(path))?;
        for file in there.into_iter().filter(|file| file.is_log() && *file != first) {
            self.give_up(file, archiver).await?;
        }
        Ok(())
    }

    /// From where on the slot holds the log, with which an empty spool begins. An attempt to go on with a spool whose end is removed
    /// may have set it back to there.
    async fn held(&self, admin: &Admin) -> Result<Option<Lsn>, Error> {
        let sql = "SELECT coalesce(restart_lsn::text, '') FROM pg_replication_slots WHERE slot_name = $1";
        let at: String = admin.value("asking what the slot holds", sql, &[&self.slot]).await?;
        Ok(at.parse().ok())
    }

    /// Archives a file to which nothing will be added, and removes it. One that the archive does not take, since it holds nothing
    /// yet or another one of its name is there, is put beside the spool.
    async fn give_up(&self, file: File, archiver: &Archiver) -> Result<(), Error> {
        let path = self.spool.join(file.to_string());
        match self.archive(file, archiver).await {
            Ok(()) => self.spooled(std::fs::remove_file(path)),
            Err(Error::Archive(
                error @ (ArchiveError::Repository(_) | ArchiveError::Read { .. } | ArchiveError::Worker),
            )) => Err(error.into()),
            Err(Error::Archive(error)) => {
                let aside = self.spool.with_extension("aside");
                tracing::warn!(%file, error = error.chain(), "not archived, and put beside the spool");
                self.spooled(make_private(&aside))?;
                self.spooled(std::fs::rename(path, aside.join(file.to_string())))
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until the child ends, which it never should.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn wait(child: Child) -> Result<(), Error> {
        Ok(child.finish(RUN_MAX).await?)
    }

    /// Archives what is finished in the spool, and removes what is archived and not needed to resume. `done` is what
    /// earlier calls of this run have archived.
    ///
    /// # Errors
    /// Of spool or archive; what was not archived stays.
    pub async fn drain(&self, archiver: &Archiver, done: &mut BTreeSet<File>) -> Result<(), Error> {
        let there = self.spooled(list(&self.spool))?;
        done.retain(|file| there.contains(file));
        for (file, is_needed) in finished(&there) {
            if matches!(file, File::Partial(_)) {
                // Another one of its name is no other's log: it ends earlier or later. Nor is it in the way of what follows.
                self.give_up(file, archiver).await?;
                continue;
            }
            if !done.contains(&file) {
                self.archive(file, archiver).await?;
                done.insert(file);
            }
            if !is_needed {
                self.spooled(std::fs::remove_file(self.spool.join(file.to_string())))?;
            }
        }
        Ok(())
    }

    async fn archive(&self, file: File, archiver: &Archiver) -> Result<(), Error> {
        let path = self.spool.join(file.to_string());
        Ok(archiver.push_path(&self.cluster, file, &path).await?)
    }

    /// How much waits in the spool.
    ///
    /// # Errors
    /// Of the directory.
    pub fn waiting_bytes(&self) -> Result<u64, Error> {
        let sum = || {
            let mut bytes = 0_u64;
            for entry in std::fs::read_dir(&self.spool)?.take(SPOOL_FILES_MAX) {
                bytes = bytes.saturating_add(entry?.metadata().map_or(0, |metadata| metadata.len()));
            }
            Ok(bytes)
        };
        self.spooled(sum())
    }
}

/// With which segment `pg_receivewal` resumes: the highest number counts, then the timeline.
fn resumes_with(there: &BTreeSet<File>, size: SegmentSize) -> Option<SegmentName> {
    let log = there.iter().filter_map(|file| match file {
        File::Segment(stem) => stem.name(size).map(|name| name.next()),
        File::Partial(stem) => stem.name(size),
        File::History(_) | File::Backup(..) => None,
    });
    log.max_by_key(|name| (name.number, name.timeline))
}

/// Where a stream has to begin that cannot go on with `resumes`, as the segments of the server's log prove; `None`: they prove
/// nothing. A server removes the oldest first, whatever the timeline; and a segment of a later timeline stands at the earliest
/// where that one began.
fn goes_on_with(resumes: SegmentName, on_server: impl Iterator<Item = SegmentName>) -> Option<SegmentName> {
    let (mut oldest, mut later) = (None, None);
    let earlier = |one: Option<SegmentName>, other: SegmentName| {
        let one = one.into_iter().chain([other]);
        // Of two, the newer timeline's holds what the older one's did up to there.
        one.min_by_key(|name| (name.number, std::cmp::Reverse(name.timeline)))
    };
    for name in on_server {
        oldest = earlier(oldest, name);
        if name.timeline > resumes.timeline {
            later = earlier(later, name);
        }
    }
    let is_removed = |name: &SegmentName| name.number > resumes.number;
    let was_left = |name: &SegmentName| name.number < resumes.number;
    oldest.filter(is_removed).or(later.filter(was_left))
}

fn list(spool: &Path) -> io::Result<BTreeSet<File>> {
    let mut files = BTreeSet::new();
    let entries = match std::fs::read_dir(spool) {
        // Nothing was streamed yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        entries => entries?,
    };
    for entry in entries.take(SPOOL_FILES_MAX) {
        // What `pg_receivewal` keeps for itself beside them is passed over.
        if let Some(file) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            files.insert(file);
        }
    }
    Ok(files)
}

/// What can be archived, in the order of the log, and whether it must stay: the newest finished segment, and the
/// histories, which are small. A partial file is finished once a newer timeline has begun.
fn finished(there: &BTreeSet<File>) -> Vec<(File, bool)> {
    let newest = there
        .iter()
        .filter(|file| file.is_log())
        .map(File::timeline)
        .max()
        .unwrap_or(Timeline(0));
    let is_finished = |file: &&File| match file {
        File::Segment(_) | File::History(_) => true,
        File::Partial(stem) => stem.timeline < newest,
        File::Backup(..) => false,
    };
    let last = there.iter().rfind(|file| matches!(file, File::Segment(_)));
    let mut finished: Vec<(File, bool)> = there
        .iter()
        .filter(is_finished)
        .map(|file| (*file, matches!(file, File::History(_)) || Some(file) == last))
        .collect();
    // A history first, as PostgreSQL's archiver does: whoever sees the new segments must know where they belong.
    finished.sort_by_key(|(file, _)| (!matches!(file, File::History(_)), *file));
    finished
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(names: &[&str]) -> Vec<String> {
        let there = names.iter().map(|name| name.parse().expect("a name")).collect();
        let told = finished(&there).into_iter();
        told.map(|(file, stays)| format!("{file}{}", if stays { " stays" } else { "" }))
            .collect()
    }

    #[test]
    fn finished_segments_go_and_the_newest_stays_to_resume_from() {
        let names = [
            "000000010000000000000007.partial",
            "000000010000000000000006",
            "000000010000000000000005",
        ];
        assert_eq!(
            told(&names),
            ["000000010000000000000005", "000000010000000000000006 stays"]
        );
        assert_eq!(told(&names[..1]), [""; 0]);
    }

    #[test]
    fn stream_resumes_behind_the_highest_number_whatever_its_timeline() {
        let resumes = |names: &[&str]| {
            let there = names.iter().map(|name| name.parse().expect("a name")).collect();
            let size = SegmentSize::DEFAULT;
            resumes_with(&there, size).map(|name| name.file(size).to_string())
        };
        let names = [
            "000000010000000000000009",
            "000000020000000000000007.partial",
            "00000002.history",
        ];
        assert_eq!(resumes(&names).as_deref(), Some("00000001000000000000000A"));
        assert_eq!(resumes(&names[1..]).as_deref(), Some("000000020000000000000007"));
        assert_eq!(resumes(&names[2..]), None);
    }

    #[test]
    fn only_a_server_that_proves_that_the_stream_cannot_go_on_has_it_begin_elsewhere() {
        let name = |(timeline, number): (u32, u64)| SegmentName {
            timeline: Timeline(timeline),
            number,
        };
        let goes_on = |on_server: &[(u32, u64)]| {
            let found = goes_on_with(name((1, 7)), on_server.iter().copied().map(name));
            found.map(|name| (name.timeline.0, name.number))
        };
        assert_eq!(goes_on(&[]), None, "nobody may look");
        assert_eq!(goes_on(&[(1, 6), (1, 7), (1, 8)]), None);
        assert_eq!(goes_on(&[(1, 5)]), None, "a standby that lags");
        assert_eq!(
            goes_on(&[(1, 6), (2, 7), (2, 8)]),
            None,
            "left in our segment or at its begin"
        );
        assert_eq!(goes_on(&[(1, 9), (1, 8)]), Some((1, 8)), "removed");
        assert_eq!(goes_on(&[(2, 8), (1, 8)]), Some((2, 8)), "removed, and left since");
        assert_eq!(
            goes_on(&[(1, 5), (2, 5), (2, 6), (3, 6), (1, 4)]),
            Some((2, 5)),
            "left earlier"
        );
        assert_eq!(goes_on(&[(2, 5), (3, 5), (1, 5)]), Some((3, 5)), "left twice");
    }

    #[test]
    fn a_promotion_finishes_the_partial_file_of_the_older_timeline() {
        let names = [
            "000000010000000000000006",
            "000000010000000000000007.partial",
            "000000020000000000000007.partial",
            "00000002.history",
        ];
        assert_eq!(
            told(&names),
            [
                "00000002.history stays",
                "000000010000000000000006 stays",
                "000000010000000000000007.partial"
            ]
        );
    }
}
