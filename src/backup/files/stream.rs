//! Tar members as bytes: POSIX ustar headers with PAX records for what they cannot hold (long names, nanoseconds, extended
//! attributes). The `tar` crate does the headers; its PAX reader splits values at line feeds, which an attribute may
//! contain, so the records are read and written here.

use std::io::{self, Read, Write};

use tar::{Archive, EntryType, Header};

use super::sparse::Map;

pub(super) const BLOCK_BYTES: usize = 512;
/// What an extended header may hold: the kernel's limits allow more, no file uses it.
const RECORDS_BYTES_MAX: u64 = 16 * 1024 * 1024;
const XATTR: &[u8] = b"SCHILY.xattr.";
/// GNU tar's records of a file with holes.
const SPARSE_NAME: &[u8] = b"GNU.sparse.name";
const SPARSE_BYTES: &[u8] = b"GNU.sparse.realsize";
const SPARSE_VERSION: [(&[u8], &[u8]); 2] = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")];
/// Where a `tar` that knows no holes puts such a file: what it makes of it must not pass for the file.
const SPARSE_FOLDER: &[u8] = b"GNUSparseFile.0";

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File {
        bytes: u64,
    },
    /// A file with holes.
    Sparse(Map),
    Directory,
    Symlink(Vec<u8>),
    /// Another member's path.
    HardLink(Vec<u8>),
    Fifo,
}

/// One member without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Relative, without a slash at either end.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) user: Owner,
    pub(super) group: Owner,
    pub(super) mtime: Mtime,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A user or a group: by name where it has one, since numbers differ between machines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) id: u32,
    pub(super) name: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mtime {
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
}

/// Writes all of `member` that comes before its data, which [`pad`] has to follow.
pub(super) fn write_member(out: &mut impl Write, member: &Member) -> io::Result<()> {
    let mut header = Header::new_ustar();
    let mut map = Vec::new();
    let (kind, bytes, link) = match &member.kind {
        Kind::File { bytes } => (EntryType::Regular, *bytes, None),
        Kind::Sparse(sparse) => {
            map = sparse.to_bytes();
            (EntryType::Regular, map.len() as u64 + sparse.data_bytes(), None)
        }
        Kind::Directory => (EntryType::Directory, 0, None),
        Kind::Symlink(target) => (EntryType::Symlink, 0, Some(target)),
        Kind::HardLink(target) => (EntryType::Link, 0, Some(target)),
        Kind::Fifo => (EntryType::Fifo, 0, None),
    };
    let mut records = Vec::new();
    let mut path = member.path.clone();
    if kind == EntryType::Directory {
        path.push(b'/');
    }
    if let Kind::Sparse(sparse) = &member.kind {
        for (key, value) in SPARSE_VERSION {
            record(&mut records, key, value);
        }
        record(&mut records, SPARSE_NAME, &member.path);
        record(&mut records, SPARSE_BYTES, sparse.bytes.to_string().as_bytes());
        let name = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        path.splice(name..name, [SPARSE_FOLDER, b"/"].concat());
    }
    if !fill(&mut header.as_old_mut().name, &path) {
        record(&mut records, b"path", &path);
    }
    if let Some(target) = link
        && !fill(&mut header.as_old_mut().linkname, target)
    {
        record(&mut records, b"linkpath", target);
    }
    for (owner, key) in [(&member.user, "uname"), (&member.group, "gname")] {
        let Some(name) = &owner.name else { continue };
        let set = match key {
            "uname" => header.set_username(name),
            _ => header.set_groupname(name),
        };
        if set.is_err() {
            record(&mut records, key.as_bytes(), name.as_bytes());
        }
    }
    let Mtime { seconds, nanoseconds } = member.mtime;
    if nanoseconds != 0 || seconds < 0 {
        record(&mut records, b"mtime", decimal(member.mtime).as_bytes());
    }
    for (name, value) in &member.xattrs {
        record(&mut records, &[XATTR, name].concat(), value);
    }
    header.set_entry_type(kind);
    header.set_size(bytes);
    header.set_mode(member.mode & 0o7777);
    header.set_uid(u64::from(member.user.id));
    header.set_gid(u64::from(member.group.id));
    header.set_mtime(u64::try_from(seconds).unwrap_or(0));
    header.set_cksum();
    write_records(out, &records)?;
    out.write_all(header.as_bytes())?;
    out.write_all(&map)
}

/// Writes an extended header, which is the next member's.
fn write_records(out: &mut impl Write, records: &[u8]) -> io::Result<()> {
    if records.is_empty() {
        return Ok(());
    }
    let mut extended = Header::new_ustar();
    fill(&mut extended.as_old_mut().name, b"PaxHeaders/member");
    extended.set_entry_type(EntryType::XHeader);
    extended.set_size(records.len() as u64);
    extended.set_mode(0o600);
    extended.set_cksum();
    out.write_all(extended.as_bytes())?;
    out.write_all(records)?;
    pad(out, records.len() as u64)
}

