//! Restoring: into a new database under a name of our own, proven there, and only then under the name that it is for.
//! Never `--clean`.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ulid::Ulid;

use super::character::{Gift, creation, fitted, following, read};
use super::create::{connection_name, count_rows};
use super::exclusion::ADVISORY_LOCK;
use super::globals::{Extent, Missing};
use super::journal::{Intent, Lock, local};
use super::milestone::{Step, reached};
use super::places::Spool;
use super::preflight::Ground;
use super::recover::Recovered;
use super::verify::{is_damage, looks_damaged};
use super::{Entry, Error, Vault, rights};
use crate::postgres::child::Command;
use crate::postgres::secrets::PrivateDirectory;
use crate::postgres::{self, Admin};
use crate::repository;
use crate::repository::manifest::{Character, Content, PRIVATE, Private};
use crate::telemetry::cause::chain;

/// The longest that one step of a restore may take which somebody waits for, and can end. That of a backup, after which the
/// next one is due, would end a large one each time anew, on the day that there is nothing else.
const STEP_MAX: Duration = Duration::from_hours(7 * 24);

/// What happens once the new database is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// It takes the place of the configured one.
    Live,
    /// It stays beside, under this name.
    Keep(String),
    /// It is dropped: the restore was a proof.
    Drop,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub id: Ulid,
    /// Where the data is now; empty when it was only a proof.
    pub database: String,
    /// The name under which the replaced database is kept.
    pub replaced: Option<String>,
    pub rows: u64,
    /// What was made besides, and what is not as it was: sentences.
    pub notes: Vec<String>,
    /// What of the backup is damaged, although the database is back.
    pub damage: Option<String>,
}

/// One restore, once it is clear what it is to do.
struct Work<'a> {
    entry: &'a Entry,
    admin: &'a Admin,
    ground: &'a Ground,
    intent: &'a Intent,
    missing: Missing,
    extent: Extent,
    /// That of the database that serves, which outweighs what was written down; else as written down.
    character: Option<Character>,
}

impl Work<'_> {
    /// `usual` is for what can be made again later, as a proof can.
    fn limit(&self, usual: Duration) -> Duration {
        patience(usual, self.intent.is_proof())
    }
}

impl Vault {
    /// Restores `id` (or `latest`). One that turns out to be damaged is recorded as such.
    ///
    /// # Errors
    /// Why the old database still serves.
    pub async fn restore(&self, id: &str, swap: &Swap) -> Result<Restored, Error> {
        let (entry, told) = self.show_to_restore(id, swap).await?;
        match self.restore_entry(&entry, swap).await {
            Ok(mut restored) => {
                restored.notes.extend(told);
                Ok(restored)
            }
            Err(error) => Err(self.judged(&entry, error).await),
        }
    }

    pub(super) async fn restore_entry(&self, entry: &Entry, swap: &Swap) -> Result<Restored, Error> {
        let (lock, unlocked) = self.lock_to_read()?;
        let mut notes = Vec::from_iter(unlocked);
        self.recover_before(&lock).await?;
        let new = format!("foregate_{}", Ulid::generate().to_string().to_lowercase());
        let goal = match swap {
            Swap::Live => self.target.database().to_owned(),
            Swap::Keep(name) => name.clone(),
            Swap::Drop => String::new(),
        };
        let live = self.target.database().to_owned();
        let mut intent = Intent {
            live,
            new,
            old: String::new(),
            live_oid: 0,
            goal: Some(goal),
            roles: Vec::new(),
        };
        let admin = Admin::beside(&self.target, &intent.application()).await?;
        let inside = match swap {
            Swap::Live => self.exclude_all(&admin, &intent.application(), &mut notes).await?,
            Swap::Keep(_) | Swap::Drop => None,
        };
        let ground = self.preflight(entry, &admin, swap).await?;
        intent.old = self.free_name(&admin).await?;
        // A step to read it, and as much to spare.
        let lasts = patience(self.config.step_timeout, intent.is_proof()).saturating_mul(2);
        let lease = self
            .repository
            .lease(entry.manifest.id, self.clock.wall(), lasts, &mut notes)
            .await?;
        let sessions = (admin, inside);
        let restored = self
            .restore_leased(&lock, entry, sessions, &ground, intent, notes)
            .await;
        let held = self.repository.end_lease(lease).await;
        let mut restored = restored.map_err(|error| self.explained(error, rights::OF_A_RESTORE))?;
        restored.notes.extend(held.into_iter().chain(ground.notes));
        Ok(restored)
    }

