//! What each verb does.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::super::backup::print;
use super::super::interruption;
use super::{Site, Verb, Wish, show};
use crate::admin::recovery_views as views;
use crate::clock::Clock;
use crate::pitr::Recovery;
use crate::pitr::base::{Mode, Pruned};
use crate::pitr::config::Check;
use crate::pitr::plan::{Goal, Plan, Request};
use crate::pitr::recover::{self, Running};

pub(super) async fn act(verb: &Verb, site: &Site<'_>) -> anyhow::Result<()> {
    match verb {
        Verb::BaseBackup { labels } => {
            let manifest = site
                .recovery(Vec::new())?
                .bases()
                .take(labels.clone(), Vec::new())
                .await?;
            print(site.json, &serde_json::to_value(&manifest)?, || show::taken(&manifest))
        }
        Verb::BaseBackups => {
            let recovery = site.recovery(Vec::new())?;
            let bases = recovery.bases().list(&recovery.cluster().await?).await?;
            note_others(&recovery).await;
            let value = Value::from(bases.iter().map(views::base).collect::<Vec<_>>());
            print(site.json, &value, || show::bases(&bases))
        }
        Verb::Stats => stats(site).await,
        Verb::Window => {
            let recovery = site.recovery(Vec::new())?;
            let window = recovery.window().await?;
            note_others(&recovery).await;
            let now = Clock::system().wall();
            print(site.json, &views::window(&window, now), || show::window(&window, now))
        }
        Verb::Plan { wish, script, data } => plan(site, wish, script.as_deref(), data.clone()).await,
        Verb::Recover { wish, into, promote } => {
            let (into, when) = (absolute(into)?, if *promote { When::AtOnce } else { When::Told });
            Box::pin(recover(site, wish, &into, when)).await
        }
        Verb::Promote { directory } => {
            let directory = absolute(directory)?;
            let account = recover::account(site.means.account.as_deref(), &directory)?;
            let place_of = recover::Place::beside(&directory, account);
            recover::promote(&place_of, site.target.role()).await?;
            print(site.json, &json!({"promoted": directory}), || show::promoted(&place_of))
        }
        Verb::Unpack { base, into } => {
            let recovery = site.recovery(Vec::new())?;
            recovery.unpack_only(*base, &absolute(into)?).await?;
            print(site.json, &json!({"baseBackup": base, "into": into}), || {
                format!("{base} unpacked into {} and verified", into.display())
            })
        }
        Verb::Drill { target, checks } => Box::pin(drill(site, target.as_deref(), checks)).await,
        Verb::Drills => {
            let drills = site.recovery(Vec::new())?.drills().await?;
            let value = Value::from(drills.iter().map(views::drill).collect::<Vec<_>>());
            print(site.json, &value, || show::drills(&drills))
        }
        Verb::Prune { window, dry_run } => prune(site, *window, if *dry_run { Mode::DryRun } else { Mode::Act }).await,
    }
}

