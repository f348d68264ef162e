//! Room on disks, asked for before a restore makes anything: for the dump that is unpacked and, where the server's disk can be
//! seen from here, for the new database, which stands beside the old one.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use super::character::USUAL_TABLESPACE;
use super::journal::local;
use super::{Config, Entry, Error, Vault};
use crate::postgres::Admin;
use crate::repository::manifest::Content;

/// Where the tablespace of a database lies on the server; where there is no such database, that of this name.
const PLACE: &str = "SELECT COALESCE(NULLIF(pg_tablespace_location(oid), ''), current_setting('data_directory')) \
    FROM pg_tablespace WHERE oid = COALESCE((SELECT dattablespace FROM pg_database WHERE datname = $1), \
    (SELECT oid FROM pg_tablespace WHERE spcname = $2))";
/// No database that is used shrinks to less than this part of itself.
const HOPELESS: u64 = 10;
/// How long is waited for a directory that is only looked at.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

impl Vault {
    /// Refuses where room is missing for certain, and notes where it may not do.
    pub(super) async fn check_room(&self, entry: &Entry, admin: &Admin, notes: &mut Vec<String>) -> Result<(), Error> {
        self.check_scratch(entry)?;
        let Content::Database {
            database_bytes,
            character,
            ..
        } = &entry.manifest.content
        else {
            return Ok(());
        };
        let tablespace = character.as_ref().map_or(USUAL_TABLESPACE, |one| &one.tablespace);
        if let Some(place) = self.place(admin, tablespace).await
            && let Ok(free) = free(Path::new(&place))
        {
            notes.extend(beside(&place, free, *database_bytes).map_err(Error::Refused)?);
        }
        Ok(())
    }

    /// Where on this machine the database lies, or would. Not every role may ask.
    async fn place(&self, admin: &Admin, tablespace: &str) -> Option<String> {
        if !self.target.is_here() {
            return None;
        }
        let (act, live) = ("asking where databases lie", self.target.database());
        admin.value(act, PLACE, &[&live, &tablespace]).await.ok()
    }

    /// That who loses the disk loses both. What lies in a container is not seen from outside: then nothing is known.
    pub(super) async fn same_disk(&self, admin: &Admin) -> Option<String> {
        let repository = self.repository.directory()?;
        let place = self.place(admin, USUAL_TABLESPACE).await?;
        let paths = [repository.to_owned(), place.into()];
        let looking = tokio::task::spawn_blocking(move || paths.map(|path| std::fs::metadata(path).ok()));
        // A share that does not answer is no disk of the database's.
        let found = tokio::time::timeout(LOOK_TIMEOUT, looking).await.ok()?.ok()?;
        let [ours, theirs] = found.map(|found| found.map(|found| found.dev()));
        (ours? == theirs?).then(|| {
            format!(
                "the repository {} is on the disk that holds the database: who loses it loses both",
                repository.display()
            )
        })
    }

    fn check_scratch(&self, entry: &Entry) -> Result<(), Error> {
        let directory = &self.config.scratch;
        let place = directory.display();
        if let Some(fault) = self.config.scratch_fault() {
            return Err(Error::Refused(fault));
        }
        std::fs::create_dir_all(directory).map_err(local(format!("making the scratch directory {place}")))?;
        let free = free(directory).map_err(local(format!("measuring the scratch directory {place}")))?;
        let dump = entry.manifest.part("dump").map_or(0, |part| part.plain_bytes);
        let needed = dump.saturating_add(dump / 10);
        if free < needed {
            return Err(Error::Refused(format!(
                "the scratch directory {place} has {free} bytes free, {needed} are needed; backup.scratch or --scratch names another"
            )));
        }
        Ok(())
    }
}

impl Config {
    /// Only what is nobody's choice is made. Else it is a disk that is not mounted, or a slip of the pen, and the dump would go
    /// where nobody wants it.
    #[must_use]
    pub fn scratch_fault(&self) -> Option<String> {
        let is_there = self.scratch == self.state_dir || self.scratch.is_dir();
        (!is_there).then(|| {
            format!(
                "the scratch directory {} (backup.scratch, --scratch or TMPDIR) is not there: make it, or name another",
                self.scratch.display()
            )
        })
    }
}

/// Whether the database fits on the disk of `place`, which, when it runs full, stops the database that serves. What it `took`
/// when it was backed up may be several times what it takes when it is new, since deleted rows took their room as well: so
/// scarce room is told, and only what is certain not to do is refused.
fn beside(place: &str, free: u64, took: u64) -> Result<Option<String>, String> {
    if free >= took {
        return Ok(None);
    }
    let text = format!(
        "the database took {} MiB, and {} MiB are free in {place} on the database server",
        took >> 20,
        free >> 20
    );
    match free < took / HOPELESS {
        true => Err(format!("{text}: make room first")),
        false => Ok(Some(format!("{text}: it may not do"))),
    }
}

fn free(place: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(place)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_is_refused_and_scarce_room_is_told() {
        const GIB: u64 = 1 << 30;
        assert_eq!(beside("/d", 5 * GIB, 5 * GIB), Ok(None));
        let told = beside("/d", GIB, 5 * GIB).expect("perhaps").expect("told");
        assert!(told.contains("took 5120 MiB, and 1024 MiB are free in /d"), "{told}");
        assert!(beside("/d", GIB / 4, 5 * GIB).is_err());
    }
}
