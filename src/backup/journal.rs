//! The lock that lets one run at a time pass, and the fsynced note of a restore that a crash may leave half done.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Error, Vault};
use crate::repository;
use crate::repository::lease::is_forbidden;

/// Longer nobody waits for a lock to be taken or refused.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const NOTE_BYTES_MAX: u64 = 64 * 1024;
/// A process and the name of a machine.
const SIGNATURE_BYTES_MAX: u64 = 256;

/// Held during a run; the system releases it when the process dies.
#[derive(Debug)]
pub(super) struct Lock {
    _state: Option<File>,
    _repository: Option<File>,
}

/// What a restore is about to do, written before it does it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Intent {
    pub(super) live: String,
    /// Ours alone: nobody else makes a database of this name.
    pub(super) new: String,
    pub(super) old: String,
    /// Identifies the database that served when the restore began, whatever it is called now. 0: there was none.
    pub(super) live_oid: u32,
    /// What the new database is to be called in the end; "": nothing, it is dropped. Earlier versions left it out.
    #[serde(default)]
    pub(super) goal: Option<String>,
    /// Roles that are made for as long as something depends on them.
    #[serde(default)]
    pub(super) roles: Vec<String>,
}

impl Intent {
    /// Whether the one that serves is to be replaced, and so is closed for a moment.
    pub(super) fn replaces(&self) -> bool {
        self.live_oid > 0 && self.goal.as_ref().is_none_or(|goal| *goal == self.live)
    }

    /// Whether it is dropped once it is proven.
    pub(super) fn is_proof(&self) -> bool {
        self.goal.as_deref() == Some("")
    }

    /// The name by which our sessions for it are known to the server.
    pub(super) fn application(&self) -> String {
        let run = self.new.strip_prefix("foregate_").unwrap_or(&self.new);
        format!("foregate restore {run}")
    }
}

impl Vault {
    fn private(&self) -> Result<PathBuf, Error> {
        let directory = self.config.state_dir.join("backup");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(local(format!("making the state directory {}", directory.display())))?;
        Ok(directory)
    }

    /// That of the state directory, where the note lies, and that of a repository which is a directory: two instances
    /// with different states meet there.
    pub(super) fn lock(&self) -> Result<Lock, Error> {
        let repository = self.repository.directory().map(lock).transpose()?;
        self.lock_state(repository)
    }

    /// As [`Vault::lock`], for what only reads the repository: a disk that may not be written, as a saved one may be, is
    /// no reason to give nothing back. A sentence tells that it is not locked.
    pub(super) fn lock_to_read(&self) -> Result<(Lock, Option<String>), Error> {
        let (repository, note) = match self.repository.directory().map(lock).transpose() {
            Err(Error::Local { source, .. }) if is_forbidden(&source) => {
                let note = format!("the repository was not locked against others, since it may only be read: {source}");
                (None, Some(note))
            }
            other => (other?, None),
        };
        Ok((self.lock_state(repository)?, note))
    }

    /// As [`Vault::lock_to_read`], where nothing may hang with the disk of the repository: one thread at most waits for that.
    pub(super) async fn lock_to_read_soon(&self) -> Result<(Lock, Option<String>), Error> {
        let vault = self.clone();
        let locking = async {
            let alone = Arc::clone(&vault.locking).lock_owned().await;
            let locking = move || {
                let _alone = alone;
                vault.lock_to_read()
            };
            tokio::task::spawn_blocking(locking).await
        };
        let hangs = |_| local("taking the lock of the repository".to_owned())(io::ErrorKind::TimedOut.into());
        let locked = tokio::time::timeout(LOCK_TIMEOUT, locking).await.map_err(hangs)?;
        locked.map_err(|_| repository::Error::Worker)?
    }

    fn lock_state(&self, repository: Option<File>) -> Result<Lock, Error> {
        let state = match self.private().and_then(|directory| lock(&directory)) {
            Ok(state) => Some(state),
            // Files need no note, so whoever may not write one may still keep them and give them back.
            Err(Error::Local { source, .. }) if repository.is_some() && is_forbidden(&source) => None,
            Err(error) => return Err(error),
        };
        Ok(Lock {
            _state: state,
            _repository: repository,
        })
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
        write().map_err(local(format!("writing the journal in {}", directory.display())))
    }

    pub(super) fn clear_intent(&self) -> Result<(), Error> {
        let directory = self.private()?;
        match std::fs::remove_file(directory.join("restore.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(local(format!("clearing the journal in {}", directory.display()))(error))
            }
            _ => File::open(&directory)
                .and_then(|file| file.sync_all())
                .map_err(local(format!("clearing the journal in {}", directory.display()))),
        }
    }

    pub(super) fn read_intent(&self) -> Result<Option<Intent>, Error> {
        use io::Read as _;
        let (mut bytes, directory) = (Vec::new(), self.private()?);
        match File::open(directory.join("restore.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(local(format!("reading the journal in {}", directory.display()))(error)),
            Ok(file) => file
                .take(NOTE_BYTES_MAX)
                .read_to_end(&mut bytes)
                .map_err(local(format!("reading the journal in {}", directory.display())))?,
        };
        let intent = serde_json::from_slice(&bytes)
            .map_err(|error| local(format!("reading the journal in {}", directory.display()))(error.into()))?;
        Ok(Some(intent))
    }
}

fn lock(directory: &Path) -> Result<File, Error> {
    let path = directory.join(".lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(local(format!("opening the lock {}", path.display())))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            // For whoever is refused. A full disk is no reason to hold nothing.
            drop(sign(&mut file));
            Ok(file)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let (path, holder) = (path.display(), signature(file));
            Err(Error::Busy(format!(": {holder} holds {path}")))
        }
        Err(error) => Err(local(format!("taking the lock {}", path.display()))(error.into())),
    }
}

/// Several machines may share the directory.
fn sign(file: &mut File) -> io::Result<()> {
    let host = rustix::system::uname();
    let (process, host) = (std::process::id(), host.nodename().to_string_lossy());
    file.set_len(0)?;
    file.write_all(format!("process {process} on {host}\n").as_bytes())
}

fn signature(file: File) -> String {
    use io::Read as _;
    let mut text = String::new();
    let read = file.take(SIGNATURE_BYTES_MAX).read_to_string(&mut text);
    let line = text.lines().next().filter(|line| read.is_ok() && !line.is_empty());
    line.map_or_else(|| "another process".to_owned(), |line| line.escape_debug().to_string())
}

pub(super) fn local(act: impl Into<String>) -> impl Fn(io::Error) -> Error {
    let act = act.into();
    move |source| Error::Local {
        act: act.clone(),
        source,
    }
}
