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
        self.leaf_until(directory, stem, names, 4096)
    }

    /// The same, valid from 1975 to the begin of this year.
    pub(crate) fn leaf_until(&self, directory: &Path, stem: &str, names: &[&str], year: i32) -> Files {
        let key = KeyPair::generate().expect("a key is made");
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("the names are valid");
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let leaf = params.signed_by(&key, &self.issuer).expect("the leaf is signed");
        let files = Files {
            cert: directory.join(format!("{stem}.pem")),
            key: directory.join(format!("{stem}.key")),
        };
        std::fs::write(&files.cert, leaf.pem()).expect("the certificate is written");
        std::fs::write(&files.key, key.serialize_pem()).expect("the key is written");
        files
    }

    /// Writes the authority's own certificate, as `[tls] client_ca` wants it.
    pub(crate) fn write(&self, path: &Path) {
        std::fs::write(path, self.certificate.pem()).expect("the authority is written");
    }

    /// A client that speaks this version alone, and shows this leaf when it is asked for one.
    pub(crate) fn client_of(
        &self,
        version: &'static rustls::SupportedProtocolVersion,
        own: Option<&Files>,
    ) -> Arc<ClientConfig> {
        use rustls_pki_types::pem::PemObject as _;
        let mut roots = RootCertStore::empty();
        roots
            .add(self.certificate.der().clone())
            .expect("the authority is a trust anchor");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("the provider has this version")
            .with_root_certificates(roots);
        Arc::new(match own {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let cert = rustls_pki_types::CertificateDer::from_pem_file(&files.cert).expect("a certificate");
                let key = rustls_pki_types::PrivateKeyDer::from_pem_file(&files.key).expect("a key");
                builder.with_client_auth_cert(vec![cert], key).expect("the key fits")
            }
        })
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
