//! A base backup into a new data directory: files as the server had them, tablespaces beside the directory and never
//! where the server had them, since on the same machine those are live.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::pitr::base::check::Checker;
use crate::pitr::tar::{Entry, Kind, Visitor, invalid};
use crate::postgres::child::User;
use crate::postgres::server::hand_over;

/// Where a recovery puts things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The new data directory.
    pub data: PathBuf,
    /// Socket, log, access rules and the segments fetched ahead.
    pub run: PathBuf,
    /// A directory per tablespace, by OID.
    pub tablespaces: PathBuf,
    /// Whose all of it is.
    pub user: Option<User>,
}

impl Place {
    /// Beside `data`: `<data>.recovery` and `<data>.tablespaces`.
    #[must_use]
    pub fn beside(data: &Path, user: Option<User>) -> Self {
        let with = |ending: &str| {
            let mut name = data.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        Self {
            data: data.to_owned(),
            run: with(".recovery"),
            tablespaces: with(".tablespaces"),
            user,
        }
    }

    /// Makes its directories, which must not hold anything yet.
    ///
    /// # Errors
    /// Of the system, or a directory with something in it.
    pub fn make(&self, tablespaces: &[u32]) -> io::Result<()> {
        let wanted = [
            Some(&self.data),
            Some(&self.run),
            (!tablespaces.is_empty()).then_some(&self.tablespaces),
        ];
        for directory in wanted.into_iter().flatten() {
            make_directory(directory, self.user)?;
            if std::fs::read_dir(directory)?.next().is_some() {
                let text = format!(
                    "{} is not empty: remove it, should a recovery that was cut short have left it, or recover into another",
                    directory.display()
                );
                return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, text));
            }
        }
        for oid in tablespaces {
            make_directory(&self.tablespaces.join(oid.to_string()), self.user)?;
        }
        Ok(())
    }

    /// Links the tablespaces into the data directory: the tar has a map of them, and no links.
    pub(super) fn link(&self, tablespaces: &[u32]) -> io::Result<()> {
        for oid in tablespaces {
            let link = self.data.join("pg_tblspc").join(oid.to_string());
            if std::fs::symlink_metadata(&link).is_err() {
                std::os::unix::fs::symlink(self.tablespaces.join(oid.to_string()), &link)?;
                hand_over(&link, self.user)?;
            }
        }
        Ok(())
    }

    /// What stands in `tablespace_map`, by which the server makes its links anew at the first start.
    #[must_use]
    pub fn tablespace_map(&self, oids: &[u32]) -> String {
        // The server reads a backslash as the beginning of an escape.
        let path = |oid: &u32| {
            self.tablespaces
                .join(oid.to_string())
                .display()
                .to_string()
                .replace('\\', "\\\\")
        };
        oids.iter().map(|oid| format!("{oid} {}\n", path(oid))).collect()
    }
}

/// Makes `directory` for its user alone.
pub(super) fn make_directory(directory: &Path, user: Option<User>) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
        other => other?,
    }
    hand_over(directory, user)
}

/// Writes `bytes` as a file of the user.
pub(super) fn write_file(path: &Path, bytes: &[u8], user: Option<User>) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    hand_over(path, user)
}

/// Writes the members of one tar below one directory, each hashed as it is written.
#[derive(Debug)]
pub(super) struct Unpacker {
    root: PathBuf,
    tablespaces: PathBuf,
    user: Option<User>,
    open: Option<File>,
    pub(super) checker: Checker,
}

impl Unpacker {
    /// The tar of the data directory, or of the tablespace `oid`.
    pub(super) fn new(place: &Place, oid: Option<u32>) -> Self {
        Self {
            root: match oid {
                None => place.data.clone(),
                Some(oid) => place.tablespaces.join(oid.to_string()),
            },
            tablespaces: place.tablespaces.clone(),
            user: place.user,
            open: None,
            checker: Checker::new(oid.map_or(String::new(), |oid| format!("pg_tblspc/{oid}/"))),
        }
    }

    fn link(&self, entry: &Entry) -> io::Result<()> {
        let oid = entry
            .path
            .strip_prefix("pg_tblspc/")
            .filter(|oid| oid.bytes().all(|byte| byte.is_ascii_digit()));
        let oid = oid.ok_or_else(|| invalid("a link in the tar is none of a tablespace"))?;
        let target = self.tablespaces.join(oid);
        make_directory(&target, self.user)?;
        let path = self.root.join(&entry.path);
        std::os::unix::fs::symlink(&target, &path)?;
        hand_over(&path, self.user)
    }
}

impl Visitor for Unpacker {
    fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        // An empty path is the directory itself.
        let path = if entry.path.is_empty() {
            self.root.clone()
        } else {
            self.root.join(&entry.path)
        };
        match &entry.kind {
            Kind::Directory => make_directory(&path, self.user),
            Kind::Symlink(_) => self.link(entry),
            Kind::File => {
                let file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
                hand_over(&path, self.user)?;
                self.open = Some(file);
                self.checker.entry(entry)
            }
        }
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.open {
            Some(file) => {
                file.write_all(bytes)?;
                self.checker.data(bytes)
            }
            None => Err(invalid("bytes without a file")),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        self.open = None;
        self.checker.end()
    }
}
