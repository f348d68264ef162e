//! Carrying a plan out: the copy into a new directory, the log up to the target, and then a server that waits, paused,
//! on a private socket. Nothing of it touches what serves, and nothing is archived until it is promoted.

mod feed;
mod later;
mod look;
mod run;
pub mod settings;
mod unpack;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use self::feed::Feed;
pub use self::later::promote;
pub use self::look::{Shown, Table};
pub use self::run::Running;
pub use self::unpack::Place;
use self::unpack::{Unpacker, write_file};
use super::base::backup_manifest::File;
use super::base::{Base, check};
use super::name::Lsn;
use super::plan::{Plan, Refusal};
use super::tar::Reader;
use super::{Error, Recovery, base, local};
use crate::postgres;
use crate::postgres::child::{Command, User};
use crate::postgres::program::Programs;
use crate::postgres::server;
use crate::repository::{self, manifest::Part};

/// A socket's whole path has at most 107 bytes; `/.s.PGSQL.5432.lock` is ours.
const SOCKET_DIRECTORY_BYTES_MAX: usize = 107 - 19;

/// How long each part of a recovery took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// Listing the repository, and reading the whole log on the way. A recovery by a plan at hand has none.
    pub plan: Duration,
    pub unpack: Duration,
    /// `pg_verifybackup`, which finds the bytes proven.
    pub verify: Duration,
    /// From the server's start to the pause at the target.
    pub replay: Duration,
    pub promote: Duration,
}

impl Phases {
    #[must_use]
    pub fn total(&self) -> Duration {
        [self.plan, self.unpack, self.verify, self.replay, self.promote]
            .iter()
            .fold(Duration::ZERO, |sum, part| sum.saturating_add(*part))
    }
}

/// Where a recovery stands when it has paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    pub lsn: Lsn,
    /// Of the last transaction that is there.
    pub last_commit: Option<Timestamp>,
    /// The server's own words.
    pub said: String,
}

/// The account for a server of ours on a directory at or below `path`: `name`, or else its owner's, or else `postgres`.
///
/// # Errors
/// We are root, and there is none.
pub fn account(name: Option<&str>, path: &Path) -> Result<Option<User>, Error> {
    match (name, server::owner(path)) {
        (None, Some(owner)) => Ok(Some(owner)),
        _ => Ok(server::account(name.unwrap_or("postgres"))?),
    }
}

impl Recovery {
    /// The account for a server of ours on a directory at or below `path`.
    ///
    /// # Errors
    /// We are root, and there is none.
    pub fn account(&self, path: &Path) -> Result<Option<User>, Error> {
        account(self.config.account.as_deref(), path)
    }

    /// Carries `plan` out into `place`, up to the pause at the target, or until `stop`.
    ///
    /// # Errors
    /// Why it did not get there. What was unpacked stays for a look; nothing runs any more.
    pub async fn recover(&self, plan: &Plan, place: &Place, stop: impl Future<Output = ()>) -> Result<Running, Error> {
        let (repository, now, mut notes) = (&self.bases.repository, self.bases.clock.wall(), Vec::new());
        // To unpack the copy, to check it and to replay its log is a step each.
        let lasts = self.config.step_timeout.saturating_mul(3);
        let lease = repository.lease(plan.base.id, now, lasts, &mut notes).await?;
        let done = tokio::select! {
            done = self.recover_leased(plan, place) => done,
            () = stop => Err(Error::Interrupted { place: Box::new(place.clone()) }),
        };
        notes.extend(repository.end_lease(lease).await);
        let mut running = done?;
        running.notes = notes;
        Ok(running)
    }

    async fn recover_leased(&self, plan: &Plan, place: &Place) -> Result<Running, Error> {
        let programs = Programs::server(plan.cluster.major)?;
        let mut phases = Phases::default();
        let clock = self.bases.clock;
        let began = clock.tick();
        let slow = |_| postgres::Error::Slow {
            act: "unpacking the base backup".to_owned(),
            seconds: self.config.step_timeout.as_secs(),
        };
        let unpacking = self.unpack(&plan.base, plan.disk_bytes, place);
        tokio::time::timeout(self.config.step_timeout, unpacking)
            .await
            .map_err(slow)??;
        phases.unpack = clock.tick().saturating_sub(began);
        let began = clock.tick();
        self.verify(&programs, place).await?;
        phases.verify = clock.tick().saturating_sub(began);
        let began = clock.tick();
        self.adapt(&plan.base, place)?;
        let mut running = self.start(plan, place, &programs).await?;
        phases.replay = clock.tick().saturating_sub(began);
        running.phases = phases;
        Ok(running)
    }

    /// The parts of the base backup into the place, every file compared with `backup_manifest` as it is written.
    async fn unpack(&self, base: &Base, disk_bytes: u64, place: &Place) -> Result<(), Error> {
        let bytes = place.run.as_os_str().len();
        if bytes > SOCKET_DIRECTORY_BYTES_MAX {
            return Err(Error::Long {
                path: place.run.clone(),
                bytes,
                limit: SOCKET_DIRECTORY_BYTES_MAX,
            });
        }
        let parent = place.data.parent().unwrap_or(Path::new("/"));
        base::room(parent, disk_bytes)?;
        place.make(&oids(base)).map_err(local("making the directories"))?;
        let progress = Arc::new(self.bases.step("unpack"));
        let mut before = 0;
        let mut seen = HashMap::new();
        for part in base.parts.iter().filter(|part| part.name != "backup_manifest") {
            let progress = Arc::clone(&progress);
            let so_far = before;
            let progress = move |bytes: u64| progress(bytes.saturating_add(so_far));
            seen.extend(self.unpack_part(base, part, place, progress).await?);
            before = before.saturating_add(part.plain_bytes);
        }
        place.link(&oids(base)).map_err(local("linking the tablespaces"))?;
        let manifest = self.unpack_manifest(base, place).await?;
        check::prove(&base.folder, &manifest, &seen)?;
        Ok(())
    }

