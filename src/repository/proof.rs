//! Storing and proving in one pass: what goes to the store is opened on another core while it goes. Once the stored bytes
//! are read back and have the same hash, they are the bytes that were opened.

use std::io::{self, Read, Write};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::frames::Compression;
use super::manifest::Part;
use super::pipe;
use super::seal::{self, Keys, Measured};
use super::{Error, Repository, worker};
use crate::priority;

/// Writes on their way to the opener, of 64 KiB at most. What is stored may be 32 MiB ahead of its proof: a server
/// that is done sending waits for a second or more until its log is archived, and the proof catches up
/// meanwhile, but for the last pieces.
const AHEAD: usize = 512;
const PIECE_BYTES_MAX: usize = 64 * 1024;

impl Repository {
    /// As [`Repository::put_sealed`], and opens into `sink` what it stores, which has to prove the content: that is not
    /// hashed. What holds of it holds of what is in the store after [`Repository::confirm_stored`].
    ///
    /// # Errors
    /// As [`Repository::put_sealed`], or bytes that cannot be opened again; the object may be left then.
    pub async fn put_proven<W: Write + Send + 'static>(
        &self,
        key: &str,
        mut source: impl Read + Send + 'static,
        keys: Arc<Keys>,
        compression: Compression,
        confirm: impl FnOnce() -> io::Result<()> + Send + 'static,
        progress: impl Fn(u64) + Send + 'static,
        sink: W,
    ) -> Result<(Measured, W), Error> {
        let (copy, outlet) = pipe::new(AHEAD);
        let opening = open_behind(outlet, sink, Arc::clone(&keys));
        let closed = self
            .put_through(key, move |store| {
                let tee = Tee { store, copy };
                seal::close(&mut source, tee, &keys, compression, confirm, progress)
            })
            .await;
        let opened = opening.await.map_err(|_| Error::Worker)?;
        let unopened = |source| Error::Unseal {
            key: key.to_owned(),
            source,
        };
        match (closed, opened) {
            (Ok(closed), Ok((opened, sink))) if closed == opened => Ok((closed, sink)),
            (Ok(_), Ok(_)) => Err(Error::damaged(key, "it does not open as what was sealed")),
            (Ok(_), Err(error)) => Err(unopened(error)),
            (Err(error), Err(cause)) if is_for_want_of_an_opener(&error) => Err(unopened(cause)),
            // An opener that was cut off has nothing of its own to tell.
            (Err(error), _) => Err(error),
        }
    }

    /// Reads the object `key` back, unopened, and compares it with what `part` says.
    ///
    /// # Errors
    /// Of the store, or other bytes.
    pub async fn confirm_stored(
        &self,
        key: &str,
        part: &Part,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<(), Error> {
        let (bytes, sha256) = self.hash_stored(key, progress).await?;
        part.check_stored(key, bytes, &sha256)
    }
}

/// Opens what comes, behind the sealing and the programs that feed it when there are not enough cores for all.
fn open_behind<W: Write + Send + 'static>(
    stored: pipe::Outlet,
    mut sink: W,
    keys: Arc<Keys>,
) -> oneshot::Receiver<io::Result<(Measured, W)>> {
    worker::spawn(priority::LAST, move || {
        let opened = seal::open(stored, &mut sink, &keys, keys.encrypts(), |_| {})?;
        Ok((opened, sink))
    })
}

fn is_for_want_of_an_opener(error: &Error) -> bool {
    matches!(error, Error::Seal { source, .. } if pipe::is_closed(source))
}

/// Writes to the store, and a copy to the opener.
struct Tee<W> {
    store: W,
    copy: pipe::Inlet,
}

impl<W: Write> Write for Tee<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The pipe counts pieces: what is not encrypted comes in whole frames.
        let bytes = bytes.get(..PIECE_BYTES_MAX).unwrap_or(bytes);
        self.store.write_all(bytes)?;
        self.copy.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.store.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::behind::tests::Full;
    use super::*;

    fn repository(directory: &tempfile::TempDir) -> Repository {
        Repository::open(&format!("file://{}", directory.path().display())).expect("a directory")
    }

    fn keys() -> Arc<Keys> {
        let identity = age::x25519::Identity::generate();
        let recipients = [identity.to_public().to_string()];
        Arc::new(Keys::new(&recipients, None).expect("a key").with_witness())
    }

    /// Longer than what is on the way at any time, whatever zstd makes of it.
    fn numbers() -> Vec<u8> {
        (0..2_000_000_u64)
            .flat_map(|number| (number * number).to_le_bytes())
            .collect()
    }

    async fn put<W: Write + Send + 'static>(
        repository: &Repository,
        confirm: io::Result<()>,
        sink: W,
    ) -> Result<(Measured, W), Error> {
        let (source, keys) = (io::Cursor::new(numbers()), keys());
        repository
            .put_proven("a.age", source, keys, Compression::DEFAULT, || confirm, |_| {}, sink)
            .await
    }

    #[tokio::test]
    async fn what_is_stored_was_opened_on_the_way_and_a_flipped_bit_is_found_later() {
        let directory = tempfile::tempdir().expect("a directory");
        let repository = repository(&directory);
        let (stored, opened) = put(&repository, Ok(()), Vec::new()).await.expect("stored");
        assert!(opened == numbers());
        let part = Part::of_tar("base", "a.age", stored);
        let confirm = || repository.confirm_stored("a.age", &part, |_| {});
        confirm().await.expect("the same");
        let path = directory.path().join("a.age");
        let mut bytes = std::fs::read(&path).expect("stored");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).expect("written");
        let error = confirm().await;
        assert!(matches!(error, Err(Error::Damaged { .. })), "{error:?}");
    }

    #[tokio::test]
    async fn a_sink_that_refuses_ends_it_with_its_own_reason() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = put(&repository(&directory), Ok(()), Full(100_000)).await.map(|_| ());
        let Err(Error::Unseal { source, .. }) = error else {
            panic!("{error:?}");
        };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    }

    #[tokio::test]
    async fn a_program_that_failed_is_the_reason_and_not_the_opener_that_was_cut_off() {
        let directory = tempfile::tempdir().expect("a directory");
        let failed = Err(io::Error::other("the program failed"));
        let error = put(&repository(&directory), failed, Vec::new()).await.map(|_| ());
        let Err(Error::Seal { source, .. }) = error else {
            panic!("{error:?}");
        };
        assert_eq!(source.to_string(), "the program failed");
        assert!(!directory.path().join("a.age").exists());
    }
}
