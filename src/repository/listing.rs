//! What is there, with sizes and times, and making sure that it stays.

use std::io;

use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use object_store::{ObjectMeta, ObjectStore as _};

use super::Error;
use super::storage::{LIST_MAX, Repository, within};

/// An object as a listing tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub key: String,
    pub bytes: u64,
    pub modified: Timestamp,
}

impl Repository {
    fn stored(&self, meta: &ObjectMeta) -> Stored {
        let key = meta.location.as_ref();
        let key = key.strip_prefix(self.prefix.as_ref()).unwrap_or(key);
        Stored {
            key: key.trim_start_matches('/').to_owned(),
            bytes: meta.size,
            modified: Timestamp::from_microsecond(meta.last_modified.timestamp_micros()).unwrap_or_default(),
        }
    }

    /// Everything below `prefix`, at any depth.
    ///
    /// # Errors
    /// Of the store.
    pub async fn list_stored(&self, prefix: &str) -> Result<Vec<Stored>, Error> {
        let path = self.path(prefix);
        let listing = self
            .store
            .list(Some(&path))
            .take(LIST_MAX)
            .map_ok(|meta| self.stored(&meta))
            .try_collect();
        within("listing", prefix, listing).await
    }

    /// The objects in `folder` itself. A folder that is not there is empty.
    ///
    /// # Errors
    /// Of the store.
    pub async fn list_folder(&self, folder: &str) -> Result<Vec<Stored>, Error> {
        let path = self.path(folder);
        let listing = within("listing", folder, self.store.list_with_delimiter(Some(&path))).await?;
        Ok(listing.objects.iter().map(|meta| self.stored(meta)).collect())
    }

    /// Whether nothing stands below `prefix`. Asks for one object, however many there are.
    ///
    /// # Errors
    /// Of the store.
    pub async fn is_empty(&self, prefix: &str) -> Result<bool, Error> {
        let path = self.path(prefix);
        let mut listing = self.store.list(Some(&path));
        let first = async { listing.next().await.transpose() };
        within("listing", prefix, first).await.map(|first| first.is_none())
    }

    /// Makes sure that an object which is there survives a power cut: whoever wrote it may have been killed between
    /// giving it its name and syncing the directory. A bucket promises that by itself.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn make_durable(&self, key: &str) -> Result<(), Error> {
        let Some(directory) = self.directory() else {
            return Ok(());
        };
        let (root, file) = (directory.to_owned(), directory.join(key));
        let done = tokio::task::spawn_blocking(move || {
            std::fs::File::open(&file)?.sync_all()?;
            // The folders above may be as new as the file.
            for folder in file.ancestors().skip(1).take_while(|folder| folder.starts_with(&root)) {
                std::fs::File::open(folder)?.sync_all()?;
            }
            io::Result::Ok(())
        });
        let done = done.await.map_err(|_| Error::Worker)?;
        done.map_err(|source| Error::Sync {
            key: key.to_owned(),
            source,
        })
    }
}
