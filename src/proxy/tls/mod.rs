//! TLS for the gate: rustls with aws-lc-rs, several certificates by SNI, tickets that survive a reload.

mod certificates;
mod self_signed;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::server::{NoServerSessionStorage, ProducesTickets, ServerConfig, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, SupportedProtocolVersion};

pub(super) use certificates::Expiry;

use super::config::{CertificateFiles, Tls, TlsSettings, TlsVersion};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the certificate file {} cannot be read", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the certificate file {} holds no certificate in PEM form", path.display())]
    NoCertificate { path: PathBuf },
    #[error("the key file {} holds no private key in PEM form", path.display())]
    NoKey { path: PathBuf },
    #[error("the key {} does not belong to the certificate {}", key.display(), cert.display())]
    Mismatch { cert: PathBuf, key: PathBuf },
    #[error("the certificate {} cannot be used: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
    #[error("the certificate {} expired at {at}", path.display())]
    Expired { path: PathBuf, at: Timestamp },
    #[error("a development certificate cannot be made: {0}")]
    SelfSigned(String),
    #[error("the client CA {} cannot be used: {reason}", path.display())]
    ClientCa { path: PathBuf, reason: String },
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
}

/// What outlives a reload: the keys of session tickets, so that resumption goes on.
#[derive(Debug)]
pub(super) struct Sessions {
    ticketer: Arc<dyn ProducesTickets>,
}

impl Sessions {
    pub(super) fn new() -> Result<Self, Error> {
        Ok(Self {
            ticketer: rustls::crypto::aws_lc_rs::Ticketer::new()?,
        })
    }
}

/// TLS ready to serve, with the instants at which its certificates expire.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) config: Arc<ServerConfig>,
    pub(super) expiries: Vec<Expiry>,
}

/// Reads certificates and keys anew; `None`: plain HTTP. Nothing changes for anyone until the result is swapped in.
pub(super) fn prepare(config: &Tls, sessions: &Sessions, now: Timestamp) -> Result<Option<Ready>, Error> {
    let (files, settings) = match config {
        Tls::Off => return Ok(None),
        Tls::SelfSigned { state_dir, settings } => (vec![self_signed::ensure(state_dir, now)?], settings),
        Tls::Files { certificates, settings } => (certificates.clone(), settings),
    };
    server_config(&files, settings, sessions, now).map(Some)
}

fn server_config(
    files: &[CertificateFiles],
    settings: &TlsSettings,
    sessions: &Sessions,
    now: Timestamp,
) -> Result<Ready, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (resolver, expiries) = certificates::load(files, &provider, now)?;
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions(settings))?;
    let builder = match &settings.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let refuse = |reason: String| Error::ClientCa {
                path: path.clone(),
                reason,
            };
            let mut roots = RootCertStore::empty();
            for certificate in certificates::read(path)? {
                roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|error| refuse(error.to_string()))?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Arc::clone(&sessions.ticketer);
    // Tickets carry the whole session, so nothing has to be kept per client.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(Ready {
        config: Arc::new(config),
        expiries,
    })
}

static BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
static NEWEST: &[&SupportedProtocolVersion] = &[&TLS13];

fn versions(settings: &TlsSettings) -> &'static [&'static SupportedProtocolVersion] {
    match settings.min_version {
        TlsVersion::V1_2 => BOTH,
        TlsVersion::V1_3 => NEWEST,
    }
}
