//! Compression on several cores at once: pieces of what comes -> zstd frames, one behind the other. Frames in a row are one
//! stream to everybody who decompresses (RFC 8878, section 3).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, TrySendError, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use zstd::zstd_safe::{CParameter, compress_bound};

/// More cores than this are not taken from the neighbours.
const CORES_MAX: usize = 4;
/// Pieces that are read and wait for a helper.
const AHEAD: usize = 2;
/// Frames that wait for one before them, which is late.
const EARLY_MAX: usize = 8;

/// How to compress.
#[derive(Debug, Clone, Copy)]
pub struct Compression {
    pub level: i32,
    /// Of the plain bytes: nothing is found again across its border.
    pub frame_bytes: usize,
    pub parameters: &'static [CParameter],
    /// Of the plain bytes in each frame, for whoever opens them by hand.
    pub checksum: bool,
}

impl Compression {
    /// On 1.7 GB of pgbench tables and wide JSON rows, in frames, this makes 2 % less of it than level 2, in three quarters of
    /// the time.
    pub const DEFAULT: Self = Self {
        level: 1,
        frame_bytes: 1024 * 1024,
        parameters: &[],
        checksum: true,
    };
    /// For what is proven file by file whenever it is opened, against better hashes: checksums besides, made and compared, took a
    /// twentieth of all the processor's time that a base backup takes.
    pub const PROVEN: Self = Self {
        checksum: false,
        ..Self::DEFAULT
    };
    /// For the log: matches of five bytes instead of seven, found by a table that the first cache of a core can hold. The log of
    /// pgbench's updates takes a fifth less room in the same time. Pieces of this size stay in the second cache.
    pub const LOG: Self = Self {
        level: 1,
        frame_bytes: 256 * 1024,
        parameters: &[CParameter::MinMatch(5), CParameter::HashLog(13)],
        checksum: true,
    };
}

/// With its place in the stream.
type Numbered<T> = (usize, T);
/// Pieces that wait for whoever has time.
type Queue = Mutex<Receiver<Numbered<Vec<u8>>>>;
/// What became of them.
type Frame = Numbered<io::Result<Vec<u8>>>;

/// Compresses `source` to its end into `sink`, and tells `progress` how far it is. Returns its length. This thread reads and
/// writes; helpers compress, and so does this one whenever they cannot keep up.
///
/// # Errors
/// Of the source, of zstd, or of the sink.
pub(super) fn compress(
    source: &mut impl Read,
    sink: &mut impl Write,
    how: Compression,
    progress: impl Fn(u64),
) -> io::Result<u64> {
    let helpers = thread::available_parallelism().map_or(1, usize::from).min(CORES_MAX) - 1;
    compress_with(helpers, source, sink, how, progress)
}

fn compress_with(
    helpers: usize,
    source: &mut impl Read,
    sink: &mut impl Write,
    how: Compression,
    progress: impl Fn(u64),
) -> io::Result<u64> {
    let (pieces, queue) = sync_channel(AHEAD);
    let (made, frames) = channel();
    let queue = Mutex::new(queue);
    let mut press = Press::new(how)?;
    let mut row = Row::new(sink, frames);
    let mut source = Counted {
        source,
        bytes: 0,
        progress,
    };
    thread::scope(|scope| {
        for _ in 0..helpers {
            let (queue, made) = (&queue, made.clone());
            let work = move || {
                // Whoever cannot begin leaves its share to the others.
                if let Ok(mut press) = Press::new(how) {
                    help(queue, &made, |piece| press.compress(piece));
                }
            };
            // Without a helper, where no thread can be had, it only takes longer.
            drop(thread::Builder::new().spawn_scoped(scope, work));
        }
        drop(made);
        let read = read(&mut source, how.frame_bytes, |piece| {
            // A piece for which there is no room comes back.
            if let Err(TrySendError::Full((number, piece)) | TrySendError::Disconnected((number, piece))) =
                pieces.try_send(piece)
            {
                row.put((number, press.compress(&piece)))?;
            }
            row.advance(&queue, &mut press)
        });
        // Whatever it came to: helpers wait as long as more may come.
        drop(pieces);
        let count = read?;
        while let Some((number, piece)) = next(&queue) {
            row.put((number, press.compress(&piece)))?;
        }
        row.wait_for_rest()?;
        if row.next == count { Ok(()) } else { Err(lost()) }
    })?;
    Ok(source.bytes)
}

