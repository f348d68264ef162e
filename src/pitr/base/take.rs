//! Taking a base backup.
//!
//! One tablespace: `pg_basebackup` writes its tar into our pipe, and nothing touches a disk of ours. Several: it insists
//! on an empty directory, so its tars are spooled, with the room checked first. It is told not to send the log
//! (`--wal-method=none`): the log comes by the archive, and the server waits until what the copy needs is there.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use ulid::Ulid;

use super::backup_manifest::BackupManifest;
use super::check::{self, Checker};
use super::{Bases, Error, waiting};
use crate::pitr::chain::{self, Index};
use crate::pitr::history::Leg;
use crate::pitr::name::{Lsn, SegmentName, SegmentSize, Timeline};
use crate::pitr::setup::Way;
use crate::pitr::tar::Reader;
use crate::postgres::Admin;
use crate::postgres::child::Command;
use crate::postgres::program::Programs;
use crate::postgres::secrets::{self, PrivateDirectory};
use crate::repository::frames::Compression;
use crate::repository::layout::{self, Cluster};
use crate::repository::manifest::{self, Content, Level, Manifest, Part, Tablespace};
use crate::repository::seal::Measured;
use crate::repository::{self, Keys};

/// "foregate" and "base" as a number: one base backup of a server at a time, wherever it is asked for.
const ADVISORY_LOCK: i64 = 0x666f_7265_6762;
/// The server asks for the size of every file.
const MEASURING: Duration = Duration::from_hours(1);
/// The log comes by its own way, and may come later than the copy.
const LOG_LIMIT: Duration = Duration::from_secs(120);
const LOG_POLL: Duration = Duration::from_millis(200);
/// The stream makes its slot once it has come to the server; the first base backup of a new installation is earlier.
const SLOT_LIMIT: Duration = Duration::from_secs(30);
/// A slot may be that of the stream.
const GOES_NOWHERE: &str = "SELECT current_setting('archive_mode') = 'off' \
    AND NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_type = 'physical')";

/// The server as it was found.
struct Server {
    cluster: Cluster,
    version: u32,
    programs: Programs,
    segment_size: SegmentSize,
    tablespaces: Vec<Tablespace>,
    /// Of all databases: what several tablespaces need as scratch.
    bytes: u64,
}

/// What the parts hold.
struct Proven {
    manifest: BackupManifest,
    parts: Vec<Part>,
    stopped_at: Timestamp,
}

/// A copy, as far as it was written down.
struct Copied {
    parts: Vec<Part>,
    checker: Checker,
    stopped_at: Timestamp,
}

impl Bases {
    /// Takes one base backup. Nothing is published unless what is stored was opened whole, the stored bytes were read back,
    /// and its log is in the archive.
    ///
    /// # Errors
    /// Why there is no new base backup.
    pub async fn take(&self, labels: Vec<String>, schedule_keys: Vec<String>) -> Result<Manifest, Error> {
        let id = Ulid::generate();
        let application = format!("foregate base {id}");
        // Such a lock is one of its database, and the act is one of the whole server: two that guard different databases of it
        // must meet. Not in `template1`, of which nobody can make a database while we are in it.
        let databases = ["postgres", self.target.database()];
        let admin = Admin::connect_first(&self.target, &databases, &application).await?;
        if let Some(holder) = admin.exclude(ADVISORY_LOCK).await? {
            return Err(Error::Busy(holder));
        }
        end_sessions(&admin).await?;
        self.prove_way(&admin).await?;
        let server = server(&admin).await?;
        self.sweep(&server.cluster).await?;
        let folder = layout::base(&server.cluster, id);
        let made = self
            .make(&admin, &server, id, &folder, &application, labels, schedule_keys)
            .await;
        if made.is_err() {
            // What cannot be removed has lost its manifest, and the next run sweeps it.
            drop(self.repository.remove_folder(&folder).await);
            // The cause is told below; what is left here, the next run ends.
            drop(end_sessions(&admin).await);
        }
        admin.give_back(ADVISORY_LOCK).await;
        made
    }

    /// Refuses before a copy of hours, whose log nobody would have.
    async fn prove_way(&self, admin: &Admin) -> Result<(), Error> {
        let patience = match self.wal {
            Way::ArchiveCommand => Duration::ZERO,
            Way::Stream => SLOT_LIMIT,
        };
        let deadline = self.clock.tick().saturating_add(patience);
        while admin.value("asking who takes the log", GOES_NOWHERE, &[]).await? {
            if self.clock.tick() >= deadline {
                return Err(Error::Unarchived);
            }
            tokio::time::sleep(LOG_POLL).await;
        }
        Ok(())
    }

