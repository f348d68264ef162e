//! File sets: directories of the app that are kept beside its database.

use std::path::PathBuf;

/// One `[[backup.files]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSet {
    pub name: String,
    /// Absolute.
    pub paths: Vec<PathBuf>,
    pub keep_days: u32,
}
