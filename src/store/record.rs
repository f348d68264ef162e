//! How a change is written in a local file: one line of JSON behind its own checksum, so that a damaged line is known
//! for itself and takes no other with it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Block, Change, Source};

/// Enough against accidents; nobody who can write the file needs to forge a checksum.
const CHECKSUM_BYTES: usize = 8;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Record {
    Block {
        number: u64,
        network: String,
        reference: String,
        reason: String,
        manual: bool,
        created_by: String,
        created_at: jiff::Timestamp,
        expires_at: Option<jiff::Timestamp>,
        until: Option<jiff::Timestamp>,
    },
    Unblock {
        number: u64,
        network: String,
        at: jiff::Timestamp,
    },
    /// The store needs no change of `network` up to this number.
    Done { number: u64, network: String },
}

impl Record {
    pub(super) fn new(number: u64, change: &Change) -> Self {
        match change {
            Change::Block(block) | Change::Replace { block, .. } => Self::Block {
                number,
                network: block.network.to_string(),
                reference: block.reference.to_string(),
                reason: block.reason.clone(),
                manual: block.source == Source::Manual,
                created_by: block.created_by.clone(),
                created_at: block.created_at,
                expires_at: block.expires_at,
                until: change.lifts_until(),
            },
            Change::Unblock { network, at } => Self::Unblock {
                number,
                network: network.to_string(),
                at: *at,
            },
        }
    }

    /// The change and its number; `None` for what is no change.
    pub(super) fn change(self) -> Option<(u64, Change)> {
        match self {
            Self::Block {
                number,
                network,
                reference,
                reason,
                manual,
                created_by,
                created_at,
                expires_at,
                until,
            } => {
                let block = Block {
                    network: network.parse().ok()?,
                    reference: reference.parse().ok()?,
                    reason,
                    source: if manual { Source::Manual } else { Source::Automatic },
                    created_by,
                    created_at,
                    expires_at,
                };
                let change = match until {
                    Some(until) => Change::Replace { block, until },
                    None => Change::Block(block),
                };
                Some((number, change))
            }
            Self::Unblock { number, network, at } => {
                let network = network.parse().ok()?;
                Some((number, Change::Unblock { network, at }))
            }
            Self::Done { .. } => None,
        }
    }

    pub(super) fn write(&self, lines: &mut Vec<u8>) -> std::io::Result<()> {
        let body = serde_json::to_vec(self)?;
        lines.extend_from_slice(checksum(&body).as_bytes());
        lines.push(b' ');
        lines.extend_from_slice(&body);
        lines.push(b'\n');
        Ok(())
    }

    /// `None`: damaged, or not written by Foregate.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        let (sum, body) = line.split_at_checked(2 * CHECKSUM_BYTES)?;
        let body = body.strip_prefix(b" ")?;
        if checksum(body).as_bytes() != sum {
            return None;
        }
        serde_json::from_slice(body).ok()
    }
}

fn checksum(body: &[u8]) -> String {
    let digest = Sha256::digest(body);
    hex::encode(digest.get(..CHECKSUM_BYTES).unwrap_or(&digest))
}
