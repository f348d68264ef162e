//! Point-in-time recovery: what the database server is set to, and how the archive gets on.

use std::time::Duration;

use axum::Json;

use super::super::State;
use super::super::problem::Error;
use super::super::views::pitr::{Setup, Stats};
use super::Shared;
use crate::pitr::Keeper;
use crate::telemetry::health::Condition;

/// A database that does not answer by then is asked in vain.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Needs no database: what is known is in memory.
pub(super) async fn stats(state: Shared) -> Result<Json<Stats>, Error> {
    let keeper = keeper(&state)?;
    let known = state.parts.recovery.routine().map(|routine| routine.known());
    Ok(Json(Stats::new(
        &keeper.stats(),
        known.as_ref(),
        state.parts.clock.wall(),
    )))
}

/// The server's settings against what is needed, asked now.
pub(super) async fn config(state: Shared) -> Result<Json<Setup>, Error> {
    let keeper = keeper(&state)?;
    match tokio::time::timeout(ASK_TIMEOUT, keeper.checks()).await {
        Ok(Ok(checks)) => Ok(Json(Setup::new(keeper.config(), &checks))),
        Ok(Err(error)) => Err(Error::Unavailable(format!("the database cannot be asked: {error}"))),
        Err(_) => Err(Error::Unavailable("the database does not answer".to_owned())),
    }
}

fn keeper(state: &Shared) -> Result<&Keeper, Error> {
    state.parts.recovery.keeper().ok_or_else(|| off(state))
}

/// Why recovery is not there. That it is not wanted is no failure: asking again will not help.
pub(super) fn off(state: &State) -> Error {
    let board = state.parts.board.read();
    let parts = ["pitr", "recovery"].map(|part| board.get(part));
    let why = parts.iter().flatten().find_map(|condition| match condition {
        Condition::Degraded(why) => Some(why.as_str()),
        Condition::Healthy => None,
    });
    match why {
        Some(why) => Error::Unavailable(format!("point-in-time recovery is {why}")),
        None if parts.iter().any(Option::is_some) => {
            Error::Unavailable("point-in-time recovery is just beginning".to_owned())
        }
        None => Error::Refused("point-in-time recovery is off: set [pitr] enabled = true in config.toml".to_owned()),
    }
}
