//! The manifest: what a backup holds and how to prove it. Written last, never changed; later verifications are
//! records beside it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use ulid::Ulid;

use super::Error;
use super::layout::Cluster;
use super::seal::{Measured, Sealed};
use crate::secret::Secret;

/// Raised when an old reader could misread a new manifest.
pub const FORMAT: u32 = 1;
/// A manifest beyond this was not written by us: 100,000 tables fit.
pub const BYTES_MAX: u64 = 32 * 1024 * 1024;
/// We write four of them, all short; what anybody writes becomes a column of a table and a series of metrics.
const LABELS_MAX: usize = 16;
const LABEL_BYTES_MAX: usize = 64;

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
        /// What a new database must be given to be like this one; absent in what earlier versions wrote.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        character: Option<Box<Character>>,
    },
    /// A physical copy of the whole cluster, worth something only with its log.
    #[serde(rename_all = "camelCase")]
    Base {
        system_identifier: String,
        server_version: u32,
        client_version: String,
        timeline: u32,
        /// As the server writes it: `0/4000028`.
        start_lsn: String,
        stop_lsn: String,
        /// By the server's clock, once the copy had ended: no earlier instant can be reached from it.
        stopped_at: Timestamp,
        segment_bytes: u64,
        tablespaces: Vec<Tablespace>,
    },
    #[serde(rename_all = "camelCase")]
    Files {
        name: String,
        paths: Vec<String>,
        entries: u64,
        /// How long it is kept: here, so that a clean-up needs no configuration.
        keep_days: u32,
        /// What was left out, and what changed or went away while it was read.
        notes: Vec<String>,
        /// Notes beyond those listed.
        more_notes: u64,
    },
}

impl Content {
    /// The cluster that it is of; none has files.
    #[must_use]
    pub fn cluster(&self) -> Option<Cluster> {
        match self {
            Self::Files { .. } => None,
            Self::Database {
                system_identifier,
                server_version,
                ..
            }
            | Self::Base {
                system_identifier,
                server_version,
                ..
            } => Some(Cluster {
                system_identifier: system_identifier.clone(),
                major: server_version / 10_000,
            }),
        }
    }
}

/// What belongs to a database itself rather than to anything in it: `pg_restore` into a database of another name leaves
/// all of it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Character {
    pub owner: String,
    pub encoding: String,
    /// As in `pg_database`: `c` libc, `i` ICU, `b` the server's own.
    pub provider: String,
    pub collate: Option<String>,
    pub ctype: Option<String>,
    /// Of ICU or the server's own.
    pub locale: Option<String>,
    pub icu_rules: Option<String>,
    pub tablespace: String,
    /// -1: none.
    pub connection_limit: i32,
    /// Sealed with the settings, if there are any of both; here in what earlier versions wrote.
    pub comment: Option<String>,
    /// `None`: they are in the part [`PRIVATE`]. Earlier versions, which had them here, then refuse the manifest, instead of
    /// making a database without them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<Vec<Setting>>,
    /// `None`: those that every database has.
    pub privileges: Option<Vec<Privilege>>,
}

impl Character {
    /// Takes out what may hold secrets, to be sealed; `None`: there is nothing of the kind.
    pub fn take_private(&mut self) -> Option<Private> {
        let comment = self.comment.take();
        let settings = self.settings.take().unwrap_or_default();
        if comment.is_none() && settings.is_empty() {
            self.settings = Some(Vec::new());
            return None;
        }
        Some(Private { comment, settings })
    }

    pub fn put_back(&mut self, private: Private) {
        self.comment = private.comment;
        self.settings = Some(private.settings);
    }
}

/// The name of the part that holds [`Private`].
pub const PRIVATE: &str = "settings";

/// What people wrote about a database, and for the app in it: a key to sign tokens with may be a setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Private {
    pub comment: Option<String>,
    pub settings: Vec<Setting>,
}

/// Of `ALTER DATABASE ... SET`, or `ALTER ROLE ... IN DATABASE ... SET`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Setting {
    /// `None`: whoever connects.
    pub role: Option<String>,
    pub name: String,
    #[serde(with = "plain")]
    pub value: Secret,
}