    /// Checks what [`Vault::restore`] checks first, and touches nothing. Returns the backup, and what is to be seen to.
    ///
    /// # Errors
    /// Why it would be refused.
    pub async fn check_restore(&self, id: &str, swap: &Swap) -> Result<(Entry, Vec<String>), Error> {
        let (entry, mut notes) = self.show_to_restore(id, swap).await?;
        let admin = Admin::beside(&self.target, "foregate restore").await?;
        notes.extend(self.preflight(&entry, &admin, swap).await?.notes);
        Ok((entry, notes))
    }

    async fn restore_leased(
        &self,
        lock: &Lock,
        entry: &Entry,
        (admin, inside): (Admin, Option<Admin>),
        ground: &Ground,
        mut intent: Intent,
        mut notes: Vec<String>,
    ) -> Result<Restored, Error> {
        let directory = &self.config.scratch;
        let making = local(format!("making a directory in {}", directory.display()));
        let scratch = PrivateDirectory::new(directory, "restore").map_err(making)?;
        let spool = scratch.path().join("dump");
        self.spool(entry, &spool).await?;
        // The identity of what serves now, before anything is made. A lost server has no such database.
        let (live_oid, living) = read(&admin, &intent.live).await?.unzip();
        intent.live_oid = live_oid.unwrap_or(0);
        let missing = self.missing_globals(entry, &admin).await?;
        let is_proof = intent.is_proof();
        let extent = if living.is_some() || is_proof {
            Extent::Bare
        } else {
            Extent::Whole
        };
        if extent == Extent::Bare {
            intent.roles.clone_from(&missing.roles);
        }
        let (character, damage) = match living {
            None => self.recorded(entry, is_proof, &mut notes).await?,
            living => (living, None),
        };
        self.write_intent(&intent)?;
        reached(Step::Noted).await;
        let work = Work {
            entry,
            admin: &admin,
            ground,
            intent: &intent,
            missing,
            extent,
            character,
        };
        let done = self.carry_out(&work, &spool, &mut notes).await;
        drop(work);
        for session in std::iter::once(admin).chain(inside) {
            session.give_back(ADVISORY_LOCK).await;
        }
        // The note decides what holds, as after a crash: an answer that was lost is no answer.
        let recovered = self.recover_locked(lock).await;
        if let Err(error) = &recovered {
            // Neither makes what was done undone, nor hides why it was not.
            let shut = match (&done, intent.replaces()) {
                (Err(Failure::InSwap { .. }), true) => {
                    format!(
                        " (until then {:?} may let nobody in: run the restore again)",
                        intent.live
                    )
                }
                _ => String::new(),
            };
            notes.push(format!(
                "the next look tidies up, which was not possible{shut}: {}",
                chain(error)
            ));
        }
        let (rows, replaced) = match done {
            Ok(done) => done,
            Err(Failure::InSwap { rows, .. }) if matches!(recovered, Ok(Recovered::Finished(_))) => {
                (rows, Some(intent.old.clone()))
            }
            Err(Failure::InSwap { error, .. } | Failure::Before(error)) => return Err(noted(error, &notes)),
        };
        Ok(Restored {
            id: entry.manifest.id,
            database: intent.goal.clone().unwrap_or_default(),
            replaced: replaced.filter(|_| intent.replaces()),
            rows,
            notes,
            damage,
        })
    }

