//! Proof: what is stored is read back whole, hashed on both sides, and read by `pg_restore`. (`pg_restore -l` proves
//! nothing: it reads the table of contents, which stands in front.)

use std::io::{self, Write};
use std::sync::Arc;

use ulid::Ulid;

use super::choice::instead_of;
use super::entry::next_record;
use super::{Entry, Error, Swap, Vault};
use crate::postgres;
use crate::postgres::child::Command;
use crate::postgres::program::Programs;
use crate::repository::lease::may_only_read;
use crate::repository::manifest::{Content, Level, Manifest, Part, Verification};
use crate::repository::{self, Keys, layout};
use crate::telemetry::cause::chain;

/// Of a failure that is written down. A restore may have any number of notes on what went wrong before, and a record that
/// nobody reads for its length would take the backup's good name with it.
const FAILURE_BYTES_MAX: usize = 4096;

impl Vault {
    /// Reads every part of a backup back. Returns the level reached, at most 2.
    pub(super) async fn prove(&self, folder: &str, manifest: &Manifest, keys: &Arc<Keys>) -> Result<Level, Error> {
        for part in &manifest.parts {
            let key = format!("{folder}/{}", part.object);
            let progress = self.step("verify");
            if part.name == "dump" {
                self.prove_dump(&key, part, manifest, keys, progress).await?;
            } else if part.name == "files" {
                self.prove_files(&key, part, manifest, keys, progress).await?;
            } else {
                self.read_back(&key, part, keys, io::sink(), progress).await?;
            }
        }
        Ok(Level::L2)
    }

    /// Opens the part into `sink`, closes that, and compares what came with what the manifest says.
    pub(super) async fn read_back(
        &self,
        key: &str,
        part: &Part,
        keys: &Arc<Keys>,
        sink: impl Write + Send + 'static,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<(), Error> {
        let opened = self.repository.get_sealed(key, sink, Arc::clone(keys), progress);
        let (sealed, sink) = opened.await?;
        drop(sink);
        Ok(part.check(key, &sealed)?)
    }

