//! Sealing on all cores at once of what fits into memory: bytes -> name, and pieces of them -> zstd frames, one behind the
//! other -> age. Frames in a row are one stream to everybody who decompresses (RFC 8878, section 3).

use std::collections::BTreeMap;
use std::io::{self, Read, Write as _};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use zstd::zstd_safe::CParameter;

use super::naming::Name;
use super::seal::{Cipher, Keys};

/// Of the plain bytes, about a window of level 1. The log of pgbench takes half a percent more room than in one frame; larger
/// frames were no faster.
const FRAME_BYTES: usize = 256 * 1024;
/// zstd's fastest, but with matches of five bytes instead of seven, found by a table that the first cache of a core can hold: the log
/// of pgbench's updates takes a fifth less room in the same time.
const LEVEL: i32 = 1;
const MATCH_BYTES_MIN: u32 = 5;
const HASH_LOG: u32 = 13;
/// More cores than this are not taken from the neighbours.
const CORES_MAX: usize = 4;
/// Pieces that are read and wait for a helper.
const AHEAD: usize = 2;
/// Room at first for what comes out: a segment's log of 16 MiB seldom needs more, and room that grows is copied.
const STORED_BYTES: usize = 4 * 1024 * 1024;

/// What [`seal`] made.
#[derive(Debug, PartialEq, Eq)]
pub struct Whole {
    pub plain_bytes: u64,
    /// Of the plain bytes; see [`super::naming`].
    pub name: String,
    pub stored: Vec<u8>,
}

/// With its place in the stream.
type Numbered<T> = (usize, T);
/// Pieces that wait for whoever has time.
type Queue = Mutex<Receiver<Numbered<Bytes>>>;
/// What became of them.
type Frame = Numbered<io::Result<Vec<u8>>>;

/// Seals `source` into memory: the caller knows that it is not too long for that. This thread reads, names and encrypts;
/// helpers compress, and so does this one whenever they cannot keep up.
///
/// # Errors
/// Of the source, of zstd, or of the keys.
pub fn seal(source: impl Read, keys: &Keys) -> io::Result<Whole> {
    let helpers = thread::available_parallelism().map_or(1, usize::from).min(CORES_MAX) - 1;
    let (pieces, queue) = sync_channel(AHEAD);
    let (made, frames) = channel();
    let queue = Mutex::new(queue);
    let mut press = Press::new()?;
    let mut row = Row::new(keys, frames)?;
    let name = thread::scope(|scope| {
        // Without a helper, where no thread can be had, it only takes longer.
        let start = |_| {
            let (queue, made) = (&queue, made.clone());
            thread::Builder::new()
                .spawn_scoped(scope, move || help(queue, &made))
                .ok()
        };
        let helping: Vec<_> = (0..helpers).filter_map(start).collect();
        drop(made);
        let read = read(source, &pieces, &mut press, &mut row);
        // Whatever it came to: helpers wait as long as more may come.
        drop(pieces);
        let name = read?;
        while let Some((number, piece)) = next(&queue) {
            row.put((number, press.compress(&piece)))?;
        }
        row.wait_for_rest()?;
        for helper in helping {
            helper.join().map_err(|_| lost())?;
        }
        Ok::<_, io::Error>(name)
    })?;
    let (plain_bytes, name) = name.finish();
    Ok(Whole {
        plain_bytes,
        name,
        stored: row.finish(plain_bytes)?,
    })
}

/// Names what is in `source`, and compresses those for which no helper has time. An empty source is one piece as well.
fn read(
    mut source: impl Read,
    pieces: &SyncSender<Numbered<Bytes>>,
    press: &mut Press,
    row: &mut Row,
) -> io::Result<Name> {
    let mut name = Name::default();
    for number in 0.. {
        let mut piece = Vec::with_capacity(FRAME_BYTES);
        source.by_ref().take(FRAME_BYTES as u64).read_to_end(&mut piece)?;
        if piece.is_empty() && number > 0 {
            break;
        }
        let piece = Bytes::from(piece);
        let taken = pieces.try_send((number, piece.clone()));
        name.add(&piece);
        if taken.is_err() {
            row.put((number, press.compress(&piece)))?;
        }
        row.take_what_is_made()?;
    }
    Ok(name)
}

