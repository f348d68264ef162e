//! The audit trail: every change with who, what, from where and with what result.

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;

use super::super::State;
use super::super::auth::Caller;
use super::super::problem::Error;
use super::super::views::{Audit, Paging};
use super::Shared;
use crate::store::AuditEntry;

const LIMIT: usize = 100;
const LIMIT_MAX: usize = 1000;

/// Offset and limit of a list, with a default and a cap.
pub(super) fn paging(query: Result<Query<Paging>, QueryRejection>) -> Result<(usize, usize), Error> {
    let Query(paging) = query.map_err(|error| Error::Invalid(super::ddos::quoted(&error.body_text())))?;
    Ok((paging.offset, paging.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX)))
}

pub(super) async fn list(state: Shared, query: Result<Query<Paging>, QueryRejection>) -> Result<Json<Audit>, Error> {
    let (offset, limit) = paging(query)?;
    let (entries, total) = state.parts.store.audit(offset, limit).await?;
    Ok(Json(Audit {
        entries: entries.into_iter().map(Into::into).collect(),
        total,
        offset,
        limit,
    }))
}

/// Writes what an admin did, or was refused. The change stands whatever becomes of this: with the store away the log holds
/// the entry, which is always written there too.
pub(super) async fn record(state: &State, caller: &Caller, action: &str, subject: &str, result: &str) {
    let (actor, from) = (caller.name.as_str(), caller.address);
    tracing::info!(actor, %from, action, subject, result, "admin");
    let entry = AuditEntry {
        at: state.parts.clock.wall(),
        actor: caller.name.clone(),
        from: caller.address,
        action: action.to_owned(),
        subject: subject.to_owned(),
        result: result.to_owned(),
    };
    if let Err(error) = state.parts.store.append_audit(entry).await {
        tracing::error!(%error, actor, %from, action, subject, result, "the audit trail cannot be written; this line stands for it");
    }
}
