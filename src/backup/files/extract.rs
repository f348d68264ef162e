//! Writing a file set back below one directory. Every step of a path is opened without following links, and nothing
//! that exists is ever opened for writing: an archive cannot reach outside, whatever it holds.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use super::names::Names;
use super::sparse::Map;
use super::stream::{Kind, Member, Owner, invalid, read_members};

const BUFFER_BYTES: usize = 64 * 1024;
const NOTES_MAX: usize = 1_000;
/// The bits that have a program run as its owner and group.
const SET_ID: u32 = 0o6000;

/// What came back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Extracted {
    pub(super) entries: u64,
    /// What could not be given back as it was, such as owners without the right to set them.
    pub(super) notes: Vec<String>,
}

/// Writes every member of `source` below `root`, an empty directory.
pub(super) fn extract(source: impl Read, root: OwnedFd, names: &Names) -> io::Result<Extracted> {
    let mut target = Target {
        names,
        is_root: rustix::process::geteuid().is_root(),
        open: vec![Opened {
            directory: root,
            member: None,
        }],
        path: Vec::new(),
        notes: Vec::new(),
        is_told: false,
    };
    let entries = read_members(source, |member, data| target.put(member, data))?;
    target.leave(0)?;
    let root = target.open.first().ok_or(io::ErrorKind::NotFound)?;
    rustix::fs::syncfs(&root.directory)?;
    Ok(Extracted {
        entries,
        notes: target.notes,
    })
}

/// Checks that members stay below the directory they are restored to, and counts them.
pub(super) fn walk(source: impl Read) -> io::Result<u64> {
    read_members(source, |member, _| {
        parts(&member.path)?;
        if let Kind::HardLink(target) = &member.kind {
            parts(target)?;
        }
        Ok(())
    })
}

struct Opened {
    directory: OwnedFd,
    /// Its owner, mode and times are set when the last member in it is written; a directory that the archive does
    /// not hold has none.
    member: Option<Member>,
}

struct Target<'a> {
    names: &'a Names,
    is_root: bool,
    /// The root and the directories down to the last member's.
    open: Vec<Opened>,
    /// Names of `open` without the root.
    path: Vec<CString>,
    notes: Vec<String>,
    /// That owners are not given back is among the notes.
    is_told: bool,
}

