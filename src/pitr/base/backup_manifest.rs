//! PostgreSQL's own `backup_manifest`: which files a base backup holds, with SHA-256, and the log that it needs.

use std::collections::HashMap;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// A cluster of a million files has about 200 MiB of it.
pub const BYTES_MAX: usize = 512 * 1024 * 1024;

/// What the server says that it sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupManifest {
    pub files: HashMap<String, File>,
    pub ranges: Vec<Range>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File {
    pub bytes: u64,
    pub sha256: [u8; 32],
}

/// Log without which the copy cannot become consistent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub timeline: u32,
    /// As the server writes it: `0/4000028`.
    pub start: String,
    pub end: String,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "Files")]
    files: Vec<RawFile>,
    #[serde(rename = "WAL-Ranges")]
    ranges: Vec<RawRange>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(Deserialize)]
struct RawFile {
    #[serde(rename = "Path")]
    path: Option<String>,
    /// In hexadecimal, where the path is not UTF-8.
    #[serde(rename = "Encoded-Path")]
    encoded: Option<String>,
    #[serde(rename = "Size")]
    bytes: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

#[derive(Deserialize)]
struct RawRange {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

impl BackupManifest {
    /// # Errors
    /// What is wrong with it; its own checksum first.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| format!("backup_manifest: {error}"))?;
        let mark = b"\"Manifest-Checksum\"";
        let covered = bytes.windows(mark.len()).rposition(|window| window == mark);
        let covered = bytes.get(..covered.unwrap_or(0)).unwrap_or_default();
        if hex::encode(Sha256::digest(covered)) != raw.checksum {
            return Err("backup_manifest does not have the checksum that it states".to_owned());
        }
        let mut files = HashMap::with_capacity(raw.files.len());
        for file in raw.files {
            let sha256 = file
                .checksum
                .as_deref()
                .filter(|_| file.algorithm.as_deref() == Some("SHA256"));
            let mut hash = [0; 32];
            let decoded = sha256.and_then(|text| hex::decode_to_slice(text, &mut hash).ok());
            let (Some(path), Some(())) = (file.path.or(file.encoded), decoded) else {
                return Err("backup_manifest lists a file without a path or a SHA-256".to_owned());
            };
            files.insert(
                path,
                File {
                    bytes: file.bytes,
                    sha256: hash,
                },
            );
        }
        let ranges: Vec<Range> = raw
            .ranges
            .into_iter()
            .map(|range| Range {
                timeline: range.timeline,
                start: range.start,
                end: range.end,
            })
            .collect();
        if ranges.is_empty() {
            return Err("backup_manifest names no log".to_owned());
        }
        Ok(Self { files, ranges })
    }

    /// The oldest and the newest stretch of log. More than one only where a standby was copied.
    #[must_use]
    pub fn span(&self) -> Option<(&Range, &Range)> {
        let first = self.ranges.iter().min_by_key(|range| range.timeline)?;
        let last = self.ranges.iter().max_by_key(|range| range.timeline)?;
        Some((first, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(checksum: &str) -> String {
        let body = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
            { \"Path\": \"PG_VERSION\", \"Size\": 3, \"Last-Modified\": \"2026-11-23 15:27:16 GMT\", \
            \"Checksum-Algorithm\": \"SHA256\", \"Checksum\": \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\" }\n],\n\
            \"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/4000028\", \"End-LSN\": \"0/4000100\" }\n],\n";
        let checksum = match checksum {
            "" => hex::encode(Sha256::digest(body)),
            other => other.to_owned(),
        };
        format!("{body}\"Manifest-Checksum\": \"{checksum}\"}}\n")
    }

    #[test]
    fn a_manifest_is_read_when_its_own_checksum_fits() {
        let read = BackupManifest::parse(text("").as_bytes()).expect("sound");
        assert_eq!(read.files["PG_VERSION"].bytes, 3);
        assert_eq!(read.ranges[0].end, "0/4000100");
        assert!(BackupManifest::parse(text(&"0".repeat(64)).as_bytes()).is_err());
        assert!(BackupManifest::parse(text("").replace("PG_VERSION", "PG_VERSIOM").as_bytes()).is_err());
    }
}
