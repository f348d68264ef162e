//! The manifest: what a backup holds and how to prove it. Written last, never changed; later verifications are
//! records beside it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// Raised when an old reader could misread a new manifest.
pub const FORMAT: u32 = 1;
/// A manifest beyond this was not written by us: 100,000 tables fit.
pub const BYTES_MAX: u64 = 32 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    pub id: Ulid,
    pub content: Content,
    /// `daily`, `weekly`, `monthly`, `manual`: every label that this one run serves.
    pub labels: Vec<String>,
    /// The civil periods it stands for, as `daily:2026-03-29`.
    pub schedule_keys: Vec<String>,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    /// The level reached before publication; see [`Level`].
    pub verified: Level,
    pub parts: Vec<Part>,
    /// age public keys that can open it; empty: in the clear.
    pub recipients: Vec<String>,
    pub foregate: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Content {
    #[serde(rename_all = "camelCase")]
    Database {
        database: String,
        system_identifier: String,
        /// As `server_version_num`: 150018.
        server_version: u32,
        client_version: String,
        /// Rows per table as seen by the very snapshot that was dumped: `"schema"."table"`.
        tables: BTreeMap<String, u64>,
        database_bytes: u64,
    },
    #[serde(rename_all = "camelCase")]
    Files {
        name: String,
        paths: Vec<String>,
        entries: u64,
    },
}

/// How far a backup has been proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// Nothing has been read back.
    L0,
    /// The stored bytes hash as they did when written.
    L1,
    /// Decrypted, decompressed, and read whole by `pg_restore` or as tar.
    L2,
    /// Restored into a scratch database, row counts as recorded.
    L3,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Part {
    /// `dump`, `globals` or `files`.
    pub name: String,
    /// The object's name in the backup's folder.
    pub object: String,
    pub plain_bytes: u64,
    pub plain_sha256: String,
    pub stored_bytes: u64,
    pub stored_sha256: String,
}

/// A verification made after publication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Verification {
    pub at: Timestamp,
    pub level: Level,
    /// `None`: passed.
    pub failure: Option<String>,
}

/// A backup on its way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tombstone {
    pub id: Ulid,
    pub at: Timestamp,
    pub reason: String,
}

/// A backup in use, until `expires_at`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lease {
    pub id: Ulid,
    pub holder: Ulid,
    pub expires_at: Timestamp,
}

impl Manifest {
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        // A manifest may come from elsewhere and claim anything.
        self.parts
            .iter()
            .fold(0, |sum, part| part.stored_bytes.saturating_add(sum))
    }

    #[must_use]
    pub fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// Reads one; an unknown field or a newer format is refused rather than half understood.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if manifest.format != FORMAT {
            return Err(format!("format {} is not {FORMAT}", manifest.format));
        }
        if let Some(part) = manifest.parts.iter().find(|part| !is_plain_name(&part.object)) {
            return Err(format!("part {:?} names an object outside its folder", part.name));
        }
        Ok(manifest)
    }
}

/// A name without a path in it.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name != ".."
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}
