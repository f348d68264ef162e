//! The objects themselves: a directory (every write followed by fsync of the file and of its directory) or a bucket.
//! Every call has a time-out, every read a limit.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use tokio::sync::mpsc;

use super::Error;
use super::seal::{self, Compression, Keys, Sealed};

/// A multipart part. S3 wants at least 5 MiB and at most 10,000 of them: 8 MiB carries 80 GB.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;
/// Longer than any retry schedule of the client, shorter than a night.
const CALL_TIMEOUT: Duration = Duration::from_secs(180);
/// More objects than this in one listing is not our repository.
pub(super) const LIST_MAX: usize = 1_000_000;

/// An open repository; clones share it.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    /// The directory of a `file://` repository, for free space and locks.
    directory: Option<std::path::PathBuf>,
}

/// What travels from the sealing thread to the store.
enum Message {
    Chunk(Bytes),
    /// Without it the upload is aborted: a sender that dies must not leave an object.
    End,
}

impl Repository {
    /// Opens the repository at `url`; a directory is made when it is missing.
    ///
    /// # Errors
    /// An address that is not understood, or a directory that cannot be made.
    pub fn open(url: &str) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Address {
            url: url.to_owned(),
            reason,
        };
        if let Some(directory) = url.strip_prefix("file://") {
            let directory = std::path::PathBuf::from(directory);
            if !directory.is_absolute() {
                return Err(refuse("file:// wants an absolute path".to_owned()));
            }
            make_private_directory(&directory).map_err(|error| refuse(error.to_string()))?;
            let store = LocalFileSystem::new_with_prefix(&directory).map_err(|error| refuse(error.to_string()))?;
            return Ok(Self {
                store: Arc::new(store.with_fsync(true)),
                prefix: Path::default(),
                directory: Some(directory),
            });
        }
        #[cfg(feature = "object-store-cloud")]
        if super::bucket::is_bucket(url) {
            let (store, prefix) = super::bucket::open(url).map_err(refuse)?;
            return Ok(Self {
                store,
                prefix,
                directory: None,
            });
        }
        Err(refuse("file:///directory or s3://bucket/prefix is wanted".to_owned()))
    }

    /// Whether [`Repository::open`] would understand `url`; touches nothing. The reason continues "`repository` …".
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(url: &str) -> Result<(), &'static str> {
        if let Some(directory) = url.strip_prefix("file://") {
            let is_absolute = std::path::Path::new(directory).is_absolute();
            return is_absolute.then_some(()).ok_or("needs an absolute path behind file://");
        }
        #[cfg(feature = "object-store-cloud")]
        if super::bucket::is_bucket(url) {
            return super::bucket::check(url).map(drop);
        }
        Err("is neither a directory nor a bucket")
    }

    #[must_use]
    pub fn directory(&self) -> Option<&std::path::Path> {
        self.directory.as_deref()
    }

    pub(super) fn path(&self, key: &str) -> Path {
        // No key means the prefix itself, not an empty name below it.
        key.split('/')
            .filter(|segment| !segment.is_empty())
            .fold(self.prefix.clone(), |path, segment| path.join(segment))
    }

    /// Writes a small object that must not exist yet. `false`: another one existed, and was left alone.
    ///
    /// # Errors
    /// Of the store.
    pub async fn create(&self, key: &str, bytes: Vec<u8>) -> Result<bool, Error> {
        let path = self.path(key);
        let options = PutOptions::from(PutMode::Create);
        let bytes = Bytes::from(bytes);
        let put = self.store.put_opts(&path, PutPayload::from(bytes.clone()), options);
        match within("writing", key, put).await {
            Ok(_) => Ok(true),
            // Ours after all, if the answer to a first attempt was lost on the way.
            Err(Error::Store {
                source: object_store::Error::AlreadyExists { .. },
                ..
            }) => Ok(self.read(key, bytes.len() as u64).await? == Some(bytes)),
            Err(error) => Err(error),
        }
    }

    /// A small object, whole. `None`: there is none.
    ///
    /// # Errors
    /// Of the store, or an object beyond `limit`.
    pub async fn read(&self, key: &str, limit: u64) -> Result<Option<Bytes>, Error> {
        let path = self.path(key);
        let found = match within("reading", key, self.store.get(&path)).await {
            Ok(found) => found,
            Err(Error::Store {
                source: object_store::Error::NotFound { .. },
                ..
            }) => return Ok(None),
            Err(error) => return Err(error),
        };
        if found.meta.size > limit {
            return Err(Error::TooLarge {
                key: key.to_owned(),
                limit,
            });
        }
        within("reading", key, found.bytes()).await.map(Some)
    }

    /// The keys below `prefix` (a folder, or `""`) and their sizes.
    ///
    /// # Errors
    /// Of the store.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, Error> {
        let path = self.path(prefix);
        let root = self.prefix.as_ref();
        let listing = self
            .store
            .list(Some(&path))
            .take(LIST_MAX)
            .map_ok(|meta| {
                let key = meta.location.as_ref();
                let key = key.strip_prefix(root).unwrap_or(key).trim_start_matches('/');
                (key.to_owned(), meta.size)
            })
            .try_collect();
        within("listing", prefix, listing).await
    }

    /// The names of the folders at the top: one per cluster, and those that all share.
    ///
    /// # Errors
    /// Of the store.
    pub async fn folders(&self) -> Result<Vec<String>, Error> {
        let listing = within("listing", "", self.store.list_with_delimiter(Some(&self.prefix))).await?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        Ok(listing.common_prefixes.iter().filter_map(name).collect())
    }

    /// Deletes an object; one that is gone already is no error.
    ///
    /// # Errors
    /// Of the store.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        let path = self.path(key);
        match within("deleting", key, self.store.delete(&path)).await {
            Err(Error::Store {
                source: object_store::Error::NotFound { .. },
                ..
            }) => Ok(()),
            other => other,
        }
    }

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
        let (sender, receiver) = mpsc::channel(1);
        let worker = tokio::task::spawn_blocking(move || {
            let mut writer = ChunkWriter {
                sender,
                chunk: BytesMut::with_capacity(CHUNK_BYTES),
            };
            let sealed = seal::seal(source, &mut writer, &keys, compression, confirm, progress)?;
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
        let path = self.path(key);
        let mut upload = within("starting", key, self.store.put_multipart(&path)).await?;
        let mut ended = false;
        let mut failure = None;
        while let Some(message) = receiver.recv().await {
            match message {
                Message::Chunk(chunk) => {
                    if let Err(error) = within("writing", key, upload.put_part(PutPayload::from(chunk))).await {
                        failure = Some(error);
                        break;
                    }
                }
                Message::End => ended = true,
            }
        }
        drop(receiver);
        if ended && failure.is_none() {
            match within("completing", key, upload.complete()).await {
                Ok(_) => return Ok(true),
                Err(error) => failure = Some(error),
            }
        }
        // What an abort cannot clean up, the sweep at the next start does.
        drop(within("aborting", key, upload.abort()).await);
        failure.map_or(Ok(false), Err)
    }

    /// Opens the object `key` into `sink`. See [`seal::unseal`].
    ///
    /// # Errors
    /// Of the store or the sink, or bytes that are not what was sealed. The sink comes back to be closed.
    pub async fn get_sealed<W: Write + Send + 'static>(
        &self,
        key: &str,
        mut sink: W,
        keys: Arc<Keys>,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<(Sealed, W), Error> {
        let encrypted = key.ends_with(".age");
        if encrypted && !keys.decrypts() {
            return Err(Error::NoIdentity { key: key.to_owned() });
        }
        let path = self.path(key);
        let (sender, receiver) = mpsc::channel(2);
        let worker = tokio::task::spawn_blocking(move || {
            let reader = ChunkReader {
                receiver,
                chunk: Bytes::new(),
            };
            seal::unseal(reader, &mut sink, &keys, encrypted, progress).map(|sealed| (sealed, sink))
        });
        let failure = self.fetch(key, &path, &sender).await.err();
        if failure.is_some() {
            drop(sender.send(Err(io::ErrorKind::BrokenPipe.into())).await);
        }
        drop(sender);
        let unsealed = worker.await.map_err(|_| Error::Worker)?;
        match (failure, unsealed) {
            (Some(error), _) => Err(error),
            (None, Ok(done)) => Ok(done),
            (None, Err(source)) => Err(Error::Unseal {
                key: key.to_owned(),
                source,
            }),
        }
    }
}

