//! Bytes that are counted and hashed on their way, in either direction.

use std::io::{self, Read, Write};

/// What sees all that passes.
pub trait Hasher: Default {
    fn add(&mut self, bytes: &[u8]);
}

/// Shows what is written or read through it to a hasher.
#[derive(Debug)]
pub struct Hashed<T, H> {
    pub(super) inner: T,
    pub(super) hasher: H,
}

impl<T, H: Hasher> Hashed<T, H> {
    pub fn new(inner: T) -> Self {
        let hasher = H::default();
        Self { inner, hasher }
    }

    pub fn into_inner(self) -> T {
        self.inner
    }
}

impl<W: Write, H: Hasher> Write for Hashed<W, H> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.add(bytes.get(..written).unwrap_or(bytes));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read, H: Hasher> Read for Hashed<R, H> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.add(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}
