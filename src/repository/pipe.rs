//! Bytes from one thread to another, in the pieces in which they are written, a bounded number at a time.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// The writing end; the reader sees the end of the stream when it is dropped.
#[derive(Debug)]
pub(super) struct Inlet(SyncSender<Vec<u8>>);

#[derive(Debug)]
pub(super) struct Outlet {
    receiver: Receiver<Vec<u8>>,
    piece: io::Cursor<Vec<u8>>,
}

/// With room for so many pieces.
pub(super) fn new(pieces: usize) -> (Inlet, Outlet) {
    let (sender, receiver) = sync_channel(pieces);
    let piece = io::Cursor::default();
    (Inlet(sender), Outlet { receiver, piece })
}

/// The reader ended before the stream did, and has a cause to tell.
#[derive(Debug, thiserror::Error)]
#[error("the other end was closed")]
struct Closed;

/// Whether `error` is but the effect of a reader that ended.
pub(super) fn is_closed(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Closed>())
}

impl Outlet {
    /// The pieces as they come, unread.
    pub(super) fn pieces(self) -> impl Iterator<Item = Vec<u8>> {
        self.receiver.into_iter()
    }
}

impl Write for Inlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.send(bytes.to_vec());
        sent.map(|()| bytes.len()).map_err(|_| io::Error::other(Closed))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Outlet {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.piece.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match self.receiver.recv() {
                Ok(piece) => self.piece = io::Cursor::new(piece),
                Err(_) => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_in_order_up_to_the_end() {
        let (mut inlet, mut outlet) = new(2);
        let writing = std::thread::spawn(move || {
            for number in 0..=u8::MAX {
                inlet.write_all(&[number; 100]).expect("taken");
                inlet.write_all(&[]).expect("taken");
            }
        });
        let mut read = Vec::new();
        outlet.read_to_end(&mut read).expect("read");
        writing.join().expect("written");
        assert!(read.len() == 25_600 && read.is_sorted());
    }

    #[test]
    fn writer_hears_that_nobody_reads() {
        let (mut inlet, outlet) = new(2);
        drop(outlet);
        let error = inlet.write_all(b"x").expect_err("closed");
        assert!(is_closed(&error));
        assert!(!is_closed(&io::Error::other("another")));
    }
}
