//! `[database]` and the repository in `[backup]`.

use std::path::{Path, PathBuf};

use super::store::optional_secret;
use crate::config::raw::Section;
use crate::config::values::{filled_text, list};
use crate::{postgres, repository};

pub(super) fn database(mut section: Section<'_>, base: &Path, files: &mut Vec<PathBuf>) -> Option<postgres::Config> {
    let url = section
        .read("url", None, |node| optional_secret(node, base, files))
        .value;
    section.finish();
    url.map(|url| postgres::Config { url })
}

pub(super) fn repository(
    mut section: Section<'_>,
    base: &Path,
    state_dir: &Path,
    files: &mut Vec<PathBuf>,
) -> repository::Config {
    let url = section
        .read("repository", None, |node| Some(Some(filled_text(node)?.to_owned())))
        .value;
    let recipients = section
        .read(
            "recipients",
            Vec::new(),
            list(|node| Some(filled_text(node)?.to_owned())),
        )
        .value;
    let identity = section
        .read("identity", None, |node| optional_secret(node, base, files))
        .value;
    section.finish();
    repository::Config {
        url: url.unwrap_or_else(|| format!("file://{}/backups", state_dir.display())),
        recipients,
        identity,
    }
}
