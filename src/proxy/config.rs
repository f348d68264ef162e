//! What the data plane needs to know, resolved from `[server]`, `[tls]`, `[upstream]`, `[client]`, `[headers]`
//! and the size caps of `[limits]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub server: Server,
    pub tls: Tls,
    pub upstream: Upstream,
    /// Networks whose word about the client's address is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// In which field they give it.
    pub forwarded_header: ForwardedHeader,
    pub caps: Caps,
    /// Security headers to add where the app has not set them, in the order of the example config.
    pub security_headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub listen: Vec<SocketAddr>,
    pub redirect_http: Vec<SocketAddr>,
    /// Never 0: `workers = 0` is resolved to the number of cores.
    pub workers: usize,
    pub proxy_protocol: bool,
    pub max_connections: usize,
    pub max_connections_per_client: usize,
    /// Of the process's own resident memory; `None`: the cgroup's cap.
    pub memory_limit: Option<u64>,
    pub drain_timeout: Duration,
    pub timeouts: Timeouts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From accept to the end of the handshake, the PROXY protocol included.
    pub tls_handshake: Duration,
    /// From the handshake's end, the last response, or the first bytes of a further request, to complete headers.
    pub request_header: Duration,
    /// Between two pieces of a request body.
    pub request_body_idle: Duration,
    /// How long a client may take nothing of an answer.
    pub response_idle: Duration,
    pub keep_alive: Duration,
    pub tunnel_idle: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// Plain HTTP/1.1 and h2c behind another terminator.
    Off,
    /// A development certificate, made at first start and kept in `state_dir`.
    SelfSigned { state_dir: PathBuf, settings: TlsSettings },
    Files {
        certificates: Vec<CertificateFiles>,
        settings: TlsSettings,
    },
}

impl Tls {
    #[must_use]
    pub fn wants_client_certificates(&self) -> bool {
        match self {
            Self::Off => false,
            Self::SelfSigned { settings, .. } | Self::Files { settings, .. } => settings.client_ca.is_some(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    pub min_version: TlsVersion,
    /// Set: client certificates signed by one of these are required.
    pub client_ca: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// The one field in which trusted proxies name the client. The other may have come from the client itself: a proxy passes on
/// what it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedHeader {
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    pub servers: Vec<UpstreamServer>,
    pub connect_timeout: Duration,
    /// From the request's last byte to the response's headers.
    pub response_timeout: Duration,
    pub health: Option<HealthProbe>,
    /// Who is asked for the addresses of servers given by name; empty: those of `/etc/resolv.conf`.
    pub name_servers: Vec<SocketAddr>,
}

/// One server of the app, as written: `http://host:port`, `h2c://host:port` or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamServer {
    pub address: UpstreamAddress,
    pub protocol: UpstreamProtocol,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UpstreamAddress {
    Host { host: String, port: u16 },
    Unix(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamProtocol {
    Http1,
    /// HTTP/2 without TLS, for gRPC.
    H2c,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthProbe {
    pub path: String,
    pub interval: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caps {
    /// Bytes of a request body.
    pub max_request_size: u64,
    /// Bytes of a request's header fields.
    pub max_header_size: usize,
    pub max_headers: usize,
}
