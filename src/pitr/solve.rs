//! Making a plan: every segment that it needs is read and proven before anything starts, and the record at which
//! recovery will stop is found in them.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use jiff::Timestamp;
use ulid::Ulid;

use super::base::Base;
use super::chain::{Chain, Link};
use super::history::{History, Leg};
use super::name::{File, Lsn, Timeline};
use super::plan::{self, Check, Goal, Needed, Plan, Refusal, Request, Stop};
use super::records::{Demands, Event, Record};
use super::survey::{Fault, Scanned, Survey};
use super::{Error, Recovery};

/// Restore points of one name beyond this are only counted.
const SAME_NAME_MAX: usize = 16;

/// The last transactions that a plan shows.
const RECENT_MAX: usize = 10;

/// A base backup, its path, and where recovery from it stops.
struct Solved<'a> {
    base: &'a Base,
    legs: Vec<Leg>,
    chain: Chain,
    way: Way,
}

/// The log up to where recovery stops.
struct Way {
    segments: usize,
    stop: Stop,
    /// The last transactions before it, oldest first.
    recent: Vec<Stop>,
    demands: Demands,
}

impl Recovery {
    /// Decides how `request` will be met.
    ///
    /// # Errors
    /// [`Error::Refused`] with the nearest instants that can be reached, or the store cannot be asked.
    pub async fn plan(&self, request: &Request) -> Result<Plan, Error> {
        let survey = self.survey(request.base).await?;
        let timeline = request.timeline.unwrap_or_else(|| survey.newest_timeline());
        let planned = self.solve(&survey, timeline, request).await;
        match planned {
            Err(Error::Refused(mut refusal)) => {
                if refusal.before.is_none() && refusal.after.is_none() {
                    self.add_nearest(&survey, timeline, request, &mut refusal).await?;
                }
                Err(Error::Refused(refusal))
            }
            other => other,
        }
    }

    async fn add_nearest(
        &self,
        survey: &Survey,
        timeline: Timeline,
        request: &Request,
        refusal: &mut Refusal,
    ) -> Result<(), Error> {
        let window = self.window_of(survey, timeline).await?;
        (refusal.before, refusal.after) = match request.goal {
            Goal::Time(at) => window.nearest(at),
            _ => (window.earliest(), window.latest()),
        };
        if window.stretches.is_empty()
            && let Some(because) = window.ends_because
        {
            refusal.reason = format!("{}; nothing can be reached: {because}", refusal.reason);
        }
        Ok(())
    }

    async fn solve(&self, survey: &Survey, timeline: Timeline, request: &Request) -> Result<Plan, Error> {
        let now = self.bases.clock.wall();
        let Some(history) = survey.history(timeline) else {
            return Err(refused(format!("the archive has no history of timeline {timeline}")));
        };
        let mut request = request.clone();
        if request.goal == Goal::Latest {
            let window = self.window_of(survey, timeline).await?;
            let latest = window
                .latest()
                .ok_or_else(|| refused(format!("nothing can be reached: {}", window.why_empty())))?;
            request.goal = Goal::Time(latest);
        }
        let position = match &request.goal {
            Goal::Name(_) | Goal::Transaction(_) => Some(self.locate(survey, &history, &request.goal).await?),
            _ => None,
        };
        let base = plan::choose(&survey.bases, &history, &request, position, now)?;
        let legs = history.legs_from(base.timeline, base.start).unwrap_or_default();
        let chain = survey.follow(&legs);
        let way = self.find_stop(survey, base, &chain, &request.goal).await?;
        let solved = Solved { base, legs, chain, way };
        self.compose(survey, timeline, request.goal, solved, now).await
    }

