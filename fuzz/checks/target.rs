//! Targets and hosts: a normalised path has no tricks left, and normalising it again changes nothing.

use foregate::proxy::target::{is_valid_host, normalise};

pub(crate) fn check(bytes: &[u8]) {
    if is_valid_host(bytes) {
        assert!(bytes.len() <= 261 && bytes.is_ascii());
        assert!(!bytes.iter().any(|byte| b"@/?#\\ \t\r\n\0".contains(byte)));
    }
    let Ok(path) = std::str::from_utf8(bytes) else { return };
    let Ok(once) = normalise(path) else { return };
    assert!(once.starts_with('/') && once.is_ascii());
    assert!(!once.contains("//") && !once.contains('\\'), "{once}");
    for segment in once.split('/') {
        assert!(segment != "." && segment != "..", "{once}");
    }
    let lower = once.to_ascii_lowercase();
    assert!(
        !["%2e", "%2f", "%5c", "%00"].iter().any(|code| lower.contains(code)),
        "{once}"
    );
    assert_eq!(normalise(&once).as_deref(), Ok(&*once));
}
