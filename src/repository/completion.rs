//! The end of an upload: the store puts its parts together, which may take it minutes, and an answer may be lost.

use std::time::Duration;

use super::Error;
use super::storage::{Repository, within_limit};
use super::transfer::{Piece, abort};

/// A bucket copies, or writes down where all parts are; S3 speaks of several minutes, and sends spaces meanwhile.
pub(super) const COMPLETION_TIMEOUT: Duration = Duration::from_mins(15);
/// A directory syncs a whole file when it is completed: as much as memory holds may still have to be written then.
const SYNC_TIMEOUT: Duration = Duration::from_hours(2);
/// How often it is looked whether a silent store is done.
const LOOK: Duration = Duration::from_secs(2);

impl Repository {
    /// Returns the key. An upload that cannot be completed is taken back.
    pub(super) async fn complete(&self, mut piece: Piece) -> Result<String, Error> {
        let limit = self.directory.as_ref().map_or(COMPLETION_TIMEOUT, |_| SYNC_TIMEOUT);
        let completed = within_limit(limit, "completing", &piece.key, piece.upload.complete()).await;
        let Err(error) = completed else {
            return Ok(piece.key);
        };
        if self.directory.is_none() && self.is_there(&piece.key, piece.bytes, is_unanswered(&error)).await {
            return Ok(piece.key);
        }
        abort(piece).await;
        Err(error)
    }

    /// Whether the object is there all the same. Its key is that of no other, and its length that of what was uploaded: when
    /// the answer was lost, a store that is asked again may know of no such upload, since that has become the object. One
    /// that gave no answer at all may still be about it; an abort would undo what it does.
    async fn is_there(&self, key: &str, bytes: u64, may_come: bool) -> bool {
        let looking = async {
            loop {
                match self.object_size(key).await {
                    Ok(Some(found)) if found == bytes => return true,
                    _ if may_come => tokio::time::sleep(LOOK).await,
                    _ => return false,
                }
            }
        };
        let found = tokio::time::timeout(COMPLETION_TIMEOUT, looking).await;
        found.unwrap_or(false)
    }
}

fn is_unanswered(error: &Error) -> bool {
    match error {
        Error::Slow { .. } => true,
        #[cfg(feature = "object-store-cloud")]
        Error::Store { source, .. } => super::bucket::is_unanswered(source),
        _ => false,
    }
}
