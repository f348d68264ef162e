//! Every error of the API, and its one way out: a problem document (RFC 9457).

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};

use super::Role;
use super::auth::Caller;
use super::views::Problem;
use crate::backup;
use crate::guard::blocklist;
use crate::pitr::plan::Refusal;
use crate::store;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("send a token: Authorization: Bearer <token>")]
    NoToken,
    #[error("this token is not known here")]
    WrongToken,
    #[error("too many wrong tokens from this address")]
    TooManyAttempts { retry_after_s: u64 },
    #[error("this needs the role {}, the token has {}", needed.name(), caller.role.name())]
    Forbidden { needed: Role, caller: Caller },
    #[error("this host name is not one of the admin listener")]
    WrongHost,
    #[error("there is nothing at this address")]
    NotFound,
    #[error("there is no backup or run \"{0}\"")]
    NoBackup(String),
    #[error("run {0} is under way; one at a time")]
    Busy(ulid::Ulid),
    #[error("{0}")]
    Conflict(String),
    /// It was understood, and would do harm or cannot work.
    #[error("{0}")]
    Refused(String),
    /// A recovery that leads nowhere.
    #[error("{0}")]
    Unreachable(Box<Refusal>),
    #[error("{0} is not blocked")]
    NotBlocked(String),
    #[error("this address does not take the method")]
    MethodNotAllowed { allowed: String },
    #[error("{0}")]
    Invalid(String),
    #[error("the request body is too large")]
    TooLarge,
    #[error("the body must be JSON")]
    NotJson,
    #[error("{0}")]
    Unavailable(String),
    /// Looking may be given up; a change goes on without its caller.
    #[error("this took too long")]
    TooLong,
    #[error(
        "this takes longer than a request may, and goes on: look at the runs and the audit trail before you ask for it again"
    )]
    GoesOn,
}

impl Error {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoToken | Self::WrongToken => StatusCode::UNAUTHORIZED,
            Self::TooManyAttempts { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::WrongHost => StatusCode::MISDIRECTED_REQUEST,
            Self::NotFound | Self::NotBlocked(_) | Self::NoBackup(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Busy(_) | Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Invalid(_) | Self::Refused(_) | Self::Unreachable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotJson => StatusCode::BAD_REQUEST,
            Self::Unavailable(_) | Self::TooLong | Self::GoesOn => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl From<backup::service::Refusal> for Error {
    fn from(refusal: backup::service::Refusal) -> Self {
        use backup::service::Refusal;
        match refusal {
            Refusal::Busy(id) => Self::Busy(id),
            Refusal::Domain(backup::Error::Unknown(id)) => {
                Self::NoBackup(id.chars().flat_map(char::escape_debug).take(80).collect())
            }
            // Another process has the lock: the command line, or another instance.
            Refusal::Domain(error @ backup::Error::Busy(_)) => {
                Self::Conflict(format!("{error}; ask again once it has ended"))
            }
            Refusal::Domain(error @ backup::Error::Refused(_)) => Self::Refused(error.to_string()),
            Refusal::Domain(error) => {
                tracing::warn!(error = %backup::explain(&error), "the vault failed an admin request");
                Self::Unavailable(backup::explain(&error))
            }
            Refusal::Off => Self::Refused(refusal.to_string()),
            Refusal::Unusable(_) => Self::Unavailable(refusal.to_string()),
        }
    }
}

impl From<blocklist::Error> for Error {
    fn from(error: blocklist::Error) -> Self {
        match error {
            blocklist::Error::Protected { .. } | blocklist::Error::Refused { .. } => Self::Invalid(error.to_string()),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        tracing::warn!(%error, "the store failed an admin request");
        Self::Unavailable("the store cannot be reached; the log says why".to_owned())
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.status();
        let nearest = |which: fn(&Refusal) -> Option<jiff::Timestamp>| match &self {
            Self::Unreachable(refusal) => which(refusal).map(|at| at.to_string()),
            _ => None,
        };
        let problem = Problem {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: self.to_string(),
            running_id: match &self {
                Self::Busy(id) => Some(id.to_string()),
                _ => None,
            },
            nearest_before: nearest(|refusal| refusal.before),
            nearest_after: nearest(|refusal| refusal.after),
        };
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match self {
            Self::NoToken => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"foregate\""));
            }
            Self::WrongToken => {
                let value = HeaderValue::from_static("Bearer realm=\"foregate\", error=\"invalid_token\"");
                headers.insert(WWW_AUTHENTICATE, value);
            }
            Self::TooManyAttempts { retry_after_s } => {
                headers.insert(RETRY_AFTER, HeaderValue::from(retry_after_s));
            }
            Self::MethodNotAllowed { allowed } => {
                if let Ok(value) = HeaderValue::try_from(allowed) {
                    headers.insert(ALLOW, value);
                }
            }
            _ => {}
        }
        response
    }
}