    /// Removes what killed runs left: parts without a manifest, uploads without an end, and tars in the clear. The lock says
    /// that nobody is writing them.
    async fn sweep(&self, cluster: &Cluster) -> Result<(), Error> {
        secrets::sweep(&self.scratch);
        let now = self.clock.wall();
        self.repository.sweep_unfinished(&layout::bases(cluster), now).await?;
        let keys = self.repository.list(&layout::bases(cluster)).await?;
        let mut folders = BTreeMap::<&str, bool>::new();
        for (folder, name) in keys.iter().filter_map(|(key, _)| key.rsplit_once('/')) {
            *folders.entry(folder).or_default() |= name == "manifest.json";
        }
        for folder in folders
            .iter()
            .filter_map(|(folder, is_whole)| (!is_whole).then_some(folder))
        {
            self.repository.remove_folder(folder).await?;
        }
        Ok(())
    }

    async fn make(
        &self,
        admin: &Admin,
        server: &Server,
        id: Ulid,
        folder: &str,
        application: &str,
        labels: Vec<String>,
        schedule_keys: Vec<String>,
    ) -> Result<Manifest, Error> {
        let started_at = self.clock.wall();
        let keys = Arc::new(self.keys.with_witness());
        let command = basebackup(server, id).target(&self.target, application)?;
        let copied = if server.tablespaces.is_empty() {
            let command = command.arg("--pgdata=-").stdout_piped();
            self.stream(admin, server, folder, application, command, &keys).await?
        } else {
            self.spool(admin, server, folder, command, &keys).await?
        };
        let proven = self.settle(folder, copied, &keys).await?;
        let (first, last) = proven.manifest.span().ok_or_else(|| Error::Unproven {
            id,
            reason: "backup_manifest names no log".to_owned(),
        })?;
        let (start, stop) = (lsn(id, &first.start)?, lsn(id, &last.end)?);
        let content = Content::Base {
            system_identifier: server.cluster.system_identifier.clone(),
            server_version: server.version,
            client_version: server.programs.major.to_string(),
            timeline: last.timeline,
            start_lsn: start.to_string(),
            stop_lsn: stop.to_string(),
            stopped_at: proven.stopped_at,
            segment_bytes: server.segment_size.bytes(),
            tablespaces: server.tablespaces.clone(),
        };
        let manifest = Manifest {
            format: manifest::FORMAT,
            id,
            content,
            labels,
            schedule_keys,
            started_at,
            finished_at: self.clock.wall(),
            verified: Level::L2,
            parts: proven.parts,
            recipients: self.keys.recipients(),
            foregate: env!("CARGO_PKG_VERSION").to_owned(),
        };
        self.prove_log(server, id, last.timeline, start, stop).await?;
        let published = self
            .repository
            .create(&layout::manifest(folder), manifest.to_bytes())
            .await?;
        if !published {
            return Err(Error::Vanished { id });
        }
        Ok(manifest)
    }

    /// Compares what was opened with `backup_manifest`, reads the stored bytes back, and stores the manifest beside them.
    async fn settle(&self, folder: &str, copied: Copied, keys: &Arc<Keys>) -> Result<Proven, Error> {
        let Copied {
            mut parts,
            checker,
            stopped_at,
        } = copied;
        let manifest = check::prove(folder, &checker.manifest, &checker.seen)?;
        for part in &parts {
            let key = format!("{folder}/{}", part.object);
            let progress = self.step("verify");
            self.repository.confirm_stored(&key, part, progress).await?;
        }
        let name = "backup_manifest";
        let key = layout::part(folder, name, keys.encrypts());
        let source = io::Cursor::new(checker.manifest);
        let sealed = self
            .repository
            .put_sealed(&key, source, Arc::clone(keys), Compression::DEFAULT, || Ok(()), |_| {})
            .await?;
        let part = Part::new(name, &key, sealed);
        let read = self
            .repository
            .get_sealed(&key, io::sink(), Arc::clone(keys), |_| {})
            .await?;
        part.check(&key, &read.0)?;
        parts.push(part);
        Ok(Proven {
            manifest,
            parts,
            stopped_at,
        })
    }

