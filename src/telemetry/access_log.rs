//! The access log: one JSON line per request, on its own bounded writer that never blocks a request.
//!
//! Each worker formats into its own buffer and hands full buffers over; the writer thread alone touches the file. When it
//! cannot keep up, whole buffers are dropped and the lines in them counted.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use prometheus::IntCounter;

use super::AccessLog;

/// Buffers on their way to the writer: with [`BUFFER_BYTES`] each, about 16 MiB at the most.
const QUEUED_BUFFERS_MAX: usize = 256;
/// A worker hands its buffer over when it holds this much, or at its next tick.
pub const BUFFER_BYTES: usize = 64 * 1024;

enum Message {
    Lines(Vec<u8>),
    Stop,
}

/// The writer's end that workers hold. Cloned once per worker.
#[derive(Debug, Clone)]
pub struct Sink {
    queue: Option<SyncSender<Message>>,
    reopen: Arc<AtomicBool>,
    dropped: IntCounter,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lines(bytes) => write!(f, "Lines({} bytes)", bytes.len()),
            Self::Stop => f.write_str("Stop"),
        }
    }
}

/// Joins the writer at shutdown.
#[derive(Debug)]
pub struct Writer {
    thread: Option<thread::JoinHandle<()>>,
    queue: Option<SyncSender<Message>>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the access log {} cannot be opened", path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("the access log's thread cannot be started")]
    Thread(#[source] std::io::Error),
    #[error("a metric of the access log cannot be registered")]
    Metric(#[from] prometheus::Error),
}

/// Opens the log and starts its writer.
pub fn start(target: &AccessLog, registry: &prometheus::Registry) -> Result<(Sink, Writer), Error> {
    let dropped = IntCounter::new(
        "foregate_access_log_dropped_lines_total",
        "Access log lines dropped because the writer could not keep up or the file could not be written",
    )?;
    registry.register(Box::new(dropped.clone()))?;
    let reopen = Arc::new(AtomicBool::new(false));
    let output = match target {
        AccessLog::Off => {
            let sink = Sink {
                queue: None,
                reopen,
                dropped,
            };
            return Ok((
                sink,
                Writer {
                    thread: None,
                    queue: None,
                },
            ));
        }
        AccessLog::Stdout => Output::Stdout,
        AccessLog::File(path) => {
            let file = open(path).map_err(|source| Error::Open {
                path: path.clone(),
                source,
            })?;
            Output::File {
                path: path.clone(),
                file,
            }
        }
    };
    let (queue, messages) = sync_channel(QUEUED_BUFFERS_MAX);
    let flag = Arc::clone(&reopen);
    let lost = dropped.clone();
    let thread = thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || write_all(output, &messages, &flag, &lost))
        .map_err(Error::Thread)?;
    let sink = Sink {
        queue: Some(queue.clone()),
        reopen,
        dropped,
    };
    Ok((
        sink,
        Writer {
            thread: Some(thread),
            queue: Some(queue),
        },
    ))
}

impl Sink {
    /// Whether lines are wanted at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Hands a buffer of whole lines over without waiting, and leaves an empty one in its place.
    pub fn submit(&self, buffer: &mut Vec<u8>) {
        let Some(queue) = &self.queue else { return };
        if buffer.is_empty() {
            return;
        }
        let full = std::mem::replace(buffer, Vec::with_capacity(BUFFER_BYTES + 4096));
        if let Err(TrySendError::Full(Message::Lines(lines)) | TrySendError::Disconnected(Message::Lines(lines))) =
            queue.try_send(Message::Lines(full))
        {
            self.dropped.inc_by(count_lines(&lines));
        }
    }

    /// The file is opened anew before the next line: after logrotate moved it.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
    }
}

impl Writer {
    /// Writes what is queued and ends the thread. Sinks submit nothing afterwards.
    pub fn stop(mut self) {
        if let Some(queue) = self.queue.take() {
            // The writer reads until it sees this, so the send can only fail when it has ended already.
            drop(queue.send(Message::Stop));
        }
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

enum Output {
    Stdout,
    File { path: PathBuf, file: File },
}

fn open(path: &std::path::Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn write_all(mut output: Output, messages: &Receiver<Message>, reopen: &AtomicBool, dropped: &IntCounter) {
    while let Ok(Message::Lines(lines)) = messages.recv() {
        if reopen.swap(false, Ordering::AcqRel)
            && let Output::File { path, file } = &mut output
        {
            match open(path) {
                Ok(new) => *file = new,
                Err(error) => tracing::error!(path = %path.display(), %error, "access log cannot be reopened"),
            }
        }
        let written = match &mut output {
            Output::Stdout => std::io::stdout().lock().write_all(&lines),
            Output::File { file, .. } => file.write_all(&lines),
        };
        if written.is_err() {
            dropped.inc_by(count_lines(&lines));
        }
    }
}

fn count_lines(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}
