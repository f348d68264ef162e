//! `[store]`, and secrets, which are named but never written down in the file.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::de::DeValue;

use crate::config::raw::{Node, Section};
use crate::config::values::{file, filled_text, integer};
use crate::secret::Secret;
use crate::store::Config;

/// A secret is a line, not a document.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// `files` collects the files that were read, so that a change of theirs is noticed.
pub(super) fn store(mut section: Section<'_>, base: &Path, state_dir: &Path, files: &mut Vec<PathBuf>) -> Config {
    let postgres = section
        .read("postgres", None, |node| optional_secret(node, base, files))
        .value;
    let pool_size = section.read("pool_size", 20, integer(1..=1_000)).value;
    section.finish();
    Config {
        postgres,
        pool_size,
        state_dir: state_dir.to_owned(),
    }
}

/// `{ env = "NAME" }`, `{ file = "path" }`, or `""` for none.
pub(super) fn optional_secret(node: &Node<'_>, base: &Path, files: &mut Vec<PathBuf>) -> Option<Option<Secret>> {
    match node.value {
        DeValue::String(text) if text.is_empty() => Some(None),
        DeValue::String(_) => {
            node.error_hidden(
                "is a secret, which must not stand in the configuration",
                "write { env = \"DATABASE_URL\" } or { file = \"/run/secrets/database-url\" }".to_owned(),
            );
            None
        }
        DeValue::Table(_) => secret(node, base, files).map(Some),
        _ => {
            let what = format_args!("must name a secret, not be {}", node.kind());
            node.error_hidden(what, "write { env = \"NAME\" } or { file = \"path\" }".to_owned());
            None
        }
    }
}

fn secret(node: &Node<'_>, base: &Path, files: &mut Vec<PathBuf>) -> Option<Secret> {
    let mut section = node.section()?;
    let (env, path) = (section.get("env"), section.get("file"));
    section.finish();
    match (env, path) {
        (Some(env), None) => from_env(&env),
        (None, Some(path)) => {
            let name = file(base)(&path)?;
            files.push(name.clone());
            from_file(&path, &name)
        }
        _ => {
            node.error(
                "must have either `env` or `file`",
                "as { env = \"NAME\" } or { file = \"path\" }".to_owned(),
            );
            None
        }
    }
}

fn from_env(node: &Node<'_>) -> Option<Secret> {
    let name = filled_text(node)?;
    if name.contains(['=', '\0']) {
        node.error_hidden("is not the name of an environment variable", None);
        return None;
    }
    match std::env::var(name) {
        Ok(value) if !value.trim().is_empty() => Some(Secret::new(value.trim())),
        Ok(_) => {
            node.error("names an environment variable that is empty", None);
            None
        }
        Err(std::env::VarError::NotPresent) => {
            node.error(
                "names an environment variable that is not set",
                "set it for the service, e.g. in its EnvironmentFile".to_owned(),
            );
            None
        }
        Err(std::env::VarError::NotUnicode(_)) => {
            node.error("names an environment variable that is not UTF-8", None);
            None
        }
    }
}

fn from_file(node: &Node<'_>, name: &Path) -> Option<Secret> {
    match read_secret(name) {
        Ok(value) if value.trim().is_empty() => {
            node.error("names a file that is empty", None);
            None
        }
        Ok(value) => Some(Secret::of_file(value.trim(), name)),
        Err(error) => {
            node.error(format_args!("names a file that cannot be read: {error}"), None);
            None
        }
    }
}

/// Regular files only: a FIFO would hold up the start, a device would never end.
fn read_secret(name: &Path) -> std::io::Result<String> {
    if !std::fs::metadata(name)?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut value = String::new();
    let read = std::fs::File::open(name)?
        .take(SECRET_BYTES_MAX + 1)
        .read_to_string(&mut value)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > SECRET_BYTES_MAX {
        return Err(std::io::Error::other(format!(
            "it is larger than {SECRET_BYTES_MAX} bytes"
        )));
    }
    Ok(value)
}
