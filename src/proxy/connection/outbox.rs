//! Collects what HTTP/2 writes in one go into few large writes. h2 flushes after every frame that it does not copy, so that
//! the answers of many streams, ready at the same moment, would each cost a TLS record and a system call.
//!
//! [`Outbox::poll_drain`] must follow every poll of the connection: nothing is on the wire before it.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::ClientIo;
use crate::proxy::worker::Worker;

/// As much as fits a TLS record (RFC 8446 section 5.1).
const COLLECTED_BYTES_MAX: usize = 16 * 1024;
/// Copying more than this would cost more than it saves.
const COPIED_BYTES_MAX: usize = 8 * 1024;

/// The stream and what waits to be written to it.
#[derive(Debug)]
struct Contents {
    io: ClientIo,
    /// Lent by the worker while there is something in it, so that idle connections hold no buffer.
    waiting: Vec<u8>,
    written: usize,
    worker: Rc<Worker>,
}

/// Shared by the connection, which writes into it, and its driver, which drains it.
#[derive(Debug, Clone)]
pub(super) struct Outbox(Rc<RefCell<Contents>>);

impl Outbox {
    pub(super) fn new(io: ClientIo, worker: Rc<Worker>) -> Self {
        Self(Rc::new(RefCell::new(Contents {
            io,
            waiting: Vec::new(),
            written: 0,
            worker,
        })))
    }

    /// Writes and flushes everything that waits.
    pub(super) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_drain(cx)
    }
}

impl Contents {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while let Some(rest) = self.waiting.get(self.written..).filter(|rest| !rest.is_empty()) {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        self.written = 0;
        self.waiting.clear();
        self.worker.return_buffer(std::mem::take(&mut self.waiting));
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn collect(&mut self, bytes: &[u8]) -> usize {
        if self.waiting.capacity() == 0 {
            self.waiting = self.worker.lend_buffer(COLLECTED_BYTES_MAX);
        }
        let room = COLLECTED_BYTES_MAX.saturating_sub(self.waiting.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.waiting.extend_from_slice(taken);
        taken.len()
    }

    /// Makes room for `length` bytes, or for writing them past the buffer.
    fn poll_room(&mut self, cx: &mut Context<'_>, length: usize) -> Poll<io::Result<()>> {
        if length > COPIED_BYTES_MAX || self.waiting.len() + length > COLLECTED_BYTES_MAX {
            self.poll_drain(cx)
        } else {
            Poll::Ready(Ok(()))
        }
    }
}

impl AsyncRead for Outbox {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Outbox {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut contents = self.0.borrow_mut();
        ready!(contents.poll_room(cx, buf.len()))?;
        if buf.len() > COPIED_BYTES_MAX {
            return Pin::new(&mut contents.io).poll_write(cx, buf);
        }
        Poll::Ready(Ok(contents.collect(buf)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut contents = self.0.borrow_mut();
        let length = bufs.iter().map(|buf| buf.len()).sum();
        ready!(contents.poll_room(cx, length))?;
        if length > COPIED_BYTES_MAX {
            return Pin::new(&mut contents.io).poll_write_vectored(cx, bufs);
        }
        Poll::Ready(Ok(bufs.iter().map(|buf| contents.collect(buf)).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The driver flushes, once for all that was written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut contents = self.0.borrow_mut();
        ready!(contents.poll_drain(cx))?;
        Pin::new(&mut contents.io).poll_shutdown(cx)
    }
}