    /// What was written down of the database, and what of that is damaged. `None`: an earlier version wrote nothing. Where it is
    /// restored, better without a setting than not at all.
    async fn recorded(
        &self,
        entry: &Entry,
        is_proof: bool,
        notes: &mut Vec<String>,
    ) -> Result<(Option<Character>, Option<String>), Error> {
        let Content::Database {
            character: Some(character),
            ..
        } = &entry.manifest.content
        else {
            return Ok((None, None));
        };
        let (mut character, mut damage) = ((**character).clone(), None);
        if character.settings.is_none() {
            let private = match self.read_private(entry).await {
                Err(error) if looks_damaged(&error) && !is_proof => {
                    self.read_private_again(entry, &error, &mut damage).await
                }
                other => Ok(other?),
            };
            match private {
                Ok(private) => character.put_back(private),
                Err(error) => notes.push(format!(
                    "the database comes back without its settings and comment: {}",
                    chain(&error)
                )),
            }
        }
        Ok((Some(character), damage))
    }

    /// Unless the stored bytes are not those that were written: that alone is `damage`.
    async fn read_private_again(
        &self,
        entry: &Entry,
        error: &Error,
        damage: &mut Option<String>,
    ) -> Result<Private, Error> {
        tracing::warn!(backup = %entry.manifest.id, error = chain(error), "settings seem damaged, and are read again before that is believed");
        if let Some(part) = entry.manifest.part(PRIVATE)
            && let Err(error) = self.confirm(entry, part).await
        {
            *damage = is_damage(&error).then(|| chain(&error));
            return Err(error);
        }
        self.read_private(entry).await
    }

    async fn read_private(&self, entry: &Entry) -> Result<Private, Error> {
        let lost = || repository::Error::damaged(&format!("{}/{PRIVATE}", entry.folder), "it cannot be read");
        let part = self.read_part(entry, PRIVATE).await?.ok_or_else(lost)?;
        // What is wrong with it would quote a secret.
        Ok(serde_json::from_slice(&part).map_err(|_| lost())?)
    }

    /// All of it, up to the last name.
    async fn carry_out(
        &self,
        work: &Work<'_>,
        spool: &Path,
        notes: &mut Vec<String>,
    ) -> Result<(u64, Option<String>), Failure> {
        let rows = self.fill(work, spool, notes).await.map_err(Failure::Before)?;
        reached(Step::Proven).await;
        let goal = work.intent.goal.clone().unwrap_or_default();
        if goal.is_empty() {
            return Ok((rows, None));
        }
        let swapped = self.swap(work.admin, work.intent, &goal).await;
        let replaced = swapped.map_err(|error| Failure::InSwap { rows, error })?;
        Ok((rows, replaced))
    }

    /// The decrypted dump in a private file: `pg_restore -j` must seek. The stored bytes are those that were opened and hashed
    /// when the backup was proven, and zstd and age check what comes out of them, so that it is not hashed again.
    async fn spool(&self, entry: &Entry, path: &Path) -> Result<(), Error> {
        let unproven = || Error::Refused("the backup has no dump".to_owned());
        let part = entry.manifest.part("dump").ok_or_else(unproven)?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(local("making the spool"))?;
        let key = format!("{}/{}", entry.folder, part.object);
        let progress = self.step("fetch");
        let keys = Arc::clone(&self.keys);
        let opened = self.repository.get_opened(&key, Spool::new(file), keys, progress);
        let (opened, spool) = opened.await?;
        part.check_opened(&key, &opened)?;
        spool.finish().map_err(local("finishing the spool"))
    }

    /// Makes and proves the new database, and gives it what belongs to it. Returns the rows in it.
    async fn fill(&self, work: &Work<'_>, spool: &Path, notes: &mut Vec<String>) -> Result<u64, Error> {
        drop(self.step("restore"));
        let (admin, new) = (work.admin, &work.intent.new);
        let has_tablespaces = work.missing.make(admin, work.extent, notes).await?;
        reached(Step::Roles).await;
        let character = match &work.character {
            Some(character) => Some(fitted(admin, character, notes).await?),
            None => None,
        };
        let create = creation(new, character.as_ref(), work.ground.version);
        let limit = work.limit(self.config.step_timeout);
        admin.batch_within("making the new database", &create, limit).await?;
        reached(Step::Made).await;
        let mut command = Command::new(work.ground.programs.path("pg_restore"))
            .arg("--exit-on-error")
            .arg("--no-password")
            .arg("--jobs=2");
        if work.intent.is_proof() {
            // It holds no rows, and the server would not let go of a database that has one.
            command = command.arg("--no-subscriptions");
        } else {
            // A proof can wait, an application cannot.
            command = command.at_full_speed();
        }
        if !has_tablespaces {
            command = command.arg("--no-tablespaces");
        }
        let command = command.arg("--dbname").arg(connection_name(new)).arg(spool);
        let application = work.intent.application();
        let running = command.target(&self.target, &application)?.start()?;
        running.finish(limit).await?;
        reached(Step::Filled).await;
        let rows = self.compare_rows(work, &application).await?;
        if let Some(character) = &character {
            let gifts = following(new, character);
            admin
                .unlogged(give(admin, &gifts, work.intent.live_oid > 0, notes))
                .await?;
        }
        if work.intent.replaces() {
            let names = (work.intent.live.as_str(), new.as_str());
            let scratch = spool.parent().unwrap_or(spool);
            self.carry_own(work.ground, &application, names, scratch, notes).await;
        }
        reached(Step::Carried).await;
        Ok(rows)
    }