    /// Stores a tar as `key`, and hashes every file of it out of what is stored.
    async fn put_tar(
        &self,
        key: &str,
        source: impl io::Read + Send + 'static,
        keys: &Arc<Keys>,
        prefix: String,
        confirm: impl FnOnce() -> io::Result<()> + Send + 'static,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<(Measured, Checker), repository::Error> {
        let reader = Reader::new(Checker::new(prefix));
        let keys = Arc::clone(keys);
        let put = self
            .repository
            .put_proven(key, source, keys, Compression::PROVEN, confirm, progress, reader);
        let (measured, reader) = put.await?;
        let damaged = |error: io::Error| repository::Error::damaged(key, error.to_string());
        let checker = reader.finish().map_err(damaged)?;
        Ok((measured, checker))
    }

    /// The one tar, from the program's output into the repository, proven as it streams past. The program's death, or a server
    /// that falls silent, leaves no object.
    async fn stream(
        &self,
        admin: &Admin,
        server: &Server,
        folder: &str,
        application: &str,
        command: Command,
        keys: &Arc<Keys>,
    ) -> Result<Copied, Error> {
        let mut child = command.start()?;
        let source = child.take_stdout()?;
        let (exited, confirm) = oneshot::channel::<()>();
        let confirm = move || {
            let died = |_| io::Error::other("the program failed");
            confirm.blocking_recv().map_err(died)
        };
        let key = layout::part(folder, "base.tar", keys.encrypts());
        let seen = Arc::new(AtomicU64::new(0));
        let (progress, counted) = (self.step("base backup"), Arc::clone(&seen));
        let progress = move |bytes| {
            counted.store(bytes, Ordering::Relaxed);
            progress(bytes);
        };
        let put = self.put_tar(&key, source, keys, String::new(), confirm, progress);
        let finish = async {
            let done = tokio::select! {
                done = child.finish(self.step_timeout) => done.map_err(Error::from),
                stalled = waiting::stalled(admin, &seen) => Err(stalled),
                never = waiting::hasten(&self.target, application, server.version, &seen) => match never {},
            };
            if done.is_ok() {
                // The receiver is gone only when sealing failed already, which `put` reports.
                exited.send(()).ok();
            } else {
                drop(exited);
            }
            done
        };
        tokio::pin!(put);
        tokio::pin!(finish);
        let (measured, checker) = tokio::select! {
            done = &mut finish => { let stored = put.await; done?; stored? }
            stored = &mut put => match stored {
                Ok(stored) => stored,
                Err(error @ repository::Error::Seal { .. }) => { finish.await?; return Err(error.into()) }
                Err(error) => return Err(error.into()),
            },
        };
        Ok(Copied {
            parts: vec![Part::of_tar("base", &key, measured)],
            checker,
            stopped_at: server_time(admin).await?,
        })
    }

    /// Several tablespaces: the program writes its tars into a private directory, whence they are sealed one by one.
    async fn spool(
        &self,
        admin: &Admin,
        server: &Server,
        folder: &str,
        command: Command,
        keys: &Arc<Keys>,
    ) -> Result<Copied, Error> {
        let local = |act| move |source| Error::Local { act, source };
        secrets::make_private(&self.scratch).map_err(local("making the scratch directory"))?;
        super::room(&self.scratch, server.bytes)?;
        let scratch = PrivateDirectory::new(&self.scratch, "base").map_err(local("making the scratch directory"))?;
        let tars = scratch.path().join("tars");
        let command = command.arg("--pgdata").arg(tars.as_os_str());
        drop(self.step("base backup"));
        command.start()?.finish(self.step_timeout).await?;
        let stopped_at = server_time(admin).await?;
        let manifest = std::fs::read(tars.join("backup_manifest")).map_err(local("reading backup_manifest"))?;
        let mut whole = Checker::default();
        let mut parts = Vec::new();
        let names = std::iter::once(None).chain(server.tablespaces.iter().map(|tablespace| Some(tablespace.oid)));
        for oid in names {
            let (name, prefix) = match oid {
                None => ("base".to_owned(), String::new()),
                Some(oid) => (oid.to_string(), format!("pg_tblspc/{oid}/")),
            };
            let (part, checker) = self.store_file(folder, &name, &tars, prefix, keys).await?;
            whole.seen.extend(checker.seen);
            parts.push(part);
        }
        whole.manifest = manifest;
        Ok(Copied {
            parts,
            checker: whole,
            stopped_at,
        })
    }

