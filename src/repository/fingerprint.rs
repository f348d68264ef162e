//! What is archived once is named by its fingerprint: its BLAKE3, since PostgreSQL waits for each segment of its log. 16 MiB
//! take 4 ms; SHA-256 takes 14 ms where the processor has instructions for it, and 58 ms where it has none.

use std::io::{self, Read};

use super::hashed::{Hashed, Hasher};

/// What content is told by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    pub bytes: u64,
    /// In hexadecimal: what `b3sum` prints.
    pub blake3: String,
}

/// Takes the fingerprint of what passes.
#[derive(Debug, Default)]
pub struct Fingerprinting {
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Hasher for Fingerprinting {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        self.hasher.update(bytes);
    }
}

impl<T> Hashed<T, Fingerprinting> {
    /// Of what went through so far.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint {
            bytes: self.hasher.bytes,
            blake3: self.hasher.hasher.finalize().to_hex().to_string(),
        }
    }
}

/// Reads what was read before, and fails at its end if it is something else by now.
#[derive(Debug)]
pub struct Unchanged<R> {
    source: Hashed<R, Fingerprinting>,
    before: Fingerprint,
}

impl<R> Unchanged<R> {
    pub fn new(source: R, before: Fingerprint) -> Self {
        let source = Hashed::new(source);
        Self { source, before }
    }
}

impl<R: Read> Read for Unchanged<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        if read == 0 && !buffer.is_empty() && self.source.fingerprint() != self.before {
            let changed = "it changed while it was read";
            return Err(io::Error::new(io::ErrorKind::InvalidData, changed));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn fingerprint_is_what_b3sum_prints() {
        let mut written = Hashed::<_, Fingerprinting>::new(Vec::new());
        written
            .write_all(b"a")
            .and_then(|()| written.write_all(b"bc"))
            .expect("memory");
        let fingerprint = written.fingerprint();
        assert_eq!(written.into_inner(), b"abc");
        let blake3 = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert_eq!((fingerprint.bytes, &fingerprint.blake3[..]), (3, blake3));
        let mut read = Hashed::<_, Fingerprinting>::new(&b"abc"[..]);
        io::copy(&mut read, &mut io::sink()).expect("memory");
        assert_eq!(read.fingerprint(), fingerprint);
    }

    #[test]
    fn what_changed_between_two_readings_has_no_end() {
        let mut before = Hashed::<_, Fingerprinting>::new(io::sink());
        before.write_all(b"abc").expect("nowhere");
        let again = |content: &'static [u8]| {
            let mut unchanged = Unchanged::new(content, before.fingerprint());
            io::copy(&mut unchanged, &mut io::sink())
        };
        assert_eq!(again(b"abc").ok(), Some(3));
        for other in [&b"abd"[..], b"ab", b"abcd", b""] {
            let error = again(other).expect_err("something else");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
