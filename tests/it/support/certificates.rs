//! A certificate authority of the test's own, and leaves signed by it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore};

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

/// Files as `[tls] certificates` names them.
pub(crate) struct Files {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key is made");
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("the authority signs itself");
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// Writes a leaf for these names; PEM files `<stem>.pem` and `<stem>.key`.
    pub(crate) fn leaf(&self, directory: &Path, stem: &str, names: &[&str]) -> Files {
        let key = KeyPair::generate().expect("a key is made");
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let params = CertificateParams::new(names).expect("the names are valid");
        let leaf = params.signed_by(&key, &self.issuer).expect("the leaf is signed");
        let files = Files {
            cert: directory.join(format!("{stem}.pem")),
            key: directory.join(format!("{stem}.key")),
        };
        std::fs::write(&files.cert, leaf.pem()).expect("the certificate is written");
        std::fs::write(&files.key, key.serialize_pem()).expect("the key is written");
        files
    }

    /// A client that trusts this authority alone and offers these protocols.
    pub(crate) fn client(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.certificate.der().clone())
            .expect("the authority is a trust anchor");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// A TLS server with this leaf, for where the gate is not the subject.
pub(crate) fn acceptor(files: &Files) -> tokio_rustls::TlsAcceptor {
    use rustls_pki_types::pem::PemObject as _;
    let cert = rustls_pki_types::CertificateDer::from_pem_file(&files.cert).expect("a certificate");
    let key = rustls_pki_types::PrivateKeyDer::from_pem_file(&files.key).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .expect("the key fits");
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}
