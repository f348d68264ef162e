//! `foregate backup`: works without the server and without a configuration, for the day that the machine burned.

mod bar;
mod notes;
mod restore;
mod show;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use ulid::Ulid;

use self::bar::Bar;
use super::Error;
use super::vault::{Database, Need, Place};
use crate::backup::files::FileSet;
use crate::backup::{self, FilePlan, Progress, Proven, Settings, Vault};
use crate::clock::Clock;
use crate::postgres;
use crate::repository::manifest::{Content, Manifest};
use crate::secret::Secret;

/// What the end of a command waits for: a disk that does not answer must not hold it up.
pub(super) const END_MAX: Duration = Duration::from_secs(1);

/// The vault, by hand.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    place: Place,
    /// Holds the journal of a restore.
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where a restore unpacks the dump, as large as the data; a directory that is there.
    #[arg(long, global = true, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a backup now, read it back, publish it.
    Create {
        /// The labels that it carries.
        #[arg(long = "label", default_value = "manual", value_parser = ["daily", "weekly", "monthly", "manual"])]
        labels: Vec<String>,
        /// Store it in the clear, for want of a recipient, although earlier ones of the same are sealed.
        #[arg(long)]
        in_the_clear: bool,
        #[command(flatten)]
        files: Files,
    },
    /// The backups, oldest first.
    List,
    /// One backup: what it holds, how far it is proven, and every proof since.
    Show { id: String },
    /// Read a backup back whole; with --restore, restore it into a scratch database as well.
    Verify {
        id: String,
        #[arg(long)]
        restore: bool,
    },
    /// Restore a backup (or `latest`) and put it in the database's place.
    Restore(restore::Order),
    /// Mark a backup for deletion, by its id: a clean-up removes it once the grace is over. The last good one is refused.
    Delete {
        #[arg(value_parser = by_id)]
        id: Ulid,
    },
    /// Take the mark off a backup that was to be deleted.
    Undelete {
        #[arg(value_parser = by_id)]
        id: Ulid,
    },
    /// Apply retention.
    Prune {
        /// Only say what would go, and why each kept one is kept.
        #[arg(long)]
        dry_run: bool,
    },
}

/// A file set instead of the database.
#[derive(Debug, Args)]
struct Files {
    /// Back up the file set of this name, instead of the database: one of the configuration, or the paths given.
    #[arg(long = "files", value_name = "NAME", conflicts_with = "labels")]
    name: Option<String>,
    /// A directory or file of the set; may be repeated.
    #[arg(long = "path", value_name = "PATH", requires = "name")]
    paths: Vec<PathBuf>,
    /// How long the set is kept; 30 where nothing says otherwise.
    #[arg(long, value_name = "DAYS", requires = "name")]
    keep_days: Option<u32>,
}

impl Command {
    fn need(&self) -> Need {
        let database = match self {
            Self::Create { files, .. } if files.name.is_none() => Database::Needed,
            Self::Verify { restore: true, .. } => Database::Wanted,
            Self::Restore(order) if order.is_of_database() => Database::Wanted,
            _ => Database::IfKnown,
        };
        Need {
            database,
            identity: matches!(self, Self::Create { .. } | Self::Verify { .. } | Self::Restore(_)),
            pitr: false,
        }
    }
}

/// # Errors
/// Why it did not do what it was asked.
pub(super) fn run(options: &Options) -> Result<(), Error> {
    notes::show();
    let settings = settings(options)?;
    let bar = Bar::new(options.place.json);
    let config = settings.vault().context("which database?")?;
    let opened = match &options.command {
        Command::Create { .. } => {
            if let Some(doubt) = settings.in_the_clear() {
                complain(&format!("warning: {doubt}, nor does --recipient\n"));
            }
            Vault::open(config, Clock::system(), bar.progress())
        }
        _ => Vault::open_existing(config, Clock::system(), bar.progress()),
    };
    let vault = opened.map_err(Error::usage)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let done = runtime.block_on(Box::pin(command(options, &settings, vault, &bar)));
    runtime.shutdown_timeout(END_MAX);
    done.map_err(|error| match error.downcast_ref() {
        Some(backup::Error::Postgres(postgres::Error::NoDatabase)) => Error::usage(error),
        _ => error.into(),
    })
}

/// `latest` is another one tomorrow.
fn by_id(text: &str) -> Result<Ulid, &'static str> {
    Ulid::from_string(text).map_err(|_| "name it by its id, as `foregate backup list` tells it")
}

