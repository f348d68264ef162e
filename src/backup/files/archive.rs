//! Reading a file set into a tar stream. Files are opened below directories that are open already and never through a
//! symbolic link, so that whoever may write in the set cannot point us elsewhere.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, StatxFlags};
use rustix::io::Errno;

use super::names::Names;
use super::sparse::Map;
use super::stream::{Kind, Member, Mtime, finish, pad, write_member};

/// Each level holds a directory open.
const DEPTH_MAX: usize = 200;
/// Beyond this many, a further file with several names is stored under each of them.
const LINKS_MAX: usize = 1_000_000;
/// What the manifest lists; the rest is counted.
const NOTES_MAX: usize = 1_000;
const BUFFER_BYTES: usize = 256 * 1024;
/// The kernel's limit of a list of names and of a value alike.
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// What was stored, and what an operator should know of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) entries: u64,
    pub(super) notes: Vec<String>,
    pub(super) more_notes: u64,
}

impl Report {
    fn note(&mut self, path: &[u8], what: &str) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(format!("{} {what}", String::from_utf8_lossy(path)));
        } else {
            self.more_notes += 1;
        }
    }
}

/// A directory by its place on the disk.
pub(super) type Place = (u64, u64);

pub(super) fn place(path: &Path) -> Option<Place> {
    let stat = rustix::fs::stat(path).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// A file among all that are and were. Its number is given to another one once it is deleted, and that one would be taken for
/// a further name of it; when it was made (or last changed, where the file system does not keep that) tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Inode {
    device: (u32, u32),
    number: u64,
    since: (i64, u32),
}

impl Inode {
    /// Of `name` below `parent`, or with an empty one of what is open itself. `None`: it is gone, or the system cannot tell.
    fn of(parent: BorrowedFd<'_>, name: &[u8]) -> Option<Self> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        let asked = StatxFlags::INO | StatxFlags::CTIME | StatxFlags::BTIME;
        let stat = rustix::fs::statx(parent, name, flags, asked).ok()?;
        let has_birth = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
        let since = if has_birth { stat.stx_btime } else { stat.stx_ctime };
        Some(Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            number: stat.stx_ino,
            since: (since.tv_sec, since.tv_nsec),
        })
    }
}

/// Writes `paths` (absolute, without `..`) into `out`. `excluded` is the repository itself, which would swallow its own tail.
pub(super) fn write(
    paths: &[impl AsRef<Path>],
    out: impl Write,
    names: &Names,
    excluded: Option<Place>,
) -> io::Result<Report> {
    let mut archive = Archive {
        out: io::BufWriter::with_capacity(BUFFER_BYTES, out),
        names,
        excluded,
        links: HashMap::new(),
        report: Report::default(),
        buffer: vec![0; BUFFER_BYTES],
    };
    for path in paths {
        archive.add_tree(path.as_ref())?;
    }
    finish(&mut archive.out)?;
    Ok(archive.report)
}

struct Archive<'a, W: Write> {
    out: io::BufWriter<W>,
    names: &'a Names,
    excluded: Option<Place>,
    /// Where the first of several names of a file is.
    links: HashMap<Inode, Vec<u8>>,
    report: Report,
    buffer: Vec<u8>,
}

