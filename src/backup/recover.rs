//! What a restore left half done, because it failed or its process ended: finished or undone by what the server shows,
//! never by what somebody remembers.

use std::time::Duration;

use super::journal::{Intent, Lock};
use super::swap::allow_connections;
use super::{Error, Vault};
use crate::postgres::admin::identifier;
use crate::postgres::secrets::sweep;
use crate::postgres::{self, Admin};

/// What our last sessions get to end.
const ENDED_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// What was found, and done about it: with a sentence for whoever did not see the restore end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovered {
    Nothing,
    /// The old database serves; the half-made new one was dropped.
    Undone(String),
    /// The new database stands where it was meant to.
    Finished(String),
}

impl Recovered {
    fn undone(intent: &Intent) -> Self {
        let Intent { live, new, .. } = intent;
        Self::Undone(match intent.is_proof() {
            true => format!("a proof of a backup was cut short: its scratch database {new:?} was dropped"),
            false => format!("a restore was cut short before its end: {new:?} was dropped, and {live:?} is as it was"),
        })
    }

    fn finished(intent: &Intent) -> Self {
        let name = intent.goal.as_ref().unwrap_or(&intent.live);
        let old = match intent.replaces() {
            true => format!("; the one that it replaced is kept as {:?}", intent.old),
            false => String::new(),
        };
        Self::Finished(format!(
            "a restore was cut short after its end: {name:?} is what was restored{old}"
        ))
    }
}

impl Vault {
    /// Finishes or undoes what was left half done, and removes decrypted leftovers. Called at every start.
    ///
    /// # Errors
    /// [`Error::Busy`] while another process is at it; or the server cannot be asked, and the note stays for the next time.
    pub async fn recover(&self) -> Result<Recovered, Error> {
        self.sweep_scratch();
        if self.read_intent()?.is_none() {
            // Not even for a moment in the way of somebody's run.
            return Ok(Recovered::Nothing);
        }
        let (lock, _) = self.lock_to_read_soon().await?;
        self.recover_locked(&lock).await
    }

    /// As [`Vault::recover_locked`], before something new begins: nobody else tells of what there was.
    pub(super) async fn recover_before(&self, lock: &Lock) -> Result<(), Error> {
        if let Recovered::Undone(told) | Recovered::Finished(told) = self.recover_locked(lock).await? {
            tracing::warn!("{told}");
        }
        Ok(())
    }

    /// As [`Vault::recover`], before every run that changes and after every restore.
    pub(super) async fn recover_locked(&self, _lock: &Lock) -> Result<Recovered, Error> {
        self.sweep_scratch();
        let Some(intent) = self.read_intent()? else {
            return Ok(Recovered::Nothing);
        };
        let admin = Admin::beside(&self.target, "foregate recover").await?;
        end_sessions(&admin, &intent.application()).await?;
        let recovered = self.settle(&admin, &intent).await?;
        drop_roles(&admin, &intent.roles).await?;
        self.clear_intent()?;
        Ok(recovered)
    }

    /// The renames are one transaction, so that the names tell whether they happened.
    async fn settle(&self, admin: &Admin, intent: &Intent) -> Result<Recovered, Error> {
        let sql = "SELECT datname::text, oid = $1, datallowconn FROM pg_database \
            WHERE oid = $1 OR datname IN ($2, $3, $4) AND datname <> ''";
        let goal = intent.goal.clone().unwrap_or_else(|| intent.live.clone());
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&intent.live_oid, &intent.new, &intent.live, &goal];
        let rows = admin.query("looking for the databases", sql, &params).await?;
        let found: Vec<(String, bool, bool)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
        let exists = |name: &str| found.iter().any(|(other, ..)| other == name);
        let is_old = |name: &str| found.iter().any(|(other, old, _)| other == name && *old);
        // Whichever of the two has the name now: nobody shall be shut out by us.
        let is_closed = found.iter().any(|(name, _, open)| *name == intent.live && !open);
        if intent.replaces() && is_closed {
            let open = allow_connections(&intent.live, true);
            admin.batch("opening the database again", &open).await?;
        }
        if exists(&intent.new) {
            self.discard(admin, &intent.new).await?;
            return Ok(Recovered::undone(intent));
        }
        let is_there = exists(&goal) && !is_old(&goal);
        Ok(if is_there {
            Recovered::finished(intent)
        } else {
            Recovered::undone(intent)
        })
    }

    /// Decrypted dumps and passwords of processes that were killed.
    fn sweep_scratch(&self) {
        sweep(&self.config.scratch);
        sweep(&std::env::temp_dir());
    }
}

/// What was sent before the process died goes on without it: a database that is being made, a rename that waits.
async fn end_sessions(admin: &Admin, application: &str) -> Result<(), Error> {
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1";
    let ended = async {
        while admin
            .value::<i64>("ending the sessions of a restore", end, &[&application])
            .await?
            > 0
        {
            tokio::time::sleep(LOOK).await;
        }
        Ok::<_, postgres::Error>(())
    };
    match tokio::time::timeout(ENDED_WITHIN, ended).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(postgres::Error::Slow {
            act: "ending the sessions of a restore".to_owned(),
            seconds: ENDED_WITHIN.as_secs(),
        }
        .into()),
    }
}

/// Roles without which the backup could not be restored, unless something in it still needs them.
async fn drop_roles(admin: &Admin, roles: &[String]) -> Result<(), Error> {
    let ours = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1 AND NOT rolcanlogin AND NOT rolsuper)";
    for role in roles {
        if !admin.value::<bool>("looking for a role", ours, &[role]).await? {
            continue;
        }
        let drop = format!("DROP ROLE {}", identifier(role));
        match admin.batch("dropping a role", &drop).await {
            Err(error) if !error.is_depended_on() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