    async fn store_file(
        &self,
        folder: &str,
        name: &str,
        tars: &Path,
        prefix: String,
        keys: &Arc<Keys>,
    ) -> Result<(Part, Checker), Error> {
        let path = tars.join(format!("{name}.tar"));
        let local = |act| move |source| Error::Local { act, source };
        let source = std::fs::File::open(&path).map_err(local("opening a tar"))?;
        let key = layout::part(folder, &format!("{name}.tar"), keys.encrypts());
        let progress = self.step("store");
        let (measured, checker) = self.put_tar(&key, source, keys, prefix, || Ok(()), progress).await?;
        std::fs::remove_file(&path).map_err(local("removing a tar"))?;
        Ok((Part::of_tar(name, &key, measured), checker))
    }

    /// Waits until every segment of the copy's log is in the archive.
    async fn prove_log(&self, server: &Server, id: Ulid, timeline: u32, start: Lsn, stop: Lsn) -> Result<(), Error> {
        let (cluster, size) = (&server.cluster, server.segment_size);
        let leg = Leg {
            timeline: Timeline(timeline),
            begin: start,
            end: None,
        };
        let archive = self.archive(cluster);
        let deadline = self.clock.tick().saturating_add(LOG_LIMIT);
        loop {
            let files = archive.list().await?;
            let index = Index::new(size, files.iter().map(|archived| archived.file));
            let chain = chain::follow(&index, &[leg], Some(stop));
            if chain.reach >= stop {
                return Ok(());
            }
            if self.clock.tick() >= deadline {
                let missing = chain.gaps.first().map(|gap| gap.first).unwrap_or(stop.segment(size));
                let name = SegmentName {
                    timeline: leg.timeline,
                    number: missing,
                };
                let missing = name.file(size).to_string();
                return Err(Error::LogMissing { id, missing });
            }
            tokio::time::sleep(LOG_POLL).await;
        }
    }
}

fn basebackup(server: &Server, id: Ulid) -> Command {
    Command::new(server.programs.path("pg_basebackup"))
        .arg("--format=tar")
        .arg("--checkpoint=fast")
        .arg("--wal-method=none")
        .arg("--manifest-checksums=SHA256")
        .arg("--no-password")
        .arg(format!("--label=foregate {id}"))
}

/// Ends what runs that died left on the server: a backend that waits for the archive does not notice that its client
/// has gone. The lock says that none of them is another's.
async fn end_sessions(admin: &Admin) -> Result<(), Error> {
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
        WHERE application_name LIKE 'foregate base %' AND pid <> pg_backend_pid()";
    let _: i64 = admin.value("ending what earlier runs left", end, &[]).await?;
    Ok(())
}

/// Asked as soon as the program has ended: at or after the end of the copy, so that whatever committed later is not in it,
/// and before the stored bytes are read back, which may take hours.
async fn server_time(admin: &Admin) -> Result<Timestamp, Error> {
    let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let micros: i64 = admin.value("reading the server's clock", now, &[]).await?;
    Timestamp::from_microsecond(micros).map_err(|error| Error::Local {
        act: "reading the server's clock",
        source: io::Error::other(error),
    })
}

async fn server(admin: &Admin) -> Result<Server, Error> {
    let version = admin.server_version().await?;
    let tablespaces = "SELECT oid, pg_tablespace_location(oid) FROM pg_tablespace \
        WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid";
    let rows = admin.query("reading the tablespaces", tablespaces, &[]).await?;
    let segment = "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'";
    let segment: i64 = admin.value("reading the segment size", segment, &[]).await?;
    let bytes = "SELECT coalesce(sum(pg_tablespace_size(oid)), 0)::bigint FROM pg_tablespace";
    let bytes: i64 = admin
        .value_within("measuring the cluster", bytes, &[], MEASURING)
        .await?;
    Ok(Server {
        cluster: Cluster {
            system_identifier: admin.system_identifier().await?,
            major: version / 10_000,
        },
        version,
        programs: Programs::find(version / 10_000)?,
        segment_size: SegmentSize::new(u64::try_from(segment).unwrap_or(0))
            .map_err(super::super::archive::Error::from)?,
        tablespaces: rows
            .iter()
            .map(|row| Tablespace {
                oid: row.get(0),
                location: row.get(1),
            })
            .collect(),
        bytes: u64::try_from(bytes).unwrap_or(0),
    })
}

fn lsn(id: Ulid, text: &str) -> Result<Lsn, Error> {
    text.parse().map_err(|_| Error::Unproven {
        id,
        reason: format!("backup_manifest names the log position {text:?}"),
    })
}
