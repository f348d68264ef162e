//! A server that recovers: watched until it has paused at its target or died, and promoted when told.
//!
//! `pg_ctl -w` reports success before a recovery fails, so the process itself is watched and asked.

use std::time::Duration;

use jiff::Timestamp;

use super::feed::Feed;
use super::{Phases, Place, Reached};
use crate::pitr::archive::Archive;
use crate::pitr::name::Lsn;
use crate::pitr::plan::{Goal, Plan};
use crate::pitr::{Error, Recovery, version};
use crate::postgres::program::Programs;
use crate::postgres::server::{Layout, Server};
use crate::postgres::{self, Admin, Target};

const POLL: Duration = Duration::from_millis(50);
/// A promotion writes a checkpoint first.
const PROMOTE_LIMIT: Duration = Duration::from_secs(600);

/// A recovered server, paused at its target or promoted.
#[derive(Debug)]
pub struct Running {
    server: Server,
    major: u32,
    /// Whom the private socket lets in as superuser.
    role: String,
    database: String,
    pub reached: Reached,
    pub phases: Phases,
    /// What went otherwise than usual, as sentences.
    pub notes: Vec<String>,
}

impl Running {
    pub(super) fn start(
        recovery: &Recovery,
        programs: &Programs,
        layout: Layout,
        settings: &[(&'static str, String)],
        plan: &Plan,
    ) -> Result<Self, Error> {
        Ok(Self {
            server: Server::start(programs, layout, settings)?,
            major: plan.cluster.major,
            role: recovery.target().role().to_owned(),
            database: recovery.target().database().to_owned(),
            reached: Reached {
                lsn: Lsn(0),
                last_commit: None,
                said: String::new(),
            },
            phases: Phases::default(),
            notes: Vec::new(),
        })
    }

    /// Feeds it and waits.
    pub(super) async fn until_paused(
        mut self,
        recovery: &Recovery,
        plan: &Plan,
        archive: &Archive,
        feed: &Feed,
        place: &Place,
    ) -> Result<Self, Error> {
        let slow = |_| postgres::Error::Slow {
            act: "replaying the log".to_owned(),
            seconds: recovery.config.step_timeout.as_secs(),
        };
        let progress = recovery.bases.step("replay");
        {
            let fed = feed.run(archive, &plan.segments, place);
            let paused = self.watch(feed, plan, progress);
            let paused = tokio::time::timeout(recovery.config.step_timeout, paused);
            tokio::pin!(paused);
            tokio::pin!(fed);
            tokio::select! {
                paused = &mut paused => paused.map_err(slow)??,
                fed = &mut fed => {
                    fed?;
                    paused.await.map_err(slow)??;
                }
            }
        }
        self.confirm(plan).await?;
        Ok(self)
    }

    /// Returns when recovery has paused, or fails when the server has died.
    async fn watch(&mut self, feed: &Feed, plan: &Plan, progress: impl Fn(u64)) -> Result<(), Error> {
        loop {
            self.server.alive()?;
            let taken = feed.taken.load(std::sync::atomic::Ordering::Relaxed);
            progress(taken.saturating_mul(plan.segment_size.bytes()));
            if self.is_paused().await? {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// `false` as well while it cannot be asked yet.
    async fn is_paused(&mut self) -> Result<bool, Error> {
        let Ok(admin) = self.connect("postgres").await else {
            return Ok(false);
        };
        Ok(admin
            .value("asking for the pause", version::paused(self.major), &[])
            .await?)
    }

    /// A session of the superuser. The role of the application's address serves where it exists, else the usual one.
    ///
    /// # Errors
    /// The server does not let us in (yet).
    pub async fn connect(&mut self, database: &str) -> Result<Admin, Error> {
        let application = "foregate recovery";
        let first = self.target(database)?;
        match Admin::connect(&first, database, application).await {
            Ok(admin) => {
                let superuser = "SELECT rolname::text FROM pg_roles WHERE rolsuper AND rolcanlogin \
                    ORDER BY rolname <> current_user, oid LIMIT 1";
                let superuser: String = admin.value("looking for a superuser", superuser, &[]).await?;
                if superuser == self.role {
                    return Ok(admin);
                }
                self.role = superuser;
            }
            Err(error) if self.role != "postgres" && is_answer(&error) => "postgres".clone_into(&mut self.role),
            Err(error) => return Err(error.into()),
        }
        Ok(Admin::connect(&self.target(database)?, database, application).await?)
    }

    fn target(&self, database: &str) -> Result<Target, Error> {
        Ok(self.server.layout().target(&self.role, database)?)
    }

    /// The database of the application, where it exists at the target.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    #[must_use]
    pub fn layout(&self) -> &Layout {
        self.server.layout()
    }

    #[must_use]
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Compares where it stopped with where the plan says.
    async fn confirm(&mut self, plan: &Plan) -> Result<(), Error> {
        let admin = self.connect("postgres").await?;
        let sql = "SELECT pg_last_wal_replay_lsn()::text, \
            (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint";
        let rows = admin.query("asking where recovery stands", sql, &[]).await?;
        let row = rows
            .first()
            .ok_or_else(|| Error::Astray("it does not say where".to_owned()))?;
        let lsn: Option<String> = row.get(0);
        let micros: Option<i64> = row.get(1);
        let lsn = lsn.and_then(|text| text.parse().ok()).unwrap_or(Lsn(0));
        let log = self.server.log_tail();
        let said = log.lines().rev().find_map(|line| {
            let at = line.find("recovery stopping ")?;
            line.get(at..).map(str::to_owned)
        });
        let said = said.ok_or_else(|| Error::Astray("its log does not say that it stopped at a target".to_owned()))?;
        self.reached = Reached {
            lsn,
            last_commit: micros.and_then(|micros| Timestamp::from_microsecond(micros).ok()),
            said,
        };
        astray(plan, &self.reached).map_or(Ok(()), |reason| Err(Error::Astray(reason)))
    }

    /// Ends the recovery: the server becomes one that can be written to, on a timeline of its own.
    ///
    /// # Errors
    /// It died, or did not get there.
    pub async fn promote(&mut self) -> Result<(), Error> {
        let admin = self.connect("postgres").await?;
        let done = resume(&admin).await;
        self.server.alive()?;
        done
    }

    /// Ends the server.
    pub async fn stop(self) {
        self.server.stop().await;
    }

    /// Lets the server live on after us, paused at its target.
    ///
    /// # Errors
    /// It does not start again.
    pub async fn let_go(self) -> Result<(), Error> {
        let programs = Programs::server(self.major)?;
        Ok(self.server.let_go(&programs).await?)
    }
}

/// Waits for the pause at the target.
pub(super) async fn until_paused(admin: &Admin, major: u32, limit: Duration) -> Result<(), Error> {
    let paused = async {
        while !admin
            .value::<bool>("asking for the pause", version::paused(major), &[])
            .await?
        {
            tokio::time::sleep(POLL).await;
        }
        Ok::<(), Error>(())
    };
    let slow = |_| postgres::Error::Slow {
        act: "reaching the target again".to_owned(),
        seconds: limit.as_secs(),
    };
    tokio::time::timeout(limit, paused).await.map_err(slow)?
}

/// Goes on from the pause to the end of the recovery, and waits for it. The session outlives the promotion; a server
/// that dies ends it.
pub(super) async fn resume(admin: &Admin) -> Result<(), Error> {
    admin
        .batch("resuming at the target", "SELECT pg_wal_replay_resume()")
        .await?;
    let promoted = async {
        while admin
            .value::<bool>("asking for the promotion", "SELECT pg_is_in_recovery()", &[])
            .await?
        {
            tokio::time::sleep(POLL).await;
        }
        Ok::<(), Error>(())
    };
    let slow = |_| postgres::Error::Slow {
        act: "promoting".to_owned(),
        seconds: PROMOTE_LIMIT.as_secs(),
    };
    tokio::time::timeout(PROMOTE_LIMIT, promoted).await.map_err(slow)?
}

/// The server itself said no, rather than not being there.
fn is_answer(error: &postgres::Error) -> bool {
    match error {
        postgres::Error::Connect { source, .. } => source
            .code()
            .is_some_and(|code| *code != tokio_postgres::error::SqlState::CANNOT_CONNECT_NOW),
        _ => false,
    }
}

fn astray(plan: &Plan, reached: &Reached) -> Option<String> {
    if reached.lsn < plan.base.stop {
        return Some(format!(
            "it stands at {}, before the end of the copy at {}",
            reached.lsn, plan.base.stop
        ));
    }
    if let Goal::Time(at) = plan.goal {
        if let Some(last) = reached.last_commit.filter(|last| *last > at) {
            return Some(format!("its last transaction is of {last}, after the target"));
        }
        let transaction = plan.stop.transaction.map(|xid| format!("transaction {xid},"));
        if let Some(transaction) = transaction.filter(|text| !reached.said.contains(text)) {
            return Some(format!(
                "the plan says before {transaction} the server says: {}",
                reached.said
            ));
        }
    }
    None
}
