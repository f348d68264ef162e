//! The folders in which backups stand, those that a run left unfinished among them.

use std::io;
use std::path::Path;

use super::identity::MARK;
use super::layout::Cluster;
use super::storage::store_error;
use super::{Error, Repository};

impl Repository {
    /// Whether the directory at `url` is not there, or holds neither the mark of a repository nor what a backup would stand in.
    /// A bucket cannot be asked so, nor a directory that may not be read: whoever uses them hears of it.
    #[must_use]
    pub fn is_missing(url: &str) -> bool {
        let Some(directory) = url
            .strip_prefix("file://")
            .map(Path::new)
            .filter(|path| path.is_absolute())
        else {
            return false;
        };
        let is_ours = |name: &str| name == MARK || name == "files" || Cluster::parse(name).is_some();
        match std::fs::read_dir(directory) {
            Ok(entries) => {
                let mut names = entries.flatten().map(|entry| entry.file_name());
                !names.any(|name| name.to_str().is_some_and(is_ours))
            }
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// The folders of backups, finished or not, of which `keys` are the objects.
    ///
    /// # Errors
    /// Of the disk.
    pub fn backup_folders(&self, keys: &[(String, u64)]) -> Result<Vec<Folder>, Error> {
        let mut found = std::collections::BTreeMap::new();
        for (key, _) in keys {
            if let Some((folder, name)) = key.rsplit_once('/') {
                *found.entry(folder.to_owned()).or_insert(false) |= name == "manifest.json";
            }
        }
        // An upload that was cut off has no key yet, but has its place in the directory.
        if let Some(directory) = self.directory() {
            for folder in folders_below(directory).map_err(|error| local("listing", error))? {
                found.entry(folder).or_insert(false);
            }
        }
        let folder = |(path, has_manifest)| Folder { path, has_manifest };
        Ok(found.into_iter().map(folder).collect())
    }

    /// Removes a folder and all in it, its manifest first: what is left of it must not look like a backup.
    ///
    /// # Errors
    /// Of the store.
    pub async fn remove_folder(&self, folder: &str) -> Result<(), Error> {
        let mut keys = self.list(folder).await?;
        keys.sort_by_key(|(key, _)| !key.ends_with("/manifest.json"));
        for (key, _) in keys {
            self.delete(&key).await?;
        }
        let Some(directory) = self.directory() else {
            return Ok(());
        };
        match std::fs::remove_dir_all(directory.join(folder)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(local("removing", error)),
            _ => Ok(()),
        }
    }
}

/// A folder of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    pub path: String,
    pub has_manifest: bool,
}

/// `files/<id>` and `<cluster>/dumps/<id>`.
fn folders_below(directory: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let parent = if name == "files" { name } else { format!("{name}/dumps") };
        match std::fs::read_dir(directory.join(&parent)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error),
            Ok(children) => {
                for child in children {
                    found.push(format!("{parent}/{}", child?.file_name().to_string_lossy()));
                }
            }
        }
    }
    Ok(found)
}

fn local(act: &'static str, source: io::Error) -> Error {
    let source = object_store::Error::Generic {
        store: "directory",
        source: Box::new(source),
    };
    store_error(act, "the repository", source)
}
