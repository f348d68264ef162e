//! Bodies in both directions: streamed, never buffered whole. Each keeps its flight's account and its idle deadline.

mod request;
mod response;

pub(super) use request::{Fate, RequestBody, Rules};
pub(super) use response::{Patience, ResponseBody};

use super::flight::Ended;

/// Why a body ended early. hyper closes or resets what carried it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the request body passed its cap")]
    TooLarge,
    #[error("the other side stalled")]
    Stalled,
    #[error("the client was blocked")]
    Blocked,
    #[error("the request was over before its body")]
    Over,
    #[error(transparent)]
    Transport(#[from] hyper::Error),
}

impl From<Ended> for Error {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Late => Self::Stalled,
            Ended::Blocked => Self::Blocked,
        }
    }
}
