//! Backups: what there is, how it goes, making, proving, restoring and deleting.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::response::{IntoResponse as _, Response};
use http::header::LOCATION;
use http::{HeaderValue, StatusCode};
use ulid::Ulid;

use super::super::State;
use super::super::auth::Caller;
use super::super::problem::Error;
use super::super::views::Paging;
use super::super::views::backups::{
    Accepted, Backup, BackupOrRun, BackupStats, Backups, CreateOrder, PruneOrder, PrunePreview, RestoreOrder,
    RestorePreview, RunView, Runs, VerifyOrder,
};
use super::ddos::quoted;
use super::trail::{paging, record};
use super::{Shared, order};
use crate::backup::service::stats::rate;
use crate::backup::service::{Act, Refusal, Run, State as RunState};
use crate::backup::{self, Entry, Swap};

const LABELS: [&str; 4] = ["daily", "weekly", "monthly", "manual"];
/// A ULID, or `latest`.
type Id = Result<Path<String>, PathRejection>;
type Body = Result<Bytes, BytesRejection>;

pub(super) async fn list(state: Shared, query: Result<Query<Paging>, QueryRejection>) -> Result<Json<Backups>, Error> {
    let (offset, limit) = paging(query)?;
    let entries = state.parts.vault.list().await?;
    let newest_first = entries.iter().rev().skip(offset).take(limit);
    Ok(Json(Backups {
        backups: newest_first.map(|entry| view(&state, entry)).collect(),
        total: entries.len(),
        offset,
        limit,
        running: state.parts.vault.current().map(|run| (&*run).into()),
    }))
}

pub(super) async fn stats(state: Shared) -> Result<Json<BackupStats>, Error> {
    let vault = &state.parts.vault;
    let (kinds, stored_bytes) = vault.stats().await?;
    let entries = vault.list().await?;
    let settings = vault.settings();
    let past = vault.past();
    let made = past.iter().filter(|run| matches!(run.act, Act::Create | Act::Files));
    let ended = |wanted: fn(&RunState) -> bool| made.clone().filter(|run| wanted(&run.status().state)).count();
    let succeeded = ended(|state| *state == RunState::Succeeded);
    let failed = ended(|state| matches!(state, RunState::Failed { .. } | RunState::Interrupted));
    Ok(Json(BackupStats {
        repository: settings.repository.url.clone(),
        time_zone: settings.plan.zone.iana_name().unwrap_or("UTC").to_owned(),
        total: entries.len(),
        good: entries.iter().filter(|entry| entry.is_good()).count(),
        stored_bytes,
        succeeded_runs: succeeded,
        failed_runs: failed,
        success_rate: rate(succeeded, failed),
        failure_rate: rate(failed, succeeded),
        next_run: kinds
            .iter()
            .filter_map(|kind| kind.next_run)
            .min()
            .map(|at| at.to_string()),
        kinds: kinds.iter().map(Into::into).collect(),
        running_id: vault.current().map(|run| run.id.to_string()),
        warnings: vault.warnings(),
    }))
}

pub(super) async fn runs(state: Shared) -> Json<Runs> {
    let runs = state
        .parts
        .vault
        .past()
        .iter()
        .map(|run| RunView::from(&**run))
        .collect();
    Json(Runs { runs })
}

pub(super) async fn show(state: Shared, id: Id) -> Result<Json<BackupOrRun>, Error> {
    let text = text(id)?;
    let vault = &state.parts.vault;
    let run = Ulid::from_string(&text).ok().and_then(|id| vault.find_run(id));
    let entry = match vault.choose(&text).await {
        Ok(entry) => Some(entry),
        Err(Refusal::Domain(backup::Error::Unknown(_))) if run.is_some() => None,
        Err(Refusal::Domain(backup::Error::Unknown(_))) => return Err(Error::NoBackup(quoted(&text))),
        Err(error) => return Err(error.into()),
    };
    Ok(Json(BackupOrRun {
        id: entry.as_ref().map_or(text, |entry| entry.manifest.id.to_string()),
        backup: entry.map(|entry| view(&state, &entry)),
        run: run.map(|run| (&*run).into()),
    }))
}

pub(super) async fn create(axum::extract::State(state): Shared, caller: Caller, body: Body) -> Result<Response, Error> {
    let started = order::<CreateOrder>(body).and_then(|order| {
        let label = order.kind.unwrap_or_else(|| "manual".to_owned());
        if !LABELS.contains(&label.as_str()) {
            let known = LABELS.join(", ");
            return Err(Error::Invalid(format!(
                "type must be one of {known}, not \"{}\"",
                quoted(&label)
            )));
        }
        Ok(state.parts.vault.start_create(vec![label], Vec::new())?)
    });
    audited(&state, &caller, "backup", "", started).await
}

