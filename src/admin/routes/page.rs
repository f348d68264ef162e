//! The web page. It is static and open; everything it shows it asks of the API with the token that its user types in.

use axum::Json;
use axum::response::Response;

use super::super::auth::Caller;
use super::super::views::Me;
use super::{Shared, asset};

pub(super) async fn index() -> Response {
    asset("text/html; charset=utf-8", include_bytes!("../ui/index.html"))
}

pub(super) async fn script() -> Response {
    asset("text/javascript; charset=utf-8", include_bytes!("../ui/app.js"))
}

pub(super) async fn backups_script() -> Response {
    asset("text/javascript; charset=utf-8", include_bytes!("../ui/backups.js"))
}

pub(super) async fn recovery_script() -> Response {
    asset("text/javascript; charset=utf-8", include_bytes!("../ui/recovery.js"))
}

pub(super) async fn style() -> Response {
    asset("text/css; charset=utf-8", include_bytes!("../ui/style.css"))
}

/// Whose token this is and what it may do.
pub(super) async fn me(state: Shared, caller: Caller) -> Json<Me> {
    Json(Me {
        role: caller.role.name(),
        name: caller.name,
        time_zone: state.parts.vault.time_zone(),
    })
}
