//! What can be asked of the vault. Whatever takes long is started, and followed by its run.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ulid::Ulid;

use super::{Act, Catalogue, Refusal, Run, Service, stats};
use crate::backup::files::FileSet;
use crate::backup::verify::is_damage;
use crate::backup::{Entry, Error, Pruned, Swap, Vault};
use crate::repository::Manifest;
use crate::repository::manifest::{Content, Level};
use crate::telemetry::cause::chain;

impl Service {
    /// Starts a backup that carries `labels`; returns its id at once.
    ///
    /// # Errors
    /// Something else is running, or the vault is off.
    pub async fn start_create(&self, labels: Vec<String>, schedule_keys: Vec<String>) -> Result<Arc<Run>, Refusal> {
        let subjects = labels.clone();
        self.start(
            Act::Create,
            Ulid::generate(),
            subjects,
            move |vault, service, run| async move {
                let manifest = vault.create_as(run.id, labels, schedule_keys).await?;
                service.created(&manifest).await;
                Ok(format!("proven to {:?}", manifest.verified))
            },
        )
        .await
    }

    /// Starts a backup of a file set.
    ///
    /// # Errors
    /// Something else is running, or the vault is off.
    pub async fn start_files(&self, set: FileSet, schedule_keys: Vec<String>) -> Result<Arc<Run>, Refusal> {
        let subjects = vec![set.name.clone()];
        self.start(
            Act::Files,
            Ulid::generate(),
            subjects,
            move |vault, service, run| async move {
                let manifest = vault.create_files_as(run.id, &set, schedule_keys).await?;
                service.created(&manifest).await;
                Ok(format!("proven to {:?}", manifest.verified))
            },
        )
        .await
    }

    /// Starts a backup of the configured file set of this name.
    ///
    /// # Errors
    /// There is none, something else is running, or the vault is off.
    pub async fn start_set(&self, name: &str) -> Result<Arc<Run>, Refusal> {
        let settings = self.settings();
        let Some(file) = settings.plan.files.iter().find(|file| file.set.name == name) else {
            let known = self.file_sets().join(", ");
            let known = if known.is_empty() { "none" } else { &known };
            return Err(Error::Refused(format!("[[backup.files]] names no such set; it names: {known}")).into());
        };
        self.start_files(file.set.clone(), Vec::new()).await
    }

    /// Starts a restore. What can be refused is refused before, by its status. `foreign`: the other database whose backup
    /// may take the place of the configured one. `told`: what the preview told, which is told at once.
    ///
    /// # Errors
    /// Something else is running, or the vault is off.
    pub async fn start_restore(
        &self,
        id: String,
        swap: Swap,
        foreign: Option<String>,
        told: Vec<String>,
    ) -> Result<Arc<Run>, Refusal> {
        let subjects = vec![id.clone()];
        self.start(
            Act::Restore,
            Ulid::generate(),
            subjects,
            move |vault, service, run| async move {
                let note = |note: &String| run.note(service.shared.parts.clock.wall(), note);
                told.iter().for_each(note);
                let restored = vault.with_foreign(foreign).restore(&id, &swap).await;
                let done = restored.inspect_err(|error| {
                    if let Error::Condemned { id, .. } = error {
                        service.tell_damage(*id, &chain(error));
                    }
                })?;
                if let Some(damage) = &done.damage {
                    service.tell_damage(done.id, damage);
                }
                done.notes.iter().filter(|note| !told.contains(note)).for_each(note);
                let replaced = done
                    .replaced
                    .map_or_else(String::new, |name| format!("; the old one is kept as {name}"));
                let place = if done.database.is_empty() {
                    "a scratch database, dropped again"
                } else {
                    &done.database
                };
                Ok(format!("{} rows restored into {place}{replaced}", done.rows))
            },
        )
        .await
    }

    /// Starts reading a backup back; with `restore`, into a scratch database.
    ///
    /// # Errors
    /// Unknown or not to be restored, something else is running, or the vault is off.
    pub async fn start_verify(&self, id: &str, restore: bool) -> Result<Arc<Run>, Refusal> {
        let vault = self.vault()?;
        let entry = vault.show(id).await?;
        let id = entry.manifest.id.to_string();
        // What can be refused is refused here, with its reason, rather than in a run that fails later.
        if restore && entry.is_files() {
            let reason = "a file set is proven by reading it back, and not restored into a database";
            return Err(Error::Refused(reason.to_owned()).into());
        }
        if restore {
            drop(vault.check_restore(&id, &Swap::Drop).await?);
        }
        let subjects = vec![id];
        self.start(
            Act::Verify,
            Ulid::generate(),
            subjects,
            move |vault, service, _| async move {
                let id = entry.manifest.id;
                let proven = vault.prove_again(&entry, restore).await.inspect_err(|error| {
                    // A network that is away says nothing of the backup; the failed run is told all the same.
                    if is_damage(error) {
                        service.tell_damage(id, &chain(error));
                    }
                })?;
                let (key, text) = (damage_key(id), format!("backup {id} is proven again"));
                service.shared.parts.alerts.resolve(&key, &text);
                let text = match vault.can_open(&entry.manifest) {
                    true => format!("proven to {:?}", proven.level),
                    false => "the stored bytes are those that were written; no identity is configured, so they were not opened".to_owned(),
                };
                Ok(proven.unrecorded.map_or(text.clone(), |note| format!("{text}; {note}")))
            },
        )
        .await
    }

    fn tell_damage(&self, id: Ulid, why: &str) {
        let text = format!("backup {id} is not what it was: {why}");
        self.shared.parts.alerts.raise(&damage_key(id), &text);
    }

