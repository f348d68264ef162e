//! The list of backups, read from the repository each time: it is the truth, and small.

use std::collections::BTreeMap;

use ulid::Ulid;

use super::{Error, Vault};
use crate::repository::manifest::{self, Content, Lease, Level, Manifest, Tombstone, Verification};
use crate::repository::{self, layout};

const NOTE_BYTES_MAX: u64 = 64 * 1024;

/// A backup as the repository tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub folder: String,
    pub manifest: Manifest,
    pub verifications: Vec<Verification>,
    pub tombstone: Option<Tombstone>,
    pub leases: Vec<Lease>,
}

impl Entry {
    /// The level that holds now: a later failure outweighs an earlier success.
    #[must_use]
    pub fn level(&self) -> Level {
        match self.verifications.iter().max_by_key(|record| record.at) {
            Some(last) if last.failure.is_some() => Level::L0,
            _ => self
                .verifications
                .iter()
                .map(|record| record.level)
                .fold(self.manifest.verified, Level::max),
        }
    }

    #[must_use]
    pub fn is_files(&self) -> bool {
        matches!(self.manifest.content, Content::Files { .. })
    }

    /// Whether both are backups of the same thing, so that one can stand in for the other.
    #[must_use]
    pub fn has_subject_of(&self, other: &Self) -> bool {
        match (&self.manifest.content, &other.manifest.content) {
            (Content::Files { name, .. }, Content::Files { name: theirs, .. }) => name == theirs,
            (Content::Database { .. }, Content::Database { .. }) => true,
            _ => false,
        }
    }

    #[must_use]
    pub fn is_good(&self) -> bool {
        self.level() >= Level::L2 && self.tombstone.is_none()
    }
}

impl Vault {
    /// Every backup, oldest first. A manifest that cannot be read is an error of its own, not a reason to see none:
    /// it is skipped and returned by key.
    ///
    /// # Errors
    /// Of the store.
    pub async fn list(&self) -> Result<(Vec<Entry>, Vec<repository::Error>), Error> {
        let mut entries = Vec::new();
        let mut unreadable = Vec::new();
        let mut notes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let keys = self.repository.list("").await?;
        for (key, _) in &keys {
            if let Some((folder, _)) = key.rsplit_once("/verify-") {
                notes.entry(folder.to_owned()).or_default().push(key.clone());
            }
        }
        for (key, _) in &keys {
            let Some((folder, id)) = layout::folder_of_manifest(key) else {
                continue;
            };
            match self.read_entry(folder, id, notes.get(folder), &keys).await {
                Ok(entry) => entries.push(entry),
                Err(Error::Repository(error)) => unreadable.push(error),
                Err(error) => return Err(error),
            }
        }
        entries.sort_by_key(|entry| entry.manifest.started_at);
        Ok((entries, unreadable))
    }

    async fn read_entry(
        &self,
        folder: &str,
        id: Ulid,
        notes: Option<&Vec<String>>,
        keys: &[(String, u64)],
    ) -> Result<Entry, Error> {
        let key = layout::manifest(folder);
        let bad = |reason: String| repository::Error::Manifest {
            key: key.clone(),
            reason,
        };
        let bytes = self.repository.read(&key, manifest::BYTES_MAX).await?;
        let bytes = bytes.ok_or_else(|| bad("it is gone".to_owned()))?;
        let manifest = Manifest::parse(&bytes).map_err(bad)?;
        if manifest.id != id {
            return Err(bad("it names another backup".to_owned()).into());
        }
        let mut verifications = Vec::new();
        for note in notes.into_iter().flatten() {
            verifications.extend(self.note(note).await?);
        }
        let mut leases = Vec::new();
        let prefix = format!("leases/{id}-");
        for (key, _) in keys.iter().filter(|(key, _)| key.starts_with(&prefix)) {
            leases.extend(self.note(key).await?);
        }
        let tombstone = layout::tombstone(id);
        let tombstone = match keys.iter().any(|(key, _)| *key == tombstone) {
            true => self.note(&tombstone).await?,
            false => None,
        };
        Ok(Entry {
            folder: folder.to_owned(),
            manifest,
            verifications,
            tombstone,
            leases,
        })
    }

    async fn note<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let Some(bytes) = self.repository.read(key, NOTE_BYTES_MAX).await? else {
            return Ok(None);
        };
        let parsed = serde_json::from_slice(&bytes).map_err(|error| repository::Error::Manifest {
            key: key.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Some(parsed))
    }

    /// The id of the backup whose folder, manifest or part lies at `path`: a key of the repository, or its absolute path
    /// where the repository is a directory.
    ///
    /// # Errors
    /// A path outside the repository, or at which no backup lies.
    pub async fn id_at(&self, path: &str) -> Result<Ulid, Error> {
        let outside = || Error::Refused(format!("{path:?} is not in the repository"));
        let key = match self.repository.directory().filter(|_| path.starts_with('/')) {
            Some(directory) => {
                let root = directory.canonicalize().map_err(|_| outside())?;
                let real = std::path::Path::new(path).canonicalize().map_err(|_| outside())?;
                let inside = real.strip_prefix(&root).map_err(|_| outside())?;
                inside.to_string_lossy().into_owned()
            }
            None => {
                let url = format!("{}/", self.config.repository.url.trim_end_matches('/'));
                path.strip_prefix(&url).unwrap_or(path).trim_end_matches('/').to_owned()
            }
        };
        if key
            .split('/')
            .any(|segment| segment.is_empty() || segment == "." || segment == "..")
        {
            return Err(outside());
        }
        let (entries, _) = self.list().await?;
        let found = entries.iter().find(|entry| {
            let rest = key.strip_prefix(&entry.folder);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        let found = found.ok_or_else(|| Error::Unknown(path.to_owned()))?;
        Ok(found.manifest.id)
    }

    /// One backup by its id, or by `latest`: the newest good one of the database.
    ///
    /// # Errors
    /// There is none.
    pub async fn show(&self, id: &str) -> Result<Entry, Error> {
        let unknown = || Error::Unknown(id.to_owned());
        let (entries, _) = self.list().await?;
        if id == "latest" {
            let newest = entries
                .into_iter()
                .rev()
                .find(|entry| entry.is_good() && !entry.is_files());
            return newest.ok_or_else(unknown);
        }
        let wanted = Ulid::from_string(id).map_err(|_| unknown())?;
        entries
            .into_iter()
            .find(|entry| entry.manifest.id == wanted)
            .ok_or_else(unknown)
    }
}
