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
