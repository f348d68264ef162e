//! The list of backups, read from the repository each time: it is the truth, and small.

use std::collections::BTreeMap;

use jiff::Timestamp;
use ulid::Ulid;

use super::entry::{AHEAD, latest};
use super::{Entry, Error, Subject, Swap, Vault, is_of};
use crate::postgres::Admin;
use crate::repository::layout::Cluster;
use crate::repository::manifest::{self, Content, Level, Manifest, Verification};
use crate::repository::{self, layout};
use crate::telemetry::cause::chain;

/// Keys and sizes of all objects.
type Listed = BTreeMap<String, u64>;

impl Vault {
    /// Every backup, oldest first. A manifest that cannot be read is an error of its own, not a reason to see none:
    /// it is skipped and returned by key.
    ///
    /// # Errors
    /// Of the store.
    pub async fn list(&self) -> Result<(Vec<Entry>, Vec<repository::Error>), Error> {
        self.list_at(self.clock.wall()).await
    }

    pub(super) async fn list_at(&self, now: Timestamp) -> Result<(Vec<Entry>, Vec<repository::Error>), Error> {
        let mut entries = Vec::new();
        let mut unreadable = Vec::new();
        let listed: Listed = self.keys().await?.into_iter().collect();
        for key in listed.keys() {
            let Some((folder, id)) = layout::folder_of_manifest(key) else {
                continue;
            };
            match self.read_entry(folder, id, &listed, now).await {
                Ok(entry) => entries.push(entry),
                Err(Error::Repository(error)) => unreadable.push(error),
                Err(error) => return Err(error),
            }
        }
        entries.sort_by_key(|entry| (entry.manifest.started_at, entry.manifest.id));
        Ok((entries, unreadable))
    }

    /// The objects of the vault, without those of point-in-time recovery beside them, which may be very many.
    pub(super) async fn keys(&self) -> Result<Vec<(String, u64)>, Error> {
        let mut keys = Vec::new();
        for folder in self.repository.folders().await? {
            let ours = match Cluster::parse(&folder) {
                Some(cluster) => layout::dumps(&cluster),
                None if matches!(folder.as_str(), "files" | "leases" | "tombstones") => folder,
                None => continue,
            };
            keys.extend(self.repository.list(&ours).await?);
        }
        Ok(keys)
    }

    async fn read_entry(&self, folder: &str, id: Ulid, listed: &Listed, now: Timestamp) -> Result<Entry, Error> {
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
        let (verifications, unread) = self.read_verifications(folder, listed).await?;
        let mut leases = Vec::new();
        for lease in beginning(listed, &format!("leases/{id}-")) {
            leases.extend(self.repository.read_note(lease).await?);
        }
        let tombstone = layout::tombstone(id);
        let tombstone = match listed.contains_key(&tombstone) {
            true => self.repository.read_note(&tombstone).await?,
            false => None,
        };
        Ok(Entry {
            incomplete: self.repository.incomplete(folder, &manifest.parts, listed).await?,
            is_ahead: manifest.started_at.duration_since(now)
                > jiff::SignedDuration::try_from(AHEAD).unwrap_or_default(),
            folder: folder.to_owned(),
            manifest,
            verifications,
            unread,
            tombstone,
            leases,
        })
    }

    /// What is recorded of a backup, in the order of the records' ids, and why one of them cannot be read, if nothing after it
    /// answers for it: a backup must not vanish for a note that a newer version wrote.
    async fn read_verifications(
        &self,
        folder: &str,
        listed: &Listed,
    ) -> Result<(Vec<Verification>, Option<String>), Error> {
        let (mut records, mut unread) = (Vec::new(), None);
        for note in beginning(listed, &format!("{folder}/verify-")) {
            match self.repository.read_note::<Verification>(note).await {
                Ok(Some(record)) => {
                    if record.failure.is_none() && record.level >= Level::L2 {
                        unread = None;
                    }
                    records.push(record);
                }
                Ok(None) => {}
                Err(error @ (repository::Error::Manifest { .. } | repository::Error::TooLarge { .. })) => {
                    unread = Some(chain(&error));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((records, unread))
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
    /// There is none, or which one is the latest cannot be told.
    pub async fn show(&self, id: &str) -> Result<Entry, Error> {
        let (entries, unreadable) = self.list().await?;
        self.choose(&entries, &unreadable, id).await.cloned()
    }

    /// As [`Vault::show`], from a list that was read before.
    ///
    /// # Errors
    /// There is none, or which one is the latest cannot be told.
    pub async fn choose<'a>(
        &self,
        entries: &'a [Entry],
        unreadable: &[repository::Error],
        id: &str,
    ) -> Result<&'a Entry, Error> {
        let unknown = || Error::Unknown(id.to_owned());
        if id != "latest" {
            let wanted = Ulid::from_string(id).map_err(|_| unknown())?;
            let found = entries.iter().find(|entry| entry.manifest.id == wanted);
            return found.ok_or_else(unknown);
        }
        all_read(unreadable)?;
        let mut subject = Subject {
            database: self.target.database().to_owned(),
            cluster: None,
        };
        if let Some(entry) = latest(entries, &subject)? {
            return Ok(entry);
        }
        subject.cluster = Some(self.cluster().await?);
        latest(entries, &subject)?.ok_or_else(unknown)
    }

    /// The system identifier of the cluster that the configured database is in.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub async fn cluster(&self) -> Result<String, Error> {
        let admin = Admin::beside(&self.target, "foregate").await?;
        Ok(admin.system_identifier().await?)
    }

    /// The backup to restore. One of another database never takes the place of the live one, unless that was said by name.
    ///
    /// # Errors
    /// There is none, or it is of another database.
    pub async fn show_to_restore(&self, id: &str, swap: &Swap) -> Result<Entry, Error> {
        let entry = self.show(id).await?;
        let live = self.target.database();
        let Content::Database { database, .. } = &entry.manifest.content else {
            return Ok(entry);
        };
        let meant = self.foreign.as_deref();
        if *swap != Swap::Live || is_of(&entry, meant.unwrap_or(live)) {
            return Ok(entry);
        }
        if let Some(meant) = meant {
            return Err(Error::Refused(format!(
                "the backup is of database {database:?}, and one of {meant:?} is meant: name its id"
            )));
        }
        Err(Error::Refused(format!(
            "the backup is of database {database:?}, which is not the configured {live:?}: restore it under another name, or say \
             that it is meant (--from-database {database:?}, \"fromDatabase\" in the API)"
        )))
    }
}

/// What cannot be read may be the newest: an older backup never stands in for it in silence.
pub(super) fn all_read(unreadable: &[repository::Error]) -> Result<(), Error> {
    let Some(error) = unreadable.first() else {
        return Ok(());
    };
    Err(Error::Refused(format!(
        "which backup is the latest cannot be told, since {} of them cannot be read ({}): name a backup's id",
        unreadable.len(),
        chain(error)
    )))
}

/// The keys that begin so.
fn beginning<'a>(listed: &'a Listed, prefix: &'a str) -> impl Iterator<Item = &'a String> {
    let keys = listed.range(prefix.to_owned()..).map(|(key, _)| key);
    keys.take_while(move |key| key.starts_with(prefix))
}
