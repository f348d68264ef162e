//! What the fuzz targets begin with and what they have found, replayed on every `make test` through the very same checks.
#![expect(clippy::panic, reason = "a panic is how a check fails")]
#![expect(clippy::indexing_slicing, reason = "the checks slice what they have measured")]

#[path = "../fuzz/checks/client_address.rs"]
mod client_address;
#[path = "../fuzz/checks/config.rs"]
mod config;
#[path = "../fuzz/checks/h2_control.rs"]
mod h2_control;
#[path = "../fuzz/checks/headers.rs"]
mod headers;
#[path = "../fuzz/checks/manifest.rs"]
mod manifest;
#[path = "../fuzz/checks/proxy_protocol.rs"]
mod proxy_protocol;
#[path = "../fuzz/checks/target.rs"]
mod target;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A target's name and what it checks.
type Target = (&'static str, fn(&[u8]));

const TARGETS: &[Target] = &[
    ("client_address", client_address::check),
    ("config", config::check),
    ("h2_control", h2_control::check),
    ("headers", headers::check),
    ("manifest", manifest::check),
    ("proxy_protocol", proxy_protocol::check),
    ("target", target::check),
];

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn what_was_fuzzed_once_holds_for_ever() {
    for (name, check) in TARGETS {
        let inputs = files_in(&root().join("tests/fuzz_corpus").join(name));
        assert!(!inputs.is_empty(), "{name} has no seed");
        for path in inputs {
            // Shown only where the check fails.
            println!("{}", path.display());
            check(&fs::read(&path).expect("an input"));
        }
    }
}

#[test]
fn every_fuzz_target_is_replayed() {
    let stem = |path: PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let there: BTreeSet<String> = files_in(&root().join("fuzz/targets"))
        .into_iter()
        .filter_map(stem)
        .collect();
    let replayed: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(there, replayed);
}