    /// Starts a clean-up.
    ///
    /// # Errors
    /// Something else is running, or the vault is off.
    pub async fn start_prune(&self) -> Result<Arc<Run>, Refusal> {
        self.start(
            Act::Prune,
            Ulid::generate(),
            Vec::new(),
            move |vault, _, _| async move {
                let Pruned {
                    marked,
                    deleted,
                    lifted,
                    ..
                } = vault.prune(false).await?;
                let dropped = vault
                    .drop_replaced(false)
                    .await?
                    .iter()
                    .filter(|one| one.is_over)
                    .count();
                let (marked, deleted, lifted) = (marked.len(), deleted.len(), lifted.len());
                Ok(format!(
                    "{marked} marked, {lifted} needed again, {deleted} deleted, {dropped} replaced databases dropped"
                ))
            },
        )
        .await
    }

    /// What a clean-up would do.
    ///
    /// # Errors
    /// Of the repository.
    pub async fn preview_prune(&self) -> Result<Pruned, Refusal> {
        Ok(self.vault()?.prune(true).await?)
    }

    /// Checks a restore without touching anything. Returns the backup, and what is to be seen to.
    ///
    /// # Errors
    /// Why it would be refused.
    pub async fn preview_restore(
        &self,
        id: &str,
        swap: &Swap,
        foreign: Option<String>,
    ) -> Result<(Entry, Vec<String>), Refusal> {
        Ok(self.vault()?.with_foreign(foreign).check_restore(id, swap).await?)
    }

    /// The id of the backup whose manifest or part lies at `path` in the repository.
    ///
    /// # Errors
    /// A path outside it, or at which no backup lies.
    pub async fn id_at(&self, path: &str) -> Result<Ulid, Refusal> {
        Ok(self.vault()?.id_at(path).await?)
    }

    /// Where the backup of this folder lies, as people and `restore` name it.
    #[must_use]
    pub fn place(&self, folder: &str) -> String {
        let settings = self.settings();
        let url = settings.repository.url.trim_end_matches('/');
        format!("{}/{folder}", url.strip_prefix("file://").unwrap_or(url))
    }

    /// The name of the zone of the schedules.
    #[must_use]
    pub fn time_zone(&self) -> String {
        self.settings().plan.zone.iana_name().unwrap_or("UTC").to_owned()
    }

    /// The names of the configured file sets.
    #[must_use]
    pub fn file_sets(&self) -> Vec<String> {
        let settings = self.settings();
        settings.plan.files.iter().map(|file| file.set.name.clone()).collect()
    }

    /// The identifier of the cluster that the database is in, once the server was asked.
    #[must_use]
    pub fn cluster(&self) -> Option<String> {
        self.shared.subject().cluster
    }

    /// The name of the database that is backed up.
    #[must_use]
    pub fn database(&self) -> Option<String> {
        self.shared
            .vault
            .load()
            .as_ref()
            .map(|vault| vault.database().to_owned())
    }

    /// Marks a backup for deletion, and says which it was.
    ///
    /// # Errors
    /// Unknown, in use, or the last good one.
    pub async fn delete(&self, id: &str) -> Result<Ulid, Refusal> {
        let marked = self.idle_vault()?.delete(id).await?;
        self.shared.is_stale.store(true, Ordering::Release);
        Ok(marked)
    }

    /// Takes that mark off, and says of which it was.
    ///
    /// # Errors
    /// Unknown, or not marked by hand.
    pub async fn undelete(&self, id: &str) -> Result<Ulid, Refusal> {
        let kept = self.idle_vault()?.undelete(id).await?;
        self.shared.is_stale.store(true, Ordering::Release);
        Ok(kept)
    }

    fn idle_vault(&self) -> Result<Arc<Vault>, Refusal> {
        match self.current() {
            Some(run) => Err(Refusal::Busy(run.id)),
            None => self.vault(),
        }
    }

    /// A new proven backup is there.
    async fn created(&self, manifest: &Manifest) {
        let alerts = &self.shared.parts.alerts;
        self.shared.is_stale.store(true, Ordering::Release);
        let Ok(entries) = self.list().await else { return };
        if manifest.verified < Level::L2 {
            return;
        }
        alerts.ping();
        let Some(made) = entries.iter().find(|entry| entry.manifest.id == manifest.id) else {
            return;
        };
        let alike: Vec<&Entry> = entries
            .iter()
            .filter(|entry| entry.has_subject_of(made) && !entry.is_ahead)
            .collect();
        let (key, of) = match &manifest.content {
            Content::Files { name, .. } => (format!("backup-size-files-{name}"), format!("of the files {name} ")),
            Content::Database { .. } | Content::Base { .. } => ("backup-size".to_owned(), String::new()),
        };
        match stats::unusual_size(&alike) {
            Some(text) => alerts.raise(&key, &text),
            None => alerts.resolve(&key, &format!("backups {of}are of their usual size again")),
        }
    }

    /// One backup by its id, or by `latest`, from the list that everybody is shown.
    ///
    /// # Errors
    /// There is none.
    pub async fn choose(&self, id: &str) -> Result<Entry, Refusal> {
        let Catalogue {
            entries, unreadable, ..
        } = self.catalogue(self.shared.parts.clock.now()).await?;
        Ok(self.vault()?.choose(&entries, &unreadable, id).await?.clone())
    }
}

/// Under which the alerts know it.
fn damage_key(id: Ulid) -> String {
    format!("backup-verify-{id}")
}
