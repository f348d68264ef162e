//! Health and metrics.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use prometheus::{Encoder as _, TextEncoder};

use super::super::problem::Error;
use super::super::views::{DatabaseHealth, FullHealth, Health, PartHealth};
use super::Shared;
use crate::telemetry::health::Condition;

const HEALTHY: &str = "healthy";
const DEGRADED: &str = "degraded";
/// A database that does not answer by then counts as down.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Open to all, no detail. Degraded is still 200: traffic flows, so nothing must be taken out of service.
pub(super) async fn brief(state: Shared) -> Json<Health> {
    Json(Health {
        status: status(state.parts.board.all_healthy()),
    })
}

pub(super) async fn database(state: Shared) -> Response {
    let health = ping(&state).await;
    let code = if health.status == HEALTHY {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, Json(health)).into_response()
}

pub(super) async fn comprehensive(state: Shared) -> Json<FullHealth> {
    let conditions = state.parts.board.read().into_iter();
    let parts = conditions.map(|(name, condition)| (name, part(condition)));
    Json(FullHealth {
        status: status(state.parts.board.all_healthy()),
        version: env!("CARGO_PKG_VERSION"),
        parts: parts.collect(),
        database: ping(&state).await,
    })
}

async fn ping(state: &Shared) -> DatabaseHealth {
    let kind = state.parts.store.kind();
    match tokio::time::timeout(PING_TIMEOUT, state.parts.store.ping()).await {
        Ok(Ok(took)) => DatabaseHealth {
            status: HEALTHY,
            kind,
            round_trip_seconds: Some(took.as_secs_f64()),
        },
        _ => DatabaseHealth {
            status: DEGRADED,
            kind,
            round_trip_seconds: None,
        },
    }
}

/// Whether the configuration in force is the one on disk; if not, why, or which keys wait for a restart.
pub(super) async fn config(state: Shared) -> Json<PartHealth> {
    let condition = state.parts.board.read().remove("config");
    Json(part(condition.unwrap_or(Condition::Healthy)))
}

fn part(condition: Condition) -> PartHealth {
    match condition {
        Condition::Healthy => PartHealth {
            status: HEALTHY,
            detail: None,
        },
        Condition::Degraded(detail) => PartHealth {
            status: DEGRADED,
            detail: Some(detail),
        },
    }
}

fn status(is_healthy: bool) -> &'static str {
    if is_healthy { HEALTHY } else { DEGRADED }
}

/// Prometheus' text format.
pub(super) async fn metrics(state: Shared) -> Result<Response, Error> {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    encoder
        .encode(&state.parts.registry.gather(), &mut text)
        .map_err(|error| Error::Unavailable(format!("the metrics cannot be written: {error}")))?;
    Ok(([(CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response())
}
