//! Lines on their way out of the process: a bounded queue, and behind it the one thread that may wait for a file or a pipe.
//!
//! Whoever writes never waits: what does not fit into the queue is dropped and counted. Nor does the end of the process
//! wait for ever: a pipe that nobody reads is given up.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use prometheus::IntCounter;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// Between two looks at whether the thread makes progress while the process ends.
const LOOK: Duration = Duration::from_millis(20);
/// The end waits this many looks for a thread that makes no progress (one second) …
const LOOKS_STUCK: u32 = 50;
/// … and this many in all (ten seconds).
const LOOKS_MAX: u32 = 500;

enum Message {
    Lines(Vec<u8>),
    /// There is another output, or the file is to be opened anew.
    Look,
    Stop,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lines(bytes) => write!(f, "Lines({} bytes)", bytes.len()),
            Self::Look => f.write_str("Look"),
            Self::Stop => f.write_str("Stop"),
        }
    }
}

/// What may wait in the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) pieces: usize,
    pub(super) bytes: usize,
}

/// Where lines go.
#[derive(Debug)]
pub(super) enum Output {
    Nowhere,
    /// A stream that is there already: standard output or error.
    Stream(File),
    File {
        path: PathBuf,
        file: File,
    },
}

/// The writers' end; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Sink {
    shared: Arc<Shared>,
    queue: SyncSender<Message>,
}

/// The thread's end, for the end of the process.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    queue: SyncSender<Message>,
    thread: thread::JoinHandle<()>,
    /// Closed when the thread ends.
    ended: Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    is_on: AtomicBool,
    reopen: AtomicBool,
    next: Mutex<Option<Output>>,
    /// Bytes that are not written yet.
    waiting: AtomicUsize,
    /// How many messages the thread has taken and done: it makes progress.
    done: AtomicUsize,
    bytes_max: usize,
    dropped: IntCounter,
}

impl Output {
    pub(super) fn stream(stream: impl AsFd) -> std::io::Result<Self> {
        // A copy of the descriptor: Rust's own handle has a lock and a buffer, on which the end of the process would wait.
        Ok(Self::Stream(File::from(stream.as_fd().try_clone_to_owned()?)))
    }

    pub(super) fn file(path: &Path) -> std::io::Result<Self> {
        Ok(Self::File {
            path: path.to_owned(),
            file: open(path)?,
        })
    }

    fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Nowhere => Ok(()),
            Self::Stream(file) | Self::File { file, .. } => file.write_all(lines),
        }
    }

    fn reopen(&mut self) {
        if let Self::File { path, file } = self {
            match open(path) {
                Ok(new) => *file = new,
                Err(error) => tracing::error!(path = %path.display(), %error, "a log cannot be reopened"),
            }
        }
    }
}

/// Does not wait, as opening a pipe would until somebody reads it. Writing does, for that is what the thread is for.
fn open(path: &Path) -> std::io::Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let opened = OpenOptions::new()
        .create(true)
        .append(true)
        .custom_flags(flags)
        .open(path);
    let file = opened.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::NXIO) => unread(),
        _ => error,
    })?;
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

/// open(2) says no more than "No such device or address".
pub(super) fn unread() -> std::io::Error {
    std::io::Error::other("it is a pipe that nobody reads, or a socket")
}

/// Starts the thread, by this name. `dropped` counts the lines that got lost.
pub(super) fn start(name: &str, output: Output, room: Room, dropped: IntCounter) -> std::io::Result<(Sink, Writer)> {
    let shared = Arc::new(Shared {
        is_on: AtomicBool::new(!matches!(output, Output::Nowhere)),
        reopen: AtomicBool::new(false),
        next: Mutex::new(None),
        waiting: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        bytes_max: room.bytes,
        dropped,
    });
    let (queue, messages) = sync_channel(room.pieces);
    let (ending, ended) = sync_channel(0);
    let ours = Arc::clone(&shared);
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        ours.write_all(output, &messages);
        drop::<SyncSender<()>>(ending);
    })?;
    let sink = Sink {
        shared: Arc::clone(&shared),
        queue: queue.clone(),
    };
    let writer = Writer {
        shared,
        queue,
        thread,
        ended,
    };
    Ok((sink, writer))
}

impl Sink {
    /// Whether lines are wanted at all.
    pub(super) fn is_on(&self) -> bool {
        self.shared.is_on.load(Ordering::Relaxed)
    }

    /// Hands whole lines over without waiting.
    pub(super) fn submit(&self, lines: Vec<u8>) {
        let length = lines.len();
        let waiting = self.shared.waiting.fetch_add(length, Ordering::Relaxed);
        if waiting.saturating_add(length) > self.shared.bytes_max {
            self.shared.lose(&lines);
            return;
        }
        match self.queue.try_send(Message::Lines(lines)) {
            Ok(()) => {}
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => {
                if let Message::Lines(lines) = message {
                    self.shared.lose(&lines);
                }
            }
        }
    }

