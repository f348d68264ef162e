//! Removing what runs left that did not finish. Such a folder has no manifest, so nobody takes it for a backup; it only
//! takes room.

use std::time::Duration;

use super::{Error, Vault};
use crate::clock::Clock;
use crate::repository::layout;

/// Whoever runs on another machine has long ended by then. A directory needs no such wait: its lock is held.
const LONGEST_RUN: Duration = Duration::from_hours(48);

impl Vault {
    /// Removes unfinished folders; the caller holds the lock.
    pub(super) async fn sweep_unfinished(&self) -> Result<(), Error> {
        let is_alone = self.repository.directory().is_some();
        let keys = self.keys().await?;
        for folder in self.repository.backup_folders(&keys)? {
            let Some(id) = layout::id_of_folder(&folder.path).filter(|_| !folder.has_manifest) else {
                continue;
            };
            if is_alone || is_old(id.timestamp_ms(), &self.clock) {
                self.repository.remove_folder(&folder.path).await?;
            }
        }
        Ok(())
    }
}

fn is_old(began_ms: u64, clock: &Clock) -> bool {
    let now = u64::try_from(clock.wall().as_millisecond()).unwrap_or(0);
    // One from the future is not old: the clock jumped.
    u128::from(now.saturating_sub(began_ms)) > LONGEST_RUN.as_millis()
}
