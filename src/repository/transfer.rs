//! Streams to and from the store, in chunks, so that memory stays the same whatever the size.
//!
//! An upload to a bucket has a limited number of parts. Larger parts would take more memory the larger a backup is, so a
//! long stream becomes several objects instead: `dump.zst.age`, `dump.zst.age.001`, …, which `cat` joins again. A
//! directory knows no such limit and holds one file.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use object_store::{MultipartUpload, ObjectStoreExt as _};
use tokio::sync::mpsc;

use super::Error;
use super::frames::Compression;
use super::hashed::Hashed;
use super::manifest::Part;
use super::seal::{self, Keys, Measured, Sealed, Tally};
use super::stages;
use super::storage::{Repository, within};
use super::worker;
use crate::priority;

/// A part of an upload; S3 wants at least 5 MiB. All but the last are of one size: R2 takes no others.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;
/// Read at once from a file, where no round trip has to be made up for.
const RANGE_BYTES: u64 = 1024 * 1024;
/// Parts of one upload; S3 takes 10,000.
const PARTS_MAX: u64 = 9_000;
/// What one object in a bucket holds; a stream goes on in the next one.
pub(super) const PIECE_BYTES: u64 = PARTS_MAX * CHUNK_BYTES as u64;

/// The object that holds the `number`th piece of a stream.
fn piece(key: &str, number: usize) -> String {
    match number {
        0 => key.to_owned(),
        _ => format!("{key}.{number:03}"),
    }
}

/// An upload under way.
pub(super) struct Piece {
    pub(super) key: String,
    pub(super) upload: Box<dyn MultipartUpload>,
    pub(super) bytes: u64,
}

/// What travels from the sealing thread to the store.
enum Message {
    Chunk(Bytes),
    /// Without it the upload is aborted: a sender that dies must not leave an object.
    End,
}

impl Repository {
    /// Seals `source` into the object `key`. See [`seal::seal`] for `confirm`.
    ///
    /// # Errors
    /// Of source, keys or store; no object is left then.
    pub async fn put_sealed(
        &self,
        key: &str,
        source: impl Read + Send + 'static,
        keys: Arc<Keys>,
        compression: Compression,
        confirm: impl FnOnce() -> io::Result<()> + Send + 'static,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<Sealed, Error> {
        self.put_through(key, move |store| {
            seal::seal(source, store, &keys, compression, confirm, progress)
        })
        .await
    }