    /// Where the named point or the transaction stands in the log, read from the oldest base backup on.
    async fn locate(&self, survey: &Survey, history: &History, goal: &Goal) -> Result<Lsn, Error> {
        let oldest = survey
            .bases
            .iter()
            .filter_map(|base| Some((base.start, history.legs_from(base.timeline, base.start)?)))
            .min_by_key(|(start, _)| *start);
        let (_, legs) = oldest.ok_or_else(|| refused("there is no base backup in the repository".to_owned()))?;
        let chain = survey.follow(&legs);
        let mut found: Vec<Lsn> = Vec::new();
        let visit = |record: &Record| {
            let hit = match (goal, &record.event) {
                (Goal::Name(wanted), Event::RestorePoint(name)) => wanted == name,
                (Goal::Transaction(wanted), Event::Commit(xid) | Event::Abort(xid)) => wanted == xid,
                _ => false,
            };
            if hit && found.len() < SAME_NAME_MAX {
                found.push(record.lsn);
            }
            ControlFlow::Continue(())
        };
        // All that is there, behind a gap as well: a later base backup may stand there.
        let scanned = self
            .scan(survey, &chain.links, visit, |_| ControlFlow::Continue(()))
            .await;
        match (found.as_slice(), goal) {
            ([only], _) => Ok(*only),
            ([.., last], Goal::Transaction(_)) => Ok(*last),
            ([], _) => {
                let damage = scanned
                    .damage
                    .map_or_else(String::new, |(_, error)| format!(" (reading ended early: {error})"));
                Err(refused(format!(
                    "the archived log does not hold the {}{damage}",
                    describe(goal)
                )))
            }
            (several, _) => {
                let places: Vec<String> = several.iter().map(ToString::to_string).collect();
                let places = places.join(", ");
                Err(refused(format!(
                    "the {} was made several times, at {places}: name the position instead",
                    describe(goal)
                )))
            }
        }
    }

