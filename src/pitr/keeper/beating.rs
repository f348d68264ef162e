//! The heartbeat's rhythm, and keeping what it tells.

use std::sync::Arc;
use std::time::Duration;

use super::{Keeper, Session};
use crate::pitr::beat::Beat;
use crate::pitr::heartbeat::Heart;
use crate::pitr::metrics::seconds;
use crate::telemetry::cause::chain;

/// Between two objects of beats: what a crash can lose of them. The log itself has them all.
const WRITE_EVERY: Duration = Duration::from_secs(300);
/// While the repository is away; beyond it the oldest are let go.
const BEATS_MAX: usize = 10_000;

impl Keeper {
    pub(super) async fn beat(self: &Arc<Self>) {
        let mut heart: Session<Heart> = None;
        let mut ticks = tokio::time::interval(self.config.heartbeat);
        // After a pause one beat is enough.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut written = self.clock.tick();
        loop {
            ticks.tick().await;
            match self.within(self.one_beat(&mut heart)).await {
                Ok(beat) => self.note_beat(beat),
                Err(error) => {
                    heart = None;
                    self.metrics().beat_failures.inc();
                    self.note_absence("heartbeat", format!("no heartbeat: {}", chain(&error)));
                }
            }
            let now = self.clock.tick();
            if now.saturating_sub(written) >= WRITE_EVERY {
                written = now;
                self.write_beats().await;
            }
        }
    }

    async fn one_beat(&self, session: &mut Session<Heart>) -> Result<Option<Beat>, crate::postgres::Error> {
        let (heart, since) = match self.still_young(session) {
            Some(young) => young,
            None => (Heart::new(self.connect().await?).await?, self.clock.tick()),
        };
        let beat = heart.beat().await?;
        // That of another cluster, which answers here no more or not yet, means nothing in the archive of ours.
        let is_ours = self.archiver.ours().is_none_or(|ours| ours == heart.cluster);
        *session = Some((heart, since));
        Ok(beat.filter(|_| is_ours))
    }

    fn note_beat(&self, beat: Option<Beat>) {
        self.note("heartbeat", None);
        let Some(beat) = beat else { return };
        self.metrics().beats.inc();
        self.metrics().last_beat.set(seconds(beat.at));
        let mut state = self.lock();
        state.last_beat = Some(beat);
        state.beats.push(beat);
        let surplus = state.beats.len().saturating_sub(BEATS_MAX);
        state.beats.drain(..surplus);
    }

    /// Puts the beats since the last time into the repository; while that is away, they are kept.
    pub(super) async fn write_beats(&self) {
        let (Some(archive), beats) = (self.archive(), std::mem::take(&mut self.lock().beats)) else {
            return;
        };
        if let Err(error) = archive.put_beats(&beats).await {
            tracing::warn!(
                error = error.chain(),
                "heartbeats cannot be written to the repository yet"
            );
            let mut state = self.lock();
            let newer = std::mem::replace(&mut state.beats, beats);
            state.beats.extend(newer);
        }
    }
}
