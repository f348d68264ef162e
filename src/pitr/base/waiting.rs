//! While `pg_basebackup` runs, and after the last of its copy most of all: the server waits until its log is archived.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Error;
use crate::pitr::version;
use crate::postgres::Admin;

/// The server sent nothing for this long: its archiving is broken, and it waits for that.
const STALL: Duration = Duration::from_secs(600);
/// The archiver tries thrice, a second apart, before it rests for a minute.
const ARCHIVER_PATIENCE: Duration = Duration::from_secs(10);
const STALL_POLL: Duration = Duration::from_secs(2);
/// An archived segment takes some hundredths of a second.
const HASTE: Duration = Duration::from_millis(100);

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

/// Once the server has sent something and then falls silent, commits next to nothing every tenth of a second, so that it
/// looks that often whether its log is archived, as it does on a busy database; on an idle one it looks once a second. Never
/// returns; where it may not commit, it does nothing.
pub(super) async fn hasten(admin: &Admin, server_version: u32, seen: &AtomicU64) -> Infallible {
    if version::commits_wake_senders(server_version / 10_000) {
        // A commit must not wait for a standby that is away: others ask on this connection as well.
        let begun = admin
            .batch("hastening the server", "SET synchronous_commit = local")
            .await;
        let commit = "SELECT pg_logical_emit_message(true, 'foregate', 'base backup')";
        let (mut is_welcome, mut last) = (begun.is_ok(), 0);
        while is_welcome {
            tokio::time::sleep(HASTE).await;
            let now = seen.load(Ordering::Relaxed);
            if now > 0 && now == last {
                is_welcome = admin.query("hastening the server", commit, &[]).await.is_ok();
            }
            last = now;
        }
    }
    std::future::pending().await
}