async fn command(options: &Options, settings: &Settings, vault: Vault, bar: &Bar) -> anyhow::Result<()> {
    let as_json = options.place.json;
    match &options.command {
        Command::Create {
            labels,
            in_the_clear,
            files,
        } => {
            if !in_the_clear {
                vault.check_sealing(files.name.as_deref()).await?;
            }
            let manifest = match &files.name {
                Some(name) => {
                    vault
                        .create_files(&file_set(name, files, &settings.plan.files)?)
                        .await?
                }
                None => vault.create(labels.clone(), Vec::new()).await?,
            };
            complain_of_notes(&manifest);
            print(as_json, &serde_json::to_value(&manifest)?, || show::line(&manifest))
        }
        Command::List => show::list(&vault, &settings.repository.url, as_json).await,
        Command::Show { id } => {
            let entry = vault.show(id).await?;
            print(as_json, &show::describe(&entry), || show::page(&entry))
        }
        Command::Verify { id, restore } => {
            let entry = vault.show(id).await?;
            bar.expect(&entry.manifest);
            let Proven { level, unrecorded } = vault.prove_again(&entry, *restore).await?;
            if let Some(note) = &unrecorded {
                complain(&format!("note: {note}\n"));
            }
            let id = entry.manifest.id;
            let opened = vault.can_open(&entry.manifest);
            let value = json!({"id": id, "level": level, "opened": opened, "unrecorded": unrecorded});
            print(as_json, &value, || match opened {
                true => format!("{id} is proven to {level:?}"),
                false => format!(
                    "{id} holds the bytes that were written ({level:?}); they were not opened: there is no identity for that"
                ),
            })
        }
        Command::Restore(order) => restore::run(&vault, bar, order, as_json).await,
        Command::Delete { id } => {
            let id = vault.delete(&id.to_string()).await?;
            let grace = settings.retention.grace.as_secs() / 3600;
            print(as_json, &json!({"id": id, "marked": true}), || {
                format!("{id} is marked for deletion; the first clean-up after {grace} hours removes it")
            })
        }
        Command::Undelete { id } => {
            let id = vault.undelete(&id.to_string()).await?;
            print(as_json, &json!({"id": id, "marked": false}), || {
                format!("{id} is not marked for deletion any more")
            })
        }
        Command::Prune { dry_run } => show::prune(&vault, *dry_run, as_json).await,
    }
}

fn file_set(name: &str, files: &Files, configured: &[FilePlan]) -> anyhow::Result<FileSet> {
    let mut set = match configured.iter().find(|plan| plan.set.name == name) {
        Some(plan) => plan.set.clone(),
        None => FileSet {
            name: name.to_owned(),
            paths: Vec::new(),
            keep_days: 30,
        },
    };
    if !files.paths.is_empty() {
        set.paths.clone_from(&files.paths);
    }
    set.keep_days = files.keep_days.unwrap_or(set.keep_days);
    anyhow::ensure!(
        !set.paths.is_empty(),
        "the configuration has no file set {name:?}; name its paths with --path"
    );
    Ok(set)
}

fn complain_of_notes(manifest: &Manifest) {
    let Content::Files { notes, more_notes, .. } = &manifest.content else {
        return;
    };
    for note in notes {
        complain(&format!("warning: {note}\n"));
    }
    if *more_notes > 0 {
        complain(&format!("warning: and {more_notes} more\n"));
    }
}

/// What the configuration says, and the options instead of it.
fn settings(options: &Options) -> Result<Settings, Error> {
    let mut settings = options.place.find(options.command.need())?.backup;
    if let Some(directory) = &options.state_dir {
        settings.state_dir.clone_from(directory);
    }
    if let Some(directory) = &options.scratch {
        settings.scratch = Some(directory.clone());
    }
    // Files need none; what needs one says so.
    let none = || postgres::Config { url: Secret::new("") };
    settings.database.get_or_insert_with(none);
    Ok(settings)
}

/// For commands that do not know how much there is to do.
pub(super) fn progress(as_json: bool) -> Progress {
    Bar::new(as_json).progress()
}

pub(super) fn print(as_json: bool, value: &Value, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let text = if as_json {
        serde_json::to_string_pretty(value)?
    } else {
        text()
    };
    let mut out = std::io::stdout().lock();
    // A reader that went away (`| head`) is no error.
    drop(writeln!(out, "{text}"));
    Ok(())
}

fn complain(text: &str) {
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}
