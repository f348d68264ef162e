//! The list of backups, read from the repository each time: it is the truth, and small.

use std::collections::BTreeMap;

use jiff::Timestamp;
use ulid::Ulid;

use super::choice::{self, LATEST};
use super::entry::AHEAD;
use super::sweep::Unfinished;
use super::{Entry, Error, Subject, Swap, Unreadable, Vault, is_of};
use crate::postgres::{self, Admin};
use crate::repository::layout::Cluster;
use crate::repository::lease::may_only_read as is_denied;
use crate::repository::manifest::{self, Content, Level, Manifest, Verification};
use crate::repository::{self, layout};
use crate::telemetry::cause::chain;

/// Keys and sizes of all objects.
type Listed = BTreeMap<String, u64>;

impl Vault {
    /// Every backup, oldest first; and those whose manifest cannot be read, which is no reason to see none.
    ///
    /// # Errors
    /// Of the store.
    pub async fn list(&self) -> Result<(Vec<Entry>, Vec<Unreadable>), Error> {
        self.list_at(self.clock.wall()).await
    }

    pub(super) async fn list_at(&self, now: Timestamp) -> Result<(Vec<Entry>, Vec<Unreadable>), Error> {
        self.read_entries(&self.keys().await?, now).await
    }

    async fn read_entries(
        &self,
        keys: &[(String, u64)],
        now: Timestamp,
    ) -> Result<(Vec<Entry>, Vec<Unreadable>), Error> {
        let mut entries = Vec::new();
        let mut unreadable = Vec::new();
        let listed: Listed = keys.iter().cloned().collect();
        for key in listed.keys() {
            let Some((folder, id)) = layout::folder_of_manifest(key) else {
                continue;
            };
            match self.read_entry(folder, id, &listed, now).await {
                Ok(entry) => entries.push(entry),
                Err(Error::Repository(error)) => unreadable.push(Unreadable { id, why: chain(&error) }),
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
        let (mut leases, mut unread_note) = (Vec::new(), None);
        for lease in beginning(listed, &format!("leases/{id}-")) {
            match self.note(lease).await? {
                Ok(lease) => leases.extend(lease.map(Some)),
                Err(why) => {
                    leases.push(None);
                    unread_note = Some(why);
                }
            }
        }
        let tombstone = layout::tombstone(id);
        let tombstone = match listed.contains_key(&tombstone) {
            true => self.note(&tombstone).await?.unwrap_or_else(|why| {
                unread_note = Some(why);
                None
            }),
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
            unread_note,
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
            match self.note::<Verification>(note).await? {
                Ok(Some(record)) => {
                    if record.failure.is_none() && record.level >= Level::L2 {
                        unread = None;
                    }
                    records.push(record);
                }
                Ok(None) => {}
                Err(why) => unread = Some(why),
            }
        }
        Ok((records, unread))
    }

    /// A note beside a backup; the inner error is why it cannot be read, and as it stands never will be. `None`: it has gone.
    pub(super) async fn note<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Result<Option<T>, String>, Error> {
        use repository::Error::{Manifest, TooLarge};
        match self.repository.read_note(key).await {
            Err(error) if matches!(error, Manifest { .. } | TooLarge { .. }) || is_denied(&error) => {
                Ok(Err(chain(&error)))
            }
            other => Ok(Ok(other?)),
        }
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
    /// There is none, it cannot be read, or which one is the latest cannot be told.
    pub async fn choose<'a>(
        &self,
        entries: &'a [Entry],
        unreadable: &[Unreadable],
        id: &str,
    ) -> Result<&'a Entry, Error> {
        let unknown = || Error::Unknown(id.to_owned());
        if id != LATEST {
            let wanted = Ulid::from_string(id).map_err(|_| unknown())?;
            if let Some(bad) = unreadable.iter().find(|bad| bad.id == wanted) {
                return Err(Error::Refused(bad.to_string()));
            }
            let found = entries.iter().find(|entry| entry.manifest.id == wanted);
            return found.ok_or_else(unknown);
        }
        all_read(unreadable)?;
        let mut subject = Subject {
            database: self.meant().to_owned(),
            cluster: None,
        };
        if let Some(entry) = choice::latest(entries, &subject)? {
            return Ok(entry);
        }
        subject.cluster = Some(self.cluster().await?);
        choice::latest(entries, &subject)?.ok_or_else(unknown)
    }

    /// Refuses a backup in the clear beside sealed ones of the same: a configuration that is not read, or has lost its keys,
    /// looks like that. A database is told by its cluster too, and a file `set` by its name alone.
    ///
    /// # Errors
    /// There is a sealed one; or of the store, or of the server, which says its cluster.
    pub async fn check_sealing(&self, set: Option<&str>) -> Result<(), Error> {
        if self.keys.encrypts() {
            return Ok(());
        }
        let (entries, _) = self.list().await?;
        let (what, sealed) = match set {
            Some(set) => {
                let sealed = choice::newest_sealed(&entries, |entry| entry.is_of_set(set));
                ("a file set of that name", sealed)
            }
            None => {
                let (cluster, _) = self.ask().await?;
                let subject = Subject {
                    database: self.target.database().to_owned(),
                    cluster: Some(cluster),
                };
                let sealed = choice::newest_sealed(&entries, |entry| subject.owns(entry));
                ("this database", sealed)
            }
        };
        match sealed {
            None => Ok(()),
            Some(sealed) => Err(Error::Refused(format!(
                "backup {} of {what} is sealed, and this one would lie in the clear beside it: name a recipient \
                 (backup.recipients, --recipient), or say --in-the-clear",
                sealed.manifest.id
            ))),
        }
    }

    /// Tells of the newest folder of a dump that holds data and no manifest, of those that are meant.
    fn nameless(&self, keys: &[(String, u64)], is_meant: impl Fn(Ulid) -> bool) -> Result<Option<String>, Error> {
        let unfinished = self.unfinished(keys)?.into_iter();
        let nameless =
            unfinished.filter(|one| one.has_objects && !one.folder.starts_with("files/") && is_meant(one.id));
        Ok(nameless.max_by_key(|one| one.id).map(|Unfinished { id, folder, .. }| {
            let began = Timestamp::from_millisecond(i64::try_from(id.timestamp_ms()).unwrap_or(0)).unwrap_or_default();
            let began = began.strftime("%F %T UTC");
            format!(
                "{folder} of {began} holds data and no manifest: a backup that is being made or was cut short, or one whose manifest was \
                 lost (restore-by-hand.md, section 2)"
            )
        }))
    }

    /// The database whose backups are meant where nothing but `latest` is said.
    fn meant(&self) -> &str {
        self.foreign.as_deref().unwrap_or(self.target.database())
    }

    /// The system identifier of the cluster that the configured database is in.
    async fn cluster(&self) -> Result<String, Error> {
        let admin = Admin::beside(&self.target, "foregate").await?;
        Ok(admin.system_identifier().await?)
    }

    /// And whether the repository lies where the database does, in words, as far as that can be seen. Asked in the database
    /// itself, as a backup is made: its role may not be let in elsewhere.
    pub(super) async fn ask(&self) -> Result<(String, Option<String>), Error> {
        let admin = Admin::connect(&self.target, self.target.database(), "foregate").await?;
        Ok((admin.system_identifier().await?, self.same_disk(&admin).await))
    }

    /// The backup to restore, and what whoever asks for the latest has to know of others. One of another database never takes
    /// the place of the live one, unless that was said by name.
    ///
    /// # Errors
    /// There is none, it is of another database, or there is no database to restore to.
    pub async fn show_to_restore(&self, id: &str, swap: &Swap) -> Result<(Entry, Vec<String>), Error> {
        let keys = self.keys().await?;
        let (entries, unreadable) = self.read_entries(&keys, self.clock.wall()).await?;
        let has_dumps = entries.iter().any(|entry| !entry.is_files());
        if id == LATEST && has_dumps && self.target.database().is_empty() {
            return Err(postgres::Error::NoDatabase.into());
        }
        let entry = match self.choose(&entries, &unreadable, id).await {
            // There may be what is left of one.
            Err(unknown @ Error::Unknown(_)) => {
                let is_meant = |nameless: Ulid| id == LATEST || Ulid::from_string(id) == Ok(nameless);
                return Err(self.nameless(&keys, is_meant)?.map_or(unknown, Error::Refused));
            }
            entry => entry?,
        };
        if *swap == Swap::Live || self.foreign.is_some() {
            self.check_meant(entry)?;
        }
        if id != LATEST {
            return Ok((entry.clone(), Vec::new()));
        }
        let mut notes = choice::notes(&entries, entry);
        notes.extend(self.nameless(&keys, |id| id > entry.manifest.id)?);
        Ok((entry.clone(), notes))
    }

    fn check_meant(&self, entry: &Entry) -> Result<(), Error> {
        let live = self.target.database();
        let Content::Database { database, .. } = &entry.manifest.content else {
            return Ok(());
        };
        if live.is_empty() {
            return Err(postgres::Error::NoDatabase.into());
        }
        if is_of(entry, self.meant()) {
            return Ok(());
        }
        if let Some(meant) = &self.foreign {
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
pub(super) fn all_read(unreadable: &[Unreadable]) -> Result<(), Error> {
    let Some(error) = unreadable.first() else {
        return Ok(());
    };
    Err(Error::Refused(format!(
        "which backup is the latest cannot be told, since {} of them cannot be read ({}): name a backup's id",
        unreadable.len(),
        error.why
    )))
}

/// The keys that begin so.
fn beginning<'a>(listed: &'a Listed, prefix: &'a str) -> impl Iterator<Item = &'a String> {
    let keys = listed.range(prefix.to_owned()..).map(|(key, _)| key);
    keys.take_while(move |key| key.starts_with(prefix))
}
