//! The log for a server that recovers: fetched ahead, in the order of the plan, into a directory from which a few
//! lines of shell hand it over.
//!
//! The server's account needs neither the keys nor the repository, no process of ours is started per segment, and what
//! is not in the plan is "not there" however much the archive holds: a stranger's timeline cannot lead it astray.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};

use super::unpack::{Place, make_directory, write_file};
use crate::pitr::archive::Archive;
use crate::pitr::plan::{Needed, Plan};
use crate::pitr::{Error, local};

/// Fetched and not taken yet, at most.
const AHEAD: usize = 16;
/// Fetched at the same time.
const PARALLEL: usize = 2;
const POLL: Duration = Duration::from_millis(10);

/// Exit 1 means "not there" and nothing else: after it the server ends recovery and goes its own way. A segment that
/// was taken lies in `pg_wal` since, where the server looks next.
const SCRIPT: &str = r#"#!/bin/sh
# Hands PostgreSQL a file of its log: $1 its name, $2 where to. Made by foregate for one recovery.
file="$1" to="$2" from='@FROM@'
grep -qxF -e "$file" "$from/expected" || exit 1
case "$file" in *.history) cp "$from/$file" "$to" || exit 255; exit 0 ;; esac
[ -e "$from/$file" ] || printf '%s' "$file" > "$from/wanted" || exit 255
while :; do
  if [ -e "$from/$file" ]; then
    mv "$from/$file" "$to" && : > "$from/$file.taken" && exit 0
    exit 255
  fi
  [ -e "$from/$file.taken" ] && exit 1
  [ -e "$from/failed" ] && exit 255
  [ -d '/proc/@PID@' ] || exit 255
  sleep 0.02
done
"#;

/// What the server is given.
#[derive(Debug, Clone)]
pub(super) struct Feed {
    directory: PathBuf,
    /// Segments that the server has taken.
    pub(super) taken: Arc<AtomicU64>,
}

impl Feed {
    /// Makes the directory and the script, and puts the history files there.
    pub(super) async fn prepare(archive: &Archive, plan: &Plan, place: &Place) -> Result<Self, Error> {
        let directory = place.run.join("wal");
        let from = directory.display().to_string();
        if from.contains(['\'', '"', '\\', '%', '\n']) {
            return Err(Error::Path { path: directory });
        }
        make_directory(&directory, place.user).map_err(local("making the directory of the log"))?;
        let names = plan
            .histories
            .iter()
            .chain(&plan.segments)
            .map(|needed| needed.name.as_str());
        let expected: String = names.flat_map(|name| [name, "\n"]).collect();
        let script = SCRIPT
            .replace("@FROM@", &from)
            .replace("@PID@", &std::process::id().to_string());
        for (name, text) in [("expected", expected), ("get", script)] {
            write_file(&directory.join(name), text.as_bytes(), place.user)
                .map_err(local("writing the log's script"))?;
        }
        for needed in &plan.histories {
            let bytes = archive.fetch(&needed.archived, Vec::new()).await?;
            write_file(&directory.join(&needed.name), &bytes, place.user).map_err(local("writing a history file"))?;
        }
        Ok(Self {
            directory,
            taken: Arc::new(AtomicU64::new(0)),
        })
    }

    /// What the server's `restore_command` says.
    pub(super) fn command(&self) -> String {
        format!("/bin/sh '{}/get' '%f' '%p'", self.directory.display())
    }

    /// Fetches every segment of the plan, ahead of the server. Ends when all have been put there.
    pub(super) async fn run(&self, archive: &Archive, segments: &[Needed], place: &Place) -> Result<(), Error> {
        let fetched = stream::iter(segments.to_vec())
            .map(|needed: Needed| async move {
                let bytes = archive.fetch(&needed.archived, Vec::new()).await;
                (needed, bytes)
            })
            .buffered(PARALLEL);
        tokio::pin!(fetched);
        let mut there = 0_usize;
        while let Some((needed, bytes)) = fetched.next().await {
            let put = match bytes {
                Ok(bytes) => self
                    .put(&needed.name, &bytes, place)
                    .map_err(local("writing a segment")),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = put {
                // The server must not take the end of what it was given for the end of the log.
                drop(write_file(&self.directory.join("failed"), b"", place.user));
                return Err(error);
            }
            there = there.saturating_add(1);
            // The first that the server wants is that of the checkpoint, which may lie far behind the first of the log.
            while there >= self.count_taken(segments).saturating_add(AHEAD) && there > self.wanted(segments) {
                tokio::time::sleep(POLL).await;
            }
        }
        while self.count_taken(segments) < segments.len() {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn put(&self, name: &str, bytes: &[u8], place: &Place) -> io::Result<()> {
        let part = self.directory.join(format!("{name}.part"));
        write_file(&part, bytes, place.user)?;
        std::fs::rename(part, self.directory.join(name))
    }

    /// The place in the plan of what the server waits for.
    fn wanted(&self, segments: &[Needed]) -> usize {
        let wanted = std::fs::read_to_string(self.directory.join("wanted")).unwrap_or_default();
        segments.iter().position(|needed| needed.name == wanted).unwrap_or(0)
    }

    /// They are taken in order, so it is enough to look at the next ones.
    fn count_taken(&self, segments: &[Needed]) -> usize {
        let mut taken = usize::try_from(self.taken.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        while segments
            .get(taken)
            .is_some_and(|needed| is_there(&self.directory, &needed.name))
        {
            taken = taken.saturating_add(1);
        }
        self.taken.store(taken as u64, Ordering::Relaxed);
        taken
    }
}

fn is_there(directory: &Path, name: &str) -> bool {
    directory.join(format!("{name}.taken")).exists()
}
