//! What differs between the major versions of PostgreSQL, in one place.

/// The oldest and the newest that are supported.
pub const SUPPORTED: std::ops::RangeInclusive<u32> = 13..=18;

/// The major version that writes log pages with this number at their head.
#[must_use]
pub fn major_of_page_magic(magic: u16) -> Option<u32> {
    match magic {
        0xD106 => Some(13),
        0xD10D => Some(14),
        0xD110 => Some(15),
        0xD113 => Some(16),
        0xD116 => Some(17),
        0xD118 => Some(18),
        _ => None,
    }
}