/// Only what is sealed, and what was written by earlier versions, says a value.
mod plain {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::secret::Secret;

    pub(super) fn serialize<S: Serializer>(value: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(value.reveal())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Privilege {
    /// `None`: everybody.
    pub grantee: Option<String>,
    pub privilege: String,
    pub grantable: bool,
}

/// A directory of the cluster outside its data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tablespace {
    pub oid: u32,
    /// Where it stood on the server.
    pub location: String,
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
    /// `dump`, `globals`, `settings`, `files`; of a base backup `base`, a tablespace's OID, `backup_manifest`.
    pub name: String,
    /// The object's name in the backup's folder.
    pub object: String,
    pub plain_bytes: u64,
    /// `None`: of a base backup's tar, whose files are proven one by one by `backup_manifest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain_sha256: Option<String>,
    pub stored_bytes: u64,
    pub stored_sha256: String,
}

impl Part {
    #[must_use]
    pub fn new(name: &str, key: &str, sealed: Sealed) -> Self {
        Self {
            name: name.to_owned(),
            object: key.rsplit('/').next().unwrap_or_default().to_owned(),
            plain_bytes: sealed.plain_bytes,
            plain_sha256: Some(sealed.plain_sha256),
            stored_bytes: sealed.stored_bytes,
            stored_sha256: sealed.stored_sha256,
        }
    }

    /// Of a tar that is proven file by file.
    #[must_use]
    pub fn of_tar(name: &str, key: &str, measured: Measured) -> Self {
        Self {
            name: name.to_owned(),
            object: key.rsplit('/').next().unwrap_or_default().to_owned(),
            plain_bytes: measured.plain_bytes,
            plain_sha256: None,
            stored_bytes: measured.stored_bytes,
            stored_sha256: measured.stored_sha256,
        }
    }

    /// # Errors
    /// The object `key` is not stored as this part was, or not with this content.
    pub fn check(&self, key: &str, found: &Sealed) -> Result<(), Error> {
        self.check_stored(key, found.stored_bytes, &found.stored_sha256)?;
        let is_same = self.plain_bytes == found.plain_bytes && self.plain_sha256.as_ref() == Some(&found.plain_sha256);
        is_same.then_some(()).ok_or_else(|| other_content(key))
    }

    /// As [`Part::check`], where the content was not hashed.
    ///
    /// # Errors
    /// As [`Part::check`].
    pub fn check_opened(&self, key: &str, found: &Measured) -> Result<(), Error> {
        self.check_stored(key, found.stored_bytes, &found.stored_sha256)?;
        let is_same = self.plain_bytes == found.plain_bytes;
        is_same.then_some(()).ok_or_else(|| other_content(key))
    }

    /// As [`Part::check`], where it was not opened.
    ///
    /// # Errors
    /// As [`Part::check`].
    pub fn check_stored(&self, key: &str, bytes: u64, sha256: &str) -> Result<(), Error> {
        let is_same = (bytes, sha256) == (self.stored_bytes, self.stored_sha256.as_str());
        is_same.then_some(()).ok_or_else(|| Error::other_bytes(key))
    }
}

fn other_content(key: &str) -> Error {
    Error::damaged(key, "its content is not what was sealed")
}

/// A verification made after publication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Verification {
    pub at: Timestamp,
    /// What was reached, or with a failure the level that was missed: the backup stays condemned until a later proof of at
    /// least that.
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

    /// What may be shown of it: earlier versions wrote settings into it, and what is a secret in the database is one here.
    #[must_use]
    pub fn shown(&self) -> Self {
        let mut shown = self.clone();
        if let Content::Database {
            character: Some(character),
            ..
        } = &mut shown.content
        {
            // Neither: absent is what is not told, and not what is not there.
            (character.comment, character.settings) = (None, None);
        }
        shown
    }

