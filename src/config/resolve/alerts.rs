//! `[alerts]`.

use std::path::{Path, PathBuf};

use super::store::optional_secret;
use crate::config::raw::{Node, Section};
use crate::secret::Secret;
use crate::telemetry::alert::{self, Config};

pub(super) fn alerts(mut section: Section<'_>, base: &Path, files: &mut Vec<PathBuf>) -> Config {
    let webhook = section.read("webhook", None, |node| address(node, base, files)).value;
    let ping = section.read("ping", None, |node| address(node, base, files)).value;
    section.finish();
    Config { webhook, ping }
}

/// An address is a secret: whoever knows it can write to the channel.
fn address(node: &Node<'_>, base: &Path, files: &mut Vec<PathBuf>) -> Option<Option<Secret>> {
    let found = optional_secret(node, base, files)?;
    if let Some(secret) = &found
        && let Err(reason) = alert::check(secret)
    {
        node.error_hidden(reason, "as https://hooks.example.org/…".to_owned());
        return None;
    }
    Some(found)
}