    async fn prove_dump(
        &self,
        key: &str,
        part: &Part,
        manifest: &Manifest,
        keys: &Arc<Keys>,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<(), Error> {
        // Whoever wrote it may be newer than the server was.
        let major = match &manifest.content {
            Content::Database {
                server_version,
                client_version,
                ..
            } => client_version.parse().unwrap_or(server_version / 10_000),
            Content::Base { .. } | Content::Files { .. } => {
                return Err(Error::Refused("this backup holds no dump".to_owned()));
            }
        };
        let programs = Programs::reading(major, major)?;
        let reader = Command::new(programs.path("pg_restore")).arg("-f").arg("/dev/null");
        self.prove_by(reader, key, part, keys, progress).await
    }

    /// Feeds the part to a program that reads it to its end. One that neither reads nor ends is killed when its time is over:
    /// whoever writes to it would wait as long as it lives.
    pub(super) async fn prove_by(
        &self,
        reader: Command,
        key: &str,
        part: &Part,
        keys: &Arc<Keys>,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<(), Error> {
        let limit = self.config.step_timeout;
        let proven = async {
            let mut child = reader.stdin_piped().start()?;
            let sink = Draining {
                inner: Some(child.take_stdin()?),
            };
            self.read_back(key, part, keys, sink, progress).await?;
            Ok(child.finish(limit).await?)
        };
        let slow = |_| postgres::Error::Slow {
            act: format!("reading {key} back"),
            seconds: limit.as_secs(),
        };
        tokio::time::timeout(limit, proven).await.map_err(slow)?
    }

    /// Verifies a published backup and writes down the result. Without a key to open it, only the stored bytes are
    /// compared: that is level 1, and says that they are those which were proven when they were made.
    ///
    /// # Errors
    /// Why it is not proven; that is recorded as well, unless it is for want of a key or a program.
    pub async fn verify(&self, entry: &Entry) -> Result<Proven, Error> {
        let test = if self.can_open(&entry.manifest) {
            Level::L2
        } else {
            Level::L1
        };
        let result = self.twice(entry, test).await;
        self.record(entry, result).await
    }

    /// Whether there is a key for what is encrypted. It may still be the wrong one.
    #[must_use]
    pub fn can_open(&self, manifest: &Manifest) -> bool {
        manifest.recipients.is_empty() || self.keys.decrypts()
    }

    /// Restores a published backup into a scratch database, compares the rows, and writes down the result.
    ///
    /// # Errors
    /// As [`Vault::verify`].
    pub async fn verify_by_restore(&self, entry: &Entry) -> Result<Proven, Error> {
        let result = self.twice(entry, Level::L3).await;
        self.record(entry, result).await
    }

    /// Reads a published backup back; with `restore`, into a scratch database as well.
    ///
    /// # Errors
    /// As [`Vault::verify`].
    pub async fn prove_again(&self, entry: &Entry, restore: bool) -> Result<Proven, Error> {
        let proven = self.verify(entry).await?;
        if restore {
            return self.verify_by_restore(entry).await;
        }
        Ok(proven)
    }

    /// Level 1: every part hashes as it did when it was written.
    async fn prove_stored(&self, entry: &Entry) -> Result<Level, Error> {
        let mut parts: Vec<&Part> = entry.manifest.parts.iter().collect();
        // The dump may take hours: whatever is wrong with another one is known at once.
        parts.sort_by_key(|part| part.stored_bytes);
        for part in parts {
            let key = format!("{}/{}", entry.folder, part.object);
            let progress = self.step("verify");
            self.repository.confirm_stored(&key, part, progress).await?;
        }
        Ok(Level::L1)
    }

    /// Believes a failure that blames the backup only when it shows again: one bad read, of a disk or on the way here, must
    /// not condemn a good backup. Where no key fits, the stored bytes tell whether it is the key: damage to the first of them
    /// looks the same.
    async fn twice(&self, entry: &Entry, test: Level) -> Result<Level, Missed> {
        match self.attempt(entry, test).await {
            Err(error) if looks_damaged(&error) => self.again(entry, test, &error).await,
            other => other.map_err(|error| Missed { test, error }),
        }
    }

    async fn again(&self, entry: &Entry, test: Level, error: &Error) -> Result<Level, Missed> {
        tracing::warn!(backup = %entry.manifest.id, error = chain(error), "a backup seems damaged, and is read again before that is believed");
        drop(self.step("read again"));
        let missed = |test: Level| move |error| Missed { test, error };
        self.check_there(entry).await.map_err(missed(test))?;
        let stored = self.prove_stored(entry).await.map_err(missed(Level::L1))?;
        if test <= stored {
            return Ok(stored);
        }
        self.attempt(entry, test).await.map_err(missed(test))
    }

    async fn attempt(&self, entry: &Entry, test: Level) -> Result<Level, Error> {
        match test {
            Level::L0 | Level::L1 => self.prove_stored(entry).await,
            Level::L2 => self.prove(&entry.folder, &entry.manifest, &self.keys).await,
            Level::L3 => {
                let proven = self.restore_entry(entry, &Swap::Drop);
                proven.await.map(|_| Level::L3)
            }
        }
    }

    /// Compares the stored bytes of one part once more, after it was found damaged. That alone is recorded: nothing was seen
    /// of the others.
    pub(super) async fn confirm(&self, entry: &Entry, part: &Part) -> Result<(), Error> {
        let key = format!("{}/{}", entry.folder, part.object);
        let confirmed = self.repository.confirm_stored(&key, part, self.step("read again"));
        let Err(error) = confirmed.await else { return Ok(()) };
        let (test, error) = (Level::L1, error.into());
        self.record(entry, Err(Missed { test, error })).await.map(drop)
    }

    /// What a restore that failed tells. Where `error` blames the backup, that is believed and recorded as a verification's
    /// would be, so that the next `latest` is another one: whoever restores has no time to verify first.
    pub(super) async fn judged(&self, entry: &Entry, error: Error) -> Error {
        if !looks_damaged(&error) {
            return error;
        }
        if is_miscounted(&error) && !entry.is_files() {
            // What makes a table in every new database would do so a second time, and with every other backup.
            let told = "its stored bytes are those that were written, so that it still counts as good (does something write into \
                        every new database of this server?)";
            return noted(told, error);
        }
        // No longer than a proof: whoever interrupts this leaves the lease behind.
        let lasts = self.config.step_timeout.saturating_mul(2);
        let (id, now) = (entry.manifest.id, self.clock.wall());
        // Without one it is judged all the same.
        let lease = self.repository.lease(id, now, lasts, &mut Vec::new()).await;
        let verdict = self.verdict(entry, error).await;
        drop(self.repository.end_lease(lease.ok().flatten()).await);
        verdict
    }

    async fn verdict(&self, entry: &Entry, error: Error) -> Error {
        let found = self.again(entry, Level::L2, &error).await;
        let is_whole = found.is_ok();
        match self.record(entry, found).await {
            Ok(_) => noted("a second time it was whole, so try again; at first", error),
            Err(unwritten) if is_whole => noted(
                &format!(
                    "a second time it was whole, so try again (it is not recorded: {}); at first",
                    chain(&unwritten)
                ),
                error,
            ),
            Err(found) if is_damage(&found) => Error::Condemned {
                id: entry.manifest.id,
                instead: match self.list().await {
                    Ok((entries, _)) => instead_of(&entries, entry),
                    Err(error) => format!("the others cannot be listed: {}", chain(&error)),
                },
                source: Box::new(found),
            },
            Err(found) => noted(
                &format!("whether it is damaged cannot be told ({})", chain(&found)),
                error,
            ),
        }
    }

    /// A backup that was erased meanwhile, or whose disk is away, is not damaged although nothing of it is found. That a store
    /// does not answer says neither.
    async fn check_there(&self, entry: &Entry) -> Result<(), Error> {
        use repository::Error::{Elsewhere, Unmarked};
        if let Err(gone @ (Elsewhere { .. } | Unmarked { .. })) = self.repository.check_identity().await {
            return Err(gone.into());
        }
        match self.repository.object_size(&layout::manifest(&entry.folder)).await {
            Ok(None) => Err(Error::Unknown(entry.manifest.id.to_string())),
            Ok(Some(_)) | Err(_) => Ok(()),
        }
    }

    /// Writes down what was found, as long as the backup is there. Where nothing may be written, that is no other finding, but
    /// a note.
    pub(super) async fn record(&self, entry: &Entry, result: Result<Level, Missed>) -> Result<Proven, Error> {
        let (level, failure) = match &result {
            Ok(level) => (*level, None),
            Err(missed) if is_damage(&missed.error) => {
                let mut why = chain(&missed.error);
                why.truncate(why.floor_char_boundary(FAILURE_BYTES_MAX));
                (missed.test, Some(why))
            }
            Err(_) => return result.map(Proven::written).map_err(|missed| missed.error),
        };
        self.check_there(entry).await?;
        let at = self.clock.wall();
        let written = self.write_record(entry, &Verification { at, level, failure }).await;
        match (result, written) {
            (Ok(level), Ok(())) => Ok(Proven::written(level)),
            (Ok(level), Err(error)) if may_only_read(&error) => Ok(Proven {
                level,
                unrecorded: Some(format!(
                    "the proof was not recorded, since the repository may only be read: {}",
                    chain(&error)
                )),
            }),
            (Ok(_), Err(error)) => Err(error.into()),
            (Err(missed), Ok(())) => Err(missed.error),
            // That it is damaged matters more.
            (Err(missed), Err(error)) => {
                let why = format!(
                    "the failure could not be recorded ({}), so name another one's id",
                    chain(&error)
                );
                Err(noted(&why, missed.error))
            }
        }
    }

    async fn write_record(&self, entry: &Entry, record: &Verification) -> Result<(), repository::Error> {
        let folder = format!("{}/verify-", entry.folder);
        let id = |key: &str| Ulid::from_string(key.strip_prefix(&folder)?.strip_suffix(".json")?).ok();
        // The order of the records is the order of their ids, which the clock alone would not keep.
        let listed = self.repository.list(&entry.folder).await?;
        let id = next_record(listed.iter().filter_map(|(key, _)| id(key)), Ulid::generate());
        let key = layout::verification(&entry.folder, id);
        if !self.repository.create(&key, to_json(record)).await? {
            // Somebody else has just written theirs.
            let key = layout::verification(&entry.folder, next_record(std::iter::once(id), id));
            self.repository.create(&key, to_json(record)).await?;
        }
        Ok(())
    }
}

/// A proof that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    pub level: Level,
    /// Why it stands nowhere.
    pub unrecorded: Option<String>,
}

impl Proven {
    fn written(level: Level) -> Self {
        Self {
            level,
            unrecorded: None,
        }
    }
}

/// A proof that failed, and the level that it was for.
pub(super) struct Missed {
    pub(super) test: Level,
    pub(super) error: Error,
}

/// Whether the backup is to blame, rather than our keys, programs or network.
pub(super) fn is_damage(error: &Error) -> bool {
    match error {
        Error::Repository(repository::Error::Damaged { .. }) | Error::Unproven { .. } => true,
        Error::Noted { source, .. } | Error::Condemned { source, .. } => is_damage(source),
        // A full scratch disk is no damage: were it recorded as such, retention would let a good backup go.
        Error::Repository(repository::Error::Unseal { source, .. }) => source.raw_os_error().is_none(),
        Error::Repository(repository::Error::Store { source, .. }) => {
            matches!(source, object_store::Error::NotFound { .. })
        }
        _ => false,
    }
}

/// And where no key fits: damage to the first bytes looks like that.
pub(super) fn looks_damaged(error: &Error) -> bool {
    is_damage(error) || fits_no_key(error)
}

/// Whether only a restore can tell.
fn is_miscounted(error: &Error) -> bool {
    match error {
        Error::Noted { source, .. } => is_miscounted(source),
        other => matches!(other, Error::Unproven { .. }),
    }
}

fn noted(notes: &str, source: Error) -> Error {
    let (notes, source) = (notes.to_owned(), Box::new(source));
    Error::Noted { notes, source }
}

fn fits_no_key(error: &Error) -> bool {
    match error {
        Error::Noted { source, .. } => fits_no_key(source),
        other => matches!(other, Error::Repository(repository::Error::OtherKeys { .. })),
    }
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    // Our own plain structs: there is nothing in them that JSON cannot say.
    serde_json::to_vec_pretty(value).unwrap_or_default()
}

/// Feeds a program that may stop reading (it has seen its end, or has failed): the rest must still be hashed, and the
/// program's exit status tells which of the two it was.
pub(super) struct Draining {
    pub(super) inner: Option<std::fs::File>,
}

impl Write for Draining {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(file) = &mut self.inner {
            match file.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.inner = None,
                other => return other,
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
