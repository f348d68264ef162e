//! `[tls]`.

use std::path::{Path, PathBuf};

use crate::config::finding::Finding;
use crate::config::raw::{Node, Section, Setting};
use crate::config::values::{file, list, optional_file, word};
use crate::proxy::config::{CertificateFiles, Tls, TlsSettings, TlsVersion};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Files,
    SelfSigned,
    Acme,
    Off,
}

const MODES: &[(&str, Mode)] = &[
    ("files", Mode::Files),
    ("self_signed", Mode::SelfSigned),
    ("acme", Mode::Acme),
    ("off", Mode::Off),
];
const VERSIONS: &[(&str, TlsVersion)] = &[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];

pub(super) fn tls(mut section: Section<'_>, base: &Path, state_dir: &Path) -> Tls {
    let sink = section.sink();
    let mode = section.read("mode", Mode::Files, word(MODES));
    let settings = TlsSettings {
        min_version: section.read("min_version", TlsVersion::V1_2, word(VERSIONS)).value,
        client_ca: section.read("client_ca", None, optional_file(base)).value,
    };
    let certificates = section.read(
        "certificates",
        default_certificates(base),
        list(|node| certificate(node, base)),
    );
    let nothing_said = !section.was_written("mode") && !section.was_written("certificates");
    section.finish();
    if matches!(mode.value, Mode::Off | Mode::SelfSigned) && certificates.is_written() {
        certificates.warn("has no effect unless `tls.mode` is \"files\"", None);
    }
    if mode.value == Mode::Off {
        if settings.client_ca.is_some() {
            mode.error(
                "is \"off\", so that `tls.client_ca` cannot be required",
                "leave out one of them".to_owned(),
            );
        }
        return Tls::Off;
    }
    if mode.value == Mode::Acme {
        mode.error(
            "cannot be \"acme\" yet: this version does not obtain certificates by itself",
            "use \"files\" with an ACME client, or \"self_signed\" for development".to_owned(),
        );
    }
    if mode.value == Mode::SelfSigned {
        return Tls::SelfSigned {
            state_dir: state_dir.to_owned(),
            settings,
        };
    }
    // An empty file must give a working gate: certificates that nobody promised are not missed.
    if nothing_said && absent(&certificates.value) {
        sink.push_warning(|| without_certificates(&certificates));
        return Tls::SelfSigned {
            state_dir: state_dir.to_owned(),
            settings,
        };
    }
    if certificates.value.is_empty() {
        certificates.error(
            "must hold at least one certificate in mode \"files\"",
            "as [{ cert = \"fullchain.pem\", key = \"privkey.pem\" }]".to_owned(),
        );
    }
    Tls::Files {
        certificates: certificates.value,
        settings,
    }
}

fn certificate(node: &Node<'_>, base: &Path) -> Option<CertificateFiles> {
    let mut section = node.section()?;
    let pair = pair(&mut section, base);
    section.finish();
    pair.map(|(cert, key)| CertificateFiles { cert, key })
}

/// `cert` and `key`, both needed; the admin listener has the same.
pub(super) fn pair(section: &mut Section<'_>, base: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut read = |key| match section.get(key) {
        Some(node) => file(base)(&node),
        None => {
            if let Some(node) = section.node() {
                node.error(format_args!("has no `{key}`"), format!("add {key} = \"….pem\""));
            }
            None
        }
    };
    let (cert, key) = (read("cert"), read("key"));
    cert.zip(key)
}

fn default_certificates(base: &Path) -> Vec<CertificateFiles> {
    vec![CertificateFiles {
        cert: base.join("fullchain.pem"),
        key: base.join("privkey.pem"),
    }]
}

fn absent(certificates: &[CertificateFiles]) -> bool {
    certificates
        .iter()
        .all(|files| !files.cert.exists() && !files.key.exists())
}

fn without_certificates(certificates: &Setting<'_, Vec<CertificateFiles>>) -> Finding {
    let names: Vec<String> = certificates
        .value
        .iter()
        .map(|files| files.cert.display().to_string())
        .collect();
    Finding::whole(format!(
        "no certificate at {}, and `tls.mode` is not set: serving a self-signed certificate",
        names.join(", ")
    ))
    .with_help("set tls.certificates, or tls.mode = \"self_signed\" if that is meant")
}
