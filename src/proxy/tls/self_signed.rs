//! The development certificate: made at the first start, kept in `state_dir`, made anew a month before it expires.

use std::io::Write as _;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DnType, KeyPair};

use super::{Error, certificates};
use crate::proxy::config::CertificateFiles;

const VALID: SignedDuration = SignedDuration::from_hours(24 * 365);
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(24 * 30);

/// The files of a development certificate for `localhost` and this machine's name that is valid for a month at least.
pub(super) fn ensure(state_dir: &Path, now: Timestamp) -> Result<CertificateFiles, Error> {
    let files = CertificateFiles {
        cert: state_dir.join("self-signed.crt"),
        key: state_dir.join("self-signed.key"),
    };
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let in_a_month = now.checked_add(RENEW_BEFORE).unwrap_or(Timestamp::MAX);
    let known = certificates::load(std::slice::from_ref(&files), &provider);
    let lasts = known.is_ok_and(|(_, expiries)| expiries.iter().all(|expiry| !expiry.is_over(in_a_month)));
    if !lasts {
        make(&files, now).map_err(Error::SelfSigned)?;
        tracing::info!(cert = %files.cert.display(), "made a development certificate");
    }
    Ok(files)
}

fn make(files: &CertificateFiles, now: Timestamp) -> Result<(), String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if !host.is_empty()
        && host != "localhost"
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
    {
        names.push(host);
    }
    let mut params = CertificateParams::new(names).map_err(|error| error.to_string())?;
    params
        .distinguished_name
        .push(DnType::CommonName, "Foregate development certificate");
    params.not_before = date(now - SignedDuration::from_hours(24));
    params.not_after = date(now.checked_add(VALID).unwrap_or(Timestamp::MAX));
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let certificate = params.self_signed(&key).map_err(|error| error.to_string())?;
    if let Some(directory) = files.cert.parent() {
        std::fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    }
    write(&files.key, key.serialize_pem().as_bytes())?;
    write(&files.cert, certificate.pem().as_bytes())
}

/// Midnight UTC of that day, in the type that rcgen wants.
fn date(at: Timestamp) -> time::OffsetDateTime {
    let day = at.to_zoned(jiff::tz::TimeZone::UTC).date();
    let part = |number: i8| u8::try_from(number).unwrap_or(1);
    rcgen::date_time_ymd(i32::from(day.year()), part(day.month()), part(day.day()))
}

/// Readable by the owner only, and never seen half written.
fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let temporary = path.with_extension("new");
    let result = (|| {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    result.map_err(|error: std::io::Error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn development_certificate_is_made_once_and_renewed_a_month_before_it_expires() {
        let directory = tempfile::tempdir().unwrap();
        let start: Timestamp = "2026-01-10T12:00:00Z".parse().unwrap();
        let after = |days: i64| start + SignedDuration::from_hours(24 * days);
        let state_dir = directory.path().join("state");
        let at = |now| {
            let files = ensure(&state_dir, now).unwrap();
            (std::fs::read(files.cert).unwrap(), std::fs::read(files.key).unwrap())
        };
        let first = at(start);
        assert_eq!(at(after(1)), first);
        assert_eq!(at(after(330)), first, "more than a month is left");
        let second = at(after(340));
        assert_ne!(second, first);
        assert_eq!(at(after(341)), second);
        assert_ne!(at(after(2000)), second, "expired long ago");
    }

    #[test]
    fn damaged_development_certificate_is_made_anew_and_its_key_is_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-01-10T12:00:00Z".parse().unwrap();
        let files = ensure(directory.path(), now).unwrap();
        std::fs::write(&files.key, "junk").unwrap();
        ensure(directory.path(), now).unwrap();
        assert_ne!(std::fs::read(&files.key).unwrap(), b"junk");
        assert_eq!(
            std::fs::metadata(&files.key).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