impl Target<'_> {
    fn put(&mut self, member: Member, data: &mut dyn Read) -> io::Result<()> {
        let mut folders = parts(&member.path)?;
        let Some(name) = folders.pop() else {
            return Err(invalid("a member has no name"));
        };
        self.enter(&folders)?;
        match &member.kind {
            Kind::Directory => return self.put_directory(name, member),
            Kind::File { bytes } => self.put_file(&name, &member, &Map::dense(*bytes), data),
            Kind::Sparse(map) => self.put_file(&name, &member, map, data),
            Kind::Symlink(target) => {
                rustix::fs::symlinkat(target.as_slice(), self.parent()?, &name)?;
                self.dress_by_name(&name, &member)
            }
            Kind::HardLink(target) => self.put_link(&name, target),
            Kind::Fifo => {
                let mode = Mode::from_raw_mode(member.mode);
                rustix::fs::mknodat(self.parent()?, &name, FileType::Fifo, mode, 0)?;
                let chmod = rustix::fs::chmodat(self.parent()?, &name, mode, AtFlags::empty());
                self.tolerate(&member, "mode", chmod)?;
                self.dress_by_name(&name, &member)
            }
        }
        .map_err(|error| {
            let path = String::from_utf8_lossy(&member.path);
            io::Error::new(error.kind(), format!("{path}: {error}"))
        })
    }

    fn parent(&self) -> io::Result<BorrowedFd<'_>> {
        let last = self.open.last().ok_or(io::ErrorKind::NotFound)?;
        Ok(last.directory.as_fd())
    }

    /// Makes `folders` the open path: leaves what it does not share, and enters or makes the rest.
    fn enter(&mut self, folders: &[CString]) -> io::Result<()> {
        let shared = self.path.iter().zip(folders).take_while(|(a, b)| a == b).count();
        self.leave(shared)?;
        for name in folders.iter().skip(shared) {
            match rustix::fs::mkdirat(self.parent()?, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            self.descend(name.clone(), None)?;
        }
        Ok(())
    }

    fn descend(&mut self, name: CString, member: Option<Member>) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(self.parent()?, &name, flags, Mode::empty())?;
        self.open.push(Opened { directory, member });
        self.path.push(name);
        Ok(())
    }

    /// Leaves directories until `depth` of them are open, and gives each its owner, mode and times.
    fn leave(&mut self, depth: usize) -> io::Result<()> {
        while self.path.len() > depth {
            self.path.pop();
            let Some(left) = self.open.pop() else { break };
            if let Some(member) = left.member {
                self.dress(left.directory.as_fd(), &member)?;
            }
        }
        Ok(())
    }

    fn put_directory(&mut self, name: CString, member: Member) -> io::Result<()> {
        match rustix::fs::mkdirat(self.parent()?, &name, Mode::from_raw_mode(0o700)) {
            // A set may name both a directory and one inside it.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.descend(name, Some(member))
    }

    fn put_file(&mut self, name: &CString, member: &Member, map: &Map, data: &mut dyn Read) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.parent()?, name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(file);
        let mut buffer = vec![0; BUFFER_BYTES];
        for piece in &map.pieces {
            file.seek(SeekFrom::Start(piece.start))?;
            let mut data = (&mut *data).take(piece.end - piece.start);
            loop {
                let read = fill(&mut data, &mut buffer)?;
                let bytes = buffer.get(..read).unwrap_or_default();
                if bytes.is_empty() {
                    break;
                }
                if read == BUFFER_BYTES && bytes.iter().all(|byte| *byte == 0) {
                    // Zeros become holes.
                    file.seek(SeekFrom::Current(i64::try_from(read).unwrap_or(0)))?;
                } else {
                    file.write_all(bytes)?;
                }
            }
        }
        file.set_len(map.bytes)?;
        self.dress(file.as_fd(), member)
    }

    /// The other name must be a member that is there already: it is looked up step by step, without links.
    fn put_link(&mut self, name: &CString, target: &[u8]) -> io::Result<()> {
        let mut folders = parts(target)?;
        let last = folders.pop().ok_or(io::ErrorKind::NotFound)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = self.open.first().ok_or(io::ErrorKind::NotFound)?;
        let mut directory = rustix::fs::openat(&root.directory, c".", flags, Mode::empty())?;
        for folder in folders {
            directory = rustix::fs::openat(&directory, &folder, flags, Mode::empty())?;
        }
        rustix::fs::linkat(&directory, &last, self.parent()?, name, AtFlags::empty())?;
        Ok(())
    }

    /// Owner first, since it clears the set-id bits and capabilities; times last.
    fn dress(&mut self, file: BorrowedFd<'_>, member: &Member) -> io::Result<()> {
        let (user, group) = self.owner(&member.user, &member.group);
        let is_theirs = match self.is_root {
            true => self.tolerate(member, "owner", rustix::fs::fchown(file, user, group))?,
            false => self.is_ours(user, group),
        };
        for (name, value) in &member.xattrs {
            let set = rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty());
            self.tolerate(member, &String::from_utf8_lossy(name), set)?;
        }
        // A program that ran as its owner must not run as whoever restores it.
        let bits = if is_theirs { member.mode } else { member.mode & !SET_ID };
        if bits != member.mode {
            self.note(member, "it does not run as its owner any more, who could not be set");
        }
        let mode = Mode::from_raw_mode(bits);
        self.tolerate(member, "mode", rustix::fs::fchmod(file, mode))?;
        Ok(rustix::fs::futimens(file, &times(member))?)
    }

    fn dress_by_name(&mut self, name: &CString, member: &Member) -> io::Result<()> {
        let link = AtFlags::SYMLINK_NOFOLLOW;
        if self.is_root {
            let (user, group) = self.owner(&member.user, &member.group);
            let owned = rustix::fs::chownat(self.parent()?, name, user, group, link);
            self.tolerate(member, "owner", owned)?;
        }
        Ok(rustix::fs::utimensat(self.parent()?, name, &times(member), link)?)
    }

    /// Whoever is not root gives nothing away, and says so once.
    fn is_ours(&mut self, user: Option<Uid>, group: Option<Gid>) -> bool {
        let is_ours = user == Some(rustix::process::geteuid()) && group == Some(rustix::process::getegid());
        if !is_ours && !self.is_told {
            self.is_told = true;
            let text = "owners are not given back: all belongs to whoever restores, unless that is root";
            self.notes.push(text.to_owned());
        }
        is_ours
    }

    fn owner(&self, user: &Owner, group: &Owner) -> (Option<Uid>, Option<Gid>) {
        // The highest number means "leave it" to the kernel, and no member has it.
        let known = |id: u32| (id != u32::MAX).then_some(id);
        (
            known(self.names.user_id(user)).map(Uid::from_raw),
            known(self.names.group_id(group)).map(Gid::from_raw),
        )
    }

    /// A right or a file system that is missing here costs an attribute, not the data; anything else is an error. `false`: it
    /// was not set.
    fn tolerate(&mut self, member: &Member, what: &str, done: Result<(), Errno>) -> io::Result<bool> {
        match done {
            Ok(()) => Ok(true),
            Err(error @ (Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL)) => {
                self.note(member, &format!("its {what} could not be set: {error}"));
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn note(&mut self, member: &Member, text: &str) {
        if self.notes.len() < NOTES_MAX {
            let path = String::from_utf8_lossy(&member.path);
            self.notes.push(format!("{path}: {text}"));
        }
    }
}

fn times(member: &Member) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: member.mtime.seconds,
            tv_nsec: i64::from(member.mtime.nanoseconds),
        },
    }
}

/// The names of a path, each safe to open below the one before.
fn parts(path: &[u8]) -> io::Result<Vec<CString>> {
    path.split(|byte| *byte == b'/')
        .map(|name| {
            if name.is_empty() || name == b"." || name == b".." {
                return Err(invalid("a member's path leads outside"));
            }
            CString::new(name).map_err(|_| invalid("a member's path holds a zero"))
        })
        .collect()
}

/// Reads until the buffer is full or the data ends.
fn fill(data: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match data.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Opens the directory that members go to.
pub(super) fn open_directory(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}
