//! What keeps a clean-up from deleting the backup that is being restored.

use std::time::Duration;

use ulid::Ulid;

use super::verify::to_json;
use super::{Error, Vault};
use crate::repository::layout;
use crate::repository::manifest::Lease;
use crate::telemetry::cause::chain;

/// Longer than a backup takes to be read; one that was left behind must not hold it for ever.
const LEASE: Duration = Duration::from_hours(24);

impl Vault {
    pub(super) async fn lease(&self, id: Ulid) -> Result<String, Error> {
        let holder = Ulid::generate();
        let expires_at = self.clock.wall().saturating_add(LEASE).unwrap_or(jiff::Timestamp::MAX);
        let key = layout::lease(id, holder);
        self.repository
            .create(&key, to_json(&Lease { id, holder, expires_at }))
            .await?;
        Ok(key)
    }

    /// A lease that stays ends by itself: it is no reason to call a restore failed, but a note.
    pub(super) async fn end_lease(&self, lease: &str) -> Option<String> {
        let error = self.repository.delete(lease).await.err()?;
        Some(format!(
            "the backup is kept from a clean-up for a day, since its lease could not be taken off: {}",
            chain(&error)
        ))
    }
}
