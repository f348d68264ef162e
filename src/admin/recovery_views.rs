//! Recovery on the wire: plans, windows, base backups and drills as JSON, for the API and the command line alike.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::pitr::base::{Base, counted};
use crate::pitr::drill::Drill;
use crate::pitr::inventory::Inventory;
use crate::pitr::plan::{Goal, Plan, Refusal, Stop};
use crate::pitr::retention::Decision;
use crate::pitr::routine::Run;
use crate::pitr::window::Window;

#[must_use]
pub fn base(base: &Base) -> Value {
    json!({
        "id": base.id,
        "path": base.folder,
        "cluster": base.cluster.prefix(),
        "timeline": base.timeline.0,
        "startLsn": base.start.to_string(),
        "stopLsn": base.stop.to_string(),
        "startedAt": base.started_at,
        "stoppedAt": base.stopped_at,
        "segmentBytes": base.segment_size.bytes(),
        "serverVersion": base.server_version,
        "labels": base.labels,
        "unpackedBytes": base.unpacked_bytes(),
        "storedBytes": base.stored_bytes(),
        "encrypted": base.encrypted,
        "tablespaces": base.tablespaces,
        "deletedAt": base.deleted_at,
        // What is missing of it, so that it cannot be used.
        "incomplete": base.incomplete,
    })
}

/// How many can be counted on and the newest of those, and what all of them take up.
#[must_use]
pub fn bases_in_short(bases: &[Base]) -> Value {
    let (count, newest) = counted(bases);
    let stored: u64 = bases.iter().map(Base::stored_bytes).sum();
    json!({"count": count, "storedBytes": stored, "newest": newest.map(base)})
}

/// The log in the repository.
#[must_use]
pub fn archive(inventory: &Inventory) -> Value {
    let gaps: Vec<Value> = inventory
        .gaps
        .iter()
        .map(|gap| {
            json!({
                "timeline": gap.timeline.0,
                "firstSegment": gap.first,
                "segments": gap.segments(),
                "disputed": gap.is_disputed,
            })
        })
        .collect();
    let timelines: Vec<u32> = inventory.timelines.iter().map(|timeline| timeline.0).collect();
    json!({
        "segments": inventory.segments,
        "storedBytes": inventory.stored_bytes,
        "timelines": timelines,
        // Up to where the newest timeline's log is there without a break.
        "reach": inventory.reach.to_string(),
        "newestSegment": inventory.newest.as_ref().map(|archived| archived.file.to_string()),
        "newestAt": inventory.newest.as_ref().map(|archived| archived.modified),
        "gaps": gaps,
    })
}

#[must_use]
pub fn window(window: &Window, now: Timestamp) -> Value {
    let stretches: Vec<Value> = window
        .stretches
        .iter()
        .map(|stretch| json!({"from": stretch.from, "to": stretch.to}))
        .collect();
    let holes: Vec<Value> = window
        .holes
        .iter()
        .map(|hole| json!({"from": hole.from, "to": hole.to, "because": hole.because}))
        .collect();
    // Pinned base backups whose log retention thinned out: no part of the window, and no gap before it.
    let islands: Vec<Value> = window
        .islands
        .iter()
        .map(|island| json!({"base": island.base.to_string(), "from": island.from, "to": island.to}))
        .collect();
    json!({
        "earliest": window.earliest(),
        "latest": window.latest(),
        "recoveryPointSeconds": window.recovery_point(now).map(|point| point.as_secs_f64()),
        "stretches": stretches,
        "gaps": holes,
        "islands": islands,
        "endsBecause": window.because(),
    })
}

#[must_use]
pub fn goal(goal: &Goal) -> Value {
    match goal {
        Goal::Time(at) => json!({"time": at}),
        Goal::Lsn(lsn) => json!({"lsn": lsn.to_string()}),
        Goal::Name(name) => json!({"name": name}),
        Goal::Transaction(xid) => json!({"transaction": xid}),
        Goal::Latest => json!({"latest": true}),
    }
}

fn stop(stop: &Stop) -> Value {
    json!({"lsn": stop.lsn.to_string(), "at": stop.at, "transaction": stop.transaction})
}

#[must_use]
pub fn plan(plan: &Plan) -> Value {
    let path: Vec<Value> = plan
        .path
        .iter()
        .map(|leg| {
            let end = leg.end.map(|end| end.to_string());
            json!({"timeline": leg.timeline.0, "begin": leg.begin.to_string(), "end": end})
        })
        .collect();
    let checks: Vec<Value> = plan
        .checks
        .iter()
        .map(|check| json!({"what": check.what, "found": check.found}))
        .collect();
    let names = [plan.segments.first(), plan.segments.last()].map(|needed| needed.map(|needed| needed.name.clone()));
    json!({
        "id": plan.id,
        "madeAt": plan.made_at,
        "cluster": plan.cluster.prefix(),
        "target": goal(&plan.goal),
        "stop": stop(&plan.stop),
        "lastTransactions": plan.recent.iter().map(stop).collect::<Vec<_>>(),
        "baseBackup": base(&plan.base),
        "timeline": plan.timeline.0,
        "path": path,
        "segments": {
            "count": plan.segments.len(),
            "first": names[0],
            "last": names[1],
            "storedBytes": plan.log_stored_bytes(),
        },
        "replayBytes": plan.replay_bytes,
        "diskBytes": plan.disk_bytes,
        "expectedSeconds": plan.expected.map(|expected| expected.as_secs_f64()),
        "checks": checks,
    })
}

#[must_use]
pub fn refusal(refusal: &Refusal) -> Value {
    json!({"reason": refusal.reason, "nearestBefore": refusal.before, "nearestAfter": refusal.after})
}

#[must_use]
pub fn drill(drill: &Drill) -> Value {
    let findings: Vec<Value> = drill
        .findings
        .iter()
        .map(|finding| json!({"what": finding.what, "passed": finding.passed, "found": finding.found}))
        .collect();
    json!({
        "id": drill.id,
        "at": drill.at,
        "passed": drill.passed(),
        "failure": drill.failure,
        "target": drill.target,
        "baseBackup": drill.base,
        "recoveryTimeSeconds": drill.recovery_time().as_secs_f64(),
        "recoveryPointSeconds": drill.recovery_point.map(|point| point.as_secs_f64()),
        "phases": {
            "planSeconds": drill.phases.plan.as_secs_f64(),
            "unpackSeconds": drill.phases.unpack.as_secs_f64(),
            "verifySeconds": drill.phases.verify.as_secs_f64(),
            "replaySeconds": drill.phases.replay.as_secs_f64(),
            "promoteSeconds": drill.phases.promote.as_secs_f64(),
        },
        "checkSeconds": drill.check.as_secs_f64(),
        "unpackedBytes": drill.unpacked_bytes,
        "replayedBytes": drill.replayed_bytes,
        "findings": findings,
    })
}

/// How a run in the server stands, and how the last one went.
#[must_use]
pub fn run(run: &Run) -> Value {
    let last = run
        .last
        .as_ref()
        .map(|ended| json!({"at": ended.at, "passed": ended.failure.is_none(), "failure": ended.failure}));
    let now = run.running.then(|| json!({"step": run.step, "bytes": run.bytes}));
    json!({"now": now, "last": last})
}

#[must_use]
pub fn decision(decision: &Decision) -> Value {
    json!({"id": decision.id, "keep": decision.keep, "reasons": decision.reasons})
}