impl<W: Write> Archive<'_, W> {
    fn add_tree(&mut self, path: &Path) -> io::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let stored: Vec<&[u8]> = path
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name.as_bytes()),
                _ => None,
            })
            .collect();
        let stored = stored.join(&b'/');
        // The operator wrote the way to it, so links may be part of that way.
        let parent = rustix::fs::openat(CWD, parent, directory_flags(), Mode::empty()).map_err(named(&stored))?;
        let mut stack: Vec<(Dir, Vec<u8>)> = Vec::new();
        stack.extend(self.add(parent.as_fd(), name.as_bytes(), stored)?);
        while let Some((directory, path)) = stack.last_mut() {
            let Some(entry) = directory.read() else {
                stack.pop();
                continue;
            };
            let entry = entry.map_err(named(path))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let child = [path.as_slice(), name].join(&b'/');
            let parent = directory.fd().map_err(named(path))?;
            if let Some(below) = self.add(parent, name, child)? {
                if stack.len() >= DEPTH_MAX {
                    let too_deep = format!("{} is nested too deeply", String::from_utf8_lossy(&below.1));
                    return Err(io::Error::other(too_deep));
                }
                stack.push(below);
            }
        }
        Ok(())
    }

    /// Stores one name. A directory comes back to be entered.
    fn add(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: Vec<u8>) -> io::Result<Option<(Dir, Vec<u8>)>> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(self.vanished(&path)),
            Err(error) => return Err(named(&path)(error)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.add_directory(parent, name, path),
            FileType::RegularFile => self.add_file(parent, name, path, &stat)?,
            FileType::Symlink => match rustix::fs::readlinkat(parent, name, Vec::new()) {
                Ok(target) => self.member(path, Kind::Symlink(target.into_bytes()), &stat, Vec::new())?,
                Err(Errno::NOENT | Errno::INVAL) => return Ok(self.vanished(&path)),
                Err(error) => return Err(named(&path)(error)),
            },
            FileType::Fifo => self.member(path, Kind::Fifo, &stat, Vec::new())?,
            FileType::Socket => self.report.note(&path, "is a socket and was left out"),
            _ => self.report.note(&path, "is a device and was left out"),
        }
        Ok(None)
    }

    fn vanished<T>(&mut self, path: &[u8]) -> Option<T> {
        self.report.note(path, "went away while it was read");
        None
    }

    fn add_directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: Vec<u8>,
    ) -> io::Result<Option<(Dir, Vec<u8>)>> {
        let Some(opened) = open(parent, name, directory_flags()).map_err(named(&path))? else {
            return Ok(self.vanished(&path));
        };
        let stat = rustix::fs::fstat(&opened).map_err(named(&path))?;
        if self.excluded == Some((stat.st_dev, stat.st_ino)) {
            self.report.note(&path, "is the repository itself and was left out");
            return Ok(None);
        }
        let xattrs = xattrs(opened.as_fd()).map_err(named(&path))?;
        self.member(path.clone(), Kind::Directory, &stat, xattrs)?;
        let directory = Dir::new(opened).map_err(named(&path))?;
        Ok(Some((directory, path)))
    }

    fn add_file(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: Vec<u8>, seen: &Stat) -> io::Result<()> {
        let linked = (seen.st_nlink > 1).then(|| Inode::of(parent, name)).flatten();
        if let Some(first) = linked.and_then(|inode| self.links.get(&inode)) {
            let kind = Kind::HardLink(first.clone());
            return self.member(path, kind, seen, Vec::new());
        }
        // A name that has become a FIFO since must not make us wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Some(opened) = open(parent, name, flags).map_err(named(&path))? else {
            self.vanished::<()>(&path);
            return Ok(());
        };
        let stat = rustix::fs::fstat(&opened).map_err(named(&path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            self.vanished::<()>(&path);
            return Ok(());
        }
        let map = Map::of(opened.as_fd(), &stat).map_err(named(&path))?;
        let xattrs = xattrs(opened.as_fd()).map_err(named(&path))?;
        let kind = match map.is_dense() {
            true => Kind::File { bytes: map.bytes },
            false => Kind::Sparse(map.clone()),
        };
        self.member(path.clone(), kind, &stat, xattrs)?;
        let file = File::from(opened);
        let short = self.copy(&file, &map).map_err(|error| match error {
            Fault::Read(error) => with_path(&path, &error),
            Fault::Write(error) => error,
        })?;
        let after = rustix::fs::fstat(&file).map_err(named(&path))?;
        if short || is_changed(&stat, &after) {
            self.report.note(&path, "changed while it was read");
        }
        if stat.st_nlink > 1
            && self.links.len() < LINKS_MAX
            && let Some(inode) = Inode::of(file.as_fd(), b"")
        {
            self.links.entry(inode).or_insert(path);
        }
        Ok(())
    }

    /// Copies exactly what the header says: what came since is left, what went is zeros. `true`: it was short.
    fn copy(&mut self, file: &File, map: &Map) -> Result<bool, Fault> {
        let mut missing = 0;
        for piece in &map.pieces {
            let mut at = piece.start;
            while at < piece.end {
                let left = piece.end - at;
                let wanted = usize::try_from(left).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
                let buffer = self.buffer.get_mut(..wanted).unwrap_or_default();
                let read = match file.read_at(buffer, at) {
                    Ok(0) => break,
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(Fault::Read(error)),
                };
                let bytes = buffer.get(..read).unwrap_or_default();
                self.out.write_all(bytes).map_err(Fault::Write)?;
                at += read as u64;
            }
            let left = piece.end - at;
            io::copy(&mut io::repeat(0).take(left), &mut self.out).map_err(Fault::Write)?;
            missing += left;
        }
        pad(&mut self.out, map.data_bytes()).map_err(Fault::Write)?;
        Ok(missing > 0)
    }

    fn member(&mut self, path: Vec<u8>, kind: Kind, stat: &Stat, xattrs: Xattrs) -> io::Result<()> {
        let member = Member {
            path,
            kind,
            mode: stat.st_mode & 0o7777,
            user: self.names.user(stat.st_uid),
            group: self.names.group(stat.st_gid),
            mtime: Mtime {
                seconds: stat.st_mtime,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            },
            xattrs,
        };
        self.report.entries += 1;
        write_member(&mut self.out, &member)
    }
}

enum Fault {
    Read(io::Error),
    Write(io::Error),
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

/// Opens `name` below `parent`; `None`: it is gone, or is something else by now.
fn open(parent: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
    match rustix::fs::openat(parent, name, flags | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_changed(before: &Stat, after: &Stat) -> bool {
    let times = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec);
    before.st_size != after.st_size || times(before) != times(after)
}

fn xattrs(file: BorrowedFd<'_>) -> Result<Xattrs, Errno> {
    let mut list: Vec<u8> = Vec::with_capacity(XATTR_BYTES_MAX);
    match rustix::fs::flistxattr(file, rustix::buffer::spare_capacity(&mut list)) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(_) => {}
        Err(error) => return Err(error),
    }
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = Vec::with_capacity(XATTR_BYTES_MAX);
        match rustix::fs::fgetxattr(file, name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => found.push((name.to_vec(), value)),
            // Removed since it was listed, or one that the system shows to nobody.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn named(path: &[u8]) -> impl Fn(Errno) -> io::Error {
    move |error| with_path(path, &error.into())
}

fn with_path(path: &[u8], error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", String::from_utf8_lossy(path)))
}
