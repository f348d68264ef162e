//! The address of a PostgreSQL server, read as its own client library reads it, so that every part of us and every
//! client program that we start mean the same by it.
//!
//! `sslmode`: `disable` never encrypts; `allow` and `prefer` (the default) encrypt where the server can, and trust whoever
//! answers; `require` encrypts or fails, and checks the chain only where `sslrootcert` is given; `verify-ca` checks the
//! chain, `verify-full` the name as well, both against `sslrootcert` or else the system's roots.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::secret::Secret;

/// Where distributions keep the roots that they trust.
const SYSTEM_ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Why an address cannot be used. Texts carry no secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database address must be postgres://user:password@host:port/database")]
    Address,
    #[error("unknown sslmode {0:?}")]
    Mode(String),
    #[error("sslrootcert {path}: {what}")]
    Root { path: String, what: String },
    #[error("TLS cannot be used: {0}")]
    Tls(String),
}

/// What is asked of the server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

/// A parsed address.
#[derive(Debug, Clone)]
pub struct Address {
    /// Everything but the verification of certificates.
    pub config: tokio_postgres::Config,
    mode: String,
    check: Check,
    root: Option<String>,
}

impl Address {
    /// # Errors
    /// Neither of the two forms of an address, or an unknown `sslmode`.
    pub fn parse(address: &Secret) -> Result<Self, Error> {
        let (rest, mode, root) = split(address.reveal());
        let config: tokio_postgres::Config = rest.parse().map_err(|_| Error::Address)?;
        let mut address = Self::plain(config);
        address.root = root.filter(|root| !root.is_empty());
        address.mode = mode.unwrap_or_else(|| "prefer".to_owned());
        let (ssl, check) = match address.mode.as_str() {
            "disable" => (SslMode::Disable, Check::Nothing),
            "allow" | "prefer" => (SslMode::Prefer, Check::Nothing),
            "require" if address.root.is_none() => (SslMode::Require, Check::Nothing),
            "require" | "verify-ca" => (SslMode::Require, Check::Chain),
            "verify-full" => (SslMode::Require, Check::ChainAndName),
            _ => return Err(Error::Mode(address.mode)),
        };
        address.check = check;
        let is_local = |host: &Host| matches!(host, Host::Unix(_));
        let is_remote = !address.config.get_hosts().iter().all(is_local);
        address.config.ssl_mode(if is_remote { ssl } else { SslMode::Disable });
        Ok(address)
    }

    /// A server of our own, by what is in `config`, never encrypted.
    #[must_use]
    pub fn plain(mut config: tokio_postgres::Config) -> Self {
        config.ssl_mode(SslMode::Disable);
        Self {
            config,
            mode: "disable".to_owned(),
            check: Check::Nothing,
            root: None,
        }
    }

    /// What encrypts and verifies, as the address says.
    ///
    /// # Errors
    /// Roots that cannot be read.
    pub fn connector(&self) -> Result<MakeRustlsConnect, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Tls(error.to_string()))?;
        let verifier = match self.check {
            Check::Nothing => Verifier {
                provider,
                chain: None,
                roots: Vec::new(),
                name: false,
            },
            check => self.verifier(provider, check == Check::ChainAndName)?,
        };
        let config = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(MakeRustlsConnect::new(config))
    }

    fn verifier(&self, provider: Arc<CryptoProvider>, name: bool) -> Result<Verifier, Error> {
        let mut store = RootCertStore::empty();
        let mut roots = Vec::new();
        match self.root_file() {
            None => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(path) => {
                let refuse = |what: String| Error::Root {
                    path: path.display().to_string(),
                    what,
                };
                let found = CertificateDer::pem_file_iter(&path).map_err(|error| refuse(error.to_string()))?;
                for certificate in found {
                    let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
                    // A bundle may hold what rustls cannot read; the others still count.
                    store.add(certificate.clone()).ok();
                    roots.push(certificate);
                }
                if store.is_empty() {
                    return Err(refuse("holds no certificate that can be used".to_owned()));
                }
            }
        }
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
            .build()
            .map_err(|error| Error::Tls(error.to_string()))?;
        Ok(Verifier {
            provider,
            chain: Some(chain),
            roots,
            name,
        })
    }

    /// The file of `sslrootcert`, or the system's.
    fn root_file(&self) -> Option<PathBuf> {
        match self.root.as_deref() {
            None | Some("system") => SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.is_file()),
            Some(path) => Some(PathBuf::from(path)),
        }
    }

    /// The same for PostgreSQL's own client programs, by their environment, without the password.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let hosts = self.config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.to_string_lossy().into_owned(),
        });
        let ports: Vec<String> = self.config.get_ports().iter().map(u16::to_string).collect();
        let port = if ports.is_empty() {
            "5432".to_owned()
        } else {
            ports.join(",")
        };
        let mut environment = vec![
            ("PGHOST", hosts.collect::<Vec<_>>().join(",")),
            ("PGPORT", port),
            ("PGUSER", self.config.get_user().unwrap_or_default().to_owned()),
            ("PGSSLMODE", self.mode.clone()),
        ];
        if self.check != Check::Nothing {
            let root = self.root_file().unwrap_or_else(|| PathBuf::from("system"));
            environment.push(("PGSSLROOTCERT", root.display().to_string()));
        }
        environment
    }
}

