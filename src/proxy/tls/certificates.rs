//! Certificates and keys from files, chosen by the name that the client asks for (SNI, RFC 6066 section 3).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Error;
use crate::proxy::config::CertificateFiles;
use crate::telemetry::certificates::Expiry;

/// A file of certificates or a key is a few KiB; anything larger is a mistake.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Certificates by lower-case name; `*.example.org` stands for one label. The first certificate is the default.
#[derive(Debug)]
pub(super) struct Resolver {
    by_name: HashMap<String, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some(name) = hello.server_name() else {
            return Some(Arc::clone(&self.default));
        };
        // rustls hands the name on as it came; names are compared without case (RFC 4343).
        let found = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            self.find(&name.to_ascii_lowercase())
        } else {
            self.find(name)
        };
        Some(Arc::clone(found.unwrap_or(&self.default)))
    }
}

impl Resolver {
    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        self.by_name.get(name).or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.by_name.get(&format!("*.{parent}"))
        })
    }
}

/// Loads all pairs; every one must be sound. One that has expired is: most clients refuse it, and yet a gate that does not
/// start would refuse all.
pub(super) fn load(
    files: &[CertificateFiles],
    provider: &Arc<CryptoProvider>,
) -> Result<(Resolver, Vec<Expiry>), Error> {
    let mut by_name = HashMap::new();
    let mut default = None;
    let mut expiries = Vec::new();
    for pair in files {
        let chain = read(&pair.cert)?;
        let facts = facts(&pair.cert, &chain)?;
        let key = Arc::new(certified(pair, chain, provider)?);
        for name in facts.names {
            by_name.entry(name).or_insert_with(|| Arc::clone(&key));
        }
        expiries.push(facts.expiry);
        default.get_or_insert(key);
    }
    let default = default.ok_or(Error::Rustls(rustls::Error::NoCertificatesPresented))?;
    Ok((Resolver { by_name, default }, expiries))
}

/// The certificates of a PEM file, in order.
pub(super) fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = bounded(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(Error::NoCertificate { path: path.to_owned() }),
    }
}

fn bounded(path: &Path) -> Result<Vec<u8>, Error> {
    use std::io::Read as _;
    let refuse = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    // Asked before opening, which would wait for the other end of a FIFO.
    if !std::fs::metadata(path).map_err(refuse)?.is_file() {
        return Err(refuse(std::io::Error::other("it is not a regular file")));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(refuse)?;
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(refuse)?;
    Ok(bytes)
}

fn certified(
    pair: &CertificateFiles,
    chain: Vec<CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<CertifiedKey, Error> {
    let key =
        PrivateKeyDer::from_pem_slice(&bounded(&pair.key)?).map_err(|_| Error::NoKey { path: pair.key.clone() })?;
    let signer = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| Error::Unusable {
            path: pair.key.clone(),
            reason: error.to_string(),
        })?;
    let certified = CertifiedKey::new(chain, signer);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(Error::Mismatch {
            cert: pair.cert.clone(),
            key: pair.key.clone(),
        }),
        Err(error) => Err(Error::Unusable {
            path: pair.cert.clone(),
            reason: error.to_string(),
        }),
    }
}

struct Facts {
    names: Vec<String>,
    expiry: Expiry,
}

fn facts(path: &Path, chain: &[CertificateDer<'static>]) -> Result<Facts, Error> {
    let refuse = |reason: String| Error::Unusable {
        path: path.to_owned(),
        reason,
    };
    let leaf = chain
        .first()
        .ok_or_else(|| Error::NoCertificate { path: path.to_owned() })?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| refuse(error.to_string()))?;
    let alternatives = leaf
        .subject_alternative_name()
        .map_err(|error| refuse(error.to_string()))?;
    let names = alternatives.map_or_else(Vec::new, |extension| {
        let names = extension.value.general_names.iter();
        names
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
                _ => None,
            })
            .collect()
    });
    Ok(Facts {
        names,
        expiry: Expiry::of(path, &leaf),
    })
}
