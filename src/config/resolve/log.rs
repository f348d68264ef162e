//! `[log]`.

use std::path::Path;

use crate::config::raw::{Node, Section};
use crate::config::values::{file, text, word};
use crate::telemetry::{AccessLog, Config, Format};

const FORMATS: &[(&str, Format)] = &[("json", Format::Json), ("text", Format::Text)];

pub(super) fn log(mut section: Section<'_>, base: &Path) -> Config {
    let format = section.read("format", Format::Json, word(FORMATS)).value;
    let access_log = section
        .read("access_log", AccessLog::Stdout, |node| access_log(node, base))
        .value;
    section.finish();
    Config { format, access_log }
}

fn access_log(node: &Node<'_>, base: &Path) -> Option<AccessLog> {
    match text(node)? {
        "" => Some(AccessLog::Off),
        "stdout" => Some(AccessLog::Stdout),
        "stderr" | "off" | "none" => {
            node.error("is not a file", "write \"stdout\", a file, or \"\" for none".to_owned());
            None
        }
        _ => file(base)(node).map(AccessLog::File),
    }
}
