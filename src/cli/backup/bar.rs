//! How far a run is, for a person who watches; nothing for a program.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

use crate::backup::{self, Progress};
use crate::repository::manifest::{Content, Manifest};

const UNKNOWN: &str = "{spinner} {msg} {bytes} {bytes_per_sec} {elapsed}";
const KNOWN: &str = "{spinner} {msg} {wide_bar} {bytes} of {total_bytes} {bytes_per_sec}, {eta} left";

/// A line on the terminal.
pub(in crate::cli) struct Bar {
    line: Option<ProgressBar>,
    total: Arc<Total>,
}

/// What a step that reads a backup will read; 0: not known.
#[derive(Default)]
struct Total {
    read: AtomicU64,
    /// While files are written. A database is filled by a program that does not tell how far it is.
    restored: AtomicU64,
}

impl Total {
    fn of(&self, step: &str) -> u64 {
        match step {
            "verify" | "fetch" => self.read.load(Ordering::Relaxed),
            "restore" => self.restored.load(Ordering::Relaxed),
            _ => 0,
        }
    }
}

impl Bar {
    pub(in crate::cli) fn new(as_json: bool) -> Self {
        let is_watched = !as_json && std::io::stderr().is_terminal();
        Self {
            line: is_watched.then(ProgressBar::new_spinner),
            total: Arc::default(),
        }
    }

    /// What is read from now on is this backup. A step reads one part at a time; the others are small beside the largest.
    pub(super) fn expect(&self, manifest: &Manifest) {
        let largest = manifest.parts.iter().map(|part| part.plain_bytes).max().unwrap_or(0);
        self.total.read.store(largest, Ordering::Relaxed);
        if matches!(manifest.content, Content::Files { .. }) {
            self.total.restored.store(largest, Ordering::Relaxed);
        }
    }

    pub(in crate::cli) fn progress(&self) -> Progress {
        let Some(line) = self.line.clone() else {
            return backup::silent();
        };
        let total = Arc::clone(&self.total);
        Arc::new(move |step, bytes| {
            if bytes == 0 {
                begin(&line, step, total.of(step));
            }
            line.set_position(bytes);
        })
    }
}

fn begin(line: &ProgressBar, step: &'static str, total: u64) {
    let is_known = total > 0;
    let template = if is_known { KNOWN } else { UNKNOWN };
    if let Ok(style) = ProgressStyle::with_template(template) {
        line.set_style(style);
    }
    if is_known {
        line.set_length(total);
    } else {
        line.unset_length();
    }
    line.set_message(step);
    line.reset_elapsed();
    line.reset_eta();
}
