//! Every way a request can end without the app's answer. `respond` turns each into one response.

use std::sync::Arc;

use crate::guard::blocklist::Entry;
use crate::guard::limit::Excess;

/// Whose fault it is: status class, log level and whether it may count as evidence follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    Client,
    Upstream,
    Us,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("blocked until {:?}: {}", .0.block.expires_at, .0.block.reason)]
    Blocked(Arc<Entry>),
    #[error("over the limit of requests per {:?}", .0.violated)]
    Limited(Box<Excess>),
    #[error("the body is larger than {limit} bytes")]
    BodyTooLarge { limit: u64 },
    #[error("the header fields are larger than {limit_bytes} bytes or more than {limit_count}")]
    HeadersTooLarge { limit_bytes: usize, limit_count: usize },
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("the method {0} is not served here")]
    MethodRefused(http::Method),
    #[error("the expectation is not understood; only 100-continue is")]
    ExpectationFailed,
    #[error("the host does not belong to this connection's certificate check")]
    Misdirected,
    #[error("the request has passed through here already")]
    Loop,
    /// `Max-Forwards` is used up: the answer to OPTIONS is ours.
    #[error("the request was to go no further than here")]
    LastHop,
    #[error("the client stopped sending its request")]
    RequestTimeout,
    #[error("the app cannot be reached")]
    Unreachable,
    #[error("the app closed the connection or answered with something that is not HTTP")]
    BadAnswer,
    #[error("the app did not answer in time")]
    UpstreamTimeout,
    #[error("no server of the app is available; next try in {retry_after_s} s")]
    NoServer { retry_after_s: u64 },
    #[error("the app's data is being restored; try again in a moment")]
    Held,
    #[error("an internal fault")]
    Internal(&'static str),
}

impl Error {
    #[must_use]
    pub(super) fn blame(&self) -> Blame {
        match self {
            Self::Blocked(_)
            | Self::Limited(_)
            | Self::BodyTooLarge { .. }
            | Self::HeadersTooLarge { .. }
            | Self::BadRequest(_)
            | Self::MethodRefused(_)
            | Self::ExpectationFailed
            | Self::Misdirected
            | Self::Loop
            | Self::LastHop
            | Self::RequestTimeout => Blame::Client,
            Self::Unreachable | Self::BadAnswer | Self::UpstreamTimeout | Self::NoServer { .. } => Blame::Upstream,
            Self::Internal(_) | Self::Held => Blame::Us,
        }
    }
}
