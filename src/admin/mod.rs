//! The control plane: a separate listener with the REST API, the web page, health and metrics. Bearer tokens only: no
//! cookies, so nothing a foreign page makes a browser send carries any right.

mod auth;
mod places;
mod problem;
pub mod recovery_views;
mod routes;
mod server;
#[cfg(test)]
mod tests;
mod tls;
pub mod token;
mod views;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use prometheus::{IntCounterVec, Opts, Registry};
use tokio_util::task::TaskTracker;

pub use server::{Listener, Prepared};

use crate::backup;
use crate::clock::Clock;
use crate::guard::Guard;
use crate::pitr;
use crate::store::Store;
use crate::telemetry::certificates::{Certificates, Expiry};
use crate::telemetry::health::Board;

/// The `[admin]` section, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub listen: SocketAddr,
    /// Required beyond loopback.
    pub tls: Option<Tls>,
    pub tokens: Vec<Token>,
    /// SHA-256 of the token that may read `/metrics` from elsewhere than loopback.
    pub metrics_token: Option<[u8; 32]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

/// A bearer token is known by its hash only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub name: String,
    pub role: Role,
    pub sha256: [u8; 32],
}

/// What a token may do; each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Viewer,
    Operator,
    Admin,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// What the control plane uses of other parts.
#[derive(Debug, Clone)]
pub struct Parts {
    pub guard: Arc<Guard>,
    pub store: Store,
    pub recovery: pitr::Handles,
    pub board: Board,
    pub registry: Registry,
    pub clock: Clock,
    pub vault: backup::Service,
    pub certificates: Certificates,
}

/// Shared by all handlers.
#[derive(Debug)]
struct State {
    parts: Parts,
    config: ArcSwap<Config>,
    attempts: auth::Attempts,
    places: places::Places,
    requests: IntCounterVec,
    /// Changes under way, which outlive their callers.
    tasks: TaskTracker,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("a metric of the admin listener cannot be registered")]
    Metric(#[from] prometheus::Error),
}

/// When the certificate of `config` expires, if it has one; reads the files, and changes nothing.
///
/// # Errors
/// What is wrong with certificate or key.
pub fn check(config: &Config) -> Result<Option<Expiry>, Error> {
    let tls = config.tls.as_ref().map(tls::prepare).transpose()?;
    Ok(tls.and_then(|tls| tls.expiry))
}

impl State {
    fn new(config: Config, parts: Parts) -> Result<Self, prometheus::Error> {
        let opts = Opts::new(
            "foregate_admin_requests_total",
            "Requests to the admin listener by route and status",
        );
        let requests = IntCounterVec::new(opts, &["route", "status"])?;
        parts.registry.register(Box::new(requests.clone()))?;
        Ok(Self {
            parts,
            config: ArcSwap::from_pointee(config),
            attempts: auth::Attempts::default(),
            places: places::Places::default(),
            requests,
            tasks: TaskTracker::new(),
        })
    }
}
