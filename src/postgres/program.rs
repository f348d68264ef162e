//! Finding the client programs: `pg_dump` refuses a server newer than itself, so the server's major version chooses.

use std::path::{Path, PathBuf};

use super::Error;

/// The directory where Debian and Ubuntu keep one folder per major version.
const VERSIONED: &str = "/usr/lib/postgresql";

/// The client programs of one major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    pub directory: PathBuf,
    pub major: u32,
}

impl Programs {
    /// The oldest installed version that is not older than the server.
    ///
    /// # Errors
    /// None is installed.
    pub fn find(server_major: u32) -> Result<Self, Error> {
        let mut found: Vec<Self> = versioned(Path::new(VERSIONED))
            .into_iter()
            .filter(|programs| programs.major >= server_major)
            .collect();
        found.sort_by_key(|programs| programs.major);
        found
            .into_iter()
            .next()
            .or_else(|| in_path(server_major))
            .ok_or(Error::NoProgram {
                program: "pg_dump",
                major: server_major,
            })
    }

    /// Those that can read what `pg_dump` of version `dumped_by` wrote: the oldest that are not older than the server
    /// either, since newer ones may say what it does not understand; else the oldest that read it.
    ///
    /// # Errors
    /// None is installed.
    pub fn reading(dumped_by: u32, server_major: u32) -> Result<Self, Error> {
        let found = Self::find(dumped_by.max(server_major)).or_else(|_| Self::find(dumped_by));
        found.map_err(|_| Error::NoProgram {
            program: "pg_restore",
            major: dumped_by,
        })
    }

    /// The server's own programs: of the very same major version, since they work on its files.
    ///
    /// # Errors
    /// None is installed.
    pub fn server(major: u32) -> Result<Self, Error> {
        let missing = Error::NoProgram {
            program: "postgres",
            major,
        };
        let found = Self::find(major).ok().filter(|programs| programs.major == major);
        found
            .filter(|programs| programs.path("postgres").is_file())
            .ok_or(missing)
    }

    #[must_use]
    pub fn path(&self, program: &str) -> PathBuf {
        self.directory.join(program)
    }
}

fn versioned(root: &Path) -> Vec<Programs> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let major = entry.file_name().to_str()?.parse().ok()?;
            let directory = entry.path().join("bin");
            directory
                .join("pg_dump")
                .is_file()
                .then_some(Programs { directory, major })
        })
        .collect()
}

/// Elsewhere the version stands in the name of the folder (`/usr/pgsql-16/bin`) or must be asked of the program.
fn in_path(server_major: u32) -> Option<Programs> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find_map(|directory| {
        let program = directory.join("pg_dump");
        let major = program.is_file().then(|| super::child::version_of(&program))??;
        (major >= server_major).then_some(Programs { directory, major })
    })
}
