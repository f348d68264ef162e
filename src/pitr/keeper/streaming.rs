//! Keeps the stream running, and what it reads on its way to the repository.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Keeper;
use crate::pitr::name::File;
use crate::pitr::stream::{Config, Error};
use crate::repository::layout::Cluster;
use crate::telemetry::cause::chain;

/// How often the spool is looked at: one listing of a small directory.
const DRAIN_EVERY: Duration = Duration::from_secs(1);
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);
/// A stream that ran this long had got on.
const RAN_WELL: Duration = Duration::from_secs(60);
/// Who cannot stream fails before: a connection may take ten seconds to fail.
const SETTLED: Duration = Duration::from_secs(15);
/// Failures in a row until it is asked whether the stream could go on at all: a server that restarts makes one or two.
const FAILURES_MAX: u32 = 3;

impl Keeper {
    pub(super) async fn stream(self: Arc<Self>) {
        let mut streamed = None;
        let (mut pause, mut failures) = (RESTART_PAUSE, 0_u32);
        let mut done = BTreeSet::new();
        loop {
            let begun = self.clock.tick();
            let Some(cluster) = self.archiver.ours() else {
                // The watch asks the server who it is.
                tokio::time::sleep(RESTART_PAUSE).await;
                continue;
            };
            if streamed.replace(cluster.clone()).as_ref() != Some(&cluster) {
                done.clear();
                (pause, failures) = (RESTART_PAUSE, 0);
            }
            let config = self.stream_of(cluster);
            let why = match self.stream_once(&config, &mut done, failures >= FAILURES_MAX).await {
                Ok(()) => "pg_receivewal ended".to_owned(),
                Err(error) => chain(&error),
            };
            self.note_absence("stream", format!("the log is not streamed: {why}"));
            failures = failures.saturating_add(1);
            if self.clock.tick().saturating_sub(begun) >= RAN_WELL {
                (pause, failures) = (RESTART_PAUSE, 0);
            }
            // What was read before goes on to the repository meanwhile.
            drop(tokio::time::timeout(pause, self.drain(&config, &mut done)).await);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RESTART_PAUSE_MAX);
        }
    }

    /// A spool for each cluster: after `pg_upgrade` what the old one left is not in the way of the new one's log.
    fn stream_of(&self, cluster: Cluster) -> Config {
        Config {
            target: self.target.clone(),
            slot: self.config.slot.clone(),
            spool: self.state_dir.join("wal-stream").join(cluster.prefix()),
            cluster,
        }
    }

    async fn drain(&self, config: &Config, done: &mut BTreeSet<File>) {
        let drained = config.drain(&self.archiver, done).await.err();
        let problem = |error| format!("what is streamed is not archived: {}", chain(&error));
        self.note("spool", drained.map(problem));
    }

    /// Returns when the stream has broken. Dropping the child kills it.
    async fn stream_once(&self, config: &Config, done: &mut BTreeSet<File>, is_stuck: bool) -> Result<(), Error> {
        // The log waits on the server then, within max_slot_wal_keep_size.
        if config.spool.is_dir() && config.waiting_bytes()? >= self.config.spool_max_bytes {
            config.drain(&self.archiver, done).await?;
        }
        let admin = config.connect().await?;
        // A server that has lost the slot goes on removing what would follow: nothing is gained by trying first.
        if config.hold(&admin).await? || is_stuck {
            match config.renew(&admin, &self.archiver).await {
                // Whoever may not look still tries to go on.
                Err(Error::Postgres(error)) => {
                    tracing::debug!(error = chain(&error), "where the stream could go on is not known");
                }
                done => done?,
            }
        }
        drop(admin);
        let child = config.start()?;
        let begun = self.clock.tick();
        let reading = Config::wait(child);
        let draining = async {
            loop {
                tokio::time::sleep(DRAIN_EVERY).await;
                self.drain(config, done).await;
                if self.clock.tick().saturating_sub(begun) >= SETTLED {
                    self.note("stream", None);
                }
                // The old server may well go on to send its log, long after another one answers at the address.
                let is_ours = self.archiver.ours().as_ref() == Some(&config.cluster);
                if !is_ours || config.waiting_bytes()? >= self.config.spool_max_bytes {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            ended = reading => ended,
            full = draining => full,
        }
    }
}