/// Fills data of `bytes` up to the next block.
pub(super) fn pad(out: &mut impl Write, bytes: u64) -> io::Result<()> {
    let missing = bytes.next_multiple_of(BLOCK_BYTES as u64) - bytes;
    io::copy(&mut io::repeat(0).take(missing), out).map(drop)
}

/// The end of the archive: two blocks of zeros.
pub(super) fn finish(out: &mut impl Write) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(2 * BLOCK_BYTES as u64), out)?;
    out.flush()
}

/// Reads every member and hands it on with its data. Returns how many there were.
pub(super) fn read_members(
    source: impl Read,
    mut each: impl FnMut(Member, &mut dyn Read) -> io::Result<()>,
) -> io::Result<u64> {
    let mut archive = Archive::new(source);
    let mut records: Option<Vec<u8>> = None;
    let mut count = 0;
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        if entry.header().entry_type() == EntryType::XHeader {
            if records.is_some() || entry.size() > RECORDS_BYTES_MAX {
                return Err(invalid("an extended header is not one of ours"));
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            records = Some(bytes);
            continue;
        }
        let mut member = member(entry.header(), &records.take().unwrap_or_default())?;
        let expected = entry.size();
        let mut counted = Counted { inner: entry, bytes: 0 };
        if let Kind::Sparse(map) = &mut member.kind {
            *map = Map::read(&mut counted, map.bytes)?;
            if expected - counted.bytes != map.data_bytes() {
                return Err(invalid("a file with holes is not as long as they leave it"));
            }
        }
        each(member, &mut counted)?;
        io::copy(&mut counted, &mut io::sink())?;
        if counted.bytes != expected {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        count += 1;
    }
    if records.is_some() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(count)
}

struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

fn member(header: &Header, records: &[u8]) -> io::Result<Member> {
    let mut path = header.path_bytes().into_owned();
    let mut link = header.link_name_bytes().unwrap_or_default().into_owned();
    let owner = |id: u64, name: Option<&[u8]>| {
        Ok::<_, io::Error>(Owner {
            id: u32::try_from(id).map_err(|_| invalid("an owner is out of range"))?,
            name: name
                .filter(|name| !name.is_empty())
                .map(|name| String::from_utf8_lossy(name).into_owned()),
        })
    };
    let mut user = owner(header.uid()?, header.username_bytes())?;
    let mut group = owner(header.gid()?, header.groupname_bytes())?;
    let mut mtime = Mtime {
        seconds: i64::try_from(header.mtime()?).unwrap_or(i64::MAX),
        nanoseconds: 0,
    };
    let mut xattrs = Vec::new();
    let (mut sparse_name, mut sparse_bytes) = (None, None);
    for pair in parse(records)? {
        let (key, value) = pair;
        match key {
            SPARSE_NAME => sparse_name = Some(value.to_vec()),
            SPARSE_BYTES => sparse_bytes = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()),
            _ if SPARSE_VERSION.contains(&pair) => {}
            b"path" => path = value.to_vec(),
            b"linkpath" => link = value.to_vec(),
            b"uname" => user.name = Some(String::from_utf8_lossy(value).into_owned()),
            b"gname" => group.name = Some(String::from_utf8_lossy(value).into_owned()),
            b"mtime" => mtime = parse_decimal(value).ok_or_else(|| invalid("a time cannot be read"))?,
            _ => match key.strip_prefix(XATTR) {
                Some(name) => xattrs.push((name.to_vec(), value.to_vec())),
                None => return Err(invalid("an extended header holds a key that we do not write")),
            },
        }
    }
    let kind = match (header.entry_type(), sparse_name, sparse_bytes) {
        (EntryType::Regular, Some(name), Some(bytes)) => {
            path = name;
            // Its pieces stand before its data.
            Kind::Sparse(Map {
                bytes,
                pieces: Vec::new(),
            })
        }
        (EntryType::Regular, None, None) => Kind::File { bytes: header.size()? },
        (EntryType::Directory, None, None) => Kind::Directory,
        (EntryType::Symlink, None, None) => Kind::Symlink(link),
        (EntryType::Link, None, None) => Kind::HardLink(link),
        (EntryType::Fifo, None, None) => Kind::Fifo,
        _ => return Err(invalid("a member is of a type that we do not write")),
    };
    if path.last() == Some(&b'/') {
        path.pop();
    }
    Ok(Member {
        path,
        kind,
        mode: header.mode()?,
        user,
        group,
        mtime,
        xattrs,
    })
}

/// Copies what fits into a field; `false`: it does not fit whole.
fn fill(field: &mut [u8], bytes: &[u8]) -> bool {
    for (to, from) in field.iter_mut().zip(bytes) {
        *to = *from;
    }
    bytes.len() <= field.len()
}

/// `"<length> <key>=<value>\n"`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + digits(rest);
    if length != rest + digits(length) {
        length = rest + digits(length);
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

fn parse(mut records: &[u8]) -> io::Result<Vec<(&[u8], &[u8])>> {
    let bad = || invalid("an extended header cannot be read");
    let mut pairs = Vec::new();
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let (length, _) = records.split_at(space);
        let length: usize = std::str::from_utf8(length)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(bad)?;
        let record = records.get(space + 1..length).ok_or_else(bad)?;
        let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        let (key, value) = record.split_at(equals);
        pairs.push((key, value.get(1..).unwrap_or_default()));
        records = records.get(length..).unwrap_or_default();
    }
    Ok(pairs)
}

