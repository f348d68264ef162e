//! `foregate pitr setup`: what the database server needs, as lines to add or by `ALTER SYSTEM`.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use comfy_table::Table;

use super::vault::{Database, Need, Place};
use super::{Error, fitted_table, say};
use crate::pitr::setup::{self, Check, Verdict, Way};
use crate::postgres::{self, Admin, Target};

/// As this the command is known to the server.
const APPLICATION: &str = "foregate pitr setup";

#[derive(Debug, Args)]
pub(super) struct Wish {
    /// How the log shall come in.
    #[arg(long, value_enum)]
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
    /// Where that finds ours; `None`: where it is by default.
    socket: Option<PathBuf>,
}

pub(super) fn run(wish: &Wish, place: &Place) -> Result<(), Error> {
    let aim = aim(wish, place)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    match runtime.block_on(Box::pin(set_up(&aim, wish.apply)))? {
        Outcome::Ready => Ok(()),
        Outcome::Restart => Err(Error::Waits("set up; PostgreSQL must be restarted for it".to_owned())),
        Outcome::Missing => Err(Error::Failed(anyhow::anyhow!("the server is not set up yet"))),
    }
}

/// What is left to be done.
enum Outcome {
    Ready,
    /// All stands in the server's files.
    Restart,
    Missing,
}

fn aim(wish: &Wish, place: &Place) -> Result<Aim, Error> {
    let found = place.find(Need {
        database: Database::Needed,
        identity: false,
        pitr: true,
    })?;
    let database = found.backup.database.ok_or(postgres::Error::NoDatabase);
    let database = database.map_err(Error::usage)?;
    let socket = found.pitr.as_ref().map(|pitr| pitr.socket.clone());
    let way = match wish.wal {
        Some(Wal::Stream) => Way::Stream,
        Some(Wal::ArchiveCommand) => Way::ArchiveCommand,
        None => found.pitr.map_or(Way::ArchiveCommand, |pitr| pitr.wal),
    };
    let is_ours = wish.archive_command.is_none() && way == Way::ArchiveCommand;
    Ok(Aim {
        target: Target::parse(&database).map_err(Error::usage)?,
        way,
        command: wish
            .archive_command
            .clone()
            .unwrap_or_else(|| setup::archive_command(socket.as_deref())),
        trial: is_ours.then(|| setup::check_command(socket.as_deref())),
        socket,
    })
}

async fn set_up(aim: &Aim, apply: bool) -> anyhow::Result<Outcome> {
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
    let is_any = |verdict| checks.iter().any(|check| check.verdict == verdict);
    Ok(match runs && !is_any(Verdict::Wrong) {
        false => Outcome::Missing,
        true if is_any(Verdict::Restart) => Outcome::Restart,
        true => Outcome::Ready,
    })
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
            if let Some(socket) = aim.socket.as_deref().filter(|socket| nobody_listens(socket)) {
                say(&format!(
                    "\nForegate's server does not run: nobody listens at {}, where PostgreSQL hands its log over. Start it \
                     (`foregate run`, with `pitr.enabled = true`), and run this once more.\n",
                    socket.display()
                ));
                return Ok(false);
            }
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

/// Of somebody whom we may not ask nothing is known.
fn nobody_listens(socket: &Path) -> bool {
    let tried = UnixStream::connect(socket).map_err(|error| error.kind());
    matches!(tried, Err(ErrorKind::NotFound | ErrorKind::ConnectionRefused))
}

fn table(checks: &[Check]) -> Table {
    let mut table = fitted_table();
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
