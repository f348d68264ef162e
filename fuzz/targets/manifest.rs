//! Manifests of backups, which lie where others may write.
#![no_main]

use foregate::repository::manifest::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::parse(bytes) {
        // Whatever it says may be added up and looked up.
        let _total = manifest.stored_bytes();
        let _part = manifest.part("dump");
    }
});
