//! The lock that lets one run at a time pass, and the fsynced note of a swap that a crash may leave half done.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Error, Vault};
use crate::postgres::Admin;
use crate::postgres::admin::identifier;

const NOTE_BYTES_MAX: u64 = 64 * 1024;

/// Held during a run; the system releases it when the process dies.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// What a restore is about to do, written before it does it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Intent {
    pub(super) live: String,
    pub(super) new: String,
    pub(super) old: String,
    /// Identifies the database that served when the restore began, whatever it is called now.
    pub(super) live_oid: u32,
}

/// What the start found and did about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    Nothing,
    /// The old database serves; the half-made new one was dropped.
    Undone,
    /// The new database serves.
    Finished,
}

impl Vault {
    fn private(&self) -> Result<PathBuf, Error> {
        let directory = self.config.state_dir.join("backup");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(local("making the state directory"))?;
        Ok(directory)
    }

    pub(super) fn lock(&self) -> Result<Lock, Error> {
        // A directory that is the repository is locked itself: two instances with different states meet there.
        let directory = match self.repository.directory() {
            Some(directory) => directory.to_owned(),
            None => self.private()?,
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(directory.join(".lock"))
            .map_err(local("opening the lock"))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Busy),
            Err(error) => Err(local("taking the lock")(error.into())),
        }
    }

    pub(super) fn write_intent(&self, intent: &Intent) -> Result<(), Error> {
        let directory = self.private()?;
        let write = || -> io::Result<()> {
            let temporary = directory.join("restore.json.new");
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&serde_json::to_vec(intent)?)?;
            file.sync_all()?;
            std::fs::rename(&temporary, directory.join("restore.json"))?;
            File::open(&directory)?.sync_all()
        };
        write().map_err(local("writing the journal"))
    }

    pub(super) fn clear_intent(&self) -> Result<(), Error> {
        let directory = self.private()?;
        match std::fs::remove_file(directory.join("restore.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(local("clearing the journal")(error)),
            _ => File::open(&directory)
                .and_then(|file| file.sync_all())
                .map_err(local("clearing the journal")),
        }
    }

    fn read_intent(&self) -> Result<Option<Intent>, Error> {
        use io::Read as _;
        let mut bytes = Vec::new();
        match File::open(self.private()?.join("restore.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(local("reading the journal")(error)),
            Ok(file) => file
                .take(NOTE_BYTES_MAX)
                .read_to_end(&mut bytes)
                .map_err(local("reading the journal"))?,
        };
        let intent = serde_json::from_slice(&bytes).map_err(|error| local("reading the journal")(error.into()))?;
        Ok(Some(intent))
    }

    /// Finishes or undoes what a crash left half done. Called at every start, and before every run that changes.
    ///
    /// # Errors
    /// The server cannot be asked; the note stays for the next time.
    pub async fn recover(&self) -> Result<Recovered, Error> {
        let Some(intent) = self.read_intent()? else {
            return Ok(Recovered::Nothing);
        };
        let admin = Admin::connect(&self.target, "postgres", "foregate recover").await?;
        let recovered = reopen(&admin, &intent).await?;
        self.clear_intent()?;
        Ok(recovered)
    }
}

/// The renames are one transaction, so the name of the old database tells whether they happened.
async fn reopen(admin: &Admin, intent: &Intent) -> Result<Recovered, Error> {
    let sql = "SELECT datname::text FROM pg_database WHERE oid = $1";
    let rows = admin
        .query("looking for the old database", sql, &[&intent.live_oid])
        .await?;
    let name: Option<String> = rows.first().and_then(|row| row.try_get(0).ok());
    let open = |name: &str| format!("ALTER DATABASE {} WITH ALLOW_CONNECTIONS true", identifier(name));
    match name {
        Some(name) if name == intent.live => {
            admin.batch("opening the database again", &open(&intent.live)).await?;
            let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(&intent.new));
            admin.batch("dropping the half-made database", &drop).await?;
            Ok(Recovered::Undone)
        }
        // Swapped, or the old one was removed since: the live name must be open in either case.
        _ => {
            admin.batch("opening the new database", &open(&intent.live)).await?;
            Ok(Recovered::Finished)
        }
    }
}

pub(super) fn local(act: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Local { act, source }
}
