//! Recovery: the window, base backups, plans with their script, drills. What runs long is ordered here and read later.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use ulid::Ulid;

use super::super::State;
use super::super::auth::Caller;
use super::super::problem::Error;
use super::super::recovery_views as views;
use super::super::views::Paging;
use super::Shared;
use super::ddos::quoted;
use super::pitr::off;
use super::trail::{paging, record};
use crate::pitr::name::{Lsn, Timeline};
use crate::pitr::plan::{Goal, Plan, Request};
use crate::pitr::{self, Routine, instant};

/// Within what a request may take; a plan over much log is for the command line.
const PLAN_TIMEOUT: Duration = Duration::from_secs(25);
/// PostgreSQL's restore points have shorter names.
const NAME_CHARS_MAX: usize = 63;

type Query = Result<axum::extract::Query<Paging>, QueryRejection>;

/// What a plan is wanted for. One of the targets; none: the latest instant.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Order {
    /// A base backup's id or path; without it, the plan chooses.
    backup_path: Option<String>,
    target_timestamp: Option<String>,
    target_lsn: Option<String>,
    target_name: Option<String>,
    target_transaction: Option<u32>,
    timeline: Option<u32>,
    /// The data directory that the script replaces.
    data_directory: Option<String>,
}

impl Order {
    /// What the audit trail calls the target, as it was asked for.
    fn subject(&self) -> String {
        let time = self.target_timestamp.clone();
        let lsn = self.target_lsn.as_ref().map(|lsn| format!("LSN {lsn}"));
        let name = self.target_name.as_ref().map(|name| format!("restore point {name}"));
        let transaction = self.target_transaction.map(|id| format!("transaction {id}"));
        let asked: Vec<String> = [time, lsn, name, transaction].into_iter().flatten().collect();
        if asked.is_empty() {
            return "latest".to_owned();
        }
        quoted(&asked.join(", "))
    }
}

pub(super) async fn window(state: Shared) -> Result<Json<Value>, Error> {
    let known = routine(&state)?.known();
    let mut value = views::window(&known.window, state.parts.clock.wall());
    if let Value::Object(object) = &mut value {
        object.insert("lookedAt".to_owned(), json!(known.window_at));
    }
    Ok(Json(value))
}

pub(super) async fn bases(state: Shared, query: Query) -> Result<Json<Value>, Error> {
    let ((offset, limit), known) = (paging(query)?, routine(&state)?.known());
    let bases = known.bases.iter().rev().skip(offset).take(limit);
    Ok(Json(json!({
        "baseBackups": bases.map(views::base).collect::<Vec<Value>>(),
        "total": known.bases.len(),
        "offset": offset,
        "limit": limit,
        "running": known.base_run.running,
        "run": views::run(&known.base_run),
        "lookedAt": known.looked_at,
    })))
}

pub(super) async fn drills(state: Shared, query: Query) -> Result<Json<Value>, Error> {
    let ((offset, limit), known) = (paging(query)?, routine(&state)?.known());
    let drills = known.drills.iter().skip(offset).take(limit);
    Ok(Json(json!({
        "drills": drills.map(views::drill).collect::<Vec<Value>>(),
        "total": known.drills.len(),
        "offset": offset,
        "limit": limit,
        "running": known.drill_run.running,
        "run": views::run(&known.drill_run),
        "lookedAt": known.window_at,
    })))
}

pub(super) async fn take_base(state: Shared, caller: Caller) -> Result<(StatusCode, Json<Value>), Error> {
    let ordered = routine(&state)?.order_base_backup();
    ordered_run(&state, &caller, "base-backup", ordered).await
}

pub(super) async fn drill(state: Shared, caller: Caller) -> Result<(StatusCode, Json<Value>), Error> {
    let ordered = routine(&state)?.order_drill();
    ordered_run(&state, &caller, "drill", ordered).await
}

/// Acknowledges an order; one that runs already serves the second caller as well.
async fn ordered_run(
    state: &State,
    caller: &Caller,
    what: &str,
    ordered: bool,
) -> Result<(StatusCode, Json<Value>), Error> {
    let result = if ordered { "ordered" } else { "running already" };
    record(state, caller, what, "pitr", result).await;
    Ok((
        StatusCode::ACCEPTED,
        Json(json!({"ordered": ordered, "result": result})),
    ))
}

