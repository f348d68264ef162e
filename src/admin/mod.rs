//! The control plane: a separate listener with the REST API, the web page, health and metrics.

use std::net::SocketAddr;
use std::path::PathBuf;

/// The `[admin]` section, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub listen: SocketAddr,
    /// Required beyond loopback.
    pub tls: Option<Tls>,
    pub tokens: Vec<Token>,
    /// Hex SHA-256 of the token that may read `/metrics` from elsewhere than loopback.
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
