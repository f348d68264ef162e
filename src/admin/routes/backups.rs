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

/// The types of a backup of the database, and that of a file set.
const LABELS: [&str; 4] = ["daily", "weekly", "monthly", "manual"];
const FILES: &str = "files";
/// So many are named among the warnings.
const UNREADABLE_MAX: usize = 5;
/// A ULID, or where nothing is destroyed `latest`.
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
        unreadable: state.parts.vault.unreadable().await?.iter().map(Into::into).collect(),
        running: state.parts.vault.current().map(|run| (&*run).into()),
    }))
}

pub(super) async fn stats(state: Shared) -> Result<Json<BackupStats>, Error> {
    let vault = &state.parts.vault;
    let (kinds, stored_bytes) = vault.stats().await?;
    let entries = vault.list().await?;
    let settings = vault.settings();
    let mut warnings = vault.warnings();
    // Whoever restores by the list would take an older one for the newest.
    let unreadable = vault.unreadable().await?;
    warnings.extend(unreadable.iter().take(UNREADABLE_MAX).map(ToString::to_string));
    let past = vault.past();
    let made = past.iter().filter(|run| matches!(run.act, Act::Create | Act::Files));
    let ended = |wanted: fn(&RunState) -> bool| made.clone().filter(|run| wanted(&run.status().state)).count();
    let succeeded = ended(|state| *state == RunState::Succeeded);
    let failed = ended(|state| matches!(state, RunState::Failed { .. } | RunState::Interrupted));
    Ok(Json(BackupStats {
        repository: settings.repository.url.clone(),
        time_zone: vault.time_zone(),
        cluster: vault.cluster(),
        file_sets: vault.file_sets(),
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
        warnings,
    }))
}

pub(super) async fn runs(state: Shared, query: Result<Query<Paging>, QueryRejection>) -> Result<Json<Runs>, Error> {
    let (offset, limit) = paging(query)?;
    let runs = state.parts.vault.past();
    let newest_first = runs.iter().skip(offset).take(limit);
    Ok(Json(Runs {
        runs: newest_first.map(|run| RunView::from(&**run)).collect(),
        total: runs.len(),
        offset,
        limit,
    }))
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
    let order = order::<CreateOrder>(body)?;
    let action = match order.kind() {
        FILES => "backup files",
        _ => "backup",
    };
    let asked_for = quoted(order.name.as_deref().unwrap_or_else(|| order.kind()));
    let started = try_create(&state, &order).await;
    audited(&state, &caller, action, &asked_for, started).await
}

async fn try_create(state: &State, order: &CreateOrder) -> Result<std::sync::Arc<Run>, Error> {
    let vault = &state.parts.vault;
    match (order.kind(), order.name.as_deref()) {
        (FILES, name) => Ok(vault.start_set(name.unwrap_or_default()).await?),
        (_, Some(_)) => Err(Error::Invalid(format!("a name goes with the type {FILES} alone"))),
        (label, None) if LABELS.contains(&label) => Ok(vault.start_create(vec![label.to_owned()], Vec::new()).await?),
        (other, None) => Err(Error::Invalid(format!(
            "type must be one of {}, {FILES}, not \"{}\"",
            LABELS.join(", "),
            quoted(other)
        ))),
    }
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
    Ok(vault
        .start_restore(entry.manifest.id.to_string(), swap, foreign, told)
        .await?)
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
    // What destroys names what it means: `latest` is another one tomorrow.
    let done = match Ulid::from_string(&text) {
        Ok(_) => state.parts.vault.delete(&text).await.map_err(Into::into),
        Err(_) => Err(Error::Invalid("a backup is deleted by its id alone".to_owned())),
    };
    marked(
        &state,
        &caller,
        ("delete backup", &text),
        done,
        "ok: marked for deletion",
    )
    .await
}

pub(super) async fn undelete(axum::extract::State(state): Shared, caller: Caller, id: Id) -> Result<StatusCode, Error> {
    let text = text(id)?;
    let done = state.parts.vault.undelete(&text).await.map_err(Into::into);
    marked(&state, &caller, ("undelete backup", &text), done, "ok: the mark is off").await
}

/// Writes down who put a mark on a backup or took it off.
async fn marked(
    state: &State,
    caller: &Caller,
    (action, subject): (&str, &str),
    done: Result<Ulid, Error>,
    ok: &str,
) -> Result<StatusCode, Error> {
    let result = done.as_ref().map_or_else(ToString::to_string, |_| ok.to_owned());
    record(state, caller, action, &quoted(subject), &result).await;
    done.map(|_| StatusCode::NO_CONTENT)
}

pub(super) async fn prune(axum::extract::State(state): Shared, caller: Caller, body: Body) -> Result<Response, Error> {
    if order::<PruneOrder>(body)?.dry_run {
        let pruned = state.parts.vault.preview_prune().await?;
        return Ok(Json(PrunePreview::from(&pruned)).into_response());
    }
    let started = state.parts.vault.start_prune().await.map_err(Into::into);
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
