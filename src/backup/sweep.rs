//! Removing what runs left that did not finish. Such a folder has no manifest, so nobody takes it for a backup; it only
//! takes room.

use std::time::Duration;

use ulid::Ulid;

use super::{Error, Vault};
use crate::clock::Clock;
use crate::repository::layout;

/// Whoever runs on another machine has long ended by then; and whoever has lost a manifest has had time to notice: the
/// parts beside it may be whole, and open by hand.
const GRACE: Duration = Duration::from_hours(48);

/// The folder of a backup without its manifest.
pub(super) struct Unfinished {
    pub(super) id: Ulid,
    pub(super) folder: String,
    pub(super) has_objects: bool,
}

impl Vault {
    /// The folders without a manifest, of which `keys` are the objects.
    pub(super) fn unfinished(&self, keys: &[(String, u64)]) -> Result<Vec<Unfinished>, Error> {
        let folders = self.repository.backup_folders(keys)?.into_iter();
        let unfinished = folders.filter_map(|folder| {
            let id = layout::id_of_folder(&folder.path).filter(|_| !folder.has_manifest)?;
            let inside = format!("{}/", folder.path);
            let has_objects = keys.iter().any(|(key, _)| key.starts_with(&inside));
            Some(Unfinished {
                id,
                folder: folder.path,
                has_objects,
            })
        });
        Ok(unfinished.collect())
    }

    /// Removes unfinished folders; the caller holds the lock.
    pub(super) async fn sweep_unfinished(&self) -> Result<(), Error> {
        // The lock of a directory is held, so nobody else writes there now.
        let is_alone = self.repository.directory().is_some();
        let keys = self.keys().await?;
        for Unfinished {
            id,
            folder,
            has_objects,
        } in self.unfinished(&keys)?
        {
            if (is_alone && !has_objects) || is_old(id.timestamp_ms(), &self.clock) {
                self.repository.remove_folder(&folder).await?;
            } else if has_objects {
                tracing::warn!(
                    folder,
                    "data without a manifest: a run that was cut short, or a manifest that was lost; it goes two days after it began"
                );
            }
        }
        Ok(())
    }
}

fn is_old(began_ms: u64, clock: &Clock) -> bool {
    let now = u64::try_from(clock.wall().as_millisecond()).unwrap_or(0);
    // One from the future is not old: the clock jumped.
    u128::from(now.saturating_sub(began_ms)) > GRACE.as_millis()
}
