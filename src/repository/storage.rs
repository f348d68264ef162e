//! The objects themselves: a directory (every write followed by fsync of the file and of its directory) or a bucket.
//! Every call has a time-out, every read a limit.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::Error;
use super::identity::Identity;
use super::transfer::PIECE_BYTES;

/// Longer than any retry schedule of the client, shorter than a night.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(180);
/// More objects than this in one listing is not our repository.
const LIST_MAX: usize = 1_000_000;
const NOTE_BYTES_MAX: u64 = 64 * 1024;
/// Written at once to a file. The kernel copies what one write(2) brings a large folio at a time, up to 2 MiB, and where it is
/// not preemptible (`PREEMPT_NONE`) nobody else gets that core meanwhile: 3 ms of the gate's, seen with `perf sched`.
const WRITE_BYTES: usize = 64 * 1024;

/// An open repository; clones share it.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    /// The directory of a `file://` repository, for free space and locks.
    pub(super) directory: Option<std::path::PathBuf>,
    /// See [`PIECE_BYTES`]; smaller in tests.
    pub(super) piece_bytes: u64,
    /// What the directory has to hold whenever something is written.
    pub(super) identity: Option<Arc<Identity>>,
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
                piece_bytes: PIECE_BYTES,
                identity: None,
            });
        }
        #[cfg(feature = "object-store-cloud")]
        if super::bucket::is_bucket(url) {
            let (store, prefix) = super::bucket::open(url).map_err(refuse)?;
            return Ok(Self {
                store,
                prefix,
                directory: None,
                piece_bytes: PIECE_BYTES,
                identity: None,
            });
        }
        Err(refuse("file:///directory or s3://bucket/prefix is wanted".to_owned()))
    }

    /// As [`Repository::open`]; a directory is recognised by what `state_dir` remembers of it, and gets an identity when it has
    /// none (`repository.id`).
    ///
    /// # Errors
    /// As [`Repository::open`], or a directory that does not hold the repository that it held.
    pub fn open_known(url: &str, state_dir: &std::path::Path) -> Result<Self, Error> {
        // Before anything is made in its place.
        if let Some(known) = directory_of(url).and_then(|directory| Identity::remembered(state_dir, directory)) {
            known.check()?;
        }
        let opened = Self::open(url)?;
        let identity = opened
            .directory()
            .and_then(|directory| Identity::meet(state_dir, directory));
        Ok(Self {
            identity: identity.map(Arc::new),
            ..opened
        })
    }

    /// As [`Repository::open_known`], for one write by whatever account: it is asked once, and makes and remembers nothing.
    ///
    /// # Errors
    /// As [`Repository::open_known`].
    pub fn open_expected(url: &str, state_dir: &std::path::Path) -> Result<Self, Error> {
        if let Some(known) = directory_of(url).and_then(|directory| Identity::expected(state_dir, directory)) {
            known.check()?;
        }
        Self::open(url)
    }

    /// Asked before something is written: the disk may have gone since.
    ///
    /// # Errors
    /// Where the directory does not hold this repository any more.
    pub async fn check_identity(&self) -> Result<(), Error> {
        let Some(identity) = self.identity.clone() else {
            return Ok(());
        };
        let checked = tokio::task::spawn_blocking(move || identity.check());
        // A network share may hang instead of being away.
        match tokio::time::timeout(CALL_TIMEOUT, checked).await {
            Ok(done) => done.map_err(|_| Error::Worker)?,
            Err(_) => Err(slow("recognising", "", CALL_TIMEOUT)),
        }
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

    /// Whether the directory at `url` could be written to now, or made; makes nothing, and asks no bucket.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn try_directory(url: &str) -> io::Result<()> {
        let Some(directory) = url.strip_prefix("file://") else {
            return Ok(());
        };
        let mut places = std::path::Path::new(directory).ancestors();
        let place = places.find(|place| place.exists());
        let place = place.unwrap_or(std::path::Path::new("/"));
        if !place.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(accessat(
            CWD,
            place,
            Access::WRITE_OK | Access::EXEC_OK,
            AtFlags::EACCESS,
        )?)
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

    /// In the pieces in which it is to be written; they share the chunk's memory.
    pub(super) fn payload(&self, mut chunk: Bytes) -> PutPayload {
        let mut pieces = Vec::new();
        while self.directory.is_some() && chunk.len() > WRITE_BYTES {
            pieces.push(chunk.split_to(WRITE_BYTES));
        }
        pieces.push(chunk);
        pieces.into_iter().collect()
    }

    /// Writes a small object that must not exist yet. `false`: another one existed, and was left alone.
    ///
    /// # Errors
    /// Of the store.
    pub async fn create(&self, key: &str, bytes: Vec<u8>) -> Result<bool, Error> {
        self.check_identity().await?;
        let path = self.path(key);
        let options = PutOptions::from(PutMode::Create);
        let bytes = Bytes::from(bytes);
        let put = self.store.put_opts(&path, self.payload(bytes.clone()), options);
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

    /// A small object in JSON: a lease, a tombstone, a verification. `None`: there is none.
    ///
    /// # Errors
    /// Of the store, or an object that is not what its key says.
    pub async fn read_note<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let Some(bytes) = self.read(key, NOTE_BYTES_MAX).await? else {
            return Ok(None);
        };
        let parsed = serde_json::from_slice(&bytes).map_err(|error| Error::Manifest {
            key: key.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Some(parsed))
    }

    /// The keys below `prefix` (a folder, or `""`) and their sizes.
    ///
    /// # Errors
    /// Of the store.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, Error> {
        let root = self.prefix.as_ref();
        let name = |meta: &ObjectMeta| {
            let key = meta.location.as_ref();
            let key = key.strip_prefix(root).unwrap_or(key).trim_start_matches('/');
            (key.to_owned(), meta.size)
        };
        self.collect(prefix, name).await
    }

    /// The size of an object. `None`: there is none.
    ///
    /// # Errors
    /// Of the store.
    pub async fn object_size(&self, key: &str) -> Result<Option<u64>, Error> {
        let path = self.path(key);
        match within("looking for", key, self.store.head(&path)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Error::Store {
                source: object_store::Error::NotFound { .. },
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names of the folders at the top: one per cluster, and those that all share.
    ///
    /// # Errors
    /// Of the store.
    pub async fn folders(&self) -> Result<Vec<String>, Error> {
        // A disk that went leaves an empty directory, in which there would be no backups.
        self.check_identity().await?;
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
}

fn directory_of(url: &str) -> Option<&std::path::Path> {
    url.strip_prefix("file://").map(std::path::Path::new)
}

/// What a listing tells, whole or not at all: were the rest of a long one cut off, backups would be taken for missing.
async fn collect<T>(
    prefix: &str,
    listing: BoxStream<'_, object_store::Result<ObjectMeta>>,
    limit: usize,
    name: impl Fn(&ObjectMeta) -> T,
) -> Result<Vec<T>, Error> {
    let some = listing
        .take(limit.saturating_add(1))
        .map_ok(|meta| name(&meta))
        .try_collect();
    let found: Vec<T> = within("listing", prefix, some).await?;
    if found.len() > limit {
        return Err(Error::TooMany {
            prefix: prefix.to_owned(),
            limit,
        });
    }
    Ok(found)
}

impl Repository {
    /// Everything below `prefix` as `name` tells it.
    pub(super) async fn collect<T>(&self, prefix: &str, name: impl Fn(&ObjectMeta) -> T) -> Result<Vec<T>, Error> {
        let path = self.path(prefix);
        collect(prefix, self.store.list(Some(&path)), LIST_MAX, name).await
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
    within_limit(CALL_TIMEOUT, act, key, call).await
}

pub(super) async fn within_limit<T>(
    limit: Duration,
    act: &'static str,
    key: &str,
    call: impl Future<Output = object_store::Result<T>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, call).await {
        Ok(done) => done.map_err(|source| store_error(act, key, source)),
        Err(_) => Err(slow(act, key, limit)),
    }
}

pub(super) fn store_error(act: &'static str, key: &str, source: object_store::Error) -> Error {
    let key = told(key);
    Error::Store { act, key, source }
}

pub(super) fn slow(act: &'static str, key: &str, limit: Duration) -> Error {
    let (key, seconds) = (told(key), limit.as_secs());
    Error::Slow { act, key, seconds }
}

fn told(key: &str) -> String {
    let key = if key.is_empty() { "the repository" } else { key };
    key.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_write_to_a_file_holds_a_core_for_long() {
        let directory = tempfile::tempdir().expect("a directory");
        let repository = Repository::open(&format!("file://{}", directory.path().display())).expect("a repository");
        let bytes: Bytes = (0..=u8::MAX).cycle().take(5 * WRITE_BYTES + 1).collect();
        let payload = repository.payload(bytes.clone());
        assert!(payload.iter().all(|piece| piece.len() <= WRITE_BYTES));
        assert_eq!(Bytes::from(payload), bytes);
        assert!(repository.payload(Bytes::new()).iter().all(Bytes::is_empty));
    }

    #[tokio::test]
    async fn repository_whose_disk_is_away_is_neither_written_nor_made_anew() {
        let root = tempfile::tempdir().expect("a directory");
        let [state, disk, away] = ["state", "disk", "away"].map(|name| root.path().join(name));
        let url = format!("file://{}", disk.display());
        let open = || Repository::open_known(&url, &state);
        let repository = open().expect("a new one");
        assert!(repository.create("a/1", vec![1]).await.expect("written"));
        std::fs::rename(&disk, &away).expect("unmounted");
        let refused = repository.create("a/2", vec![1]).await;
        assert!(matches!(refused, Err(Error::Elsewhere { .. })), "{refused:?}");
        let refused = repository.begin("a/3".to_owned()).await.map(|_| ());
        assert!(matches!(refused, Err(Error::Elsewhere { .. })), "{refused:?}");
        assert!(matches!(open(), Err(Error::Elsewhere { .. })));
        assert!(!disk.exists(), "nothing was made in its place");
        // The place where it is mounted, empty.
        std::fs::create_dir(&disk).expect("a directory");
        assert!(matches!(open(), Err(Error::Elsewhere { .. })));
        std::fs::remove_dir(&disk).expect("still empty");
        std::fs::rename(&away, &disk).expect("mounted");
        assert!(repository.create("a/2", vec![1]).await.expect("written"));
        assert_eq!(open().expect("the same").list("a").await.expect("listed").len(), 2);
    }

    #[tokio::test]
    async fn listing_that_is_too_long_is_an_error_and_not_a_shorter_list() {
        let directory = tempfile::tempdir().expect("a directory");
        let repository = Repository::open(&format!("file://{}", directory.path().display())).expect("a repository");
        for key in ["a/1", "a/2", "a/3"] {
            assert!(repository.create(key, vec![1]).await.expect("written"));
        }
        let path = repository.path("a");
        let list = |limit| collect("a", repository.store.list(Some(&path)), limit, |meta| meta.size);
        assert_eq!(list(3).await.expect("listed").len(), 3);
        assert!(matches!(list(2).await, Err(Error::TooMany { limit: 2, .. })));
    }
}
