//! Into the archive. The rule is that of PostgreSQL's own `basic_archive`: a file appears whole and durable or not at
//! all, the identical one sent again is welcome, a different one is refused and changes nothing.

use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use super::{Archive, Error, Pushed};
use crate::pitr::header::{self, Header};
use crate::pitr::name::File;
use crate::repository::fingerprint::{Fingerprinting, Unchanged};
use crate::repository::frames::Compression;
use crate::repository::hashed::Hashed;
use crate::repository::seal;

/// A file up to this size is sealed in memory. A longer one is read twice.
const IN_MEMORY_MAX: u64 = 64 * 1024 * 1024;
/// Of a history or a label.
const SMALL_BYTES_MAX: u64 = 1024 * 1024;

impl Archive {
    /// Archives the file at `path` as `name`. Returns once it is durable.
    ///
    /// # Errors
    /// A name or content that is not this cluster's, a different file of that name, or of the repository.
    pub async fn push(&self, name: &str, path: &Path) -> Result<Pushed, Error> {
        let file: File = name.parse()?;
        let source = std::fs::File::open(path).map_err(|source| Error::Read { file, source })?;
        self.push_file(file, source).await
    }

    /// As [`Archive::push`], from an open file.
    ///
    /// # Errors
    /// As [`Archive::push`].
    pub async fn push_file(&self, file: File, source: std::fs::File) -> Result<Pushed, Error> {
        let bytes = check(&self.cluster.prefix(), file, &source)?;
        if bytes > IN_MEMORY_MAX {
            return self.push_long(file, source).await;
        }
        let keys = Arc::clone(&self.keys);
        // One byte more tells that it grew.
        let mut source = Hashed::<_, Fingerprinting>::new(source.take(bytes.saturating_add(1)));
        let sealing = tokio::task::spawn_blocking(move || {
            let stored = seal::seal_whole(&mut source, &keys, Compression::LOG)?;
            Ok((stored, source.fingerprint()))
        });
        let (sealed, there) = tokio::join!(sealing, self.find(&file));
        let (stored, found) = sealed
            .map_err(|_| Error::Worker)?
            .map_err(|source| Error::Read { file, source })?;
        if found.bytes != bytes {
            return Err(Error::Length {
                file,
                found: found.bytes,
                wanted: bytes,
            });
        }
        let hash = found.blake3;
        if self.is_there(file, &hash, &there?).await? {
            return Ok(Pushed::Already);
        }
        let key = self.key(&file, &hash);
        if !self.repository.create(&key, stored).await? {
            self.repository.make_durable(&key).await?;
        }
        self.settle(file, &hash, &key).await
    }

    /// A segment of a cluster with very long ones: read for its name, and read again while it is uploaded. What is something
    /// else by then leaves no object.
    async fn push_long(&self, file: File, source: std::fs::File) -> Result<Pushed, Error> {
        let unread = |source| Error::Read { file, source };
        let mut again = source.try_clone().map_err(unread)?;
        let first = tokio::task::spawn_blocking(move || {
            let mut sink = Hashed::<_, Fingerprinting>::new(io::sink());
            io::copy(&mut &source, &mut sink).map(|_| sink.fingerprint())
        });
        let fingerprint = first.await.map_err(|_| Error::Worker)?.map_err(unread)?;
        let hash = fingerprint.blake3.clone();
        if self.is_there(file, &hash, &self.find(&file).await?).await? {
            return Ok(Pushed::Already);
        }
        again.rewind().map_err(unread)?;
        let key = self.key(&file, &hash);
        let (source, keys) = (Unchanged::new(again, fingerprint), Arc::clone(&self.keys));
        self.repository
            .put_sealed(&key, source, keys, Compression::LOG, || Ok(()), |_| ())
            .await?;
        self.settle(file, &hash, &key).await
    }

    /// Whether the identical file is among `there`.
    async fn is_there(&self, file: File, hash: &str, there: &[super::Archived]) -> Result<bool, Error> {
        match there {
            [] => Ok(false),
            [one] if one.hash() == hash => {
                self.repository.make_durable(&one.key).await?;
                Ok(true)
            }
            _ => Err(Error::Different { file }),
        }
    }

    /// Looks once more after publishing: two who send different files at the same time both find the place empty.
    /// Whoever sees the other's takes its own back, so that never both are told that theirs is archived.
    async fn settle(&self, file: File, hash: &str, key: &str) -> Result<Pushed, Error> {
        let there = self.find(&file).await?;
        if there.iter().all(|archived| archived.hash() == hash) {
            return Ok(Pushed::New);
        }
        self.repository.delete(key).await?;
        Err(Error::Different { file })
    }
}

/// Looks at what is to be archived before anything is written: is it what its name says? Returns its length.
fn check(cluster: &str, file: File, source: &std::fs::File) -> Result<u64, Error> {
    let metadata = source.metadata().map_err(|source| Error::Read { file, source })?;
    let bytes = metadata.len();
    let (File::Segment(stem) | File::Partial(stem)) = file else {
        let sensible = metadata.is_file() && (1..=SMALL_BYTES_MAX).contains(&bytes);
        return sensible.then_some(bytes).ok_or(Error::Irregular { file });
    };
    // Asked before reading: a pipe would make us wait.
    if !metadata.is_file() {
        return Err(Error::Irregular { file });
    }
    let mut head = [0; header::BYTES];
    let read = source
        .read_at(&mut head, 0)
        .map_err(|source| Error::Read { file, source })?;
    let head = Header::parse(head.get(..read).unwrap_or_default()).map_err(|reason| Error::Header { file, reason })?;
    if head.cluster.prefix() != cluster {
        return Err(Error::Foreign {
            file,
            found: head.cluster.prefix(),
            wanted: cluster.to_owned(),
        });
    }
    if bytes != head.size.bytes() {
        return Err(Error::Length {
            file,
            found: bytes,
            wanted: head.size.bytes(),
        });
    }
    let first = stem.name(head.size).map(|name| name.first(head.size));
    if first != Some(head.first) || head.timeline > stem.timeline {
        return Err(Error::Place {
            file,
            found: head.first,
        });
    }
    Ok(bytes)
}
