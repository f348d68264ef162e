//! Manifests of backups, which lie where others may write.

use foregate::repository::manifest::Manifest;

pub(crate) fn check(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        // Whatever it says may be added up and looked up.
        let _total = manifest.stored_bytes();
        let _part = manifest.part("dump");
    }
}
