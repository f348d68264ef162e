//! While `pg_basebackup` runs, and after the last of its copy most of all: the server waits until its log is archived.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Error;
use crate::pitr::version;
use crate::postgres::{self, Admin, Target};

/// The server sent nothing for this long: its archiving is broken, and it waits for that.
const STALL: Duration = Duration::from_secs(600);
/// The archiver tries thrice, a second apart, before it rests for a minute.
const ARCHIVER_PATIENCE: Duration = Duration::from_secs(10);
const STALL_POLL: Duration = Duration::from_secs(2);
/// An archived segment takes some hundredths of a second.
const HASTE: Duration = Duration::from_millis(100);
/// A server that is woken sixty times warns that archiving has taken a minute.
const COMMITS_MAX: usize = 30;

/// Returns when the server sends nothing any more and is not going to: its archiver fails, or too long a silence.
pub(super) async fn stalled(admin: &Admin, seen: &AtomicU64) -> Error {
    let (mut last, mut quiet) = (0, Duration::ZERO);
    loop {
        tokio::time::sleep(STALL_POLL).await;
        let now = seen.load(Ordering::Relaxed);
        quiet = if now == last {
            quiet.saturating_add(STALL_POLL)
        } else {
            Duration::ZERO
        };
        last = now;
        if quiet >= STALL {
            return Error::Stalled {
                minutes: STALL.as_secs() / 60,
            };
        }
        if quiet >= ARCHIVER_PATIENCE {
            let failing = "SELECT CASE WHEN last_failed_time > coalesce(last_archived_time, '-infinity') \
                AND last_failed_time > now() - interval '90 s' THEN last_failed_wal END FROM pg_stat_archiver";
            let failing = admin
                .value::<Option<String>>("asking for the archiver", failing, &[])
                .await;
            if let Ok(Some(segment)) = failing {
                return Error::Archiver { segment };
            }
        }
    }
}

/// While the server waits for its log to be archived, commits next to nothing every tenth of a second, so that it looks that
/// often, as it does on a busy database; on an idle one it looks once a second. `application` is whom the server waits with.
/// By a connection of its own, since a commit may hang where a question would not. Never returns; where it may not commit, it
/// does nothing.
pub(super) async fn hasten(target: &Target, application: &str, server_version: u32, seen: &AtomicU64) -> Infallible {
    if version::commits_wake_senders(server_version / 10_000)
        && let Err(error) = commit_while_it_waits(target, application, seen).await
    {
        tracing::debug!(%error, "the server is not hastened");
    }
    std::future::pending().await
}

async fn commit_while_it_waits(target: &Target, application: &str, seen: &AtomicU64) -> Result<(), postgres::Error> {
    let act = "hastening the server";
    let admin = Admin::connect(target, target.database(), "foregate hastens").await?;
    // It must not wait for a standby that is away.
    admin.batch(act, "SET synchronous_commit = local").await?;
    let commit = "SELECT pg_logical_emit_message(true, 'foregate', 'base backup') \
        FROM pg_stat_progress_basebackup JOIN pg_stat_activity USING (pid) \
        WHERE application_name = $1 AND phase = 'waiting for wal archiving to finish'";
    let (mut last, mut commits) = (0, 0);
    while commits < COMMITS_MAX {
        tokio::time::sleep(HASTE).await;
        let now = seen.load(Ordering::Relaxed);
        // What does not come may be waited for by us, not by the server: that one knows.
        if now > 0 && now == last {
            commits += admin.query(act, commit, &[&application]).await?.len();
        }
        last = now;
    }
    Ok(())
}
