//! Whether a recovered database is that of the instant that was asked for, by the heartbeats in it.

use jiff::{SignedDuration, Timestamp};

use super::Finding;
use crate::pitr::beat::Beat;
use crate::pitr::name::Lsn;
use crate::pitr::plan::Plan;
use crate::pitr::recover::Running;
use crate::pitr::{Error, Recovery};
use crate::telemetry::cause::chain;

/// Beats this long before the target are read: what was before says no more.
const BEATS_SINCE: SignedDuration = SignedDuration::from_hours(24);
/// A beat may be missed without anything being wrong.
const BEATS_MISSED: u32 = 3;

/// What the recovered database says of its heartbeats.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Newest(Timestamp),
    /// Why there is none, as a sentence.
    None(String),
}

impl Recovery {
    /// The newest heartbeat in the recovered database must be the newest that is known from before the target.
    pub(super) async fn heartbeat(
        &self,
        target: Option<Timestamp>,
        plan: &Plan,
        running: &mut Running,
    ) -> Result<Finding, Error> {
        let target = target.unwrap_or(Timestamp::MAX);
        let found = newest(running).await?;
        let since = target.min(plan.made_at).saturating_sub(BEATS_SINCE).unwrap_or(target);
        let mut beats = self.bases.archive(&plan.cluster).beats(since).await?;
        beats.retain(|beat| is_on(plan, beat));
        let (passed, found) = judge(&found, &beats, target, running.reached.lsn, self.config.heartbeat);
        Ok(Finding {
            what: "heartbeat of the instant".to_owned(),
            passed,
            found,
        })
    }
}

/// A beat of a timeline that was left before it is none of ours.
fn is_on(plan: &Plan, beat: &Beat) -> bool {
    let mut legs = plan.path.iter();
    legs.any(|leg| leg.timeline == beat.timeline && leg.end.is_none_or(|end| beat.lsn <= end))
}

/// `beats`: those that are known of the path; `reached`: where recovery stands; `every`: the heartbeat, zero for none.
fn judge(found: &Found, beats: &[Beat], target: Timestamp, reached: Lsn, every: std::time::Duration) -> (bool, String) {
    // A beat's position is read after its commit. Where recovery stands before it, the commit may have come after the
    // target though the beat's own time is before: it may be there, and need not.
    let newest = beats
        .iter()
        .filter(|beat| beat.at <= target && beat.lsn <= reached)
        .map(|beat| beat.at)
        .max();
    let later = beats.iter().map(|beat| beat.at).filter(|at| *at > target).min();
    match (found, newest) {
        (Found::Newest(found), _) if *found > target => (false, format!("{found}, after the target")),
        (Found::Newest(found), Some(newest)) => (
            *found >= newest,
            format!("{found}, the newest known before the target is {newest}"),
        ),
        (Found::Newest(found), None) => {
            let lag = target.duration_since(*found);
            let slack = SignedDuration::try_from(every.saturating_mul(BEATS_MISSED)).unwrap_or(SignedDuration::MAX);
            let text = format!("{found}, {:.1} s before the target", lag.as_secs_f64());
            match every.is_zero() {
                true => (
                    true,
                    format!("{text}; none is configured, and none known to compare it with"),
                ),
                false => (lag <= slack, text),
            }
        }
        (Found::None(why), Some(newest)) => (
            false,
            format!("{why}, though one of {newest} is known from before the target"),
        ),
        (Found::None(why), None) if every.is_zero() => (true, format!("{why}; none is configured, and none known")),
        (Found::None(why), None) => match later {
            Some(first) => (
                true,
                format!("{why}; the first one known is of {first}, after the target"),
            ),
            None => (false, format!("{why}, though heartbeats are configured")),
        },
    }
}

async fn newest(running: &mut Running) -> Result<Found, Error> {
    let database = running.database().to_owned();
    let admin = match running.connect(&database).await {
        Ok(admin) => admin,
        Err(error) => {
            return Ok(Found::None(format!(
                "no heartbeat can be read in database {database:?}: {}",
                chain(&error)
            )));
        }
    };
    let exists = "SELECT to_regclass('foregate.heartbeat') IS NOT NULL";
    if !admin.value::<bool>("looking for the heartbeat", exists, &[]).await? {
        return Ok(Found::None("this database has no foregate.heartbeat".to_owned()));
    }
    let newest = "SELECT (extract(epoch FROM max(at)) * 1000000)::bigint FROM foregate.heartbeat";
    let micros: Option<i64> = admin.value("reading the heartbeat", newest, &[]).await?;
    let newest = micros.and_then(|micros| Timestamp::from_microsecond(micros).ok());
    Ok(newest.map_or_else(
        || Found::None("foregate.heartbeat has no row".to_owned()),
        Found::Newest,
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pitr::name::Timeline;

    const EVERY: Duration = Duration::from_secs(15);

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn beat(at: i64, lsn: u64) -> Beat {
        Beat {
            at: second(at),
            lsn: Lsn(lsn),
            timeline: Timeline(1),
        }
    }

    fn passes(found: &Found, beats: &[Beat], target: i64, reached: u64, every: Duration) -> bool {
        judge(found, beats, second(target), Lsn(reached), every).0
    }

    fn none() -> Found {
        Found::None("there is no table".to_owned())
    }

    #[test]
    fn the_row_must_be_the_newest_beat_before_the_target() {
        let beats = [beat(10, 100), beat(25, 200), beat(40, 300)];
        let at = |found| passes(&Found::Newest(second(found)), &beats, 30, 250, EVERY);
        assert!(at(25), "the one of that instant");
        assert!(!at(10), "an earlier one: too little was replayed");
        assert!(!at(40), "a later one: too much was");
        assert!(at(28), "one that nobody wrote down yet");
    }

    #[test]
    fn a_beat_whose_commit_straddles_the_target_may_be_there_and_need_not() {
        let beats = [beat(10, 100), beat(25, 200)];
        for found in [10, 25] {
            assert!(passes(&Found::Newest(second(found)), &beats, 25, 190, EVERY), "{found}");
        }
        assert!(!passes(&Found::Newest(second(10)), &beats, 25, 200, EVERY));
    }

    #[test]
    fn no_row_is_no_proof_where_there_should_be_one() {
        let beats = [beat(10, 100), beat(40, 300)];
        assert!(
            !passes(&none(), &beats, 30, 250, Duration::ZERO),
            "one is known from before"
        );
        assert!(!passes(&none(), &[], 30, 250, EVERY), "they are configured");
        assert!(passes(&none(), &[beat(40, 300)], 30, 250, EVERY), "they began later");
        assert!(passes(&none(), &[], 30, 250, Duration::ZERO), "nobody ever beat");
    }

    #[test]
    fn beats_that_are_not_written_down_yet_are_judged_by_their_rhythm() {
        let at = |found| passes(&Found::Newest(second(found)), &[], 100, 250, EVERY);
        assert!(at(60) && !at(50) && !at(101));
        assert!(
            passes(&Found::Newest(second(5)), &[], 100, 250, Duration::ZERO),
            "an old table"
        );
    }
}