pub(super) async fn restore(
    axum::extract::State(state): Shared,
    caller: Caller,
    body: Body,
) -> Result<Response, Error> {
    let order = order::<RestoreOrder>(body)?;
    let subject = quoted(order.id.as_deref().or(order.filepath.as_deref()).unwrap_or_default());
    if order.dry_run {
        return preview(&state, order).await;
    }
    let started = try_restore(&state, order).await;
    audited(&state, &caller, "restore", &subject, started).await
}

async fn try_restore(state: &State, order: RestoreOrder) -> Result<std::sync::Arc<Run>, Error> {
    let foreign = order.from_database.clone();
    let (id, swap) = resolve(state, order).await?;
    let vault = &state.parts.vault;
    // What can be refused is refused here, with its reason, rather than in a run that fails later.
    let (entry, told) = vault.preview_restore(&id, &swap, foreign.clone()).await?;
    Ok(vault.start_restore(entry.manifest.id.to_string(), swap, foreign, told)?)
}

async fn preview(state: &State, order: RestoreOrder) -> Result<Response, Error> {
    let foreign = order.from_database.clone();
    let (id, swap) = resolve(state, order).await?;
    let (entry, notes) = state.parts.vault.preview_restore(&id, &swap, foreign).await?;
    let database = match &swap {
        Swap::Live => state.parts.vault.database(),
        Swap::Keep(name) => Some(name.clone()),
        Swap::Drop => None,
    };
    let preview = RestorePreview {
        backup: view(state, &entry),
        database,
        replaces: swap == Swap::Live,
        notes,
        dry_run: true,
    };
    Ok(Json(preview).into_response())
}

/// Which backup, and what is to become of it.
async fn resolve(state: &State, order: RestoreOrder) -> Result<(String, Swap), Error> {
    let id = match (order.id, order.filepath) {
        (Some(id), None) => id,
        (None, Some(path)) => state.parts.vault.id_at(&path).await?.to_string(),
        _ => return Err(Error::Invalid("name the backup by either id or filepath".to_owned())),
    };
    let swap = match (order.target_database, order.verify_only) {
        (Some(_), true) => {
            return Err(Error::Invalid(
                "targetDatabase and verifyOnly exclude each other".to_owned(),
            ));
        }
        (Some(name), false) => Swap::Keep(name),
        (None, true) => Swap::Drop,
        (None, false) => Swap::Live,
    };
    Ok((id, swap))
}

pub(super) async fn verify(
    axum::extract::State(state): Shared,
    caller: Caller,
    id: Id,
    body: Body,
) -> Result<Response, Error> {
    let (text, order) = (text(id)?, order::<VerifyOrder>(body)?);
    let started = state.parts.vault.start_verify(&text, order.restore).await;
    audited(
        &state,
        &caller,
        "verify backup",
        &quoted(&text),
        started.map_err(Into::into),
    )
    .await
}

pub(super) async fn delete(axum::extract::State(state): Shared, caller: Caller, id: Id) -> Result<StatusCode, Error> {
    let text = text(id)?;
    let done: Result<Ulid, Error> = state.parts.vault.delete(&text).await.map_err(Into::into);
    let (subject, result) = match &done {
        // `latest` was asked for; tomorrow it is another one.
        Ok(marked) => (marked.to_string(), "ok: marked for deletion".to_owned()),
        Err(error) => (quoted(&text), error.to_string()),
    };
    record(&state, &caller, "delete backup", &subject, &result).await;
    done.map(|_| StatusCode::NO_CONTENT)
}

pub(super) async fn prune(axum::extract::State(state): Shared, caller: Caller, body: Body) -> Result<Response, Error> {
    if order::<PruneOrder>(body)?.dry_run {
        let pruned = state.parts.vault.preview_prune().await?;
        return Ok(Json(PrunePreview::from(&pruned)).into_response());
    }
    let started = state.parts.vault.start_prune().map_err(Into::into);
    audited(&state, &caller, "clean up backups", "", started).await
}

/// Writes down who asked for a run, and says where to follow it. What was asked for (`latest`) is the subject of a refusal
/// only: a run knows which backup it is about.
async fn audited(
    state: &State,
    caller: &Caller,
    action: &str,
    asked_for: &str,
    started: Result<std::sync::Arc<Run>, Error>,
) -> Result<Response, Error> {
    let (subject, result) = match &started {
        Ok(run) => (run.subjects.join(" "), format!("ok: run {}", run.id)),
        Err(error) => (asked_for.to_owned(), error.to_string()),
    };
    record(state, caller, action, &subject, &result).await;
    let id = started?.id.to_string();
    let status = format!("/api/infrastructure/backups/{id}");
    let location = HeaderValue::try_from(&status).unwrap_or(HeaderValue::from_static("/"));
    Ok((
        StatusCode::ACCEPTED,
        [(LOCATION, location)],
        Json(Accepted { id, status }),
    )
        .into_response())
}

fn view(state: &State, entry: &Entry) -> Backup {
    Backup::new(entry, state.parts.vault.place(&entry.folder))
}

fn text(id: Id) -> Result<String, Error> {
    let Path(text) = id.map_err(|error| Error::Invalid(quoted(&error.body_text())))?;
    Ok(text)
}