    /// Counts and analyzes at the same time, each in a session of its own: whoever restores waits for both.
    async fn compare_rows(&self, work: &Work<'_>, application: &str) -> Result<u64, Error> {
        let Content::Database { tables, .. } = &work.entry.manifest.content else {
            return Err(Error::Refused("this is a file set, not a database".to_owned()));
        };
        let new = &work.intent.new;
        let count = async {
            let inside = Admin::connect(&self.target, new, application).await?;
            // Rows that a policy hides from our role would be taken for lost: better an error that blames the role.
            inside
                .batch("counting without policies", "SET row_security = off")
                .await?;
            Ok::<_, Error>(count_rows(&inside, work.limit(self.config.step_timeout)).await?)
        };
        let analyze = async {
            let inside = Admin::connect(&self.target, new, application).await?;
            let limit = work.limit(self.config.step_timeout);
            Ok(inside.batch_within("analyzing", "ANALYZE", limit).await?)
        };
        let (found, ()) = tokio::try_join!(count, analyze)?;
        match difference(tables, &found) {
            Some(reason) => Err(Error::Unproven {
                id: work.entry.manifest.id,
                reason,
            }),
            None => Ok(found.values().sum()),
        }
    }
}

/// Where it went wrong: only a swap may have happened although its answer was lost.
enum Failure {
    Before(Error),
    InSwap { rows: u64, error: Error },
}

pub(super) fn patience(usual: Duration, is_proof: bool) -> Duration {
    if is_proof { usual } else { usual.max(STEP_MAX) }
}

/// Gives the new database what is its own. The server's words may quote a secret, so that only a code and what it is about
/// are told.
async fn give(admin: &Admin, gifts: &[Gift], all: bool, notes: &mut Vec<String>) -> Result<(), Error> {
    for gift in gifts {
        let given = admin.batch(&gift.what, gift.sql.reveal()).await;
        match given.map_err(postgres::Error::withheld) {
            Err(error) if all => return Err(error.into()),
            // This server is another one, perhaps newer: better without a setting than without the database.
            Err(error) => notes.push(format!("the database lacks something that it had: {}", chain(&error))),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// What could not be made may be why the rest failed.
fn noted(error: Error, notes: &[String]) -> Error {
    if notes.is_empty() {
        return error;
    }
    Error::Noted {
        notes: format!("on this server: {}", notes.join("; ")),
        source: Box::new(error),
    }
}

fn difference(recorded: &BTreeMap<String, u64>, found: &BTreeMap<String, u64>) -> Option<String> {
    let missing = recorded.iter().find(|(table, rows)| found.get(*table) != Some(rows));
    if let Some((table, rows)) = missing {
        return Some(format!("{table} had {rows} rows and has {:?} now", found.get(table)));
    }
    let surplus = found.keys().find(|table| !recorded.contains_key(*table));
    surplus.map(|table| format!("{table} was not in the backup"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restore_that_is_waited_for_is_not_ended_after_what_a_backup_may_take() {
        let half_a_day = Duration::from_hours(12);
        assert_eq!(patience(half_a_day, true), half_a_day);
        assert!(patience(half_a_day, false) >= Duration::from_hours(100));
    }
}
