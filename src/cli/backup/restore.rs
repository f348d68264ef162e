//! Giving back: a database, or a file set; or only saying what would happen.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use tokio::task::JoinSet;

use super::super::interruption;
use super::bar::Bar;
use super::{complain, print, show};
use crate::backup::{self, Recovered, Restored, Swap, Vault};

#[derive(Debug, Args)]
pub(super) struct Order {
    #[arg(default_value = "latest")]
    id: String,
    /// Restore into a new database of this name, and leave the present one alone.
    #[arg(long, value_name = "NAME", conflicts_with = "verify_only")]
    target_database: Option<String>,
    /// The backup is of this other database, and is meant to take the place of the configured one; `latest` is of it then.
    #[arg(long, value_name = "NAME", conflicts_with = "into")]
    from_database: Option<String>,
    /// Restore into a scratch database, compare the row counts, drop it.
    #[arg(long)]
    verify_only: bool,
    /// Restore a file set into this empty directory.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["target_database", "verify_only"])]
    into: Option<PathBuf>,
    /// Only check whether it can be restored, and say what would happen.
    #[arg(long, conflicts_with = "into")]
    dry_run: bool,
}

impl Order {
    pub(super) fn is_of_database(&self) -> bool {
        self.into.is_none()
    }

    fn swap(&self) -> Swap {
        match &self.target_database {
            Some(name) => Swap::Keep(name.clone()),
            None if self.verify_only => Swap::Drop,
            None => Swap::Live,
        }
    }
}

pub(super) async fn run(vault: &Vault, bar: &Bar, order: &Order, as_json: bool) -> anyhow::Result<()> {
    let id = order.id.as_str();
    if let Some(into) = &order.into {
        if id != "latest" {
            bar.expect(&vault.show(id).await?.manifest);
        }
        return files(vault, id, into, as_json).await;
    }
    let (vault, swap) = (vault.with_foreign(order.from_database.clone()), order.swap());
    if order.dry_run {
        return preview(&vault, id, &swap, as_json).await;
    }
    // Before hours go by: what it is that comes back, and what does not.
    let (entry, mut notes) = vault.show_to_restore(id, &swap).await?;
    notes.iter().for_each(|note| tell(note));
    bar.expect(&entry.manifest);
    let done = unless_interrupted(&vault, entry.manifest.id.to_string(), swap.clone()).await?;
    done.notes.iter().for_each(|note| tell(note));
    notes.extend(done.notes);
    let value = json!({"id": done.id, "database": done.database, "replaced": done.replaced, "rows": done.rows,
        "notes": notes});
    print(as_json, &value, || {
        let (id, rows, name) = (done.id, done.rows, &done.database);
        let place = match (&swap, done.replaced) {
            (Swap::Drop, _) => "in a scratch database, dropped again".to_owned(),
            (Swap::Keep(_), _) => format!("in the new database {name:?}"),
            (Swap::Live, None) => format!("database {name:?} serves them now"),
            (Swap::Live, Some(old)) => format!("database {name:?} serves them now; the old one is kept as {old:?}"),
        };
        format!("{id} restored and proven: {rows} rows, {place}")
    })
}

async fn preview(vault: &Vault, id: &str, swap: &Swap, as_json: bool) -> anyhow::Result<()> {
    let (entry, notes) = vault.check_restore(id, swap).await?;
    notes.iter().for_each(|note| tell(note));
    let (database, place) = match swap {
        Swap::Live => {
            let name = vault.database();
            let place = format!("database {name:?}; one that is there is kept aside under a dated name");
            (Some(name), place)
        }
        Swap::Keep(name) => (Some(name.as_str()), format!("a new database {name:?}")),
        Swap::Drop => (None, "a scratch database, dropped again".to_owned()),
    };
    let value = json!({"backup": show::describe(&entry), "database": database, "replaces": *swap == Swap::Live,
        "notes": notes, "dryRun": true});
    print(as_json, &value, || {
        let page = show::page(&entry);
        format!(
            "{page}\n{:<10} {place}\nA dry run: nothing was touched, and nothing stands in the way that shows without reading the backup.",
            "into"
        )
    })
}

/// A signal ends it in an orderly way: a swap is let finish, all else is undone.
async fn unless_interrupted(vault: &Vault, id: String, swap: Swap) -> anyhow::Result<Restored> {
    let interruption = interruption()?;
    let working = vault.clone();
    let mut task = JoinSet::new();
    task.spawn(async move { working.restore(&id, &swap).await });
    tokio::select! {
        Some(done) = task.join_next() => Ok(done??),
        () = interruption => interrupted(vault, task).await,
    }
}

async fn interrupted(vault: &Vault, mut task: JoinSet<Result<Restored, backup::Error>>) -> anyhow::Result<Restored> {
    let _none = vault.no_swap().await;
    if let Some(Ok(done)) = task.try_join_next() {
        return Ok(done?);
    }
    task.shutdown().await;
    match vault.recover().await? {
        Recovered::Finished(told) => anyhow::bail!("interrupted: {told}"),
        _ => anyhow::bail!("interrupted: the databases are as they were"),
    }
}

async fn files(vault: &Vault, id: &str, into: &Path, as_json: bool) -> anyhow::Result<()> {
    let done = vault.restore_files(id, into).await?;
    for note in &done.notes {
        complain(&format!("warning: {note}\n"));
    }
    let value =
        json!({"id": done.id, "name": done.name, "into": done.into, "entries": done.entries, "notes": done.notes});
    print(as_json, &value, || {
        let into = done.into.display();
        format!(
            "{} of files {}: {} entries restored into {into}",
            done.id, done.name, done.entries
        )
    })
}

fn tell(note: &str) {
    complain(&format!("note: {note}\n"));
}
