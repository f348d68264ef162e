//! `wal = "stream"`: the log over the replication protocol, for a server whose host we do not share.
//!
//! `pg_receivewal` reads it, supervised: no released Rust client speaks the replication protocol, and the part that
//! matters (sync, then confirm; resume; follow a promotion) is the part that PostgreSQL's own program has long got
//! right. `--synchronous` confirms to the slot only what is durable in the spool directory; from there each finished
//! segment goes to the repository. The newest finished one stays in the spool: it is where the program resumes, and
//! before PostgreSQL 15 an empty directory would make it skip what lies between.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::archive::{Archive, Error as ArchiveError, Pushed};
use super::name::{File, SegmentSize, Stem, Timeline};
use super::watch;
use crate::clock::Clock;
use crate::postgres::child::{Child, Command};
use crate::postgres::program::Programs;
use crate::postgres::secrets::make_private;
use crate::postgres::{self, Admin, Target};

/// As this the stream is known to the server.
const APPLICATION: &str = "foregate wal stream";
/// The child runs until something breaks; this only bounds the call that waits for it.
const RUN_MAX: Duration = Duration::from_hours(24 * 365);
/// `pg_receivewal --create-slot` is one short command.
const CREATE_TIMEOUT: Duration = Duration::from_secs(60);
/// More files than this in the spool were not put there by `pg_receivewal`.
const SPOOL_FILES_MAX: usize = 100_000;

/// What is streamed, and through which directory.
#[derive(Debug, Clone)]
pub struct Config {
    pub target: Target,
    pub slot: String,
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

    /// Starts reading. Makes spool and slot where they are missing. `is_drained`: all that is finished in the spool is archived.
    ///
    /// # Errors
    /// When that cannot be done.
    pub async fn start(&self, is_drained: bool) -> Result<Child, Error> {
        self.spooled(make_private(&self.spool))?;
        let admin = Admin::connect(&self.target, self.target.database(), APPLICATION).await?;
        let major = admin.server_version().await? / 10_000;
        let sql = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)";
        let is_there: bool = admin
            .value("looking for the replication slot", sql, &[&self.slot])
            .await?;
        let programs = Programs::find(major)?;
        if is_drained {
            self.set_aside_what_cannot_go_on(&admin).await?;
        }
        if !is_there {
            let child = self
                .command(&programs)?
                .arg("--create-slot")
                .arg("--if-not-exists")
                .start()?;
            child.finish(CREATE_TIMEOUT).await?;
        }
        drop(admin);
        let child = self
            .command(&programs)?
            .arg("--directory")
            .arg(self.spool.as_os_str())
            .arg("--synchronous")
            // Its own retries would hide that it does not get on.
            .arg("--no-loop")
            .start()?;
        Ok(child)
    }

    /// `pg_receivewal` resumes behind the newest file of the spool, whatever the slot says. Where the server does not have that
    /// part of its log any more, since the slot was lost or dropped, it would fail for ever: the spool is renamed then, and the
    /// stream begins where the slot does. The gap shows in the archive.
    async fn set_aside_what_cannot_go_on(&self, admin: &Admin) -> Result<(), Error> {
        let there = self.spooled(list(&self.spool))?;
        let Some(newest) = newest(&there) else {
            return Ok(());
        };
        let size = watch::segment_size(admin).await?;
        let Some(resumes) = resumes_with(newest, size) else {
            return Ok(());
        };
        let sql = "SELECT EXISTS (SELECT FROM pg_ls_waldir() WHERE name = $1) \
                   OR pg_walfile_name(pg_current_wal_lsn()) COLLATE \"C\" <= $1";
        // A role that may not look there leaves it as it is.
        let found = admin.value("looking for the log to go on with", sql, &[&resumes]).await;
        if found.unwrap_or(true) {
            return Ok(());
        }
        let aside = self.spool.with_extension("aside");
        tracing::warn!(
            segment = resumes,
            "the server has lost log that was not streamed: the archive has a gap there; take a base backup"
        );
        match std::fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.spooled(Err(error))?,
            _ => self.spooled(std::fs::rename(&self.spool, &aside))?,
        }
        self.spooled(make_private(&self.spool))
    }

    fn command(&self, programs: &Programs) -> Result<Command, postgres::Error> {
        Command::new(programs.path("pg_receivewal"))
            .arg("--no-password")
            .arg("--slot")
            .arg(&self.slot)
            .target(&self.target, APPLICATION)
    }

    /// Waits until the child ends, which it never should.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn wait(child: Child) -> Result<(), Error> {
        Ok(child.finish(RUN_MAX).await?)
    }

    /// Archives what is finished in the spool, and removes what is archived and not needed to resume. `done` is what
    /// earlier calls of this run have archived; `tell` hears of each file, with its length and when it was begun with.
    ///
    /// # Errors
    /// Of spool or archive; what was not archived stays.
    pub async fn drain(
        &self,
        archive: &Archive,
        done: &mut BTreeSet<File>,
        clock: Clock,
        tell: impl Fn(File, Pushed, u64, Duration),
    ) -> Result<(), Error> {
        let there = self.spooled(list(&self.spool))?;
        done.retain(|file| there.contains(file));
        for (file, is_needed) in finished(&there) {
            let path = self.spool.join(file.to_string());
            if !done.contains(&file) {
                let bytes = self.spooled(std::fs::metadata(&path))?.len();
                let begun = clock.tick();
                let pushed = archive.push(&file.to_string(), &path).await?;
                tell(file, pushed, bytes, begun);
                done.insert(file);
            }
            if !is_needed {
                self.spooled(std::fs::remove_file(&path))?;
            }
        }
        Ok(())
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

/// The newest of the log in the spool, and by how many segments `pg_receivewal` resumes behind it.
fn newest(there: &BTreeSet<File>) -> Option<(Stem, u64)> {
    let log = there.iter().filter_map(|file| match file {
        File::Segment(stem) => Some((*stem, 1)),
        File::Partial(stem) => Some((*stem, 0)),
        File::History(_) | File::Backup(..) => None,
    });
    log.max()
}

fn resumes_with((stem, step): (Stem, u64), size: SegmentSize) -> Option<String> {
    let mut name = stem.name(size)?;
    name.number = name.number.checked_add(step)?;
    Some(name.file(size).to_string())
}

fn list(spool: &Path) -> io::Result<BTreeSet<File>> {
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(spool)?.take(SPOOL_FILES_MAX) {
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
