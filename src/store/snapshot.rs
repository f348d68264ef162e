//! The local snapshot: the blocks last in force, for a start while the store is away. Replaced at once or not at all.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::record::Record;
use super::{Block, Change};

/// Far more than a million blocks; a larger file is not ours.
const MAX_SIZE: u64 = 1 << 30;

/// Replaces the file; when this returns, the new content survives a power cut.
pub(crate) fn write<'a>(path: &Path, blocks: impl IntoIterator<Item = &'a Block>) -> io::Result<()> {
    let mut bytes = Vec::new();
    for block in blocks {
        Record::new(0, &Change::Block(block.clone())).write(&mut bytes)?;
    }
    replace(path, &bytes)
}

/// The blocks that the file holds; none where there is none. Damaged lines are left out, and the file is then set
/// aside for the operator.
pub(crate) fn read(path: &Path) -> io::Result<Vec<Block>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_SIZE).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let (mut blocks, mut damaged) = (Vec::new(), 0_usize);
    for line in lines {
        match Record::read(line).and_then(Record::change) {
            Some((_, Change::Block(block))) => blocks.push(block),
            _ => damaged += 1,
        }
    }
    if damaged > 0 {
        let aside = set_aside(path)?;
        tracing::error!(damaged, kept = blocks.len(), aside = %aside.display(), "the snapshot of blocks is damaged");
    }
    Ok(blocks)
}

pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // A predecessor that drains may write its own at the same time.
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Gives a file that is not trusted a name that no other has.
pub(super) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = path.with_extension(format!("refused-{}", ulid::Ulid::generate()));
    fs::rename(path, &aside)?;
    Ok(aside)
}
