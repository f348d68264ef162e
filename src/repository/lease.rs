//! What keeps a clean-up from deleting what is being read.

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use ulid::Ulid;

use super::manifest::Lease;
use super::{Error, Repository, layout};
use crate::telemetry::cause::chain;

/// A lease of ours.
#[derive(Debug)]
pub struct Held {
    key: String,
    expires_at: Timestamp,
}

impl Repository {
    /// `lasts`: longer than the backup takes to be read; one that was left behind must not hold it for ever. `None` and a sentence
    /// in `notes` where the repository may only be read, or is full: neither keeps anybody from reading it.
    ///
    /// # Errors
    /// Of the store.
    pub async fn lease(
        &self,
        id: Ulid,
        now: Timestamp,
        lasts: Duration,
        notes: &mut Vec<String>,
    ) -> Result<Option<Held>, Error> {
        let holder = Ulid::generate();
        let expires_at = now.saturating_add(lasts).unwrap_or(Timestamp::MAX);
        let key = layout::lease(id, holder);
        let lease = serde_json::to_vec_pretty(&Lease { id, holder, expires_at }).unwrap_or_default();
        match self.create(&key, lease).await {
            Ok(_) => Ok(Some(Held { key, expires_at })),
            Err(error) => {
                let why = match () {
                    () if may_only_read(&error) => "may only be read",
                    () if is_full(&error) => "is full",
                    () => return Err(error),
                };
                notes.push(format!(
                    "the backup was not kept from a clean-up of others, since the repository {why}: {}",
                    chain(&error)
                ));
                Ok(None)
            }
        }
    }

    /// A lease that stays ends by itself: it is no reason to call a restore failed, but a note.
    pub async fn end_lease(&self, lease: Option<Held>) -> Option<String> {
        let Held { key, expires_at } = lease?;
        let error = self.delete(&key).await.err()?;
        Some(format!(
            "the backup is kept from a clean-up until {expires_at:.0}, since its lease could not be taken off: {}",
            chain(&error)
        ))
    }
}

/// Whether the store refuses writing as such: a file system by its mount or its modes, a bucket by the rights of our key.
#[must_use]
pub fn may_only_read(error: &Error) -> bool {
    causes(error).any(|cause| {
        let is_denied = |error: &object_store::Error| matches!(error, object_store::Error::PermissionDenied { .. });
        cause.downcast_ref().is_some_and(is_forbidden) || cause.downcast_ref().is_some_and(is_denied)
    })
}

/// Whether its disk, or our share of it, has no room left.
fn is_full(error: &Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    let is_full = |error: &io::Error| matches!(error.kind(), StorageFull | QuotaExceeded);
    causes(error).any(|cause| cause.downcast_ref().is_some_and(is_full))
}

fn causes(error: &Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| error.source())
}

/// Whether it is the mount or the modes that forbid it.
#[must_use]
pub fn is_forbidden(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_is_told_from_one_that_forbids_writing_and_from_one_that_is_broken() {
        for (kind, is_read_only, has_no_room) in [
            (io::ErrorKind::StorageFull, false, true),
            (io::ErrorKind::QuotaExceeded, false, true),
            (io::ErrorKind::ReadOnlyFilesystem, true, false),
            (io::ErrorKind::PermissionDenied, true, false),
            (io::ErrorKind::TimedOut, false, false),
        ] {
            let source = object_store::Error::Generic {
                store: "LocalFileSystem",
                source: Box::new(io::Error::from(kind)),
            };
            let error = Error::Store {
                act: "writing",
                key: "leases/x".to_owned(),
                source,
            };
            assert_eq!(
                (may_only_read(&error), is_full(&error)),
                (is_read_only, has_no_room),
                "{kind}"
            );
        }
    }
}
