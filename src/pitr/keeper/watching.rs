//! Looking at the archiver, the slot and the archive now and then.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Keeper, Session};
use crate::pitr::archive::Archive;
use crate::pitr::archiver::whose;
use crate::pitr::inventory::take;
use crate::pitr::retention::Policy;
use crate::pitr::setup::Way;
use crate::pitr::watch::{self, COUNT_EVERY_MAX, Seen, Verdict};
use crate::postgres::{self, Admin};
use crate::repository::layout;
use crate::telemetry::cause::chain;

const WATCH_EVERY: Duration = Duration::from_secs(15);
const WATCH_EVERY_MIN: Duration = Duration::from_secs(1);
/// A listing of the whole archive takes a second for a hundred thousand segments on a disk, a minute in a bucket: so
/// it is done at this share of the time, at least this far apart.
const COUNT_PAUSES: u32 = 20;
const COUNT_EVERY_MIN: Duration = Duration::from_secs(15);
/// No push takes that long.
const UNFINISHED_AGE: SignedDuration = SignedDuration::from_hours(1);
/// Before the first connection it is not known whose archive to count.
const COUNT_FIRST: Duration = Duration::from_secs(5);

impl Keeper {
    pub(super) async fn watch(self: Arc<Self>) {
        let mut admin: Session<Admin> = None;
        // Often enough to see that patience is at an end.
        let every = (self.config.patience / 4).clamp(WATCH_EVERY_MIN, WATCH_EVERY);
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.within(self.look(&mut admin)).await {
                Ok(seen) => self.judge(seen),
                Err(error) => {
                    admin = None;
                    self.note_absence("database", format!("the database cannot be asked: {}", chain(&error)));
                }
            }
        }
    }

    async fn look(&self, session: &mut Session<Admin>) -> Result<Seen, postgres::Error> {
        let (admin, since) = match self.still_young(session) {
            Some(young) => young,
            None => {
                let admin = self.connect().await?;
                let ours = whose(&admin).await?;
                if self.archiver.ours().is_some_and(|before| before != ours) {
                    // What was beaten so far is the old one's.
                    self.write_beats().await;
                }
                self.archiver.remember(&ours);
                (admin, self.clock.tick())
            }
        };
        let slot = (self.config.wal == Way::Stream).then_some(self.config.slot.as_str());
        let seen = watch::look(&admin, slot).await?;
        *session = Some((admin, since));
        Ok(seen)
    }

    fn judge(&self, seen: Seen) {
        let metrics = self.metrics();
        metrics
            .ready_files
            .set(i64::try_from(seen.ready_files).unwrap_or(i64::MAX));
        metrics.ready_age.set(seen.ready_age.as_secs_f64());
        if self.config.wal == Way::Stream {
            metrics.slot_retained.set(match &seen.slot {
                Some(slot) if slot.is_lost => -1,
                Some(slot) => i64::try_from(slot.retained_bytes).unwrap_or(i64::MAX),
                None => 0,
            });
        }
        let stats = self.stats();
        let newest = stats.last_archived.map(|(_, at)| at);
        // An empty archive has been looked into as well.
        let newest = newest.or(stats.inventory.map(|_| Timestamp::MIN));
        let verdict = match self.config.wal {
            Way::ArchiveCommand => watch::judge_archiver(&seen, newest, self.config.patience),
            Way::Stream => watch::judge_slot(&seen, &self.config.slot),
        };
        self.note("database", None);
        let is_unbounded = seen.slot.as_ref().is_some_and(|slot| slot.is_unbounded);
        self.note(
            "slot bound",
            is_unbounded.then(|| {
                "max_slot_wal_keep_size is not set: a stream that stands still fills the server's disk; \
                 `foregate pitr setup` has the line"
                    .to_owned()
            }),
        );
        match verdict {
            Verdict::Good => self.note("archiver", None),
            Verdict::Absent(text) => self.note_absence("archiver", text),
            Verdict::Bad(text) => self.note("archiver", Some(text)),
        }
        self.lock().seen = Some(seen);
    }

    pub(super) async fn count(self: Arc<Self>) {
        loop {
            let counted = self.count_once().await;
            let pause = match counted {
                Ok(Some(took)) => took
                    .saturating_mul(COUNT_PAUSES)
                    .clamp(COUNT_EVERY_MIN, COUNT_EVERY_MAX),
                Ok(None) => COUNT_FIRST,
                Err(error) => {
                    self.note_absence("archive", format!("the archive cannot be counted: {error}"));
                    WATCH_EVERY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn sweep(&self, archive: &Archive) {
        let before = self.clock.wall().checked_sub(UNFINISHED_AGE).unwrap_or_default();
        let folder = layout::wal(archive.cluster());
        match archive.repository().sweep_unfinished(&folder, before).await {
            Ok(0) => {}
            Ok(files) => tracing::info!(files, "removed what an earlier process left unfinished in the archive"),
            Err(error) => tracing::warn!(error = chain(&error), "the archive cannot be swept"),
        }
    }

    /// How long the listing took; `None`: it is not known yet whose archive to count.
    async fn count_once(&self) -> Result<Option<Duration>, String> {
        let Some(archive) = self.archive() else {
            return Ok(None);
        };
        let ask = async { watch::segment_size(&self.connect().await?).await };
        let size = self.within(ask).await.map_err(|error| chain(&error))?;
        self.sweep(&archive).await;
        let begun = self.clock.tick();
        let policy = Policy::new(self.config.window, self.config.base_backup);
        let counting = take(&archive, size, &policy, self.clock.wall());
        let inventory = counting.await.map_err(|error| chain(&error))?;
        let took = self.clock.tick().saturating_sub(begun);
        let missing = inventory
            .gaps
            .iter()
            .map(crate::pitr::chain::Gap::segments)
            .sum::<u64>();
        let metrics = self.metrics();
        metrics.gap_segments.set(i64::try_from(missing).unwrap_or(i64::MAX));
        metrics
            .archive_bytes
            .set(i64::try_from(inventory.stored_bytes).unwrap_or(i64::MAX));
        metrics
            .archive_segments
            .set(i64::try_from(inventory.segments).unwrap_or(i64::MAX));
        self.note(
            "archive",
            (missing > 0)
                .then(|| format!("{missing} segments of the log are missing in the archive: take a base backup")),
        );
        self.lock().inventory = Some(inventory);
        Ok(Some(took))
    }
}