/// Compresses what comes until nothing comes any more, or nobody waits for it.
fn help(queue: &Queue, made: &Sender<Frame>) {
    // Whoever cannot begin leaves its share to the others.
    let Ok(mut press) = Press::new() else { return };
    while let Some((number, piece)) = next(queue) {
        if made.send((number, press.compress(&piece))).is_err() {
            return;
        }
    }
}

fn next(queue: &Queue) -> Option<Numbered<Bytes>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn lost() -> io::Error {
    io::Error::other("a thread that compresses ended early")
}

/// What one thread compresses with.
struct Press(zstd::bulk::Compressor<'static>);

impl Press {
    fn new() -> io::Result<Self> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        compressor.set_parameter(CParameter::MinMatch(MATCH_BYTES_MIN))?;
        compressor.set_parameter(CParameter::HashLog(HASH_LOG))?;
        Ok(Self(compressor))
    }

    fn compress(&mut self, piece: &[u8]) -> io::Result<Vec<u8>> {
        self.0.compress(piece)
    }
}

/// Encrypts frames in their order, in whatever order they are made.
struct Row {
    frames: Receiver<Frame>,
    cipher: Cipher<Vec<u8>>,
    next: usize,
    early: BTreeMap<usize, Vec<u8>>,
}

impl Row {
    fn new(keys: &Keys, frames: Receiver<Frame>) -> io::Result<Self> {
        Ok(Self {
            frames,
            cipher: Cipher::new(Vec::with_capacity(STORED_BYTES), keys)?,
            next: 0,
            early: BTreeMap::new(),
        })
    }

    fn put(&mut self, (number, frame): Frame) -> io::Result<()> {
        self.early.insert(number, frame?);
        while let Some(frame) = self.early.remove(&self.next) {
            self.cipher.write_all(&frame)?;
            self.next += 1;
        }
        Ok(())
    }

    fn take_what_is_made(&mut self) -> io::Result<()> {
        while let Ok(frame) = self.frames.try_recv() {
            self.put(frame)?;
        }
        Ok(())
    }

    /// Until the last helper has gone.
    fn wait_for_rest(&mut self) -> io::Result<()> {
        while let Ok(frame) = self.frames.recv() {
            self.put(frame)?;
        }
        Ok(())
    }

    /// The stream, of so many plain bytes.
    fn finish(self, plain_bytes: u64) -> io::Result<Vec<u8>> {
        let frames = plain_bytes.div_ceil(FRAME_BYTES as u64).max(1);
        if self.next as u64 != frames {
            return Err(lost());
        }
        self.cipher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::naming::Named;
    use super::super::seal::open;
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
            let mut opened = Named::new(Vec::new());
            let found = open(&whole.stored[..], &mut opened, &keys, true, |_| {}).expect("opened");
            let (opened, name) = opened.finish();
            assert!(opened == plain, "{length}");
            assert_eq!((whole.plain_bytes, whole.name), (length as u64, name));
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
        let (pieces, queue) = sync_channel(AHEAD);
        let (made, frames) = channel();
        let plain = numbers((AHEAD + 3) * FRAME_BYTES);
        let mut row = Row::new(&keys(), frames).expect("a row");
        let name = read(&plain[..], &pieces, &mut Press::new().expect("a press"), &mut row).expect("read");
        assert_eq!(name.finish().0, plain.len() as u64);
        drop(pieces);
        assert_eq!((row.early.len(), queue.iter().count()), (3, AHEAD));
        drop(made);
        row.wait_for_rest().expect("nothing more");
        let error = row
            .finish(plain.len() as u64)
            .expect_err("the queue's share is missing");
        assert_eq!(error.kind(), io::ErrorKind::Other);
    }
}
