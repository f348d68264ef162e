//! Proof: what is stored is read back whole, hashed on both sides, and read by `pg_restore`. (`pg_restore -l` proves
//! nothing: it reads the table of contents, which stands in front.)

use std::io::{self, Write};
use std::sync::Arc;

use ulid::Ulid;

use super::{Entry, Error, Vault};
use crate::postgres::child::Command;
use crate::postgres::program::Programs;
use crate::repository::manifest::{Content, Level, Manifest, Part, Verification};
use crate::repository::{self, Keys, layout};

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
                let done = self
                    .repository
                    .get_sealed(&key, io::sink(), Arc::clone(keys), progress)
                    .await?;
                compare(&key, part, &done.0)?;
            }
        }
        Ok(Level::L2)
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
        let mut child = Command::new(programs.path("pg_restore"))
            .arg("-f")
            .arg("/dev/null")
            .stdin_piped()
            .start()?;
        let sink = Draining {
            inner: Some(child.take_stdin()?),
        };
        let (sealed, sink) = self
            .repository
            .get_sealed(key, sink, Arc::clone(keys), progress)
            .await?;
        drop(sink);
        compare(key, part, &sealed)?;
        child.finish(self.config.step_timeout).await?;
        Ok(())
    }

    /// Verifies a published backup and writes down the result.
    ///
    /// # Errors
    /// Why it is not proven; that is recorded as well, unless it is for want of a key or a program.
    pub async fn verify(&self, entry: &Entry) -> Result<Level, Error> {
        let result = self.prove(&entry.folder, &entry.manifest, &self.keys).await;
        self.record(entry, result).await
    }

    /// Restores a published backup into a scratch database, compares the rows, and writes down the result.
    ///
    /// # Errors
    /// As [`Vault::verify`].
    pub async fn verify_by_restore(&self, entry: &Entry) -> Result<Level, Error> {
        let id = entry.manifest.id.to_string();
        let result = self.restore(&id, &super::Swap::Drop).await.map(|_| Level::L3);
        self.record(entry, result).await
    }

    /// Reads a published backup back; with `restore`, into a scratch database as well.
    ///
    /// # Errors
    /// As [`Vault::verify`].
    pub async fn prove_again(&self, entry: &Entry, restore: bool) -> Result<Level, Error> {
        let level = self.verify(entry).await?;
        if restore {
            return self.verify_by_restore(entry).await;
        }
        Ok(level)
    }

    async fn record(&self, entry: &Entry, result: Result<Level, Error>) -> Result<Level, Error> {
        let failure = match &result {
            Ok(_) => None,
            Err(error) if is_damage(error) => Some(chain(error)),
            Err(_) => return result,
        };
        let record = Verification {
            at: self.clock.wall(),
            level: *result.as_ref().unwrap_or(&Level::L0),
            failure,
        };
        let key = layout::verification(&entry.folder, Ulid::generate());
        self.repository.create(&key, to_json(&record)).await?;
        result
    }
}

/// Whether the backup is to blame, rather than our keys, programs or network.
fn is_damage(error: &Error) -> bool {
    match error {
        Error::Repository(repository::Error::Damaged { .. }) | Error::Unproven { .. } => true,
        Error::Noted { source, .. } => is_damage(source),
        Error::Repository(repository::Error::Unseal { source, .. }) => {
            // A key that does not fit is no damage, and neither is a full scratch disk: were it recorded as such,
            // retention would let a good backup go.
            let no_key = source
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<age::DecryptError>());
            let no_key = no_key.is_some_and(|inner| matches!(inner, age::DecryptError::NoMatchingKeys));
            !no_key && source.raw_os_error().is_none()
        }
        Error::Repository(repository::Error::Store { source, .. }) => {
            matches!(source, object_store::Error::NotFound { .. })
        }
        _ => false,
    }
}

pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Vec<u8> {
    // Our own plain structs: there is nothing in them that JSON cannot say.
    serde_json::to_vec_pretty(value).unwrap_or_default()
}

pub(super) fn compare(key: &str, part: &Part, found: &repository::seal::Sealed) -> Result<(), Error> {
    let what = if found.stored_sha256 != part.stored_sha256 || found.stored_bytes != part.stored_bytes {
        "the stored bytes are not those that were written"
    } else if found.plain_sha256 != part.plain_sha256 || found.plain_bytes != part.plain_bytes {
        "its content is not what was dumped"
    } else {
        return Ok(());
    };
    Err(repository::Error::Damaged {
        key: key.to_owned(),
        what: what.to_owned(),
    }
    .into())
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
