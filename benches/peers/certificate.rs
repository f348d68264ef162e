//! The one certificate that all subjects show, and the client side that trusts it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::{ClientConfig, RootCertStore};

/// The name in the certificate, in SNI and in `Host`.
pub(super) const NAME: &str = "localhost";

#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
    /// Both in one file, as HAProxy wants them.
    pub(super) combined: PathBuf,
    roots: Arc<RootCertStore>,
}

impl Certificate {
    /// ECDSA with P-256, which is what `rcgen` makes unless told otherwise.
    pub(super) fn generate(directory: &Path) -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let written = Self {
            chain: directory.join("chain.pem"),
            key: directory.join("key.pem"),
            combined: directory.join("combined.pem"),
            roots: Arc::new(RootCertStore { roots: Vec::new() }),
        };
        fs::write(&written.chain, &chain)?;
        fs::write(&written.key, &key)?;
        fs::write(&written.combined, chain + &key)?;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone())?;
        Ok(Self {
            roots: Arc::new(roots),
            ..written
        })
    }

    /// One cipher suite and one group, so that a faster cipher or a post-quantum exchange, which not every subject
    /// knows, is not taken for a faster server. No resumption: each handshake is a full one.
    pub(super) fn client(&self, protocol: &str) -> anyhow::Result<Arc<ClientConfig>> {
        let provider = rustls::crypto::CryptoProvider {
            cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![kx_group::X25519],
            ..aws_lc_rs::default_provider()
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Ok(Arc::new(config))
    }
}