/// Seconds as PAX writes them; before 1970 the fraction still counts upwards from the second below, so it is turned.
fn decimal(time: Mtime) -> String {
    let Mtime { seconds, nanoseconds } = time;
    if seconds < 0 && nanoseconds > 0 {
        return format!("-{}.{:09}", seconds.unsigned_abs() - 1, 1_000_000_000 - nanoseconds);
    }
    format!("{seconds}.{nanoseconds:09}")
}

fn parse_decimal(text: &[u8]) -> Option<Mtime> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let fraction = fraction.get(..9).unwrap_or(fraction);
    let nanoseconds: u32 = format!("{fraction:0<9}").parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        let seconds = seconds.checked_sub(1)?;
        return Some(Mtime {
            seconds,
            nanoseconds: 1_000_000_000_u32.checked_sub(nanoseconds)?,
        });
    }
    Some(Mtime { seconds, nanoseconds })
}

pub(super) fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(member: &Member, data: &[u8]) -> (Member, Vec<u8>) {
        let mut bytes = Vec::new();
        write_member(&mut bytes, member).expect("memory takes it");
        bytes.extend_from_slice(data);
        pad(&mut bytes, data.len() as u64).expect("memory takes it");
        finish(&mut bytes).expect("memory takes it");
        let mut found = None;
        let count = read_members(bytes.as_slice(), |member, data| {
            let mut content = Vec::new();
            data.read_to_end(&mut content)?;
            found = Some((member, content));
            Ok(())
        });
        assert_eq!(count.expect("it is read"), 1);
        found.expect("one member")
    }

    proptest! {
        #[test]
        fn every_member_comes_back_as_it_was(
            path in proptest::collection::vec(proptest::collection::vec(1_u8..=255, 1..200), 1..4),
            value in proptest::collection::vec(any::<u8>(), 0..3000),
            data in proptest::collection::vec(any::<u8>(), 0..2000),
            seconds in -5_000_000_000_i64..50_000_000_000,
            nanoseconds in 0_u32..1_000_000_000,
            mode in 0_u32..0o10000,
            id in any::<u32>(),
        ) {
            let path = path.iter().map(|part| part.iter().map(|b| if *b == b'/' { b'_' } else { *b }).collect::<Vec<_>>());
            let member = Member {
                path: path.collect::<Vec<_>>().join(&b'/'),
                kind: Kind::File { bytes: data.len() as u64 },
                mode,
                user: Owner { id, name: Some("a name that is longer than the thirty-two bytes of the field".to_owned()) },
                group: Owner { id, name: None },
                mtime: Mtime { seconds, nanoseconds },
                xattrs: vec![(b"user.x".to_vec(), value)],
            };
            prop_assert_eq!(round_trip(&member, &data), (member.clone(), data));
        }

        #[test]
        fn foreign_bytes_are_refused_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
            drop(parse(&bytes));
            let mut seen = 0;
            let read = read_members(bytes.as_slice(), |_, _| { seen += 1; Ok(()) });
            prop_assert!(read.is_err() || read.is_ok_and(|count| count == seen));
        }
    }

    #[test]
    fn a_record_counts_its_own_digits() {
        for length in [1, 2, 90, 91, 92, 93, 94, 95, 989, 990, 991, 9986, 99_985] {
            let mut records = Vec::new();
            record(&mut records, b"k", &vec![b'v'; length]);
            let text = String::from_utf8_lossy(&records);
            assert!(text.starts_with(&format!("{} ", records.len())), "{length}");
        }
    }

    #[test]
    fn links_and_large_sizes_come_back() {
        let mut member = Member {
            path: b"a".to_vec(),
            kind: Kind::Symlink(vec![b't'; 300]),
            mode: 0o777,
            user: Owner::default(),
            group: Owner::default(),
            mtime: Mtime::default(),
            xattrs: Vec::new(),
        };
        assert_eq!(round_trip(&member, b"").0, member);
        member.kind = Kind::HardLink(b"b/c".to_vec());
        assert_eq!(round_trip(&member, b"").0, member);
        let (bytes, pieces) = (1 << 40, vec![3..5, 1 << 20..(1 << 20) + 1]);
        member.kind = Kind::Sparse(Map { bytes, pieces });
        assert_eq!(round_trip(&member, b"abc"), (member.clone(), b"abc".to_vec()));
        member.path = [[b'n'; 200], [b'm'; 200]].join(&b'/');
        assert_eq!(round_trip(&member, b"abc").0, member);
        member.kind = Kind::File { bytes: 1 << 40 };
        let mut bytes = Vec::new();
        write_member(&mut bytes, &member).expect("memory takes it");
        let cut = read_members(bytes.as_slice(), |found, _| {
            assert_eq!(found, member);
            Ok(())
        });
        assert!(cut.is_err(), "its data is missing");
    }
}
