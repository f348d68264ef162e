//! What keeps a clean-up from deleting the backup that is being restored.

use ulid::Ulid;

use super::{Error, Vault};

impl Vault {
    /// As the repository's own.
    ///
    /// # Errors
    /// Of the store.
    pub(super) async fn lease(&self, id: Ulid, notes: &mut Vec<String>) -> Result<Option<String>, Error> {
        Ok(self.repository.lease(id, self.clock.wall(), notes).await?)
    }

    /// As the repository's own.
    pub(super) async fn end_lease(&self, lease: Option<String>) -> Option<String> {
        self.repository.end_lease(lease).await
    }
}
