//! Keeps the stream running, and what it reads on its way to the repository.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Keeper;
use crate::pitr::name::File;
use crate::pitr::stream::{Config, Error};
use crate::telemetry::cause::chain;

/// How often the spool is looked at: one listing of a small directory.
const DRAIN_EVERY: Duration = Duration::from_secs(1);
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);
/// A stream that ran this long had got on.
const RAN_WELL: Duration = Duration::from_secs(60);

impl Keeper {
    pub(super) async fn stream(self: Arc<Self>) {
        let mut config = Config {
            target: self.target.clone(),
            slot: self.config.slot.clone(),
            spool: PathBuf::new(),
        };
        let mut pause = RESTART_PAUSE;
        let mut done = BTreeSet::new();
        loop {
            let begun = self.clock.tick();
            let Some(spool) = self.spool() else {
                // The watch asks the server who it is.
                tokio::time::sleep(RESTART_PAUSE).await;
                continue;
            };
            if spool != config.spool {
                done.clear();
                config.spool = spool;
            }
            let why = match self.stream_once(&config, &mut done).await {
                Ok(()) => "pg_receivewal ended".to_owned(),
                Err(error) => chain(&error),
            };
            self.note("stream", Some(format!("the log is not streamed: {why}")));
            if self.clock.tick().saturating_sub(begun) >= RAN_WELL {
                pause = RESTART_PAUSE;
            }
            // What was read before goes on to the repository meanwhile.
            drop(tokio::time::timeout(pause, self.drain(&config, &mut done)).await);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RESTART_PAUSE_MAX);
        }
    }

    /// Of the cluster that the server is now: after `pg_upgrade` what the old one left is not in the way of the new one's log.
    fn spool(&self) -> Option<PathBuf> {
        Some(self.state_dir.join("wal-stream").join(self.archiver.ours()?.prefix()))
    }

    /// Returns when the stream has broken. Dropping the child kills it.
    async fn stream_once(&self, config: &Config, done: &mut BTreeSet<File>) -> Result<(), Error> {
        if config.spool.is_dir() && config.waiting_bytes()? >= self.config.spool_max_bytes {
            // The log waits on the server then, within max_slot_wal_keep_size.
            self.drain(config, done).await?;
        }
        // What was read before goes first, if it can: a spool that cannot go on may only be set aside when it is archived.
        let drained = tokio::time::timeout(RESTART_PAUSE_MAX, self.drain(config, done)).await;
        let is_drained = !config.spool.is_dir() || matches!(drained, Ok(Ok(())));
        let child = config.start(is_drained).await?;
        let reading = Config::wait(child);
        let draining = async {
            loop {
                tokio::time::sleep(DRAIN_EVERY).await;
                match self.drain(config, done).await {
                    Ok(()) => self.note("stream", None),
                    Err(error) => self.note(
                        "stream",
                        Some(format!("what is streamed is not archived: {}", chain(&error))),
                    ),
                }
                if config.waiting_bytes()? >= self.config.spool_max_bytes {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            ended = reading => ended,
            full = draining => full,
        }
    }

    async fn drain(&self, config: &Config, done: &mut BTreeSet<File>) -> Result<(), Error> {
        let Some(archive) = self.archive() else { return Ok(()) };
        let tell = |file, pushed, bytes, begun| self.archiver.archived(file, pushed, bytes, begun);
        config.drain(&archive, done, self.clock, tell).await
    }
}