/// As the API has them, as far as the repository knows.
async fn stats(site: &Site<'_>) -> anyhow::Result<()> {
    let recovery = site.recovery(Vec::new())?;
    let now = Clock::system().wall();
    let inventory = recovery.inventory().await?;
    let bases = recovery.bases().list(&recovery.cluster().await?).await?;
    let window = recovery.window().await?;
    note_others(&recovery).await;
    let drills = recovery.drills().await?;
    let last = drills.first();
    let value = json!({
        "archive": views::archive(&inventory),
        "window": views::window(&window, now),
        "baseBackups": views::bases_in_short(&bases),
        "lastDrill": last.map(views::drill),
    });
    print(site.json, &value, || {
        show::stats(&inventory, &bases, &window, last, now)
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    AtOnce,
    Told,
}

fn absolute(path: &Path) -> anyhow::Result<std::path::PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is not a path", path.display()))
}

/// That nothing is found may mean that another cluster was meant.
async fn note_others(recovery: &Recovery) {
    // What the repository does not say now, the command itself has told or tells.
    let Ok(Some((meant, others))) = recovery.others_instead().await else {
        return;
    };
    let named = others
        .iter()
        .map(|(cluster, count)| format!("{} ({count})", cluster.prefix()));
    super::super::complain(&format!(
        "note: cluster {} has no base backup here; of others the repository holds base backups: {}; say --of CLUSTER for one\n",
        meant.prefix(),
        named.collect::<Vec<_>>().join(", ")
    ));
}

async fn planned(recovery: &Recovery, request: &Request, as_json: bool) -> anyhow::Result<Plan> {
    let planned = recovery.plan(request).await;
    if planned.is_err() {
        note_others(recovery).await;
    }
    match planned {
        Ok(plan) => Ok(plan),
        Err(crate::pitr::Error::Refused(refusal)) if as_json => {
            print(true, &json!({"refused": views::refusal(&refusal)}), String::new)?;
            bail!("refused: {refusal}")
        }
        Err(error) => Err(error.into()),
    }
}

async fn plan(site: &Site<'_>, wish: &Wish, file: Option<&Path>, data: Option<String>) -> anyhow::Result<()> {
    let recovery = site.recovery(Vec::new())?;
    let plan = planned(&recovery, &wish.request(site)?, site.json).await?;
    let mut value = views::plan(&plan);
    if let Some(file) = file {
        let text = recovery.script(&plan, data);
        let mut open = std::fs::OpenOptions::new();
        let open = open.write(true).create_new(true).mode(0o700).open(file);
        let mut open = open.with_context(|| format!("making {}", file.display()))?;
        std::io::Write::write_all(&mut open, text.as_bytes())?;
        if let Value::Object(object) = &mut value {
            object.insert("script".to_owned(), json!(file));
        }
    }
    print(site.json, &value, || show::plan(&plan, file))
}

async fn recover(site: &Site<'_>, wish: &Wish, into: &Path, when: When) -> anyhow::Result<()> {
    let recovery = site.recovery(Vec::new())?;
    let plan = planned(&recovery, &wish.request(site)?, site.json).await?;
    if !site.json {
        super::super::say(&show::plan(&plan, None));
        super::super::say("\n");
    }
    let beside = recover::Place::beside(into, recovery.account(into)?);
    let mut interrupted = std::pin::pin!(interruption()?);
    let mut running = recovery.recover(&plan, &beside, interrupted.as_mut()).await?;
    for note in &running.notes {
        super::super::complain(&format!("note: {note}\n"));
    }
    let shown = tokio::select! {
        shown = running.look() => shown?,
        () = interrupted => {
            running.stop().await;
            bail!("interrupted: {0} has reached the target and is stopped; `foregate pitr promote {0}` goes on", into.display());
        }
    };
    let reached = running.reached.clone();
    let phases = running.phases;
    if when == When::AtOnce {
        running.promote().await?;
    }
    let role = running.role().to_owned();
    let_go(running, when).await?;
    let value = json!({
        "plan": views::plan(&plan),
        "into": into,
        "socket": beside.run,
        "said": reached.said,
        "lsn": reached.lsn.to_string(),
        "lastTransactionAt": reached.last_commit,
        "promoted": when == When::AtOnce,
        "seconds": phases.total().as_secs_f64(),
        "tables": shown.as_ref().map(|shown| {
            shown.tables.iter().map(|table| json!({"name": table.name, "rows": table.rows})).collect::<Vec<_>>()
        }),
    });
    print(site.json, &value, || {
        let state = show::State {
            reached: &reached,
            phases: &phases,
            recent: &plan.recent,
            shown: shown.as_ref(),
            promoted: when == When::AtOnce,
            role: &role,
        };
        show::recovered(&beside, &state)
    })
}

/// A promoted server is stopped, so that its operator starts it in his own way; a paused one waits.
async fn let_go(running: Running, when: When) -> anyhow::Result<()> {
    match when {
        When::AtOnce => running.stop().await,
        When::Told => running.let_go().await?,
    }
    Ok(())
}

async fn drill(site: &Site<'_>, target: Option<&str>, checks: &[String]) -> anyhow::Result<()> {
    let checks = checks.iter().map(|text| {
        let (sql, expected) = text.rsplit_once('=').context("a check is written as SQL=ANSWER")?;
        Ok(Check {
            sql: sql.to_owned(),
            expect: expected.to_owned(),
        })
    });
    let recovery = site.recovery(checks.collect::<anyhow::Result<_>>()?)?;
    let target = target.map(|text| site.time(text)).transpose()?;
    let drill = Box::pin(recovery.drill(target)).await?;
    print(site.json, &views::drill(&drill), || show::drill(&drill))?;
    match drill.failure {
        Some(failure) => bail!("the drill failed: {failure}"),
        None => Ok(()),
    }
}

async fn prune(site: &Site<'_>, days: Option<u64>, mode: Mode) -> anyhow::Result<()> {
    let recovery = site.recovery(Vec::new())?;
    let cluster = recovery.cluster().await?;
    let policy = site.policy(days);
    let pruned: Pruned = recovery.bases().prune(&cluster, &policy, mode).await?;
    let value = json!({
        "decisions": pruned.decisions.iter().map(views::decision).collect::<Vec<_>>(),
        "windowSeconds": policy.window.as_secs(),
        "frozen": pruned.frozen,
        "spared": pruned.spared,
        "marked": pruned.marked,
        "deleted": pruned.deleted,
        "segments": pruned.segments,
        "segmentBytes": pruned.segment_bytes,
        "dryRun": mode == Mode::DryRun,
    });
    print(site.json, &value, || show::pruned(&pruned))
}

/// Kept here so that a target without a database reads well.
#[must_use]
pub(super) fn describe(goal: &Goal) -> String {
    match goal {
        Goal::Time(at) => at.to_string(),
        Goal::Lsn(lsn) => format!("position {lsn}"),
        Goal::Name(name) => format!("restore point {name:?}"),
        Goal::Transaction(xid) => format!("transaction {xid}"),
        Goal::Latest => "the latest instant".to_owned(),
    }
}