    /// Stores as `key` what `write` writes; it does so on a thread of its own, which yields to the gate.
    pub(super) async fn put_through<T: Send + 'static>(
        &self,
        key: &str,
        write: impl FnOnce(&mut ChunkWriter) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = mpsc::channel(1);
        let worker = worker::spawn(priority::BEHIND, move || {
            let mut writer = ChunkWriter {
                sender,
                chunk: BytesMut::with_capacity(CHUNK_BYTES),
            };
            let sealed = write(&mut writer)?;
            writer.end()?;
            Ok(sealed)
        });
        let uploaded = self.upload(key, receiver).await;
        // The worker ends by itself: its channel is closed. Its error names the cause, the upload's only the effect.
        let sealed = worker.await.map_err(|_| Error::Worker)?;
        match (sealed, uploaded) {
            (Ok(sealed), Ok(true)) => Ok(sealed),
            (_, Err(error)) => Err(error),
            (Err(source), Ok(_)) => Err(Error::Seal {
                key: key.to_owned(),
                source,
            }),
            (Ok(_), Ok(false)) => Err(Error::Worker),
        }
    }

    /// `false`: the sender ended without an end, and the upload was taken back.
    async fn upload(&self, key: &str, mut receiver: mpsc::Receiver<Message>) -> Result<bool, Error> {
        let mut stored = Vec::new();
        let uploaded = self.upload_pieces(key, &mut receiver, &mut stored).await;
        drop(receiver);
        if !matches!(uploaded, Ok(true)) {
            for piece in stored {
                drop(self.delete(&piece).await);
            }
        }
        uploaded
    }

    async fn upload_pieces(
        &self,
        key: &str,
        receiver: &mut mpsc::Receiver<Message>,
        stored: &mut Vec<String>,
    ) -> Result<bool, Error> {
        let mut current = self.begin(piece(key, 0)).await?;
        let mut ended = false;
        while let Some(message) = receiver.recv().await {
            let Message::Chunk(chunk) = message else {
                ended = true;
                continue;
            };
            if self.directory.is_none() && current.bytes >= self.piece_bytes {
                stored.push(self.complete(current).await?);
                current = self.begin(piece(key, stored.len())).await?;
            }
            current.bytes = current.bytes.saturating_add(chunk.len() as u64);
            let part = current.upload.put_part(self.payload(chunk));
            if let Err(error) = within("writing", &current.key, part).await {
                abort(current).await;
                return Err(error);
            }
        }
        if ended {
            stored.push(self.complete(current).await?);
        } else {
            abort(current).await;
        }
        Ok(ended)
    }

    pub(super) async fn begin(&self, key: String) -> Result<Piece, Error> {
        self.check_identity().await?;
        let path = self.path(&key);
        let upload = within("starting", &key, self.store.put_multipart(&path)).await?;
        Ok(Piece { key, upload, bytes: 0 })
    }

    /// Opens the object `key` into `sink`, and hashes what is in it. Both run on threads of their own.
    ///
    /// # Errors
    /// Of the store or the sink, or bytes that are not what was sealed. The sink comes back to be closed.
    pub async fn get_sealed<W: Write + Send + 'static>(
        &self,
        key: &str,
        sink: W,
        keys: Arc<Keys>,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<(Sealed, W), Error> {
        let (opened, hashed) = self
            .get_opened(key, Hashed::<_, Tally>::new(sink), keys, progress)
            .await?;
        Ok(hashed.sealed(opened))
    }

    /// As [`Repository::get_sealed`], into a sink that proves what it gets by itself: it is not hashed a second time.
    ///
    /// # Errors
    /// As [`Repository::get_sealed`].
    pub async fn get_opened<W: Write + Send + 'static>(
        &self,
        key: &str,
        sink: W,
        keys: Arc<Keys>,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<(Measured, W), Error> {
        let encrypted = key.ends_with(".age");
        if encrypted && !keys.decrypts() {
            return Err(Error::NoIdentity { key: key.to_owned() });
        }
        let ours = Arc::clone(&keys);
        let opened = self.read_through(key, move |reader| {
            stages::open(reader, sink, &keys, encrypted, progress)
        });
        opened.await.map_err(|error| match error {
            Error::Unseal { key, source } => seal::unopened(&key, &ours, source),
            other => other,
        })
    }

    /// Size and hash of the object `key` as it is stored, unopened: for whoever has no key.
    ///
    /// # Errors
    /// Of the store.
    pub async fn hash_stored(
        &self,
        key: &str,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<(u64, String), Error> {
        self.read_through(key, move |reader| seal::hash(reader, progress)).await
    }

    async fn read_through<T: Send + 'static>(
        &self,
        key: &str,
        read: impl FnOnce(ChunkReader) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = mpsc::channel(2);
        let worker = worker::spawn(priority::BEHIND, move || {
            read(ChunkReader {
                receiver,
                chunk: Bytes::new(),
            })
        });
        let failure = self.fetch(key, &sender).await.err();
        if failure.is_some() {
            drop(sender.send(Err(io::ErrorKind::BrokenPipe.into())).await);
        }
        drop(sender);
        let done = worker.await.map_err(|_| Error::Worker)?;
        match (failure, done) {
            (Some(error), _) => Err(error),
            (None, Ok(done)) => Ok(done),
            (None, Err(source)) => Err(Error::Unseal {
                key: key.to_owned(),
                source,
            }),
        }
    }

    /// The bytes that are stored as `key`, in all its pieces, by a listing. `None`: there is no such object.
    #[must_use]
    pub fn listed_bytes(&self, key: &str, listed: &BTreeMap<String, u64>) -> Option<u64> {
        let mut last = *listed.get(key)?;
        let mut sum = last;
        for number in 1.. {
            let next = listed.get(&piece(key, number)).filter(|_| last == self.piece_bytes);
            let Some(next) = next else { break };
            last = *next;
            sum = sum.saturating_add(last);
        }
        Some(sum)
    }

    /// The first of `parts` that is not there in its size, in words. No byte is read for that.
    ///
    /// # Errors
    /// Of the store.
    pub async fn incomplete(
        &self,
        folder: &str,
        parts: &[Part],
        listed: &BTreeMap<String, u64>,
    ) -> Result<Option<String>, Error> {
        for part in parts {
            let key = format!("{folder}/{}", part.object);
            if self.listed_bytes(&key, listed) == Some(part.stored_bytes) {
                continue;
            }
            // It may have been published while the listing was under way.
            let stored = self.stored_bytes(&key).await?;
            if stored != Some(part.stored_bytes) {
                let found = stored.map_or("is missing".to_owned(), |bytes| format!("holds {bytes} bytes"));
                return Ok(Some(format!("{key} {found}; {} were written", part.stored_bytes)));
            }
        }
        Ok(None)
    }

    /// As [`Repository::listed_bytes`], asked for by name.
    ///
    /// # Errors
    /// Of the store.
    pub async fn stored_bytes(&self, key: &str) -> Result<Option<u64>, Error> {
        let mut sum = None;
        for number in 0.. {
            let Some(bytes) = self.object_size(&piece(key, number)).await? else {
                break;
            };
            sum = Some(bytes.saturating_add(sum.unwrap_or(0)));
            if bytes != self.piece_bytes {
                break;
            }
        }
        Ok(sum)
    }

    /// Hands the stream on until it ends or nobody wants more of it.
    async fn fetch(&self, key: &str, sender: &mpsc::Sender<io::Result<Bytes>>) -> Result<(), Error> {
        for number in 0.. {
            let name = piece(key, number);
            let fetched = self.fetch_in_ranges(&name, sender).await?;
            // One that is full may have been the last one all the same.
            let is_full = fetched == self.piece_bytes;
            if !is_full || self.object_size(&piece(key, number + 1)).await?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// One request for a whole dump would outlast any time-out while a slow restore reads it: each range has its own, and
    /// its own retries. A file likewise: asked for as a whole it comes in pieces of 8 KiB, each by way of another thread.
    /// Returns the bytes that were handed on.
    async fn fetch_in_ranges(&self, key: &str, sender: &mpsc::Sender<io::Result<Bytes>>) -> Result<u64, Error> {
        let path = self.path(key);
        let size = within("reading", key, self.store.head(&path)).await?.size;
        let range_bytes = match self.directory {
            Some(_) => RANGE_BYTES,
            None => CHUNK_BYTES as u64,
        };
        let mut at = 0;
        while at < size {
            let end = size.min(at.saturating_add(range_bytes));
            let chunk = within("reading", key, self.store.get_range(&path, at..end)).await?;
            if chunk.is_empty() || sender.send(Ok(chunk)).await.is_err() {
                break;
            }
            at = end;
        }
        Ok(at)
    }
}

pub(super) async fn abort(mut piece: Piece) {
    // What an abort cannot clean up, the sweep at a later start does.
    drop(within("aborting", &piece.key, piece.upload.abort()).await);
}

pub(super) struct ChunkWriter {
    sender: mpsc::Sender<Message>,
    chunk: BytesMut,
}

impl ChunkWriter {
    fn send(&mut self, message: Message) -> io::Result<()> {
        self.sender
            .blocking_send(message)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the upload ended"))
    }

    fn end(&mut self) -> io::Result<()> {
        if !self.chunk.is_empty() {
            let chunk = self.chunk.split().freeze();
            self.send(Message::Chunk(chunk))?;
        }
        self.send(Message::End)
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK_BYTES.saturating_sub(self.chunk.len());
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.chunk.extend_from_slice(taken);
        if self.chunk.len() >= CHUNK_BYTES {
            let chunk = std::mem::replace(&mut self.chunk, BytesMut::with_capacity(CHUNK_BYTES)).freeze();
            self.send(Message::Chunk(chunk))?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct ChunkReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(chunk) => self.chunk = chunk?,
            }
        }
        let taken = buffer.len().min(self.chunk.len());
        if let Some(target) = buffer.get_mut(..taken) {
            self.chunk.copy_to_slice(target);
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;

    /// A bucket whose objects hold two chunks.
    fn bucket() -> Repository {
        Repository {
            store: Arc::new(InMemory::new()),
            prefix: Path::default(),
            directory: None,
            piece_bytes: 2 * CHUNK_BYTES as u64,
            identity: None,
        }
    }

    fn keys() -> Arc<Keys> {
        Arc::new(Keys::new(&[], None).expect("no keys"))
    }

    /// Bytes that do not compress.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        };
        (0..length).map(|_| next()).collect()
    }

    async fn put(bucket: &Repository, bytes: Vec<u8>, fails: bool) -> Result<Sealed, Error> {
        let confirm = move || match fails {
            true => Err(io::Error::other("the program failed")),
            false => Ok(()),
        };
        let source = io::Cursor::new(bytes);
        bucket
            .put_sealed("a/dump", source, keys(), Compression::DEFAULT, confirm, |_| {})
            .await
    }

    #[test]
    fn five_tebibytes_need_no_larger_parts_and_no_object_beyond_what_a_bucket_takes() {
        let tebibyte = 1_u64 << 40;
        assert!(PIECE_BYTES.div_ceil(CHUNK_BYTES as u64) <= 10_000, "parts of an upload");
        assert!(PIECE_BYTES <= 5 * tebibyte, "an object");
        assert!(
            (5 * tebibyte).div_ceil(PIECE_BYTES) < 1_000,
            "three digits number the pieces"
        );
        assert_eq!([piece("x", 0), piece("x", 1), piece("x", 74)], ["x", "x.001", "x.074"]);
    }

    #[tokio::test]
    async fn long_stream_goes_to_several_objects_and_comes_back_as_one() {
        let (bucket, plain) = (bucket(), noise(5 * CHUNK_BYTES));
        let sealed = put(&bucket, plain.clone(), false).await.expect("stored");
        let listed: BTreeMap<String, u64> = bucket.list("").await.expect("listed").into_iter().collect();
        assert_eq!(
            listed.keys().collect::<Vec<_>>(),
            ["a/dump", "a/dump.001", "a/dump.002"]
        );
        assert_eq!(bucket.listed_bytes("a/dump", &listed), Some(sealed.stored_bytes));
        assert_eq!(
            bucket.stored_bytes("a/dump").await.expect("asked"),
            Some(sealed.stored_bytes)
        );
        let (back, bytes) = bucket
            .get_sealed("a/dump", Vec::new(), keys(), |_| {})
            .await
            .expect("read");
        assert!(back == sealed && bytes == plain);
        let (size, hash) = bucket.hash_stored("a/dump", |_| {}).await.expect("read");
        assert_eq!((size, &hash), (sealed.stored_bytes, &sealed.stored_sha256));
        bucket.delete("a/dump.002").await.expect("deleted");
        let (size, _) = bucket.hash_stored("a/dump", |_| {}).await.expect("read");
        assert!(size < sealed.stored_bytes, "a lost piece is noticed");
        assert_eq!(bucket.stored_bytes("a/dump").await.expect("asked"), Some(size));
        assert_eq!(bucket.stored_bytes("a/other").await.expect("asked"), None);
    }

    #[tokio::test]
    async fn long_stream_that_fails_at_its_end_leaves_none_of_its_objects() {
        let bucket = bucket();
        assert!(put(&bucket, noise(5 * CHUNK_BYTES), true).await.is_err());
        assert_eq!(bucket.list("").await.expect("listed"), []);
    }
}