    async fn find_stop(&self, survey: &Survey, base: &Base, chain: &Chain, goal: &Goal) -> Result<Way, Error> {
        let mut stop = None;
        let mut refusal = None;
        let mut recent = VecDeque::with_capacity(RECENT_MAX);
        let mut remember = |record: &Record| {
            if record.is_stop() {
                if recent.len() >= RECENT_MAX {
                    recent.pop_front();
                }
                recent.push_back(Stop::of(record));
            }
        };
        let visit = |record: &Record| match plan::stops_at(goal, base, record) {
            Ok(false) => {
                remember(record);
                ControlFlow::Continue(())
            }
            Ok(true) => {
                if matches!(goal, Goal::Transaction(_)) {
                    remember(record);
                }
                stop = Some(Stop::of(record));
                ControlFlow::Break(())
            }
            Err(refused) => {
                refusal = Some(refused);
                ControlFlow::Break(())
            }
        };
        let behind = |last: Lsn| match goal {
            Goal::Lsn(wanted) if last >= *wanted => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        let links = chain.links.get(..chain.contiguous).unwrap_or_default();
        let scanned = self.scan(survey, links, visit, behind).await;
        if let Some(refusal) = refusal {
            return Err(refusal.into());
        }
        if let (Goal::Lsn(lsn), true) = (goal, scanned.stopped) {
            stop = Some(Stop {
                lsn: *lsn,
                at: scanned.last_commit,
                transaction: None,
            });
        }
        match stop {
            Some(stop) => Ok(Way {
                segments: scanned.segments,
                stop,
                recent: recent.into(),
                demands: scanned.demands,
            }),
            None => Err(unreached(survey, base, chain, links, goal, scanned)?.into()),
        }
    }

    async fn compose(
        &self,
        survey: &Survey,
        timeline: Timeline,
        goal: Goal,
        solved: Solved<'_>,
        now: Timestamp,
    ) -> Result<Plan, Error> {
        let Solved {
            base,
            legs,
            chain,
            way:
                Way {
                    segments,
                    stop,
                    recent,
                    demands,
                },
        } = solved;
        let links = chain.links.get(..segments).unwrap_or_default();
        let needed = |link: &Link| {
            survey.object(link).map(|object| Needed {
                name: link.name.file(survey.size).to_string(),
                archived: object.clone(),
            })
        };
        let segments: Vec<Needed> = links.iter().filter_map(needed).collect();
        let histories = survey
            .objects
            .iter()
            .filter(|object| matches!(object.file, File::History(of) if legs.iter().any(|leg| leg.timeline == of)));
        let histories = histories.map(|object| Needed {
            name: object.file.to_string(),
            archived: object.clone(),
        });
        let histories: Vec<Needed> = histories.collect();
        let replay_bytes = stop.lsn.0.saturating_sub(base.start.0);
        let rates = self.rates(&survey.cluster).await?;
        let count = segments.len() as u64;
        let checks = checks(base, timeline, &stop, count, demands);
        Ok(Plan {
            id: Ulid::generate(),
            made_at: now,
            cluster: survey.cluster.clone(),
            goal,
            base: base.clone(),
            timeline,
            path: legs,
            segment_size: survey.size,
            histories,
            replay_bytes,
            disk_bytes: plan::disk_bytes(base, count, replay_bytes),
            expected: plan::expected(rates, base.unpacked_bytes(), replay_bytes),
            segments,
            recent,
            demands,
            checks,
            stop,
        })
    }
}

/// What was looked at before the plan was given out.
fn checks(base: &Base, timeline: Timeline, stop: &Stop, count: u64, demands: Demands) -> Vec<Check> {
    let mut checks = vec![
        Check {
            what: "base backup",
            found: format!(
                "{} ended at {}, before the target; proven against backup_manifest",
                base.id, base.stopped_at
            ),
        },
        Check {
            what: "log",
            found: format!("{count} segments without a gap, each read and its hash compared"),
        },
        Check {
            what: "stop",
            found: describe_stop(stop),
        },
        Check {
            what: "timeline",
            found: format!("{timeline}, given to PostgreSQL explicitly"),
        },
    ];
    if demands.custom {
        checks.push(Check {
            what: "extensions",
            found: "the log has records that only an extension can replay: shared_preload_libraries stays as the \
                    copy has it, and what is named there runs in the recovered server"
                .to_owned(),
        });
    }
    checks
}

/// Why the log did not lead to the target.
fn unreached(
    survey: &Survey,
    base: &Base,
    chain: &Chain,
    links: &[Link],
    goal: &Goal,
    scanned: Scanned,
) -> Result<Refusal, Error> {
    let wanted = describe(goal);
    let reason = match scanned.damage {
        Some((at, error)) if error.is_damage() => {
            let name = links
                .get(at)
                .map_or_else(String::new, |link| link.name.file(survey.size).to_string());
            format!(
                "segment {name}, on the way from base backup {} to the {wanted}, cannot be used: {error}",
                base.id
            )
        }
        // Not the log's fault: a missing key, a store that does not answer.
        Some((_, Fault::Archive(error))) => return Err(error.into()),
        Some((_, error)) => error.to_string(),
        None => match chain.gaps.first() {
            Some(gap) => {
                let missing = survey.segment_names(gap);
                format!("{missing} between base backup {} and the {wanted}", base.id)
            }
            None => format!(
                "the archived log ends at {} without anything later than the {wanted}",
                chain.reach
            ),
        },
    };
    let one = jiff::SignedDuration::from_micros(1);
    let before = scanned.last_commit.and_then(|last| last.saturating_sub(one).ok());
    Ok(Refusal {
        reason,
        before: before.filter(|before| *before >= base.stopped_at),
        after: None,
    })
}

fn describe(goal: &Goal) -> String {
    match goal {
        Goal::Time(at) => format!("instant {at}"),
        Goal::Lsn(lsn) => format!("position {lsn}"),
        Goal::Name(name) => format!("restore point {name:?}"),
        Goal::Transaction(xid) => format!("transaction {xid}"),
        Goal::Latest => "latest instant".to_owned(),
    }
}

fn describe_stop(stop: &Stop) -> String {
    match (stop.transaction, stop.at) {
        (Some(xid), Some(at)) => format!("at transaction {xid} of {at}, at {}", stop.lsn),
        (None, Some(at)) => format!("at {}, {at}", stop.lsn),
        _ => format!("at {}", stop.lsn),
    }
}

fn refused(reason: String) -> Error {
    Refusal {
        reason,
        ..Refusal::default()
    }
    .into()
}
