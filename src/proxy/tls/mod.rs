//! TLS for the gate: rustls with aws-lc-rs, several certificates by SNI, tickets that survive a reload unless it changes
//! whose client certificates are believed.

mod certificates;
mod self_signed;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::server::{NoServerSessionStorage, ProducesTickets, ServerConfig, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::CertificateDer;

use super::config::{CertificateFiles, Tls, TlsSettings, TlsVersion};
use crate::telemetry::certificates::Expiry;

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
    #[error("the certificate {} expired at {at}, and the one in its place is still valid", path.display())]
    Expired { path: PathBuf, at: Timestamp },
    #[error("a development certificate cannot be made: {0}")]
    SelfSigned(String),
    #[error("the client CA {} cannot be used: {reason}", path.display())]
    ClientCa { path: PathBuf, reason: String },
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
}

/// What outlives a reload: the keys of session tickets, so that resumption goes on.
///
/// A resumed handshake asks for no client certificate: the ticket stands for the one that was checked when it was issued,
/// or for none. So the keys are worth as much as the authorities that they were made under, and end with them.
#[derive(Debug, Clone)]
struct Sessions {
    ticketer: Arc<dyn ProducesTickets>,
    client_ca: Option<ClientCa>,
}

/// Whose client certificates are believed: the file, and what it held.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ClientCa {
    path: PathBuf,
    certificates: Vec<CertificateDer<'static>>,
}

impl Sessions {
    /// Those of `before`, if the same client certificates are asked for; else new ones.
    fn under(client_ca: Option<ClientCa>, before: Option<&Self>) -> Result<Self, Error> {
        match before {
            Some(before) if before.client_ca == client_ca => Ok(before.clone()),
            _ => Ok(Self {
                ticketer: rustls::crypto::aws_lc_rs::Ticketer::new()?,
                client_ca,
            }),
        }
    }
}

/// Whether some who were let in before would not be now: what they have open must end.
pub(super) fn is_narrower(before: Option<&Ready>, now: Option<&Ready>) -> bool {
    let of = |ready: Option<&'_ Ready>| ready.and_then(|ready| ready.sessions.client_ca.clone());
    match (of(before), of(now)) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(before), Some(now)) => {
            let mut trusted = before.certificates.iter();
            trusted.any(|certificate| !now.certificates.contains(certificate))
        }
    }
}

impl ClientCa {
    fn read(settings: &TlsSettings) -> Result<Option<Self>, Error> {
        let Some(path) = settings.client_ca.clone() else {
            return Ok(None);
        };
        let certificates = certificates::read(&path)?;
        Ok(Some(Self { path, certificates }))
    }

    fn roots(&self) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in &self.certificates {
            roots.add(certificate.clone()).map_err(|error| self.refuse(&error))?;
        }
        Ok(roots)
    }

    fn refuse(&self, reason: &dyn std::fmt::Display) -> Error {
        Error::ClientCa {
            path: self.path.clone(),
            reason: reason.to_string(),
        }
    }
}

/// TLS ready to serve, with the instants at which its certificates expire.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) config: Arc<ServerConfig>,
    pub(super) expiries: Vec<Expiry>,
    /// What the next one keeps of this.
    sessions: Sessions,
}

/// Reads certificates and keys anew; `None`: plain HTTP. Nothing changes for anyone until the result is swapped in.
pub(super) fn prepare(config: &Tls, before: Option<&Ready>, now: Timestamp) -> Result<Option<Ready>, Error> {
    let (files, settings) = match config {
        Tls::Off => return Ok(None),
        Tls::SelfSigned { state_dir, settings } => (vec![self_signed::ensure(state_dir, now)?], settings),
        Tls::Files { certificates, settings } => (certificates.clone(), settings),
    };
    let ready = server_config(&files, settings, before)?;
    if let Some(before) = before {
        refuse_newly_expired(&before.expiries, &ready.expiries, now)?;
    }
    Ok(Some(ready))
}

/// A renewal that went wrong does not take a valid certificate's place. One that has expired in force stays: it must not
/// keep other changes out.
fn refuse_newly_expired(before: &[Expiry], after: &[Expiry], now: Timestamp) -> Result<(), Error> {
    let was_over = |path: &Path| before.iter().any(|known| known.path == path && known.is_over(now));
    match after
        .iter()
        .find(|expiry| expiry.is_over(now) && !was_over(&expiry.path))
    {
        None => Ok(()),
        Some(Expiry { path, at }) => Err(Error::Expired {
            path: path.clone(),
            at: *at,
        }),
    }
}

/// Everything that [`prepare`] would stumble over, rather than the first of it, and when the sound certificates expire;
/// makes no development certificate.
pub(super) fn check(config: &Tls) -> (Vec<Error>, Vec<Expiry>) {
    let (files, settings) = match config {
        Tls::Off => return (Vec::new(), Vec::new()),
        Tls::SelfSigned { settings, .. } => (&[] as &[CertificateFiles], settings),
        Tls::Files { certificates, settings } => (certificates.as_slice(), settings),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (mut faults, mut expiries) = (Vec::new(), Vec::new());
    for pair in files {
        match certificates::load(std::slice::from_ref(pair), &provider) {
            Ok((_, of_pair)) => expiries.extend(of_pair),
            Err(error) => faults.push(error),
        }
    }
    let authorities = ClientCa::read(settings).and_then(|client_ca| client_ca.map(|ca| ca.roots()).transpose());
    faults.extend(authorities.err());
    (faults, expiries)
}

fn server_config(files: &[CertificateFiles], settings: &TlsSettings, before: Option<&Ready>) -> Result<Ready, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (resolver, expiries) = certificates::load(files, &provider)?;
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions(settings))?;
    // Read once: what is verified against and what decides about the tickets must be the same.
    let client_ca = ClientCa::read(settings)?;
    let builder = match &client_ca {
        None => builder.with_no_client_auth(),
        Some(client_ca) => {
            let roots = Arc::new(client_ca.roots()?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| client_ca.refuse(&error))?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    let sessions = Sessions::under(client_ca, before.map(|before| &before.sessions))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Arc::clone(&sessions.ticketer);
    // Tickets carry the whole session, so nothing has to be kept per client.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(Ready {
        config: Arc::new(config),
        expiries,
        sessions,
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
