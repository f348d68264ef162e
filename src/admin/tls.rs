//! TLS of the admin listener: one certificate, and client certificates where asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Tls;
use crate::telemetry::certificates::Expiry;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} cannot be read as PEM: {reason}", path.display())]
    Read { path: PathBuf, reason: String },
    #[error("the admin listener's TLS cannot be set up from {}: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
}

/// TLS ready to serve.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) config: Arc<ServerConfig>,
    /// `None`: a certificate that only TLS can read.
    pub(super) expiry: Option<Expiry>,
}

pub(super) fn prepare(tls: &Tls) -> Result<Ready, Error> {
    let refuse = |reason: String| Error::Unusable {
        path: tls.cert.clone(),
        reason,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| refuse(error.to_string()))?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| refuse(error.to_string()))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| Error::Read {
        path: tls.key.clone(),
        reason: error.to_string(),
    })?;
    let chain = certificates(&tls.cert)?;
    let leaf = chain.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
    let expiry = leaf.map(|(_, leaf)| Expiry::of(&tls.cert, &leaf));
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| refuse(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Ready {
        config: Arc::new(config),
        expiry,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let refuse = |error: rustls_pki_types::pem::Error| Error::Read {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    CertificateDer::pem_file_iter(path)
        .map_err(refuse)?
        .collect::<Result<_, _>>()
        .map_err(refuse)
}
