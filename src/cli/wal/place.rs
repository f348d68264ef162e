//! Where PostgreSQL stands: it starts its commands in the data directory and names files relative to it.

use std::fs::File as OpenFile;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::named_cluster;
use crate::pitr::header::{self, Header};
use crate::repository::layout::Cluster;

/// `PG_VERSION` is a number and a line end.
const VERSION_BYTES_MAX: u64 = 16;

/// Whose file `path` is: as told, or as the data directory around it says, or as the log in it says.
pub(super) fn cluster(path: &Path, told: Option<&str>, source: Option<&OpenFile>) -> anyhow::Result<Cluster> {
    if let Some(told) = told {
        return named_cluster(told);
    }
    let directory = data_directory(path);
    let from_directory = of_directory(&directory);
    if let (Err(_), Some(source)) = (&from_directory, source) {
        let mut head = [0; header::BYTES];
        let read = source.read_at(&mut head, 0)?;
        if let Ok(header) = Header::parse(head.get(..read).unwrap_or_default()) {
            return Ok(header.cluster);
        }
    }
    from_directory.with_context(|| {
        let place = directory.display();
        format!("{place} is no data directory of PostgreSQL, so --of must say whose file this is")
    })
}

fn data_directory(path: &Path) -> PathBuf {
    let folder = path.parent().unwrap_or(Path::new(""));
    match folder.parent() {
        Some(above) if folder.ends_with("pg_wal") && above != Path::new("") => above.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn of_directory(directory: &Path) -> anyhow::Result<Cluster> {
    let mut control = [0; 8];
    std::fs::File::open(directory.join("global/pg_control"))?.read_exact(&mut control)?;
    let mut version = String::new();
    let file = std::fs::File::open(directory.join("PG_VERSION"))?;
    file.take(VERSION_BYTES_MAX).read_to_string(&mut version)?;
    Ok(Cluster {
        system_identifier: header::system_identifier(&control).context("pg_control is empty")?,
        major: version.trim().parse().context("PG_VERSION is no number")?,
    })
}

/// The file in which what is fetched grows; gone when dropped, unless published.
#[derive(Debug)]
pub(super) struct Unfinished {
    file: OpenFile,
    path: PathBuf,
    into: PathBuf,
}

impl Unfinished {
    pub(super) fn beside(into: &Path) -> anyhow::Result<Self> {
        let mut path = into.as_os_str().to_owned();
        path.push(".foregate");
        let path = PathBuf::from(path);
        let file = OpenFile::create(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self {
            file,
            path,
            into: into.to_owned(),
        })
    }

    pub(super) fn file(&self) -> &OpenFile {
        &self.file
    }

    pub(super) fn publish(self) -> anyhow::Result<()> {
        std::fs::rename(&self.path, &self.into).with_context(|| format!("writing {}", self.into.display()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After publication there is none; otherwise nothing more can be done about it.
        drop(std::fs::remove_file(&self.path));
    }
}