/// Makes a plan and its script; carries nothing out.
pub(super) async fn recover(
    axum::extract::State(state): Shared,
    caller: Caller,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Error> {
    let order = order(body)?;
    let routine = Arc::clone(routine(&state)?);
    let done = tokio::time::timeout(PLAN_TIMEOUT, Box::pin(planned(&routine, &order))).await;
    let done = done.unwrap_or_else(|_| {
        Err(Error::Unavailable(
            "reading the log takes longer than a request may: use `foregate pitr plan` on the command line".to_owned(),
        ))
    });
    let result = done.as_ref().map_or_else(ToString::to_string, |_| "ok".to_owned());
    record(&state, &caller, "recovery plan", &order.subject(), &result).await;
    done.map(Json)
}

async fn planned(routine: &Routine, order: &Order) -> Result<Value, Error> {
    let (goal, note) = goal(routine, order)?;
    let request = Request {
        goal,
        base: order.backup_path.as_deref().map(base_id).transpose()?,
        timeline: order.timeline.map(Timeline),
    };
    let plan: Plan = routine.recovery().plan(&request).await.map_err(|error| match error {
        pitr::Error::Refused(refusal) => Error::Unreachable(refusal),
        other => {
            tracing::warn!(error = %other, "a recovery could not be planned");
            Error::Unavailable(format!("no plan could be made: {other}"))
        }
    })?;
    let script = routine.recovery().script(&plan, order.data_directory.clone());
    Ok(json!({"plan": views::plan(&plan), "script": script, "note": note}))
}

fn goal(routine: &Routine, order: &Order) -> Result<(Goal, Option<String>), Error> {
    let given = [
        order.target_timestamp.is_some(),
        order.target_lsn.is_some(),
        order.target_name.is_some(),
        order.target_transaction.is_some(),
    ];
    if given.iter().filter(|given| **given).count() > 1 {
        return Err(Error::Invalid("name one target".to_owned()));
    }
    if let Some(text) = &order.target_timestamp {
        let understood = instant::read(text, routine.time_zone()).map_err(Error::Invalid)?;
        return Ok((Goal::Time(understood.at), understood.note));
    }
    let goal = if let Some(text) = &order.target_lsn {
        let lsn: Lsn = text.parse().map_err(|error| Error::Invalid(format!("{error}")))?;
        Goal::Lsn(lsn)
    } else if let Some(name) = &order.target_name {
        if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
            return Err(Error::Invalid("targetName is no name of a restore point".to_owned()));
        }
        Goal::Name(name.clone())
    } else {
        order.target_transaction.map_or(Goal::Latest, Goal::Transaction)
    };
    Ok((goal, None))
}

/// The id at the end of a path, or alone.
fn base_id(path: &str) -> Result<Ulid, Error> {
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    Ulid::from_string(name).map_err(|_| Error::Invalid("backupPath does not end in a base backup's id".to_owned()))
}

fn order(body: Result<Bytes, BytesRejection>) -> Result<Order, Error> {
    let order: Order = super::order(body)?;
    let bad = |text: &Option<String>| text.as_ref().is_some_and(|text| text.chars().any(char::is_control));
    if bad(&order.data_directory) || order.data_directory.as_ref().is_some_and(|path| !path.starts_with('/')) {
        return Err(Error::Invalid("dataDirectory must be an absolute path".to_owned()));
    }
    Ok(order)
}

fn routine(state: &State) -> Result<&Arc<Routine>, Error> {
    state.parts.recovery.routine().ok_or_else(|| off(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_trail_names_what_a_plan_was_asked_for() {
        for (body, subject) in [
            (r#"{}"#, "latest"),
            (r#"{"targetTimestamp": "2026-03-29 02:00"}"#, "2026-03-29 02:00"),
            (r#"{"targetLsn": "0/3000060"}"#, "LSN 0/3000060"),
            (
                r#"{"targetName": "before the\naccident"}"#,
                "restore point before the\\naccident",
            ),
            (r#"{"targetTransaction": 7}"#, "transaction 7"),
            (
                r#"{"targetLsn": "0/3000060", "targetTransaction": 7}"#,
                "LSN 0/3000060, transaction 7",
            ),
        ] {
            assert_eq!(order(Ok(Bytes::from(body))).unwrap().subject(), subject, "{body}");
        }
    }
}
