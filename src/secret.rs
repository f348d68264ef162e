//! Strings that must never be printed: passwords, tokens, connection addresses with credentials.

use std::fmt;
use std::path::{Path, PathBuf};

/// A secret string. `Debug` and `Display` print a mask; the value leaves only through [`Secret::reveal`].
#[derive(Clone)]
pub struct Secret {
    value: String,
    file: Option<PathBuf>,
}

impl Secret {
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self {
            value: value.into(),
            file: None,
        }
    }

    /// One that stands in the file at `path`.
    #[must_use]
    pub fn of_file(value: impl Into<String>, path: &Path) -> Self {
        Self {
            file: Some(path.to_owned()),
            ..Self::new(value)
        }
    }

    /// Where it stands, if that is a file: no secret, and what may be handed to another program in its place.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The secret itself. Every caller is a place to review.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.value
    }
}

/// Wherever it stands: a secret that has moved has not changed.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}
