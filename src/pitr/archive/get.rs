//! Out of the archive, proven against the hash in the name before anyone may see it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Archive, Archived, Error, Found};
use crate::pitr::name::File;
use crate::repository::fingerprint::Fingerprinting;
use crate::repository::hashed::Hashed;
use crate::repository::{self, layout, seal};

/// Longer objects are opened as they arrive.
const IN_MEMORY_MAX: u64 = 64 * 1024 * 1024;

impl Archive {
    /// Puts the archived file `name` at `into`, whole and proven, or leaves `into` as it is.
    ///
    /// Where only the partial file of a segment is archived, that one is it: it holds what its timeline wrote before
    /// the next one began.
    ///
    /// # Errors
    /// Everything but its absence: a repository that cannot be asked must not look like the end of the log.
    pub async fn get(&self, name: &str, into: &Path) -> Result<Found, Error> {
        let file: File = name.parse()?;
        let Some(archived) = self.locate(file).await? else {
            return Ok(Found::No);
        };
        let write = |source| Error::Write { file, source };
        let place = Unfinished::beside(into);
        let sink = std::fs::File::create(&place.path).map_err(write)?;
        self.fetch(&archived, sink).await?;
        std::fs::rename(&place.path, into).map_err(write)?;
        Ok(Found::Yes)
    }

    /// The object to use for `file`: itself, or the partial file of that segment.
    ///
    /// # Errors
    /// Of the repository, or two different files of that name. Or an archive without any file: one that is not mounted
    /// or wrongly named must not look like the end of the log.
    pub async fn locate(&self, file: File) -> Result<Option<Archived>, Error> {
        let mut found = self.find(&file).await?;
        if let (File::Segment(stem), true) = (file, found.is_empty()) {
            found = self.find(&File::Partial(stem)).await?;
        }
        match found.len() {
            0 if self.repository.is_empty(&layout::wal(&self.cluster)).await? => {
                Err(Error::Empty(self.cluster.prefix()))
            }
            0 | 1 => Ok(found.pop()),
            _ => Err(Error::Disputed { file }),
        }
    }

    /// Writes what `archived` holds into `sink`. What has been written may be used only if this succeeds.
    ///
    /// # Errors
    /// Of the repository or the sink, or content that is not what the name says.
    pub async fn fetch<W: Write + Send + 'static>(&self, archived: &Archived, sink: W) -> Result<W, Error> {
        let sink = Hashed::<_, Fingerprinting>::new(sink);
        let sink = match archived.stored_bytes {
            0..=IN_MEMORY_MAX => self.fetch_whole(archived, sink).await?,
            _ => {
                let keys = Arc::clone(&self.keys);
                self.repository.get_opened(&archived.key, sink, keys, |_| ()).await?.1
            }
        };
        if sink.fingerprint().blake3 != archived.hash() {
            return Err(Error::Damaged {
                key: archived.key.clone(),
            });
        }
        Ok(sink.into_inner())
    }

    /// Read at once and opened on one thread: handing a few MiB on in small pieces would cost more than opening them.
    async fn fetch_whole<W: Write + Send + 'static>(&self, archived: &Archived, mut sink: W) -> Result<W, Error> {
        let key = archived.key.clone();
        let is_encrypted = key.ends_with(".age");
        if is_encrypted && !self.keys.decrypts() {
            return Err(repository::Error::NoIdentity { key }.into());
        }
        let stored = self.repository.read(&key, IN_MEMORY_MAX).await?;
        let stored = stored.ok_or_else(|| Error::Vanished { key: key.clone() })?;
        let keys = Arc::clone(&self.keys);
        let opened = tokio::task::spawn_blocking(move || {
            let opened = seal::open(&stored[..], &mut sink, &keys, is_encrypted, |_| ());
            opened
                .map(|_| sink)
                .map_err(|source| seal::unopened(&key, &keys, source))
        });
        Ok(opened.await.map_err(|_| Error::Worker)??)
    }

    /// A small file, whole. `None`: it is not archived.
    pub(super) async fn read(&self, file: File, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(archived) = self.locate(file).await? else {
            return Ok(None);
        };
        let sink = Bounded {
            bytes: Vec::new(),
            limit,
        };
        Ok(Some(self.fetch(&archived, sink).await?.bytes))
    }
}

/// A file that is gone when dropped, unless it was given another name.
struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    fn beside(into: &Path) -> Self {
        let mut name = into.as_os_str().to_owned();
        name.push(".foregate");
        Self { path: name.into() }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Renamed, or there is nothing more to be done about it.
        drop(std::fs::remove_file(&self.path));
    }
}

/// Memory that refuses to grow beyond `limit`.
struct Bounded {
    bytes: Vec<u8>,
    limit: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > self.limit {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
