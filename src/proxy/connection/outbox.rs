//! Collects what HTTP/2 writes in one go into few large writes. h2 flushes after every frame that it does not copy, so that
//! the answers of many streams, ready at the same moment, would each cost a TLS record and a system call. Both directions
//! pass here, so that floods are noticed here: nothing that follows is read, and the last frame says why.
//!
//! [`Outbox::poll_drain`] must follow every poll of the connection: nothing is on the wire before it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::control::{Control, Flood};
use super::{ClientIo, Connection};
use crate::proxy::worker::Worker;

/// As much as fits a TLS record (RFC 8446 section 5.1).
const COLLECTED_BYTES_MAX: usize = 16 * 1024;
/// Copying more than this would cost more than it saves.
const COPIED_BYTES_MAX: usize = 8 * 1024;
/// A reset would overtake the last frame while the client still sends, so that much of it is read and thrown away.
const DISCARDED_BYTES_MAX: usize = 1024 * 1024;
const DISCARDED_BYTES_AT_ONCE: usize = 4 * 1024;

/// The stream and what waits to be written to it.
#[derive(Debug)]
struct Contents {
    io: ClientIo,
    /// Lent by the worker while there is something in it, so that idle connections hold no buffer.
    waiting: Vec<u8>,
    written: usize,
    control: Control,
    connection: Rc<Connection>,
}

/// Shared by the connection, which writes into it, and its driver, which drains it.
#[derive(Debug, Clone)]
pub(super) struct Outbox(Rc<RefCell<Contents>>);

impl Outbox {
    pub(super) fn new(io: ClientIo, connection: Rc<Connection>) -> Self {
        Self(Rc::new(RefCell::new(Contents {
            io,
            waiting: Vec::new(),
            written: 0,
            control: Control::default(),
            connection,
        })))
    }

    /// Writes and flushes everything that waits.
    pub(super) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_drain(cx)
    }

    /// What the client does too much of; nothing that it sends is read any more.
    pub(super) fn flood(&self) -> Option<Flood> {
        self.0.borrow().control.flood()
    }

    /// Tells the client why the connection ends, and ends it.
    pub(super) async fn part(&self) -> io::Result<()> {
        {
            let mut contents = self.0.borrow_mut();
            if let Some(frame) = contents.control.farewell() {
                contents.waiting.extend_from_slice(&frame);
            }
        }
        poll_fn(|cx| self.poll_drain(cx)).await?;
        poll_fn(|cx| Pin::new(&mut self.0.borrow_mut().io).poll_shutdown(cx)).await?;
        let mut discarded = 0;
        while discarded < DISCARDED_BYTES_MAX {
            let count = poll_fn(|cx| self.0.borrow_mut().poll_discard(cx)).await?;
            if count == 0 {
                break;
            }
            discarded += count;
        }
        Ok(())
    }
}

impl Contents {
    fn worker(&self) -> &Worker {
        &self.connection.worker
    }

    /// Reads for h2, which gets nothing of a flood.
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.control.flood().is_some() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = buf.filled().get(before..).unwrap_or_default();
        if !read.is_empty() {
            // A second that a busy machine has stretched must not count as one.
            self.control.received(read, self.connection.worker.clock.tick());
            self.connection.block_since.set(self.control.block_since());
            if self.control.flood().is_some() {
                buf.set_filled(before);
                return Poll::Pending;
            }
        }
        result
    }

    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [0; DISCARDED_BYTES_AT_ONCE];
        let mut buffer = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.waiting.is_empty() {
            ready!(self.poll_write_waiting(cx))?;
        }
        // TLS holds what the socket did not take, also of what went past the buffer: it is for this to ask again.
        if self.connection.unflushed.get() {
            Pin::new(&mut self.io).poll_flush(cx)
        } else {
            Poll::Ready(Ok(()))
        }
    }

    fn poll_write_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.waiting.get(self.written..).filter(|rest| !rest.is_empty()) {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        self.written = 0;
        self.waiting.clear();
        let emptied = std::mem::take(&mut self.waiting);
        self.worker().return_buffer(emptied);
        Poll::Ready(Ok(()))
    }

    fn collect(&mut self, bytes: &[u8]) -> usize {
        if self.waiting.capacity() == 0 {
            self.waiting = self.worker().lend_buffer(COLLECTED_BYTES_MAX);
        }
        let room = COLLECTED_BYTES_MAX.saturating_sub(self.waiting.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.waiting.extend_from_slice(taken);
        self.control.sent(taken, self.connection.worker.coarse_tick());
        taken.len()
    }

    /// Notes what went out past the buffer.
    fn passed<'b>(&mut self, bufs: impl IntoIterator<Item = &'b [u8]>, mut count: usize) {
        for buf in bufs {
            let part = buf.get(..count.min(buf.len())).unwrap_or_default();
            self.control.sent(part, self.connection.worker.coarse_tick());
            count -= part.len();
        }
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
        self.0.borrow_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Outbox {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut contents = self.0.borrow_mut();
        ready!(contents.poll_room(cx, buf.len()))?;
        if buf.len() > COPIED_BYTES_MAX {
            let count = ready!(Pin::new(&mut contents.io).poll_write(cx, buf))?;
            contents.passed([buf], count);
            return Poll::Ready(Ok(count));
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
            let count = ready!(Pin::new(&mut contents.io).poll_write_vectored(cx, bufs))?;
            contents.passed(bufs.iter().map(|buf| &**buf), count);
            return Poll::Ready(Ok(count));
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
