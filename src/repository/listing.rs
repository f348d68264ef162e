//! What is there, with sizes and times, and making sure that it stays.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use object_store::{ObjectMeta, ObjectStore as _};

use super::Error;
use super::storage::{Repository, within};

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
        self.collect(prefix, |meta| self.stored(meta)).await
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

    /// Those objects in `folder` itself whose names begin with `beginning`. In a directory only these are looked at: the
    /// others cost their names.
    ///
    /// # Errors
    /// Of the store.
    pub async fn list_beginning(&self, folder: &str, beginning: &str) -> Result<Vec<Stored>, Error> {
        let is_it = |key: &str| key.rsplit('/').next().is_some_and(|name| name.starts_with(beginning));
        let Some(directory) = self.directory() else {
            let mut all = self.list_folder(folder).await?;
            all.retain(|stored| is_it(&stored.key));
            return Ok(all);
        };
        let (path, beginning, key) = (directory.join(folder), beginning.to_owned(), folder.to_owned());
        let listed = tokio::task::spawn_blocking(move || look(&path, &key, &beginning));
        listed.await.map_err(|_| Error::Worker)?.map_err(|source| Error::Local {
            act: "listing",
            key: folder.to_owned(),
            source,
        })
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

    /// Removes what a writer that was killed left unfinished below `prefix`, if it has not been touched since `before`.
    /// Only a directory has such files (`name#1`, which no listing shows); a bucket's own rules clean up its uploads.
    ///
    /// # Errors
    /// Of the disk.
    pub async fn sweep_unfinished(&self, prefix: &str, before: Timestamp) -> Result<usize, Error> {
        let Some(directory) = self.directory() else {
            return Ok(0);
        };
        let folder = directory.join(prefix);
        let swept = tokio::task::spawn_blocking(move || sweep(&folder, before.into()));
        swept.await.map_err(|_| Error::Worker)?.map_err(|source| Error::Local {
            act: "sweeping",
            key: prefix.to_owned(),
            source,
        })
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
        done.map_err(|source| Error::Local {
            act: "making durable",
            key: key.to_owned(),
            source,
        })
    }
}

/// A folder that is not there is empty.
fn look(path: &Path, folder: &str, beginning: &str) -> io::Result<Vec<Stored>> {
    let mut found = Vec::new();
    let Some(entries) = if_there(std::fs::read_dir(path))? else {
        return Ok(found);
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(text) = name
            .to_str()
            .filter(|text| text.starts_with(beginning) && !is_unfinished(&name))
        else {
            continue;
        };
        // Deleted since the directory was read: not there.
        let Some(metadata) = if_there(entry.metadata())? else {
            continue;
        };
        if metadata.is_file() {
            found.push(Stored {
                key: format!("{folder}/{text}"),
                bytes: metadata.len(),
                modified: Timestamp::try_from(metadata.modified()?).unwrap_or_default(),
            });
        }
    }
    Ok(found)
}

fn sweep(folder: &Path, before: SystemTime) -> io::Result<usize> {
    let mut swept = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Some(entries) = if_there(std::fs::read_dir(&folder))? else {
            continue;
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if is_unfinished(&entry.file_name())
                && let Some(metadata) = if_there(entry.metadata())?
                && metadata.modified()? < before
            {
                swept += usize::from(if_there(std::fs::remove_file(entry.path()))?.is_some());
            }
        }
    }
    Ok(swept)
}

/// Others write and delete meanwhile: what is gone is nothing, not a fault.
fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// As `object_store` names what it has not finished.
fn is_unfinished(name: &OsStr) -> bool {
    let number = name
        .to_str()
        .and_then(|name| name.rsplit_once('#'))
        .map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_begins_so_is_listed() {
        let directory = tempfile::tempdir().expect("a directory");
        let repository = Repository::open(&format!("file://{}", directory.path().display())).expect("a repository");
        for key in ["a/b/one-1", "a/b/one-2", "a/b/two-1", "a/b/one-3/deeper", "a/one-4"] {
            repository.create(key, vec![1, 2]).await.expect("written");
        }
        std::fs::write(directory.path().join("a/b/one-5#1"), "unfinished").expect("written");
        let mut found = repository.list_beginning("a/b", "one-").await.expect("listed");
        found.sort_by(|a, b| a.key.cmp(&b.key));
        let listed = repository.list_folder("a/b").await.expect("listed");
        let mut wanted: Vec<Stored> = listed.into_iter().filter(|stored| stored.key.contains("one")).collect();
        wanted.sort_by(|a, b| a.key.cmp(&b.key));
        let keys = |list: &[Stored]| {
            list.iter()
                .map(|stored| (stored.key.clone(), stored.bytes))
                .collect::<Vec<_>>()
        };
        assert_eq!(keys(&found), keys(&wanted), "both ways to list agree");
        assert_eq!(found.len(), 2);
        assert_eq!(repository.list_beginning("nowhere", "").await.expect("listed"), []);
    }

    #[tokio::test]
    async fn only_what_is_unfinished_and_old_is_swept() {
        let directory = tempfile::tempdir().expect("a directory");
        let repository = Repository::open(&format!("file://{}", directory.path().display())).expect("a repository");
        repository.create("a/b/whole", vec![1]).await.expect("written");
        for name in ["whole#1", "other#12", "with#sign"] {
            std::fs::write(directory.path().join("a/b").join(name), "x").expect("written");
        }
        let sweep = |prefix, before| repository.sweep_unfinished(prefix, before);
        assert_eq!(
            sweep("a", Timestamp::UNIX_EPOCH).await.expect("swept"),
            0,
            "nothing is that old"
        );
        assert_eq!(sweep("elsewhere", Timestamp::MAX).await.expect("swept"), 0);
        let later: Timestamp = "2400-01-01T00:00:00Z".parse().expect("a time");
        assert_eq!(sweep("a", later).await.expect("swept"), 2);
        assert!(directory.path().join("a/b/whole").exists() && directory.path().join("a/b/with#sign").exists());
        assert!(!repository.is_empty("a").await.expect("asked"));
        assert!(repository.is_empty("c").await.expect("asked"));
    }
}
