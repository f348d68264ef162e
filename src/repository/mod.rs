//! Where backups live: objects in a directory or a bucket, sealed with zstd and age, named by a manifest.
//!
//! Everything here can be read back with `age`, `zstd`, `pg_restore` and `tar` alone. An object is written once and
//! never changed; a backup exists from the instant at which its manifest does.

mod behind;
#[cfg(feature = "object-store-cloud")]
mod bucket;
mod completion;
pub mod fingerprint;
mod folders;
pub mod frames;
pub mod hashed;
mod identity;
pub mod layout;
pub mod lease;
mod listing;
pub mod manifest;
mod pipe;
mod proof;
pub mod seal;
mod stages;
pub mod storage;
mod transfer;
mod worker;

pub use self::folders::Folder;
pub use self::listing::Stored;
pub use self::manifest::Manifest;
pub use self::seal::Keys;
pub use self::storage::Repository;
use crate::secret::Secret;

/// Where, and with which keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `file:///directory`, or `s3://bucket/prefix`, `az://` and `gs://` alike.
    pub url: String,
    /// age public keys; empty: stored in the clear.
    pub recipients: Vec<String>,
    /// The text of an age identity file; only where restores and drills run.
    pub identity: Option<Secret>,
}

/// Why the repository could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the repository address {url:?} is not usable: {reason}")]
    Address { url: String, reason: String },
    #[error(
        "{directory} does not hold the repository that it held: is its disk mounted? (If it is to begin anew, delete {memory}.)"
    )]
    Elsewhere { directory: String, memory: String },
    #[error("{directory} holds no repository.id: is its disk mounted? (Foregate's server makes one when it starts.)")]
    Unmarked { directory: String },
    #[error("{act} {key}")]
    Store {
        act: &'static str,
        key: String,
        #[source]
        source: object_store::Error,
    },
    #[error("{act} {key} took longer than {seconds} s")]
    Slow {
        act: &'static str,
        key: String,
        seconds: u64,
    },
    #[error("{key} holds more than {limit} bytes")]
    TooLarge { key: String, limit: u64 },
    #[error("there are more than {limit} objects below {prefix:?}: this is no repository of ours")]
    TooMany { prefix: String, limit: usize },
    #[error("{key} is not a manifest that this version reads: {reason}")]
    Manifest { key: String, reason: String },
    #[error("{0:?} is not an age public key")]
    Recipient(String),
    #[error("the age identity cannot be read: {0}")]
    Identity(String),
    #[error("sealing {key}")]
    Seal {
        key: String,
        #[source]
        source: std::io::Error,
    },
    #[error("reading {key} back")]
    Unseal {
        key: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{key} is damaged: {what}; use another backup, or put this object back from a copy of the repository")]
    Damaged { key: String, what: String },
    #[error("{key} is encrypted, and no age identity is configured")]
    NoIdentity { key: String },
    /// A damaged header looks the same.
    #[error(
        "{key} does not open: the configured age identity opens what is sealed to {own} only (`recipients` in the manifest \
         tells to whom this was; if {own} is among them, its first bytes are damaged)"
    )]
    OtherKeys { key: String, own: String },
    #[error("{act} {key}")]
    Local {
        act: &'static str,
        key: String,
        #[source]
        source: std::io::Error,
    },
    #[error("a worker thread ended early")]
    Worker,
}

impl Error {
    /// What stands at `key` is not what was stored there.
    pub(crate) fn other_bytes(key: &str) -> Self {
        Self::damaged(key, "the stored bytes are not those that were written")
    }

    pub(crate) fn damaged(key: &str, what: impl Into<String>) -> Self {
        let (key, what) = (key.to_owned(), what.into());
        Self::Damaged { key, what }
    }
}
