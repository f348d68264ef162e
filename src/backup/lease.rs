//! What keeps a clean-up from deleting the backup that is being restored.

use std::time::Duration;

use ulid::Ulid;

use super::journal::is_forbidden;
use super::verify::to_json;
use super::{Error, Vault};
use crate::repository::manifest::Lease;
use crate::repository::{self, layout};
use crate::telemetry::cause::chain;

/// Longer than a backup takes to be read; one that was left behind must not hold it for ever.
const LEASE: Duration = Duration::from_hours(24);

impl Vault {
    /// Returns its key; `None` and a sentence in `notes` where the repository may only be read.
    ///
    /// # Errors
    /// Of the store.
    pub(super) async fn lease(&self, id: Ulid, notes: &mut Vec<String>) -> Result<Option<String>, Error> {
        let holder = Ulid::generate();
        let expires_at = self.clock.wall().saturating_add(LEASE).unwrap_or(jiff::Timestamp::MAX);
        let key = layout::lease(id, holder);
        let lease = to_json(&Lease { id, holder, expires_at });
        match self.repository.create(&key, lease).await {
            Err(error) if may_only_read(&error) => {
                notes.push(format!(
                    "the backup was not kept from a clean-up of others, since the repository may only be read: {}",
                    chain(&error)
                ));
                Ok(None)
            }
            other => Ok(other.map(|_| Some(key))?),
        }
    }

    /// A lease that stays ends by itself: it is no reason to call a restore failed, but a note.
    pub(super) async fn end_lease(&self, lease: Option<String>) -> Option<String> {
        let error = self.repository.delete(&lease?).await.err()?;
        Some(format!(
            "the backup is kept from a clean-up for a day, since its lease could not be taken off: {}",
            chain(&error)
        ))
    }
}

/// Whether the store refuses writing as such: a file system by its mount or its modes, a bucket by the rights of our key.
pub(super) fn may_only_read(error: &repository::Error) -> bool {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| error.source()).any(|cause| {
        let is_denied = |error: &object_store::Error| matches!(error, object_store::Error::PermissionDenied { .. });
        cause.downcast_ref().is_some_and(is_forbidden) || cause.downcast_ref().is_some_and(is_denied)
    })
}
