//! Proof of a base backup as it streams past: every file of the tar against `backup_manifest`, without a disk.

use std::collections::HashMap;
use std::io;

use sha2::{Digest as _, Sha256};

use super::backup_manifest::{self, BackupManifest, File};
use crate::pitr::tar::{Entry, Kind, Visitor, invalid};
use crate::repository;

/// Small files that are read as well as hashed.
const CONTROL_BYTES_MAX: usize = 64 * 1024;

/// Hashes what passes and keeps what describes it.
#[derive(Debug, Default)]
pub struct Checker {
    /// Before every path of this tar, as `pg_tblspc/16388/`.
    prefix: String,
    pub seen: HashMap<String, File>,
    pub manifest: Vec<u8>,
    /// `global/pg_control`.
    pub control: Vec<u8>,
    path: String,
    bytes: u64,
    hash: Sha256,
}

impl Checker {
    #[must_use]
    pub fn new(prefix: String) -> Self {
        Self {
            prefix,
            ..Self::default()
        }
    }
}

impl Visitor for Checker {
    fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        if entry.kind == Kind::File {
            self.path = format!("{}{}", self.prefix, entry.path);
            self.bytes = entry.bytes;
        }
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let kept = match self.path.as_str() {
            "backup_manifest" => Some((&mut self.manifest, backup_manifest::BYTES_MAX)),
            "global/pg_control" => Some((&mut self.control, CONTROL_BYTES_MAX)),
            _ => None,
        };
        if let Some((kept, limit)) = kept {
            if kept.len().saturating_add(bytes.len()) > limit {
                return Err(invalid("a file that describes the backup is too large"));
            }
            kept.extend_from_slice(bytes);
        }
        self.hash.update(bytes);
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        let sha256 = std::mem::take(&mut self.hash).finalize().into();
        let path = std::mem::take(&mut self.path);
        if path != "backup_manifest" {
            self.seen.insert(
                path,
                File {
                    bytes: self.bytes,
                    sha256,
                },
            );
        }
        Ok(())
    }
}

/// Reads `written`, the `backup_manifest` of the base backup in `folder`, and compares it with the files that were `seen`.
///
/// # Errors
/// It cannot be read, or names other files: the backup is damaged.
pub fn prove(folder: &str, written: &[u8], seen: &HashMap<String, File>) -> Result<BackupManifest, repository::Error> {
    let damaged = |what| repository::Error::damaged(folder, what);
    let manifest = BackupManifest::parse(written).map_err(damaged)?;
    match difference(&manifest, seen) {
        Some(difference) => Err(damaged(difference)),
        None => Ok(manifest),
    }
}

/// The first difference between what was sent and what the server says that it sent. `None`: they agree.
#[must_use]
fn difference(manifest: &BackupManifest, seen: &HashMap<String, File>) -> Option<String> {
    for (path, file) in &manifest.files {
        match seen.get(path) {
            Some(found) if found == file => {}
            Some(found) if found.bytes != file.bytes => {
                return Some(format!("{path} has {} bytes instead of {}", found.bytes, file.bytes));
            }
            Some(_) => return Some(format!("{path} does not have the SHA-256 that backup_manifest states")),
            None => return Some(format!("{path} is missing")),
        }
    }
    let surplus = seen.keys().find(|path| !manifest.files.contains_key(*path));
    surplus.map(|path| format!("{path} is not in backup_manifest"))
}