/// Tells how far it is with every read: whoever watches for life must not wait for a whole piece.
struct Counted<R, P> {
    source: R,
    bytes: u64,
    progress: P,
}

impl<R: Read, P: Fn(u64)> Read for Counted<R, P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.bytes = self.bytes.saturating_add(read as u64);
        (self.progress)(self.bytes);
        Ok(read)
    }
}

/// Cuts `source` into numbered pieces. An empty source is one piece as well. Returns how many there were.
fn read(
    source: &mut impl Read,
    piece_bytes: usize,
    mut take: impl FnMut(Numbered<Vec<u8>>) -> io::Result<()>,
) -> io::Result<usize> {
    for number in 0.. {
        let mut piece = Vec::with_capacity(piece_bytes);
        let read = source.by_ref().take(piece_bytes as u64).read_to_end(&mut piece)?;
        if read == 0 && number > 0 {
            return Ok(number);
        }
        take((number, piece))?;
    }
    Err(lost())
}

/// Compresses what comes until nothing comes any more.
fn help(queue: &Queue, made: &Sender<Frame>, mut compress: impl FnMut(&[u8]) -> io::Result<Vec<u8>>) {
    while let Some((number, piece)) = next(queue) {
        // A frame that never comes would be waited for.
        let frame = catch_unwind(AssertUnwindSafe(|| compress(&piece))).unwrap_or_else(|_| Err(lost()));
        if made.send((number, frame)).is_err() {
            return;
        }
    }
}

fn next(queue: &Queue) -> Option<Numbered<Vec<u8>>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn lost() -> io::Error {
    io::Error::other("a thread that compresses ended early")
}

/// What one thread compresses with.
struct Press {
    compressor: zstd::bulk::Compressor<'static>,
    space: Vec<u8>,
}

impl Press {
    fn new(how: Compression) -> io::Result<Self> {
        let mut compressor = zstd::bulk::Compressor::new(how.level)?;
        compressor.include_checksum(how.checksum)?;
        for parameter in how.parameters {
            compressor.set_parameter(*parameter)?;
        }
        let space = Vec::with_capacity(compress_bound(how.frame_bytes));
        Ok(Self { compressor, space })
    }

    fn compress(&mut self, piece: &[u8]) -> io::Result<Vec<u8>> {
        self.space.clear();
        self.compressor.compress_to_buffer(piece, &mut self.space)?;
        Ok(self.space.as_slice().to_vec())
    }
}

/// Writes frames in their order, in whatever order they are made.
struct Row<'s, W> {
    sink: &'s mut W,
    frames: Receiver<Frame>,
    next: usize,
    early: BTreeMap<usize, Vec<u8>>,
}

impl<'s, W: Write> Row<'s, W> {
    fn new(sink: &'s mut W, frames: Receiver<Frame>) -> Self {
        Self {
            sink,
            frames,
            next: 0,
            early: BTreeMap::new(),
        }
    }

    fn put(&mut self, (number, frame): Frame) -> io::Result<()> {
        self.early.insert(number, frame?);
        while let Some(frame) = self.early.remove(&self.next) {
            self.sink.write_all(&frame)?;
            self.next += 1;
        }
        Ok(())
    }

