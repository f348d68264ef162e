//! What there is, for people and for programs.

use std::collections::BTreeSet;

use comfy_table::Table;
use serde_json::{Value, json};

use super::{complain, print};
use crate::backup::{Entry, Vault};
use crate::repository::manifest::{Content, Level, Manifest};

pub(super) async fn list(vault: &Vault, url: &str, as_json: bool) -> anyhow::Result<()> {
    let (entries, unreadable) = vault.list().await?;
    let doubtful = entries.iter().filter(|entry| entry.tombstone.is_none());
    let doubts = doubtful.filter_map(|entry| {
        let problem = entry.problem()?;
        Some(format!("backup {} ({}): {problem}", entry.manifest.id, entry.state()))
    });
    for doubt in doubts.chain(unreadable.iter().map(ToString::to_string)) {
        complain(&format!("warning: {doubt}\n"));
    }
    let unread = unreadable
        .iter()
        .map(|bad| json!({"id": bad.id, "good": false, "state": "unreadable", "problem": bad.why}));
    let value = Value::from(entries.iter().map(describe).chain(unread).collect::<Vec<_>>());
    print(as_json, &value, || match entries.is_empty() {
        true if unreadable.is_empty() => format!("there is no backup in {url}"),
        true => format!("none of the backups in {url} can be read"),
        false => table(&entries).to_string(),
    })
}

/// Databases of one name in several clusters are told apart where there are any.
fn table(entries: &[Entry]) -> Table {
    let clusters: BTreeSet<&str> = entries.iter().filter_map(cluster).collect();
    let mut header = vec!["id", "started", "labels", "content", "stored", "level", "state"];
    if clusters.len() > 1 {
        header.insert(4, "cluster");
    }
    let mut table = Table::new();
    table.set_header(header);
    for entry in entries {
        let mut row = vec![
            entry.manifest.id.to_string(),
            time(entry.manifest.started_at),
            entry.manifest.labels.join(" "),
            sealed_or_not(&entry.manifest),
            size(entry.manifest.stored_bytes()),
            format!("{:?}", entry.level()),
            entry.state().to_owned(),
        ];
        if clusters.len() > 1 {
            row.insert(4, cluster(entry).unwrap_or_default().to_owned());
        }
        table.add_row(row);
    }
    table
}

fn cluster(entry: &Entry) -> Option<&str> {
    entry.database().map(|(_, cluster)| cluster)
}

pub(super) async fn prune(vault: &Vault, dry_run: bool, as_json: bool) -> anyhow::Result<()> {
    let pruned = vault.prune(dry_run).await?;
    let replaced = vault.drop_replaced(dry_run).await?;
    let decisions: Vec<Value> = pruned
        .decisions
        .iter()
        .map(|decision| json!({"id": decision.id, "keep": decision.keep, "reasons": decision.reasons}))
        .collect();
    let value = json!({"decisions": decisions, "marked": pruned.marked, "deleted": pruned.deleted, "lifted": pruned.lifted,
        "dryRun": dry_run,
        "replacedDatabases": replaced.iter().map(|one| json!({"name": one.name, "replacedAt": one.at, "keep": !one.is_over, "held": one.held})).collect::<Vec<_>>()});
    print(as_json, &value, || {
        let mut table = Table::new();
        table.set_header(["id", "", "because"]);
        for decision in &pruned.decisions {
            let verb = if decision.keep { "stays" } else { "goes" };
            table.add_row([decision.id.to_string(), verb.to_owned(), decision.reasons.join("; ")]);
        }
        for one in &replaced {
            let verb = if one.is_over { "goes" } else { "stays" };
            let mut because = format!("replaced by a restore on {}", time(one.at));
            if let Some(held) = one.held {
                because = format!("{because}; {held}");
            }
            table.add_row([one.name.clone(), verb.to_owned(), because]);
        }
        format!(
            "{table}\n{} marked, {} needed again, {} deleted",
            pruned.marked.len(),
            pruned.lifted.len(),
            pruned.deleted.len()
        )
    })
}

