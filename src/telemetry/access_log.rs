//! The access log: one JSON line per request, on its own bounded writer that never blocks a request.
//!
//! Each worker formats into its own buffer and hands full buffers over; the writer thread (`outlet`) alone touches the
//! file. When it cannot keep up, whole buffers are dropped and the lines in them counted.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use prometheus::IntCounter;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::AccessLog;
use super::outlet::{self, Output, Room};

/// A worker hands its buffer over when it holds this much, or at its next tick.
pub const BUFFER_BYTES: usize = 64 * 1024;
/// About 16 MiB.
const ROOM: Room = Room {
    pieces: 256,
    bytes: 256 * BUFFER_BYTES,
};

/// The writer's end that workers hold. Cloned once per worker.
#[derive(Debug, Clone)]
pub struct Sink(outlet::Sink);

/// Joins the writer at shutdown.
#[derive(Debug)]
pub struct Writer(outlet::Writer);

/// Another target, open already.
#[derive(Debug)]
pub struct Prepared(Output);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the access log {} cannot be opened", path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("the access log cannot be written to standard output")]
    Stdout(#[source] std::io::Error),
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
    let (sink, writer) = outlet::start("access-log", open(target)?, ROOM, dropped).map_err(Error::Thread)?;
    Ok((Sink(sink), Writer(writer)))
}

fn open(target: &AccessLog) -> Result<Output, Error> {
    match target {
        AccessLog::Off => Ok(Output::Nowhere),
        AccessLog::Stdout => Output::stream(std::io::stdout()).map_err(Error::Stdout),
        AccessLog::File(path) => Output::file(path).map_err(|source| Error::Open {
            path: path.clone(),
            source,
        }),
    }
}

/// Whether the log could be opened now; makes nothing.
#[must_use]
pub fn fault(target: &AccessLog) -> Option<Error> {
    let AccessLog::File(path) = target else { return None };
    let tried = match std::fs::metadata(path) {
        Ok(there) if there.is_file() || there.is_dir() => OpenOptions::new().append(true).open(path).map(drop),
        Ok(there) if there.file_type().is_socket() => Err(outlet::unread()),
        // Not opened: a pipe that is closed again is at its end for whoever reads it.
        Ok(_) => may(Access::WRITE_OK, path),
        Err(error) if error.kind() == ErrorKind::NotFound => may_make(path),
        Err(error) => Err(error),
    };
    let path = path.clone();
    tried.err().map(|source| Error::Open { path, source })
}

fn may_make(path: &Path) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    may(Access::WRITE_OK | Access::EXEC_OK, directory)
}

fn may(access: Access, path: &Path) -> std::io::Result<()> {
    Ok(accessat(CWD, path, access, AtFlags::EACCESS)?)
}

impl Sink {
    /// Whether lines are wanted at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_on()
    }

    /// Hands a buffer of whole lines over without waiting, and leaves an empty one in its place.
    pub fn submit(&self, buffer: &mut Vec<u8>) {
        if !buffer.is_empty() {
            let empty = Vec::with_capacity(BUFFER_BYTES + 4096);
            self.0.submit(std::mem::replace(buffer, empty));
        }
    }

    /// The file is opened anew: after logrotate moved it.
    pub fn reopen(&self) {
        self.0.reopen();
    }

    /// Opens another target; nothing changes until it is put into force.
    pub fn prepare(&self, target: &AccessLog) -> Result<Prepared, Error> {
        open(target).map(Prepared)
    }

    /// From now on lines go there.
    pub fn commit(&self, prepared: Prepared) {
        self.0.redirect(prepared.0);
    }
}

impl Writer {
    /// Writes what is queued and ends the thread, but does not wait for a reader that does not read. Sinks submit nothing
    /// afterwards.
    pub fn stop(self) {
        if !self.0.stop() {
            tracing::warn!("the access log is not read; what waited for it is lost");
        }
    }
}
