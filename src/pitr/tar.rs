//! Reading the tar that PostgreSQL writes, as it streams past: ustar with plain headers (`tarCreateHeader`), sizes in
//! octal or base 256, no extensions. Foreign bytes: a path that leads out of the directory is refused.

use std::io::{self, Write};

const BLOCK: usize = 512;

/// A member of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative, without `.` or `..`.
    pub path: String,
    pub kind: Kind,
    pub bytes: u64,
    pub mode: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    /// To this target: how a tablespace stands in `pg_tblspc`.
    Symlink(String),
}

/// Hears the members in order.
pub trait Visitor {
    /// # Errors
    /// Ends the reading.
    fn entry(&mut self, entry: &Entry) -> io::Result<()>;
    /// Bytes of the file announced last.
    ///
    /// # Errors
    /// Ends the reading.
    fn data(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// The file announced last is complete.
    ///
    /// # Errors
    /// Ends the reading.
    fn end(&mut self) -> io::Result<()>;
}

/// Takes the archive's bytes as a sink.
#[derive(Debug)]
pub struct Reader<V> {
    visitor: V,
    header: Vec<u8>,
    /// Bytes of the present file, and then of its padding, still to come.
    data: u64,
    padding: usize,
    in_file: bool,
    ended: bool,
}

impl<V: Visitor> Reader<V> {
    pub fn new(visitor: V) -> Self {
        Self {
            visitor,
            header: Vec::with_capacity(BLOCK),
            data: 0,
            padding: 0,
            in_file: false,
            ended: false,
        }
    }

    /// The visitor, once the archive has ended where an archive may end.
    ///
    /// # Errors
    /// It was cut.
    pub fn finish(self) -> io::Result<V> {
        if self.in_file || self.padding > 0 || !self.header.is_empty() {
            return Err(invalid("the tar ends within a member"));
        }
        Ok(self.visitor)
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.ended {
            return Ok(bytes.len());
        }
        if self.data > 0 {
            let wanted = usize::try_from(self.data).unwrap_or(usize::MAX);
            let part = bytes.get(..wanted).unwrap_or(bytes);
            self.visitor.data(part)?;
            self.data = self.data.saturating_sub(part.len() as u64);
            self.close_if_complete()?;
            return Ok(part.len());
        }
        if self.padding > 0 {
            let taken = self.padding.min(bytes.len());
            self.padding = self.padding.saturating_sub(taken);
            return Ok(taken);
        }
        let room = BLOCK.saturating_sub(self.header.len());
        let part = bytes.get(..room).unwrap_or(bytes);
        self.header.extend_from_slice(part);
        if self.header.len() == BLOCK {
            let header = std::mem::take(&mut self.header);
            self.announce(&header)?;
        }
        Ok(part.len())
    }

    fn announce(&mut self, header: &[u8]) -> io::Result<()> {
        if header.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(());
        }
        let entry = parse(header)?;
        self.visitor.entry(&entry)?;
        if entry.kind == Kind::File {
            self.data = entry.bytes;
            let over = usize::try_from(entry.bytes % BLOCK as u64).unwrap_or(0);
            self.padding = if over == 0 { 0 } else { BLOCK.saturating_sub(over) };
            self.in_file = true;
            self.close_if_complete()?;
        }
        Ok(())
    }

    fn close_if_complete(&mut self) -> io::Result<()> {
        if self.in_file && self.data == 0 {
            self.in_file = false;
            self.visitor.end()?;
        }
        Ok(())
    }
}

impl<V: Visitor> Write for Reader<V> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = self.take(rest)?;
            rest = rest.get(taken..).unwrap_or_default();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn parse(header: &[u8]) -> io::Result<Entry> {
    let field = |from: usize, bytes: usize| header.get(from..from.saturating_add(bytes)).unwrap_or_default();
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
        .sum();
    if number(field(148, 8)) != Some(sum) {
        return Err(invalid("a tar header's checksum does not fit"));
    }
    let name = text(field(0, 100))?;
    let prefix = text(field(345, 155))?;
    let path = if prefix.is_empty() {
        name
    } else {
        format!("{prefix}/{name}")
    };
    let kind = match header.get(156) {
        Some(0 | b'0') => Kind::File,
        Some(b'5') => Kind::Directory,
        Some(b'2') => Kind::Symlink(text(field(157, 100))?),
        _ => return Err(invalid("a tar member is of a kind that PostgreSQL does not write")),
    };
    Ok(Entry {
        path: relative(&path)?,
        kind,
        bytes: number(field(124, 12)).ok_or_else(|| invalid("a tar member has no size"))?,
        mode: u32::try_from(number(field(100, 8)).unwrap_or(0) & 0o777).unwrap_or(0),
    })
}

