//! The only reader of `config.toml`.
//!
//! `raw` is the file as written, `resolve` what it means, `effective` the meaning written down again, `diff` what a
//! reload changes, `watch` notices that there is something to reload. Nothing here acts on a configuration: the
//! composition root hands each part its own `Config`. A broken file yields [`Errors`] and nothing else, so that it
//! can never be half applied.

pub mod diff;
pub mod effective;
mod finding;
mod raw;
mod resolve;
#[cfg(test)]
mod tests;
mod values;
mod vault;
pub mod watch;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use self::finding::FINDINGS_MAX;
pub use self::finding::{Errors, Finding, Findings, Severity, Style};
use self::raw::{Section, Sink};
pub use self::vault::{Vault, Wanted};
use crate::{admin, backup, guard, pitr, proxy, store, telemetry};

/// A hand-written file is a few KiB; beyond this it is a mistake or an attack.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;

/// The whole configuration, resolved: each part's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub proxy: proxy::Config,
    pub guard: guard::Config,
    pub store: store::Config,
    pub admin: admin::Config,
    pub backup: backup::Settings,
    pub pitr: pitr::config::Config,
    pub alerts: telemetry::alert::Config,
    pub log: telemetry::Config,
    /// The embedded store, the development certificate.
    pub state_dir: PathBuf,
}

/// What the command line says instead of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The only upstream server, in the place of `upstream.servers`.
    pub upstream: Option<String>,
}

/// A configuration that can be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub config: Config,
    /// What an operator should look at again; nothing that stops.
    pub warnings: Findings,
    /// No key was written: all of it are defaults.
    pub is_blank: bool,
    /// The files it depends on, for [`watch::Watcher`]: itself first, then secrets, certificates and keys.
    pub files: Vec<PathBuf>,
}

impl Config {
    /// Reads the file at `path`; without one, the defaults. Paths in the file are relative to its directory.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Loaded, Errors> {
        let Some(path) = path else {
            return Self::parse(b"", Path::new("defaults"), overrides);
        };
        match read(path).and_then(|bytes| Self::parse(&bytes, path, overrides)) {
            Ok(mut loaded) => {
                loaded.files.insert(0, path.to_owned());
                Ok(loaded)
            }
            Err(mut errors) => {
                errors.files.insert(0, path.to_owned());
                Err(errors)
            }
        }
    }

    /// Reads a configuration from memory. `origin` names it in messages, and its directory is that of relative paths.
    /// Touches the file system only for secrets in files and to see whether the default certificates exist.
    pub fn parse(bytes: &[u8], origin: &Path, overrides: &Overrides) -> Result<Loaded, Errors> {
        let mut is_blank = false;
        let resolve = |root: Section<'_>, base: &Path| {
            is_blank = root.is_blank();
            resolve::config(root, base, overrides)
        };
        let (config, warnings, files) = understand(bytes, origin, resolve)?;
        Ok(Loaded {
            config,
            warnings,
            is_blank,
            files,
        })
    }
}

/// The document in `bytes` as `resolve` understands it, with the files besides it that it depends on.
fn understand<T>(
    bytes: &[u8],
    origin: &Path,
    resolve: impl FnOnce(Section<'_>, &Path) -> (T, Vec<PathBuf>),
) -> Result<(T, Findings, Vec<PathBuf>), Errors> {
    let name = origin.display().to_string();
    let text = check_bytes(bytes).map_err(|finding| Errors::one(name.clone(), finding))?;
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    // What a broken line was meant to say is a guess, and so would be every finding about the rest.
    if !syntax_errors.is_empty() {
        let list = syntax_errors
            .iter()
            .take(FINDINGS_MAX)
            .map(|error| syntax_finding(text, error))
            .collect();
        return Err(Errors::of(Findings::new(
            name,
            list,
            syntax_errors.len().saturating_sub(FINDINGS_MAX),
        )));
    }
    let sink = Sink::new(text);
    // Absolute: what is resolved here must mean the same wherever it is read again.
    let place = std::path::absolute(origin).unwrap_or_else(|_| origin.to_owned());
    let base = place.parent().unwrap_or(Path::new("/"));
    let root = Section::root(document.get_ref(), &sink);
    let (meaning, files) = resolve(root, base);
    let (errors, warnings) = sink.into_findings(&name);
    if !errors.is_empty() {
        return Err(Errors {
            findings: errors,
            files,
        });
    }
    Ok((meaning, warnings, files))
}

/// Every error with its line, a caret and a suggestion, and their number.
#[must_use]
pub fn report(errors: &Errors, style: Style) -> String {
    let mut text = errors.findings.render(Severity::Error, style);
    let count = errors.findings.as_slice().len();
    let noun = if count == 1 { "error" } else { "errors" };
    text.push_str(&format!("{}: {count} {noun}\n", errors.findings.origin()));
    text
}

fn read(path: &Path) -> Result<Vec<u8>, Errors> {
    read_at_most(path).map_err(|error| {
        let finding = Finding::whole(format!("cannot be read: {error}"));
        Errors::one(path.display().to_string(), finding)
    })
}

fn read_at_most(path: &Path) -> std::io::Result<Vec<u8>> {
    // Asked before opening, which would wait for the other end of a FIFO.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let file = std::fs::File::open(path)?;
    let mut bytes = Vec::new();
    // One byte more than allowed, so that the check for size sees the excess.
    let limit = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn check_bytes(bytes: &[u8]) -> Result<&str, Finding> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(Finding::whole(format!("is larger than {FILE_BYTES_MAX} bytes")));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let valid = std::str::from_utf8(valid).unwrap_or_default();
        let end = valid.len()..valid.len();
        let help = Some("save the file as UTF-8".to_owned());
        Finding::at(valid, &end, false, "is not UTF-8 from here on".to_owned(), help)
    })
}

fn syntax_finding(text: &str, error: &toml::de::Error) -> Finding {
    let span = error.span().unwrap_or(0..0);
    Finding::at(text, &span, false, format!("syntax: {}", error.message()), None)
}
