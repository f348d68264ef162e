//! What a person sees.

use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use comfy_table::Table;
use jiff::Timestamp;

use super::act::describe;
use crate::pitr::base::{Base, Pruned, counted};
use crate::pitr::drill::Drill;
use crate::pitr::inventory::Inventory;
use crate::pitr::plan::{Plan, Stop};
use crate::pitr::recover::{Phases, Place, Reached, Shown};
use crate::pitr::window::Window;
use crate::repository::manifest::Manifest;

/// To the second, as people read it.
fn second(at: Timestamp) -> String {
    at.strftime("%F %T UTC").to_string()
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Names and what they stand for, in two columns.
#[derive(Default)]
struct Rows(Vec<(String, String)>);

impl Rows {
    fn text(&self) -> String {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines = self.0.iter().map(|(name, value)| format!("{name:width$}  {value}"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

pub(super) fn taken(manifest: &Manifest) -> String {
    let time = manifest.finished_at.duration_since(manifest.started_at);
    format!(
        "{}: {} stored in {:.1} s, every file proven, its log is in the archive",
        manifest.id,
        ByteSize(manifest.stored_bytes()),
        time.as_secs_f64()
    )
}

pub(super) fn bases(bases: &[Base]) -> String {
    let mut table = Table::new();
    table.set_header([
        "id", "ended", "timeline", "log from", "to", "size", "stored", "labels", "state",
    ]);
    for base in bases {
        table.add_row([
            base.id.to_string(),
            second(base.stopped_at),
            base.timeline.to_string(),
            base.start.to_string(),
            base.stop.to_string(),
            ByteSize(base.unpacked_bytes()).to_string(),
            ByteSize(base.stored_bytes()).to_string(),
            base.labels.join(" "),
            match (&base.incomplete, base.deleted_at) {
                (Some(what), _) => format!("cannot be used: {what}"),
                (None, Some(_)) => "to be deleted".to_owned(),
                (None, None) => "good".to_owned(),
            },
        ]);
    }
    table.to_string()
}

pub(super) fn window(window: &Window, now: Timestamp) -> String {
    let (Some(earliest), Some(latest)) = (window.earliest(), window.latest()) else {
        return format!("nothing can be recovered: {}", window.why_empty());
    };
    let mut lines = vec![format!("every instant from {} to {}", second(earliest), second(latest))];
    for hole in &window.holes {
        lines.push(format!(
            "but not between {} and {}: {}",
            second(hole.from),
            second(hole.to),
            hole.because
        ));
    }
    if let Some(because) = &window.ends_because {
        lines.push(format!("and nothing later: {because}"));
    }
    for island in &window.islands {
        let also = format!(
            "also pinned base backup {}, as it was {}",
            island.base,
            second(island.from)
        );
        lines.push(
            island
                .to
                .map_or_else(|| also.clone(), |to| format!("{also} to {}", second(to))),
        );
    }
    if let Some(point) = window.recovery_point(now) {
        lines.push(format!(
            "if the server burned now, {:.1} s would be lost",
            point.as_secs_f64()
        ));
    }
    lines.join("\n")
}

pub(super) fn stats(
    inventory: &Inventory,
    bases: &[Base],
    reached: &Window,
    last: Option<&Drill>,
    now: Timestamp,
) -> String {
    let mut rows = Rows::default();
    let mut row = |name: &str, value: String| rows.0.push((name.to_owned(), value));
    let stored = ByteSize(inventory.stored_bytes);
    row("log", format!("{} segments, {stored} stored", inventory.segments));
    let newest = inventory.newest.as_ref();
    row(
        "newest segment",
        newest.map_or_else(
            || "none".to_owned(),
            |archived| format!("{}, stored {}", archived.file, second(archived.modified)),
        ),
    );
    let missing: u64 = inventory.gaps.iter().map(crate::pitr::chain::Gap::segments).sum();
    row("missing segments", missing.to_string());
    let stored: u64 = bases.iter().map(Base::stored_bytes).sum();
    let (count, newest) = counted(bases);
    let newest = newest.map_or_else(String::new, |base| {
        format!(", the newest ended {}", second(base.stopped_at))
    });
    row("base backups", format!("{count}, {} stored{newest}", ByteSize(stored)));
    let drilled = last.map_or_else(
        || "none yet".to_owned(),
        |drill| {
            let result = drill.failure.as_deref().unwrap_or("passed");
            let time = seconds(drill.recovery_time());
            format!("{}: {result}; RTO {time}", second(drill.at))
        },
    );
    row("last drill", drilled);
    format!("{}\n{}", rows.text(), window(reached, now))
}

pub(super) fn plan(plan: &Plan, script: Option<&Path>) -> String {
    let mut rows = Rows::default();
    let expected = plan
        .expected
        .map_or_else(|| "unknown: no drill has been made".to_owned(), seconds);
    let mut row = |name: &str, value: String| rows.0.push((name.to_owned(), value));
    row("target", describe(&plan.goal));
    let size = ByteSize(plan.base.unpacked_bytes());
    row(
        "base backup",
        format!("{}, ended {}, {size}", plan.base.id, second(plan.base.stopped_at)),
    );
    let path: Vec<String> = plan.path.iter().map(|leg| leg.timeline.to_string()).collect();
    row("timelines", path.join(" -> "));
    let (count, stored) = (plan.segments.len(), ByteSize(plan.log_stored_bytes()));
    row(
        "log",
        format!(
            "{count} segments, {stored} stored, {} to replay",
            ByteSize(plan.replay_bytes)
        ),
    );
    row("disk", ByteSize(plan.disk_bytes).to_string());
    row("will take", expected);
    for check in &plan.checks {
        row(&format!("checked: {}", check.what), check.found.clone());
    }
    if let Some(script) = script {
        row("script", script.display().to_string());
    }
    rows.text()
}

/// A recovered server, for [`recovered`].
pub(super) struct State<'a> {
    pub(super) reached: &'a Reached,
    pub(super) phases: &'a Phases,
    pub(super) recent: &'a [Stop],
    pub(super) shown: Option<&'a Shown>,
    pub(super) promoted: bool,
    pub(super) role: &'a str,
}

pub(super) fn recovered(place: &Place, state: &State<'_>) -> String {
    let mut lines = vec![format!(
        "{}, at {}, after {}",
        state.reached.said,
        state.reached.lsn,
        seconds(state.phases.total())
    )];
    if let Some(last) = state.reached.last_commit {
        lines.push(format!("the last transaction that is there committed at {last}"));
    }
    if !state.recent.is_empty() {
        let mut table = Table::new();
        table.set_header(["last transactions", "at", "position"]);
        for stop in state.recent.iter().rev() {
            table.add_row([
                stop.transaction.map_or_else(String::new, |xid| xid.to_string()),
                stop.at.map_or_else(String::new, |at| at.to_string()),
                stop.lsn.to_string(),
            ]);
        }
        lines.push(table.to_string());
    }
    if let Some(shown) = state.shown {
        let mut table = Table::new();
        table.set_header([format!("table of {}", shown.database), "rows".to_owned()]);
        for found in &shown.tables {
            let rows = found
                .rows
                .map_or_else(|| "not counted in time".to_owned(), |rows| rows.to_string());
            table.add_row([found.name.clone(), rows]);
        }
        lines.push(table.to_string());
    }
    let (data, run) = (place.data.display(), place.run.display());
    if state.promoted {
        lines.push(promoted(place));
    } else {
        lines.push(format!("it waits, read-only: psql -h {run} -U {} postgres", state.role));
        lines.push(format!(
            "right? foregate pitr promote {data}     wrong? pg_ctl -D {data} stop, and delete it"
        ));
    }
    lines.join("\n")
}

pub(super) fn promoted(place: &Place) -> String {
    format!(
        "promoted and stopped: {} is a data directory on a timeline of its own; start it with your configuration, and \
         take a base backup at once",
        place.data.display()
    )
}

pub(super) fn drill(drill: &Drill) -> String {
    let mut rows = Rows::default();
    let mut row = |name: &str, value: String| rows.0.push((name.to_owned(), value));
    row("drill", drill.id.to_string());
    row(
        "target",
        drill.target.map_or_else(|| "none".to_owned(), |at| at.to_string()),
    );
    for finding in &drill.findings {
        let verdict = if finding.passed { "yes" } else { "NO" };
        row(&finding.what, format!("{verdict}: {}", finding.found));
    }
    row("recovery time (RTO)", seconds(drill.recovery_time()));
    let phases = [
        ("  plan", drill.phases.plan),
        ("  unpack", drill.phases.unpack),
        ("  verify", drill.phases.verify),
        ("  replay", drill.phases.replay),
        ("  promote", drill.phases.promote),
    ];
    for (name, time) in phases {
        row(name, seconds(time));
    }
    row("checks, besides", seconds(drill.check));
    row(
        "recovery point (RPO)",
        drill.recovery_point.map_or_else(|| "unknown".to_owned(), seconds),
    );
    row("result", drill.failure.clone().unwrap_or_else(|| "passed".to_owned()));
    rows.text()
}

pub(super) fn drills(drills: &[Drill]) -> String {
    let mut table = Table::new();
    table.set_header(["id", "at", "target", "RTO", "RPO", "result"]);
    for drill in drills {
        table.add_row([
            drill.id.to_string(),
            second(drill.at),
            drill.target.map_or_else(String::new, |at| at.to_string()),
            seconds(drill.recovery_time()),
            drill.recovery_point.map_or_else(String::new, seconds),
            drill.failure.clone().unwrap_or_else(|| "passed".to_owned()),
        ]);
    }
    table.to_string()
}

pub(super) fn pruned(pruned: &Pruned) -> String {
    let mut table = super::super::fitted_table();
    table.set_header(["id", "", "because"]);
    for decision in &pruned.decisions {
        let verb = if decision.keep { "stays" } else { "goes" };
        table.add_row([decision.id.to_string(), verb.to_owned(), decision.reasons.join("; ")]);
    }
    let frozen = pruned.frozen.map_or_else(String::new, |why| format!("{why}\n"));
    format!(
        "{table}\n{frozen}{} marked, {} no longer, {} deleted, {} segments of the log ({})",
        pruned.marked.len(),
        pruned.spared.len(),
        pruned.deleted.len(),
        pruned.segments,
        ByteSize(pruned.segment_bytes)
    )
}