    /// One tar into its directory. Returns the files that were written, with their hashes.
    async fn unpack_part(
        &self,
        base: &Base,
        part: &Part,
        place: &Place,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<HashMap<String, File>, Error> {
        let key = format!("{}/{}", base.folder, part.object);
        let reader = Reader::new(Unpacker::new(place, part.name.parse().ok()));
        let keys = Arc::clone(&self.bases.keys);
        let opened = self.bases.repository.get_opened(&key, reader, keys, progress);
        let (opened, reader) = opened.await?;
        part.check_opened(&key, &opened)?;
        let unpacker = reader.finish().map_err(local("reading the tar"))?;
        Ok(unpacker.checker.seen)
    }

    async fn unpack_manifest(&self, base: &Base, place: &Place) -> Result<Vec<u8>, Error> {
        let missing = || Refusal {
            reason: format!("base backup {} has no backup_manifest", base.id),
            ..Refusal::default()
        };
        let mut parts = base.parts.iter();
        let part = parts.find(|part| part.name == "backup_manifest").ok_or_else(missing)?;
        let key = format!("{}/{}", base.folder, part.object);
        let (sealed, bytes) = self
            .bases
            .repository
            .get_sealed(&key, Vec::new(), Arc::clone(&self.bases.keys), |_| {})
            .await?;
        part.check(&key, &sealed)?;
        let path = place.data.join("backup_manifest");
        write_file(&path, &bytes, place.user).map_err(local("writing backup_manifest"))?;
        Ok(bytes)
    }

    /// PostgreSQL's own word that every file is there and complete, before any of them is changed. Their bytes were hashed
    /// as they were written; reading them again would ask the page cache, and take as long as unpacking.
    async fn verify(&self, programs: &Programs, place: &Place) -> Result<(), Error> {
        drop(self.bases.step("verify"));
        let command = Command::new(programs.path("pg_verifybackup"))
            .arg("--no-parse-wal")
            .arg("--skip-checksums")
            .arg("--quiet")
            .arg(place.data.as_os_str())
            .user(place.user)
            .at_full_speed()
            .environment("LC_ALL", "C".to_owned());
        Ok(command.start()?.finish(self.config.step_timeout).await?)
    }

    /// What must differ from the server that was copied: where tablespaces stand, that this is a recovery, and that no
    /// old target speaks.
    fn adapt(&self, base: &Base, place: &Place) -> Result<(), Error> {
        let write = |name: &str, text: &str| {
            let path = place.data.join(name);
            write_file(&path, text.as_bytes(), place.user).map_err(local("preparing the data directory"))
        };
        if !base.tablespaces.is_empty() {
            write("tablespace_map", &place.tablespace_map(&oids(base)))?;
        }
        // Where the distribution keeps it elsewhere, the copy has none, and the server does not start without.
        if !place.data.join("postgresql.conf").exists() {
            write(
                "postgresql.conf",
                "# The copied server kept its configuration outside its data directory.\n",
            )?;
        }
        // A server that a copy was taken from may have been a standby.
        drop(std::fs::remove_file(place.data.join("standby.signal")));
        write("recovery.signal", "")
    }

    async fn start(&self, plan: &Plan, place: &Place, programs: &Programs) -> Result<Running, Error> {
        let archive = self.bases.archive(&plan.cluster);
        let feed = Feed::prepare(&archive, plan, place).await?;
        let control = self.control_data(programs, place).await?;
        let mut settings = settings::around(feed.command(), plan, &place.data);
        settings.extend(settings::required(&control, plan.demands.limits));
        settings.extend(settings::target(plan));
        let layout = server::Layout {
            data: place.data.clone(),
            runtime: place.run.clone(),
            user: place.user,
        };
        let running = Running::start(self, programs, layout, &settings, plan)?;
        running.until_paused(self, plan, &archive, &feed, place).await
    }

    async fn control_data(&self, programs: &Programs, place: &Place) -> Result<String, Error> {
        use std::io::Read as _;
        let mut child = Command::new(programs.path("pg_controldata"))
            .arg(place.data.as_os_str())
            .user(place.user)
            .environment("LC_ALL", "C".to_owned())
            .stdout_piped()
            .start()?;
        let stdout = child.take_stdout()?;
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            stdout.take(64 * 1024).read_to_string(&mut text).map(|_| text)
        });
        child.finish(Duration::from_secs(60)).await?;
        let text = read.await.map_err(|_| repository::Error::Worker)?;
        text.map_err(local("reading pg_controldata"))
    }
}

fn oids(base: &Base) -> Vec<u32> {
    base.tablespaces.iter().map(|tablespace| tablespace.oid).collect()
}