pub(super) fn describe(entry: &Entry) -> Value {
    json!({"manifest": entry.manifest.shown(), "level": entry.level(), "good": entry.is_good(), "state": entry.state(),
        "problem": entry.problem(), "verifications": entry.verifications})
}

/// One backup on a page.
pub(super) fn page(entry: &Entry) -> String {
    let manifest = &entry.manifest;
    let took = manifest.finished_at.duration_since(manifest.started_at);
    let plain: u64 = manifest
        .parts
        .iter()
        .fold(0, |sum, part| part.plain_bytes.saturating_add(sum));
    let mut lines = vec![
        ("backup", manifest.id.to_string()),
        ("content", content(manifest)),
        ("holds", inside(entry)),
        ("labels", manifest.labels.join(" ")),
        ("began", time(manifest.started_at)),
        ("took", format!("{:.1} s", took.as_secs_f64())),
        ("state", state(entry)),
        (
            "stored",
            format!("{} of {}", size(manifest.stored_bytes()), size(plain)),
        ),
        (
            "opened by",
            match manifest.recipients.as_slice() {
                [] => "anybody: it is stored in the clear".to_owned(),
                keys => keys.join(" "),
            },
        ),
        ("folder", entry.folder.clone()),
    ];
    for part in &manifest.parts {
        let text = format!(
            "{}, {}, sha256 {}",
            part.object,
            size(part.stored_bytes),
            part.stored_sha256
        );
        lines.push(("part", text));
    }
    for record in &entry.verifications {
        let result = match &record.failure {
            None => format!("proven to {:?}", record.level),
            Some(failure) => format!("failed: {failure}"),
        };
        lines.push(("verified", format!("{}: {result}", time(record.at))));
    }
    if let Some(problem) = entry.problem() {
        lines.push(("problem", problem.to_owned()));
    }
    if let Content::Files { notes, more_notes, .. } = &manifest.content {
        lines.extend(notes.iter().map(|note| ("note", note.clone())));
        lines.extend((*more_notes > 0).then(|| ("note", format!("and {more_notes} more"))));
    }
    if let Some(tombstone) = &entry.tombstone {
        lines.push(("marked", format!("{}: {}", time(tombstone.at), tombstone.reason)));
    }
    let lines: Vec<String> = lines.iter().map(|(name, text)| format!("{name:<10} {text}")).collect();
    lines.join("\n")
}

/// And how far it is proven, if it is at all.
fn state(entry: &Entry) -> String {
    match entry.level() {
        Level::L0 => entry.state().to_owned(),
        level => format!("{}, proven to {level:?}", entry.state()),
    }
}

fn inside(entry: &Entry) -> String {
    match &entry.manifest.content {
        Content::Database {
            tables,
            server_version,
            system_identifier,
            ..
        } => {
            let (major, minor) = (server_version / 10_000, server_version % 10_000);
            let (rows, tables) = (entry.rows(), tables.len());
            format!("{rows} rows in {tables} tables, of PostgreSQL {major}.{minor}, cluster {system_identifier}")
        }
        Content::Files { entries, paths, .. } => format!("{entries} entries of {}", paths.join(" ")),
        Content::Base {
            start_lsn, stop_lsn, ..
        } => format!("the cluster from {start_lsn} to {stop_lsn}"),
    }
}

/// Among sealed ones it must not pass unnoticed.
fn sealed_or_not(manifest: &Manifest) -> String {
    let clear = match manifest.recipients.is_empty() {
        true => ", in the clear",
        false => "",
    };
    format!("{}{clear}", content(manifest))
}

fn content(manifest: &Manifest) -> String {
    match &manifest.content {
        Content::Database { database, .. } => format!("database {database}"),
        Content::Files { name, .. } => format!("files {name}"),
        Content::Base { system_identifier, .. } => format!("base of cluster {system_identifier}"),
    }
}

pub(super) fn line(manifest: &Manifest) -> String {
    format!(
        "{} of {}: {} stored, proven to {:?}",
        manifest.id,
        content(manifest),
        size(manifest.stored_bytes()),
        manifest.verified
    )
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}

fn time(at: jiff::Timestamp) -> String {
    at.strftime("%F %T UTC").to_string()
}