    /// What is stored: JSON with the SHA-256 of its own content, since nothing else vouches for the manifest.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Our own plain structs: there is nothing in them that JSON cannot say.
        let mut value = serde_json::to_value(self).unwrap_or_default();
        let checksum = checksum(&value);
        if let Some(fields) = value.as_object_mut() {
            fields.insert(CHECKSUM.to_owned(), checksum.into());
        }
        serde_json::to_vec_pretty(&value).unwrap_or_default()
    }

    /// Reads one; an unknown field, a newer format or a wrong checksum is refused rather than half understood.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let stated = value.as_object_mut().and_then(|fields| fields.remove(CHECKSUM));
        let Some(stated) = stated.as_ref().and_then(serde_json::Value::as_str) else {
            return Err("it states no checksum".to_owned());
        };
        if stated != checksum(&value) {
            return Err("its content does not match its checksum".to_owned());
        }
        let manifest: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        if manifest.format != FORMAT {
            return Err(format!("format {} is not {FORMAT}", manifest.format));
        }
        let is_long = |label: &String| label.len() > LABEL_BYTES_MAX;
        if manifest.labels.len() > LABELS_MAX || manifest.labels.iter().any(is_long) {
            return Err("it has more or longer labels than a backup can have".to_owned());
        }
        if let Some(part) = manifest.parts.iter().find(|part| !is_plain_name(&part.object)) {
            return Err(format!("part {:?} names an object outside its folder", part.name));
        }
        Ok(manifest)
    }
}

/// The field beside those of [`Manifest`] that vouches for them.
const CHECKSUM: &str = "sha256";

/// Over the fields as they are stored, in the order of their names, not over [`Manifest`]: a later version with one more
/// field must still read what this one wrote.
fn checksum(fields: &serde_json::Value) -> String {
    hex::encode(Sha256::digest(serde_json::to_vec(fields).unwrap_or_default()))
}

/// A name without a path in it.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name != ".."
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_secret_is_sealed_apart_and_comes_back_and_an_older_reader_is_told_by_its_absence() {
        let mut character: Character = serde_json::from_value(serde_json::json!({
            "owner": "shop", "encoding": "UTF8", "provider": "c", "collate": "C", "ctype": "C", "locale": null,
            "icuRules": null, "tablespace": "pg_default", "connectionLimit": -1, "comment": "the key is 7",
            "settings": [{"role": null, "name": "app.key", "value": "7"}], "privileges": null,
        }))
        .expect("as earlier versions wrote it");
        let whole = character.clone();
        let private = character.take_private().expect("there is something");
        let said = serde_json::to_value(&character).expect("JSON");
        assert!(said.get("settings").is_none() && said["comment"].is_null(), "{said}");
        assert!(!format!("{private:?}").contains("value: \"7\""));
        character.put_back(private);
        assert_eq!(character, whole);
        (character.comment, character.settings) = (None, Some(Vec::new()));
        assert_eq!(character.take_private(), None);
        let said = serde_json::to_value(&character).expect("JSON");
        assert_eq!(said["settings"], serde_json::json!([]), "an older reader reads it");
    }

    #[test]
    fn no_single_bit_of_a_manifest_can_flip_unnoticed() {
        let manifest = Manifest {
            format: FORMAT,
            id: Ulid::from_parts(1, 2),
            content: Content::Database {
                database: "app".to_owned(),
                system_identifier: "7".to_owned(),
                server_version: 150_018,
                client_version: "15".to_owned(),
                tables: BTreeMap::from([("\"a\".\"b\"".to_owned(), 5)]),
                database_bytes: 9,
                character: None,
            },
            labels: vec!["daily".to_owned()],
            schedule_keys: Vec::new(),
            started_at: Timestamp::UNIX_EPOCH,
            finished_at: Timestamp::UNIX_EPOCH,
            verified: Level::L2,
            parts: Vec::new(),
            recipients: Vec::new(),
            foregate: "0".to_owned(),
        };
        let bytes = manifest.to_bytes();
        assert_eq!(Manifest::parse(&bytes), Ok(manifest.clone()));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                // Space between tokens may turn into other space.
                assert!(
                    Manifest::parse(&flipped).is_ok_and(|read| read == manifest) || Manifest::parse(&flipped).is_err()
                );
            }
            assert!(Manifest::parse(&bytes[..at]).is_err());
        }
    }
}