    /// Takes what is made. While too much of it waits for one frame, that is made here or waited for.
    fn advance(&mut self, queue: &Queue, press: &mut Press) -> io::Result<()> {
        while let Ok(frame) = self.frames.try_recv() {
            self.put(frame)?;
        }
        while self.early.len() >= EARLY_MAX {
            // A helper that holds it waits for a piece, since none is queued, or takes this one.
            let queued = queue.try_lock().ok().and_then(|queue| queue.try_recv().ok());
            let frame = match queued {
                Some((number, piece)) => (number, press.compress(&piece)),
                None => self.frames.recv().map_err(|_| lost())?,
            };
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME_BYTES: usize = Compression::LOG.frame_bytes;

    fn numbers(length: usize) -> Vec<u8> {
        let numbers = (0_u64..).flat_map(|number| (number * number).to_le_bytes());
        numbers.take(length).collect()
    }

    #[test]
    fn frames_open_as_one_stream_whatever_its_length() {
        for length in [
            0,
            1,
            FRAME_BYTES - 1,
            FRAME_BYTES,
            FRAME_BYTES + 1,
            9 * FRAME_BYTES + 77,
        ] {
            let plain = numbers(length);
            for (how, helpers) in [(Compression::LOG, 0), (Compression::LOG, 1), (Compression::PROVEN, 3)] {
                let mut stored = Vec::new();
                let found = compress_with(helpers, &mut &plain[..], &mut stored, how, |_| {}).expect("compressed");
                assert_eq!(found, length as u64);
                assert!(zstd::decode_all(&stored[..]).expect("opened") == plain, "{length}");
            }
        }
    }

    #[test]
    fn flipped_bit_is_found_where_a_checksum_was_wanted() {
        let mut stored = Vec::new();
        // Too wild to be compressed, so that zstd itself notices nothing.
        let plain: Vec<u8> = (0..5000_u64)
            .flat_map(|number| blake3::hash(&number.to_le_bytes()).as_bytes().to_owned())
            .collect();
        compress(&mut &plain[..], &mut stored, Compression::LOG, |_| {}).expect("compressed");
        let middle = stored.len() / 2;
        stored[middle] ^= 1;
        zstd::decode_all(&stored[..]).expect_err("another checksum");
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
        let mut source = Faulty(20 * FRAME_BYTES);
        let error = compress(&mut source, &mut io::sink(), Compression::LOG, |_| {}).expect_err("a fault");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn fault_of_the_sink_is_told() {
        let plain = numbers(40 * FRAME_BYTES);
        let mut sink = io::Cursor::new([0; 100]);
        let error = compress(&mut &plain[..], &mut sink, Compression::LOG, |_| {}).expect_err("a fault");
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    fn queue_of(numbers: std::ops::Range<usize>) -> Queue {
        let (pieces, queue) = channel();
        for number in numbers {
            pieces.send((number, vec![7])).expect("room");
        }
        Mutex::new(queue)
    }

    /// A row without helpers, in which as many frames as may wait for the first one.
    fn crowded(sink: &mut Vec<u8>) -> Row<'_, Vec<u8>> {
        let (_, frames) = channel();
        let mut row = Row::new(sink, frames);
        for number in 1..=EARLY_MAX {
            row.put((number, Ok(Vec::new()))).expect("kept");
        }
        row
    }

    #[test]
    fn frame_that_many_wait_for_is_made_here_where_nobody_else_makes_it() {
        let mut sink = Vec::new();
        let mut row = crowded(&mut sink);
        assert_eq!(row.next, 0);
        let mut press = Press::new(Compression::LOG).expect("a press");
        row.advance(&queue_of(0..1), &mut press).expect("made");
        assert_eq!((row.next, row.early.len()), (EARLY_MAX + 1, 0));
        assert_eq!(zstd::decode_all(&sink[..]).expect("a frame"), [7]);
    }

    #[test]
    fn helper_that_panics_owes_a_fault_and_goes_on() {
        let (made, frames) = channel();
        let mut is_first = true;
        help(&queue_of(0..2), &made, |piece| {
            if std::mem::take(&mut is_first) {
                std::panic::resume_unwind(Box::new("for a test"));
            }
            Ok(piece.to_vec())
        });
        drop(made);
        let outcomes: Vec<_> = frames.iter().map(|(number, frame)| (number, frame.is_ok())).collect();
        assert_eq!(outcomes, [(0, false), (1, true)]);
    }

    #[test]
    fn progress_is_told_before_a_piece_is_whole() {
        let told = Mutex::new(Vec::new());
        let mut source = (&[1; 10][..]).chain(&[2; 10][..]);
        let note = |bytes| told.lock().expect("one thread").push(bytes);
        compress(&mut source, &mut io::sink(), Compression::LOG, note).expect("compressed");
        assert!(told.lock().expect("one thread").contains(&10));
    }

    #[test]
    fn frame_that_was_lost_with_its_helper_is_an_error_and_not_waited_for() {
        let mut sink = Vec::new();
        let mut press = Press::new(Compression::LOG).expect("a press");
        let advanced = crowded(&mut sink).advance(&queue_of(0..0), &mut press);
        advanced.expect_err("nobody makes it");
    }
}