/// Takes the parameters out of an address that `tokio-postgres` reads otherwise or not at all.
fn split(address: &str) -> (String, Option<String>, Option<String>) {
    let (mut mode, mut root) = (None, None);
    let mut keep = |key: &str, value: String| match key {
        "sslmode" => {
            mode = Some(value);
            false
        }
        "sslrootcert" => {
            root = Some(value);
            false
        }
        _ => true,
    };
    let is_url = address.starts_with("postgres://") || address.starts_with("postgresql://");
    let rest = if is_url {
        let (base, query) = address.split_once('?').unwrap_or((address, ""));
        let kept = query.split('&').filter(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            keep(key, percent_decoded(value))
        });
        let kept: Vec<&str> = kept.collect();
        format!("{base}?{}", kept.join("&")).trim_end_matches('?').to_owned()
    } else {
        let pairs = pairs(address);
        let kept = pairs.into_iter().filter(|(key, value, _)| keep(key, value.clone()));
        kept.map(|(.., written)| written).collect::<Vec<_>>().join(" ")
    };
    (rest, mode, root)
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let code = after.get(..2).and_then(|code| hex::decode(code).ok());
        match code.as_deref() {
            Some([byte]) if *first == b'%' => {
                bytes.push(*byte);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `key = value` or `key='it\'s'`: each with what it means and how it was written.
fn pairs(text: &str) -> Vec<(String, String, &str)> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let begun = rest;
        let (key, after) = rest.split_once('=').unwrap_or((rest, ""));
        let after = after.trim_start();
        let (value, length) = value(after);
        rest = after.get(length..).unwrap_or_default();
        let written = begun.get(..begun.len() - rest.len()).unwrap_or(begun);
        found.push((key.trim().to_owned(), value, written));
        rest = rest.trim_start();
    }
    found
}

fn value(text: &str) -> (String, usize) {
    let is_quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(is_quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if is_quoted => return (value, at + 1),
            c if c.is_whitespace() && !is_quoted => return (value, at),
            c => value.push(c),
        }
    }
    (value, text.len())
}

/// Checks what the address asks for, and no more.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// As they stand in the file: PostgreSQL's own certificate may be its own root.
    roots: Vec<CertificateDer<'static>>,
    name: bool,
}

impl Verifier {
    fn is_named(end_entity: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), rustls::Error> {
        let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_name(&parsed, name)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        if self.roots.contains(end_entity) {
            if self.name {
                Self::is_named(end_entity, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(address: &str) -> Address {
        Address::parse(&Secret::new(address)).expect("an address")
    }

    #[test]
    fn both_forms_of_an_address_say_the_same() {
        for address in [
            "postgres://shop:pw@db/app?sslmode=verify-full&sslrootcert=%2Fetc%2Fmy%20ca.pem&application_name=x",
            "host=db user=shop password='p w\\'' dbname=app sslmode = verify-full sslrootcert='/etc/my ca.pem'",
        ] {
            let address = parsed(address);
            assert_eq!(address.check, Check::ChainAndName);
            assert_eq!(address.config.get_ssl_mode(), SslMode::Require);
            let environment = address.environment();
            let wanted = [
                ("PGHOST", "db"),
                ("PGPORT", "5432"),
                ("PGUSER", "shop"),
                ("PGSSLMODE", "verify-full"),
                ("PGSSLROOTCERT", "/etc/my ca.pem"),
            ];
            assert_eq!(environment, wanted.map(|(name, value)| (name, value.to_owned())));
        }
    }

    #[test]
    fn only_what_asks_for_it_is_verified() {
        for (parameters, mode, check) in [
            ("", SslMode::Prefer, Check::Nothing),
            ("?sslmode=allow", SslMode::Prefer, Check::Nothing),
            ("?sslmode=disable", SslMode::Disable, Check::Nothing),
            ("?sslmode=require", SslMode::Require, Check::Nothing),
            ("?sslmode=require&sslrootcert=/ca", SslMode::Require, Check::Chain),
            ("?sslmode=verify-ca", SslMode::Require, Check::Chain),
        ] {
            let address = parsed(&format!("postgres://shop@db/app{parameters}"));
            assert_eq!(
                (address.config.get_ssl_mode(), address.check),
                (mode, check),
                "{parameters}"
            );
        }
        let local = parsed("postgres://shop@%2Frun%2Fpostgresql/app?sslmode=verify-full");
        assert_eq!(local.config.get_ssl_mode(), SslMode::Disable);
        assert!(Address::parse(&Secret::new("postgres://shop@db/app?sslmode=maybe")).is_err());
        assert!(Address::parse(&Secret::new("postgres://shop@db/app?ssl=maybe")).is_err());
    }
}
