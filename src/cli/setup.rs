//! `foregate pitr setup`: what the database server needs, as lines to add or by `ALTER SYSTEM`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use comfy_table::Table;

use super::{Error, say};
use crate::pitr::setup::{self, Check, Verdict, Way};
use crate::postgres::{self, Admin, Target};
use crate::secret::Secret;

/// As this the command is known to the server.
const APPLICATION: &str = "foregate pitr setup";

#[derive(Debug, Args)]
pub(super) struct Wish {
    /// The configuration file: database, way and socket stand there.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A file with the database's address; without it and --config, the environment's DATABASE_URL.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    database_url_file: Option<PathBuf>,
    /// How the log shall come in.
    #[arg(long, value_enum, conflicts_with = "config")]
    wal: Option<Wal>,
    /// The archive_command to set, where ours would not do (e.g. without the server: with --repository).
    #[arg(long, value_name = "COMMAND")]
    archive_command: Option<String>,
    /// Set what is wrong by ALTER SYSTEM, and let the server read it.
    #[arg(long)]
    apply: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Wal {
    ArchiveCommand,
    Stream,
}

/// What the checks are made against.
struct Aim {
    target: Target,
    way: Way,
    command: String,
    /// What the server itself is asked to run; `None`: nothing, since it never runs us.
    trial: Option<String>,
}

pub(super) fn run(wish: &Wish) -> Result<(), Error> {
    let aim = aim(wish)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let good = runtime.block_on(Box::pin(set_up(&aim, wish.apply)))?;
    if good {
        return Ok(());
    }
    Err(Error::Failed(anyhow::anyhow!("the server is not set up yet")))
}

fn aim(wish: &Wish) -> Result<Aim, Error> {
    let (url, way, socket) = match &wish.config {
        Some(path) => {
            let origin = crate::app::Origin {
                path: Some(path.clone()),
                overrides: crate::config::Overrides::default(),
            };
            let config = super::check::load(&origin)?.config;
            let database = config.backup.database.context("`database.url` is not set")?;
            (database.url, config.pitr.wal, Some(config.pitr.socket))
        }
        None => (url(wish)?, Way::ArchiveCommand, None),
    };
    let way = match wish.wal {
        Some(Wal::Stream) => Way::Stream,
        Some(Wal::ArchiveCommand) => Way::ArchiveCommand,
        None => way,
    };
    let is_ours = wish.archive_command.is_none() && way == Way::ArchiveCommand;
    Ok(Aim {
        target: Target::parse(&postgres::Config { url }).map_err(anyhow::Error::from)?,
        way,
        command: wish
            .archive_command
            .clone()
            .unwrap_or_else(|| setup::archive_command(socket.as_deref())),
        trial: is_ours.then(|| setup::check_command(socket.as_deref())),
    })
}

fn url(wish: &Wish) -> anyhow::Result<Secret> {
    match &wish.database_url_file {
        Some(path) => super::backup::secret(path),
        None => std::env::var("DATABASE_URL")
            .map(Secret::new)
            .context("none of --config, --database-url-file and DATABASE_URL is given"),
    }
}

/// Whether nothing is left to be done.
async fn set_up(aim: &Aim, apply: bool) -> anyhow::Result<bool> {
    let admin = Admin::connect(&aim.target, aim.target.database(), APPLICATION).await?;
    let mut checks = checks(&admin, aim).await?;
    if apply {
        let set = setup::apply(&admin, &checks).await?;
        say(&format!(
            "set: {}\n\n",
            if set.is_empty() {
                "nothing".to_owned()
            } else {
                set.join(", ")
            }
        ));
        // The server reads its files a moment after it was told to.
        drop(admin);
        let again = Admin::connect(&aim.target, aim.target.database(), APPLICATION).await?;
        checks = self::checks(&again, aim).await?;
    }
    say(&format!("{}\n", table(&checks)));
    let lines: Vec<String> = checks.iter().filter_map(Check::line).collect();
    if !lines.is_empty() {
        let how = "add to postgresql.conf, or run again with --apply";
        say(&format!("\n# {how}:\n{}\n", lines.join("\n")));
    }
    let restart: Vec<&str> = checks
        .iter()
        .filter(|check| check.needs_restart)
        .map(|check| check.name)
        .collect();
    if !restart.is_empty() {
        say(&format!("\nneeds a restart of the server: {}\n", restart.join(", ")));
    }
    let runs = try_trial(aim).await?;
    Ok(runs
        && checks
            .iter()
            .all(|check| matches!(check.verdict, Verdict::Good | Verdict::Advice)))
}

async fn checks(admin: &Admin, aim: &Aim) -> anyhow::Result<Vec<Check>> {
    let settings = setup::read(admin).await?;
    let client = setup::client(admin, &settings).await;
    Ok(setup::judge(&settings, aim.way, &aim.command, &client))
}

/// Lets the server run our client. That we may not ask it to is no fault of the setup.
async fn try_trial(aim: &Aim) -> anyhow::Result<bool> {
    let Some(program) = &aim.trial else { return Ok(true) };
    let admin = Admin::connect(&aim.target, aim.target.database(), APPLICATION).await?;
    match setup::try_program(&admin, program).await {
        Ok(()) => {
            say(&format!("\nthe server can run `{program}`, and reaches Foregate\n"));
            Ok(true)
        }
        Err(error) => {
            let may_not = error.is_denied();
            let text = format!("{:#}", anyhow::Error::from(error));
            let what = if may_not {
                "could not be tried (it takes a superuser)"
            } else {
                "failed"
            };
            say(&format!(
                "\nrunning `{program}` in the server {what}:\n{text}\nThe server's log says more.\n"
            ));
            Ok(may_not)
        }
    }
}

fn table(checks: &[Check]) -> Table {
    let mut table = Table::new();
    table.set_header(["setting", "is", "", "because"]);
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Good => "good",
            Verdict::Advice => "better",
            Verdict::Wrong => "wrong",
            Verdict::Restart => "set, waits for a restart",
        };
        let because = match &check.note {
            Some(note) => format!("{}; {note}", check.why),
            None => check.why.to_owned(),
        };
        table.add_row([check.name, &check.found, verdict, &because]);
    }
    table
}
