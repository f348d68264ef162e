//! A directory that only we may enter, with the password file in it; gone when dropped.

use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ulid::Ulid;

/// A private directory (0700).
#[derive(Debug)]
pub struct PrivateDirectory {
    path: PathBuf,
}

impl PrivateDirectory {
    /// # Errors
    /// When `parent` does not let us.
    pub fn new(parent: &Path, stem: &str) -> io::Result<Self> {
        let path = parent.join(format!("foregate-{stem}-{}", Ulid::generate()));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the password of every host and database: the directory lives as long as one program.
    pub(super) fn write_passfile(&self, password: &str) -> io::Result<PathBuf> {
        let path = self.path.join("pgpass");
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let escaped = password.replace('\\', "\\\\").replace(':', "\\:");
        writeln!(file, "*:*:*:*:{escaped}")?;
        Ok(path)
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        // Nothing can be done here about a failure; the sweep at the next start tries again.
        drop(std::fs::remove_dir_all(&self.path));
    }
}
