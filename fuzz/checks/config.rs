//! The configuration: whatever stands in the file, it is either understood or refused with a place in it.

use std::path::Path;

use foregate::config::{Config, Overrides, Style, report};

pub(crate) fn check(bytes: &[u8]) {
    match Config::parse(bytes, Path::new("config.toml"), &Overrides::default()) {
        Ok(loaded) => drop(format!("{:?}", loaded.warnings)),
        Err(errors) => assert!(!report(&errors, Style::Plain).is_empty()),
    }
}