    /// The file is opened anew: after logrotate moved it.
    pub(super) fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        self.wake();
    }

    /// From now on lines go there.
    pub(super) fn redirect(&self, output: Output) {
        let is_on = !matches!(output, Output::Nowhere);
        *self.shared.next() = Some(output);
        self.shared.is_on.store(is_on, Ordering::Relaxed);
        self.wake();
    }

    fn wake(&self) {
        // Where the queue is full, the thread looks before it writes the next lines.
        drop(self.queue.try_send(Message::Look));
    }
}

impl Writer {
    /// Writes what is queued and ends the thread; gives up on what makes no progress, and says whether all was written.
    pub(super) fn stop(self) -> bool {
        let (mut looks, mut stuck, mut done) = (0, 0, self.shared.done.load(Ordering::Relaxed));
        let mut is_told = false;
        while looks < LOOKS_MAX && stuck < LOOKS_STUCK {
            is_told = is_told || self.queue.try_send(Message::Stop).is_ok();
            match self.ended.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Disconnected) => return self.thread.join().is_ok(),
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            }
            let before = std::mem::replace(&mut done, self.shared.done.load(Ordering::Relaxed));
            stuck = if before == done { stuck + 1 } else { 0 };
            looks += 1;
        }
        false
    }
}

impl Shared {
    fn next(&self) -> std::sync::MutexGuard<'_, Option<Output>> {
        // A panic while holding the lock cannot leave an output half written.
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, lines: &[u8]) {
        self.waiting.fetch_sub(lines.len(), Ordering::Relaxed);
        self.dropped.inc_by(count_lines(lines));
    }

    fn write_all(&self, mut output: Output, messages: &Receiver<Message>) {
        while let Ok(message) = messages.recv() {
            if let Some(next) = self.next().take() {
                output = next;
            }
            if self.reopen.swap(false, Ordering::AcqRel) {
                output.reopen();
            }
            match message {
                Message::Lines(lines) => match output.write(&lines) {
                    Ok(()) => {
                        self.waiting.fetch_sub(lines.len(), Ordering::Relaxed);
                    }
                    Err(_) => self.lose(&lines),
                },
                Message::Look => {}
                Message::Stop => return,
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn count_lines(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    const ROOM: Room = Room {
        pieces: 4,
        bytes: 1 << 20,
    };

    fn counter() -> IntCounter {
        IntCounter::new("lost", "lost").unwrap()
    }

    /// A writer into a pipe, whose other end nobody reads yet.
    fn piped(room: Room) -> (Sink, Writer, IntCounter, std::io::PipeReader) {
        let (reader, writer) = std::io::pipe().unwrap();
        let lost = counter();
        let output = Output::stream(&writer).unwrap();
        let (sink, writer) = start("test", output, room, lost.clone()).unwrap();
        (sink, writer, lost, reader)
    }

    /// More than a pipe holds, one line.
    fn long_line() -> Vec<u8> {
        let mut line = vec![b'x'; 200_000];
        line.push(b'\n');
        line
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted_and_nobody_waits() {
        let (sink, writer, lost, mut reader) = piped(ROOM);
        // One is being written, four wait, the byte limit lets no fifth in anyway.
        for _ in 0..100 {
            sink.submit(long_line());
        }
        let dropped = lost.get();
        assert!(dropped >= 95, "{dropped}");
        let reading = thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            count_lines(&all)
        });
        // The end does not wait for a reader that does not begin.
        while sink.shared.done.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        assert!(writer.stop(), "all that was taken is written");
        drop(sink);
        assert_eq!(
            reading.join().unwrap() + dropped,
            100,
            "each line is written or counted"
        );
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader_that_never_reads() {
        let (sink, writer, _lost, _reader) = piped(ROOM);
        for _ in 0..100 {
            sink.submit(long_line());
        }
        assert!(!writer.stop());
    }

    #[test]
    fn pipe_is_opened_only_where_somebody_reads_it_and_is_then_waited_for() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let refused = Output::file(&path).unwrap_err();
        assert!(refused.to_string().contains("nobody reads"), "{refused}");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let mut reader = File::from(rustix::fs::open(&path, flags, Mode::empty()).unwrap());
        let (sink, writer) = start("test", Output::file(&path).unwrap(), ROOM, counter()).unwrap();
        sink.submit(long_line());
        fcntl_setfl(&reader, OFlags::empty()).unwrap();
        let mut line = vec![0; long_line().len()];
        reader.read_exact(&mut line).unwrap();
        assert!(line == long_line());
        assert!(writer.stop());
    }

    #[test]
    fn lines_go_to_the_new_output_and_to_a_file_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (sink, writer) = start("test", Output::Nowhere, ROOM, counter()).unwrap();
        assert!(!sink.is_on());
        sink.redirect(Output::file(&path).unwrap());
        assert!(sink.is_on());
        std::fs::rename(&path, directory.path().join("log.1")).unwrap();
        sink.reopen();
        sink.submit(b"line\n".to_vec());
        // Its end waits only so long for a thread that does not run.
        while sink.shared.waiting.load(Ordering::Relaxed) != 0 {
            thread::yield_now();
        }
        assert!(writer.stop());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "line\n");
    }
}
