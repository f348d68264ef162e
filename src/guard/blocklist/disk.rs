//! Two local files that make up for an unreachable store: `blocks-snapshot.jsonl`, the last known blocks, and
//! `blocks-queue.jsonl`, the changes that still wait for the store. Each is replaced at once or not at all; a file that is
//! damaged or foreign is refused as a whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Block, Source};
use crate::store::Change;

const MAGIC: &str = "foregate-blocks-1";
/// Far more than a million blocks; a larger file is not ours.
const MAX_SIZE: u64 = 1 << 30;

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Record {
    Block {
        network: String,
        reference: String,
        reason: String,
        manual: bool,
        created_by: String,
        created_at: jiff::Timestamp,
        expires_at: Option<jiff::Timestamp>,
    },
    Unblock {
        network: String,
        at: jiff::Timestamp,
    },
}

impl From<&Change> for Record {
    fn from(change: &Change) -> Self {
        match change {
            Change::Block(block) => Self::Block {
                network: block.network.to_string(),
                reference: block.reference.to_string(),
                reason: block.reason.clone(),
                manual: block.source == Source::Manual,
                created_by: block.created_by.clone(),
                created_at: block.created_at,
                expires_at: block.expires_at,
            },
            Change::Unblock { network, at } => Self::Unblock {
                network: network.to_string(),
                at: *at,
            },
        }
    }
}

impl Record {
    fn change(self) -> Option<Change> {
        Some(match self {
            Self::Block {
                network,
                reference,
                reason,
                manual,
                created_by,
                created_at,
                expires_at,
            } => Change::Block(Block {
                network: network.parse().ok()?,
                reference: reference.parse().ok()?,
                reason,
                source: if manual { Source::Manual } else { Source::Automatic },
                created_by,
                created_at,
                expires_at,
            }),
            Self::Unblock { network, at } => Change::Unblock {
                network: network.parse().ok()?,
                at,
            },
        })
    }
}

/// Replaces the file; when this returns, the new content survives a power cut.
pub(super) fn write(path: &Path, changes: &[Change]) -> io::Result<()> {
    let mut body = Vec::new();
    for change in changes {
        serde_json::to_writer(&mut body, &Record::from(change))?;
        body.push(b'\n');
    }
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    writeln!(file, "{MAGIC} {}", hex::encode(Sha256::digest(&body)))?;
    file.write_all(&body)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// What the file holds; nothing where there is none.
pub(super) fn read(path: &Path) -> io::Result<Vec<Change>> {
    let foreign = || io::Error::new(io::ErrorKind::InvalidData, "damaged, or not written by Foregate");
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_SIZE => return Err(foreign()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let text = fs::read_to_string(path)?;
    let (head, body) = text.split_once('\n').ok_or_else(foreign)?;
    if head != format!("{MAGIC} {}", hex::encode(Sha256::digest(body))) {
        return Err(foreign());
    }
    body.lines()
        .map(|line| {
            serde_json::from_str::<Record>(line)
                .ok()
                .and_then(Record::change)
                .ok_or_else(foreign)
        })
        .collect()
}