/// The path without `./` and trailing slashes.
fn relative(path: &str) -> io::Result<String> {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if path.starts_with('/') || parts.contains(&"..") || parts.len() > 64 {
        return Err(invalid("a tar member lies outside its directory"));
    }
    Ok(parts.join("/"))
}

fn text(field: &[u8]) -> io::Result<String> {
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8(text.to_vec()).map_err(|_| invalid("a tar member's name is not UTF-8"))
}

/// Octal digits, or base 256 behind a set high bit.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        return rest.iter().try_fold(u64::from(first & 0x7f), |sum, byte| {
            sum.checked_mul(256)?.checked_add(u64::from(*byte))
        });
    }
    let digits: Vec<u8> = field.iter().copied().filter(|byte| !matches!(byte, 0 | b' ')).collect();
    let digits = std::str::from_utf8(&digits).ok()?;
    if digits.is_empty() {
        Some(0)
    } else {
        u64::from_str_radix(digits, 8).ok()
    }
}

pub(super) fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Heard {
        entries: Vec<Entry>,
        data: Vec<u8>,
        ends: usize,
    }

    impl Visitor for Heard {
        fn entry(&mut self, entry: &Entry) -> io::Result<()> {
            self.entries.push(entry.clone());
            Ok(())
        }

        fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.data.extend_from_slice(bytes);
            Ok(())
        }

        fn end(&mut self) -> io::Result<()> {
            self.ends += 1;
            Ok(())
        }
    }

    fn header(path: &str, bytes: usize, kind: u8) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..107].copy_from_slice(b"0000600");
        header[124..135].copy_from_slice(format!("{bytes:011o}").as_bytes());
        header[156] = kind;
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header
    }

    fn archive() -> Vec<u8> {
        let mut bytes = header("./base/", 0, b'5');
        bytes.extend(header("base/1", 700, b'0'));
        bytes.extend([7; 700]);
        bytes.extend([0; 1024 - 700]);
        bytes.extend(header("empty", 0, b'0'));
        bytes
    }

    fn read(bytes: &[u8], step: usize) -> io::Result<Heard> {
        let mut reader = Reader::new(Heard::default());
        for chunk in bytes.chunks(step) {
            reader.write_all(chunk)?;
        }
        reader.finish()
    }

    #[test]
    fn members_are_read_however_the_bytes_arrive() {
        for step in [1, 7, 512, 513, 4096] {
            for end in [0, 1024] {
                let mut bytes = archive();
                bytes.extend(vec![0; end]);
                let heard = read(&bytes, step).expect("a sound archive");
                let paths: Vec<&str> = heard.entries.iter().map(|entry| entry.path.as_str()).collect();
                assert_eq!(paths, ["base", "base/1", "empty"]);
                assert_eq!((heard.data.len(), heard.ends), (700, 2), "step {step}");
            }
        }
    }

    #[test]
    fn a_cut_archive_and_a_changed_header_are_found_out() {
        let bytes = archive();
        for cut in [100, 600, 1300, bytes.len() - 1] {
            assert!(read(&bytes[..cut], 512).is_err(), "cut at {cut}");
        }
        let mut flipped = archive();
        flipped[3] ^= 1;
        assert!(read(&flipped, 512).is_err());
    }

    #[test]
    fn no_member_lies_outside_its_directory() {
        for path in ["/etc/passwd", "../up", "a/../../b"] {
            assert!(read(&header(path, 0, b'0'), 512).is_err(), "{path}");
        }
        assert!(read(&header("device", 0, b'3'), 512).is_err());
    }

    #[test]
    fn a_large_size_is_read_in_base_256() {
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0]), Some(3 << 32));
        assert_eq!(number(b"00000001274\0"), Some(700));
        assert_eq!(number(b"8"), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
            drop(read(&bytes, 300));
        }
    }
}
