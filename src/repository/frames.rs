//! Sealing on all cores at once of what fits into memory: bytes -> sha256, and pieces of them -> zstd frames, one behind the
//! other -> age. Frames in a row are one stream to everybody who decompresses (RFC 8878, section 3).

use std::io::{self, Read, Write as _};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use zstd::zstd_safe::CParameter;

use super::seal::{Cipher, Keys, Tally};

/// Of the plain bytes, about a window of level 1. The log of pgbench takes half a percent more room than in one frame; larger
/// frames were no faster.
const FRAME_BYTES: usize = 512 * 1024;
/// zstd's fastest, but with matches of five bytes instead of seven, found by a table that the first cache of a core can hold: the log
/// of pgbench's updates takes a fifth less room in the same time.
const LEVEL: i32 = 1;
const MATCH_BYTES_MIN: u32 = 5;
const HASH_LOG: u32 = 13;
/// More cores than this are not taken from the neighbours.
const CORES_MAX: usize = 4;
/// Pieces that are read and wait for a helper.
const AHEAD: usize = 4;

/// What [`seal`] made.
#[derive(Debug, PartialEq, Eq)]
pub struct Whole {
    pub plain_bytes: u64,
    pub plain_sha256: String,
    pub stored: Vec<u8>,
}

/// With its place in the stream.
type Numbered<T> = (usize, T);

/// Seals `source` into memory: the caller knows that it is not too long for that.
///
/// # Errors
/// Of the source, of zstd, or of the keys.
pub fn seal(source: impl Read, keys: &Keys) -> io::Result<Whole> {
    let helpers = thread::available_parallelism().map_or(1, usize::from).min(CORES_MAX) - 1;
    let (sender, receiver) = sync_channel(AHEAD);
    let queue = Mutex::new(receiver);
    let (tally, mut frames) = thread::scope(|scope| {
        let help = || Press::new()?.work_off(&queue);
        // Without a helper, where no thread can be had, it only takes longer.
        let start = |_| thread::Builder::new().spawn_scoped(scope, help).ok();
        let helping: Vec<_> = (0..helpers).filter_map(start).collect();
        let done = read(source, &sender, Press::new()?);
        // Whatever it came to: helpers wait as long as more may come.
        drop(sender);
        let (tally, press) = done?;
        let mut frames = press.work_off(&queue)?;
        for helper in helping {
            let gone = |_| io::Error::other("a thread that compresses ended early");
            frames.append(&mut helper.join().map_err(gone)??);
        }
        Ok::<_, io::Error>((tally, frames))
    })?;
    frames.sort_unstable_by_key(|(number, _)| *number);
    let mut cipher = Cipher::new(Vec::new(), keys)?;
    for (_, frame) in frames {
        cipher.write_all(&frame)?;
    }
    let (plain_bytes, plain_sha256) = tally.finish();
    Ok(Whole {
        plain_bytes,
        plain_sha256,
        stored: cipher.finish()?,
    })
}

/// Hashes each piece of `source`, and compresses those for which no helper has time. An empty source is one piece as well.
fn read(mut source: impl Read, sender: &SyncSender<Numbered<Bytes>>, mut press: Press) -> io::Result<(Tally, Press)> {
    let mut tally = Tally::default();
    for number in 0.. {
        let mut piece = Vec::with_capacity(FRAME_BYTES);
        source.by_ref().take(FRAME_BYTES as u64).read_to_end(&mut piece)?;
        if piece.is_empty() && number > 0 {
            break;
        }
        let piece = Bytes::from(piece);
        let taken = sender.try_send((number, piece.clone()));
        tally.add(&piece);
        if taken.is_err() {
            press.compress(number, &piece)?;
        }
    }
    Ok((tally, press))
}

/// One core's share of the frames.
struct Press {
    compressor: zstd::bulk::Compressor<'static>,
    frames: Vec<Numbered<Vec<u8>>>,
}

impl Press {
    fn new() -> io::Result<Self> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        compressor.set_parameter(CParameter::MinMatch(MATCH_BYTES_MIN))?;
        compressor.set_parameter(CParameter::HashLog(HASH_LOG))?;
        let frames = Vec::new();
        Ok(Self { compressor, frames })
    }

    fn compress(&mut self, number: usize, piece: &[u8]) -> io::Result<()> {
        self.frames.push((number, self.compressor.compress(piece)?));
        Ok(())
    }

    /// Compresses what comes until nothing comes any more.
    fn work_off(mut self, queue: &Mutex<Receiver<Numbered<Bytes>>>) -> io::Result<Vec<Numbered<Vec<u8>>>> {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((number, piece)) = next else {
                return Ok(self.frames);
            };
            self.compress(number, &piece)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::seal::unseal;
    use super::*;

    fn keys() -> Keys {
        let identity = age::x25519::Identity::generate();
        let recipients = [identity.to_public().to_string()];
        Keys::new(&recipients, None).expect("a key").with_witness()
    }

    fn numbers(length: usize) -> Vec<u8> {
        let numbers = (0_u64..).flat_map(|number| (number * number).to_le_bytes());
        numbers.take(length).collect()
    }

    #[test]
    fn what_was_sealed_in_frames_opens_as_one_stream_whatever_its_length() {
        for length in [
            0,
            1,
            FRAME_BYTES - 1,
            FRAME_BYTES,
            FRAME_BYTES + 1,
            9 * FRAME_BYTES + 77,
        ] {
            let (plain, keys) = (numbers(length), keys());
            let whole = seal(&plain[..], &keys).expect("sealed");
            let mut opened = Vec::new();
            let found = unseal(&whole.stored[..], &mut opened, &keys, true, |_| {}).expect("opened");
            assert!(opened == plain, "{length}");
            assert_eq!(
                (whole.plain_bytes, whole.plain_sha256),
                (length as u64, found.plain_sha256)
            );
            assert_eq!(found.stored_bytes, whole.stored.len() as u64);
        }
    }

    /// Gives zeros without end, or a fault after so many bytes.
    struct Faulty(usize);

    impl Read for Faulty {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(buffer.len()).ok_or(io::ErrorKind::TimedOut)?;
            Ok(buffer.len())
        }
    }

    #[test]
    fn fault_of_the_source_is_told() {
        let error = seal(Faulty(20 * FRAME_BYTES), &keys()).expect_err("a fault");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn reader_compresses_what_no_helper_takes() {
        let (sender, receiver) = sync_channel(AHEAD);
        let plain = numbers((AHEAD + 3) * FRAME_BYTES);
        let (tally, press) = read(&plain[..], &sender, Press::new().expect("made")).expect("read");
        assert_eq!(tally.finish().0, plain.len() as u64);
        drop(sender);
        assert_eq!((press.frames.len(), receiver.iter().count()), (3, AHEAD));
    }
}
