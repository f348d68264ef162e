//! Removing what runs left that did not finish. Such a folder has no manifest, so nobody takes it for a backup; it only
//! takes room.

use std::time::Duration;

use super::{Error, Vault};
use crate::clock::Clock;
use crate::repository::layout;

/// Whoever runs on another machine has long ended by then; and whoever has lost a manifest has had time to notice: the
/// parts beside it may be whole, and open by hand.
const GRACE: Duration = Duration::from_hours(48);

impl Vault {
    /// Removes unfinished folders; the caller holds the lock.
    pub(super) async fn sweep_unfinished(&self) -> Result<(), Error> {
        // The lock of a directory is held, so nobody else writes there now.
        let is_alone = self.repository.directory().is_some();
        let keys = self.keys().await?;
        for folder in self.repository.backup_folders(&keys)? {
            let Some(id) = layout::id_of_folder(&folder.path).filter(|_| !folder.has_manifest) else {
                continue;
            };
            let inside = format!("{}/", folder.path);
            let has_objects = keys.iter().any(|(key, _)| key.starts_with(&inside));
            if (is_alone && !has_objects) || is_old(id.timestamp_ms(), &self.clock) {
                self.repository.remove_folder(&folder.path).await?;
            } else if has_objects {
                tracing::warn!(
                    folder = folder.path,
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
