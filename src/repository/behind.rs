//! A sink on a thread of its own: hashing and opening what is stored take one core, checking or writing the files in it
//! another.

use std::io::{self, Write};
use std::thread::JoinHandle;

use super::pipe::{self, Inlet, Outlet};

/// Chunks on the way to the thread, of the size in which they come.
const AHEAD: usize = 16;

/// Writes into `W` on another thread.
#[derive(Debug)]
pub(super) struct Behind<W> {
    inlet: Option<Inlet>,
    worker: Option<JoinHandle<io::Result<W>>>,
}

impl<W: Write + Send + 'static> Behind<W> {
    pub(super) fn new(inner: W) -> Self {
        let (inlet, outlet) = pipe::new(AHEAD);
        Self {
            inlet: Some(inlet),
            worker: Some(std::thread::spawn(move || drain(outlet, inner))),
        }
    }

    /// The inner sink, once it has taken everything.
    ///
    /// # Errors
    /// Of the inner sink.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.join()
    }
}

impl<W> Behind<W> {
    fn join(&mut self) -> io::Result<W> {
        drop(self.inlet.take());
        let gone = || io::Error::other("the thread behind ended early");
        let worker = self.worker.take().ok_or_else(gone)?;
        worker.join().map_err(|_| gone())?
    }
}

/// Nothing is written any more once it is gone.
impl<W> Drop for Behind<W> {
    fn drop(&mut self) {
        drop(self.join());
    }
}

fn drain<W: Write>(outlet: Outlet, mut inner: W) -> io::Result<W> {
    for chunk in outlet.pieces() {
        inner.write_all(&chunk)?;
    }
    inner.flush()?;
    Ok(inner)
}

impl<W: Write + Send + 'static> Write for Behind<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(Ok(written)) = self.inlet.as_mut().map(|inlet| inlet.write(bytes)) {
            return Ok(written);
        }
        // It stopped listening, so it has a cause to tell.
        match self.join() {
            Err(error) => Err(error),
            Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Takes so many bytes, then no more.
    pub(in super::super) struct Full(pub(in super::super) usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_arrives_in_order() {
        let mut behind = Behind::new(Vec::new());
        for number in 0..=u8::MAX {
            behind.write_all(&[number; 100]).expect("taken");
        }
        let taken = behind.finish().expect("taken");
        assert_eq!(taken.len(), 25_600);
        assert!(taken.is_sorted());
    }

    #[test]
    fn what_the_sink_says_is_heard_at_the_latest_at_the_end() {
        let mut behind = Behind::new(Full(1000));
        let mut heard = Ok(());
        for _ in 0..1000 {
            heard = behind.write_all(&[0; 100]);
            if heard.is_err() {
                break;
            }
        }
        let error = heard.expect_err("the sink is full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let mut short = Behind::new(Full(50));
        short.write_all(&[0; 100]).expect("taken over");
        assert_eq!(
            short.finish().err().map(|error| error.kind()),
            Some(io::ErrorKind::StorageFull)
        );
    }
}
