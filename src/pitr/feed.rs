//! Feeds a recovery: while PostgreSQL replays one segment, the next ones are fetched and proven, so that it never waits
//! for the repository or a decompression. They wait in memory: bounded, private, and gone with the process.

use std::collections::HashMap;
use std::fs::File as OpenFile;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::archive::{Archive, Error, Found};
use super::header::Header;
use super::name::{File, SegmentName, SegmentSize};

/// What may wait for PostgreSQL to ask for it.
const AHEAD_BYTES_MAX: u64 = 64 * 1024 * 1024;
const AHEAD_SEGMENTS_MAX: u64 = 8;
/// PostgreSQL replays on one core; fetching may have another.
const FETCHES_AT_ONCE: usize = 2;

/// What is on its way or has arrived; `None`: the archive has no such file.
type Coming = AbortOnDropHandle<Result<Option<Vec<u8>>, Error>>;

/// Feeds one recovery from one archive.
#[derive(Debug)]
pub struct Feed {
    archive: Archive,
    coming: Mutex<HashMap<File, Coming>>,
    permits: Arc<Semaphore>,
}

impl Feed {
    #[must_use]
    pub fn new(archive: Archive) -> Self {
        Self {
            archive,
            coming: Mutex::default(),
            permits: Arc::new(Semaphore::new(FETCHES_AT_ONCE)),
        }
    }

    /// Writes `file` into `sink`, and begins to fetch what will be asked for next. What is in `sink` may be used only if
    /// this returns [`Found::Yes`].
    ///
    /// # Errors
    /// Everything but the file's absence.
    pub async fn get(&self, file: File, mut sink: OpenFile) -> Result<Found, Error> {
        let ahead = self.take(file);
        let arrived = match ahead {
            Some(coming) => coming.await.map_err(|_| Error::Worker)?.ok().flatten(),
            None => None,
        };
        // What was not there a moment ago may be there now, and an error may have passed: asked again.
        let content = match arrived {
            Some(content) => Some(content),
            None => fetch(&self.archive, file).await?,
        };
        let Some(content) = content else {
            return Ok(Found::No);
        };
        self.look_ahead(file, &content);
        let written = tokio::task::spawn_blocking(move || sink.write_all(&content).and_then(|()| sink.flush()));
        let written = written.await.map_err(|_| Error::Worker)?;
        written.map_err(|source| Error::Write { file, source })?;
        Ok(Found::Yes)
    }

    /// Lets go of everything: no one has asked for a while.
    pub fn rest(&self) {
        self.lock().clear();
    }

    fn take(&self, file: File) -> Option<Coming> {
        self.lock().remove(&file)
    }

    fn look_ahead(&self, file: File, content: &[u8]) {
        let (File::Segment(stem), Ok(header)) = (file, Header::parse(content)) else {
            return;
        };
        let Some(name) = stem.name(header.size) else { return };
        let wanted = ahead_of(name, header.size);
        let mut coming = self.lock();
        coming.retain(|file, _| wanted.contains(file));
        for file in wanted {
            coming.entry(file).or_insert_with(|| {
                let (archive, permits) = (self.archive.clone(), Arc::clone(&self.permits));
                let fetch = async move {
                    let permit = permits.acquire().await;
                    let fetched = fetch(&archive, file).await;
                    drop(permit);
                    fetched
                };
                AbortOnDropHandle::new(tokio::runtime::Handle::current().spawn(fetch))
            });
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<File, Coming>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The segments that are worth having before they are asked for.
fn ahead_of(name: SegmentName, size: SegmentSize) -> Vec<File> {
    let count = (AHEAD_BYTES_MAX / size.bytes()).min(AHEAD_SEGMENTS_MAX);
    std::iter::successors(Some(name.next()), |name| Some(name.next()))
        .take(usize::try_from(count).unwrap_or(0))
        .map(|name| File::Segment(name.file(size)))
        .collect()
}

async fn fetch(archive: &Archive, file: File) -> Result<Option<Vec<u8>>, Error> {
    match archive.locate(file).await? {
        Some(archived) => archive.fetch(&archived, Vec::new()).await.map(Some),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pitr::name::{Lsn, Timeline};

    #[test]
    fn what_waits_is_bounded_whatever_the_segment_size() {
        for bits in 20..=30 {
            let size = SegmentSize::new(1 << bits).expect("a size");
            let name = SegmentName::at(Timeline(3), Lsn(u64::MAX / 3), size);
            let ahead = ahead_of(name, size);
            assert!(ahead.len() as u64 * size.bytes() <= AHEAD_BYTES_MAX);
            assert!(ahead.len() as u64 <= AHEAD_SEGMENTS_MAX);
            assert_eq!(
                ahead.first().copied(),
                (bits <= 26).then(|| File::Segment(name.next().file(size)))
            );
        }
    }
}
