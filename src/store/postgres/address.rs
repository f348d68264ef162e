//! Where and how to connect, from the connection address.
//!
//! TLS is used when the address says `sslmode=require`, `verify-ca` or `verify-full`; all three verify the server's
//! certificate and name (rustls knows no less), against the web's roots and those in `sslrootcert`. Without them,
//! and with `prefer`, the connection is plain: a preference that an attacker can veto protects nothing.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Error;
use crate::secret::Secret;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A peer that is silent for this long is asked, then given up.
const KEEPALIVE: Duration = Duration::from_secs(10);

pub(super) fn parse(address: &Secret) -> Result<(tokio_postgres::Config, MakeRustlsConnect), Error> {
    let (rest, mode, root) = split_tls(address.reveal());
    let mut address: tokio_postgres::Config = rest
        .parse()
        .map_err(|error: tokio_postgres::Error| Error::Address(error.to_string()))?;
    address.ssl_mode(match mode.as_deref() {
        None | Some("disable" | "allow" | "prefer") => SslMode::Disable,
        Some("require" | "verify-ca" | "verify-full") => SslMode::Require,
        Some(other) => return Err(Error::Address(format!("unknown sslmode {other}"))),
    });
    address.connect_timeout(CONNECT_TIMEOUT).application_name("foregate");
    address.keepalives_idle(KEEPALIVE).tcp_user_timeout(KEEPALIVE);
    Ok((address, tls(root.as_deref())?))
}

/// Takes the parameters out of a connection address that tokio-postgres does not know.
fn split_tls(address: &str) -> (String, Option<String>, Option<String>) {
    let (mut mode, mut root) = (None, None);
    let mut keep = |pair: &str| match pair.split_once('=') {
        Some(("sslmode", value)) => {
            mode = Some(value.to_owned());
            false
        }
        Some(("sslrootcert", value)) => {
            root = Some(value.to_owned());
            false
        }
        _ => true,
    };
    let rest = if address.starts_with("postgres://") || address.starts_with("postgresql://") {
        match address.split_once('?') {
            Some((base, query)) => {
                let kept: Vec<&str> = query.split('&').filter(|pair| keep(pair)).collect();
                format!("{base}?{}", kept.join("&")).trim_end_matches('?').to_owned()
            }
            None => address.to_owned(),
        }
    } else {
        let kept: Vec<&str> = address.split(' ').filter(|pair| keep(pair)).collect();
        kept.join(" ")
    };
    (rest, mode, root)
}

fn tls(root: Option<&str>) -> Result<MakeRustlsConnect, Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(path) = root {
        let refuse = |error: String| Error::Address(format!("sslrootcert {path}: {error}"));
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| refuse(error.to_string()))? {
            let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
            roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Address(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}