impl Repository {
    /// Hands the object on until it ends or nobody wants more of it.
    async fn fetch(&self, key: &str, path: &Path, sender: &mpsc::Sender<io::Result<Bytes>>) -> Result<(), Error> {
        if self.directory.is_none() {
            return self.fetch_in_ranges(key, path, sender).await;
        }
        let mut stream = within("reading", key, self.store.get(path)).await?.into_stream();
        loop {
            let next = tokio::time::timeout(CALL_TIMEOUT, stream.next()).await;
            match next.map_err(|_| slow("reading", key))? {
                None => return Ok(()),
                Some(chunk) => {
                    let chunk = chunk.map_err(|source| store_error("reading", key, source))?;
                    if sender.send(Ok(chunk)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// One request for a whole dump would outlast any time-out while a slow restore reads it: each range has its own, and
    /// its own retries.
    async fn fetch_in_ranges(
        &self,
        key: &str,
        path: &Path,
        sender: &mpsc::Sender<io::Result<Bytes>>,
    ) -> Result<(), Error> {
        let size = within("reading", key, self.store.head(path)).await?.size;
        let mut at = 0;
        while at < size {
            let end = size.min(at.saturating_add(CHUNK_BYTES as u64));
            let chunk = within("reading", key, self.store.get_range(path, at..end)).await?;
            if chunk.is_empty() || sender.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
            at = end;
        }
        Ok(())
    }
}

/// Makes `directory` (0700) and makes its entry durable.
fn make_private_directory(directory: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if directory.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    if let Some(parent) = directory.parent() {
        std::fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

pub(super) async fn within<T>(
    act: &'static str,
    key: &str,
    call: impl Future<Output = object_store::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(done) => done.map_err(|source| store_error(act, key, source)),
        Err(_) => Err(slow(act, key)),
    }
}

pub(super) fn store_error(act: &'static str, key: &str, source: object_store::Error) -> Error {
    Error::Store {
        act,
        key: key.to_owned(),
        source,
    }
}

fn slow(act: &'static str, key: &str) -> Error {
    Error::Slow {
        act,
        key: key.to_owned(),
        seconds: CALL_TIMEOUT.as_secs(),
    }
}

struct ChunkWriter {
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

impl Write for &mut ChunkWriter {
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
