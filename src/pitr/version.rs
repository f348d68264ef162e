//! What differs between the major versions of PostgreSQL, in one place.

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

/// Whether recovery has paused at its target, as a query with a boolean.
#[must_use]
pub fn paused(major: u32) -> &'static str {
    match major {
        // It says so as soon as a pause is asked for; at a target that is the same instant.
        ..=13 => "SELECT pg_is_wal_replay_paused()",
        _ => "SELECT pg_get_wal_replay_pause_state() = 'paused'",
    }
}

/// What a commit says of each dropped statistics entry, in bytes; before 15 it says nothing of them.
#[must_use]
pub fn dropped_statistics_bytes(major: u32) -> usize {
    if major >= 18 { 16 } else { 12 }
}

/// What a recovered server must not begin by itself, beyond what every version has.
#[must_use]
pub fn quiet(major: u32) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    if major >= 17 {
        // It would read production's slots.
        settings.push(("sync_replication_slots", "off".to_owned()));
        settings.push(("summarize_wal", "off".to_owned()));
    }
    settings
}

/// Whether `pg_amcheck` comes with the server.
#[must_use]
pub fn has_amcheck(major: u32) -> bool {
    major >= 14
}

/// Whether a commit wakes a walsender that waits for its log to be archived. Up to 14 it sleeps for whole seconds
/// (`do_pg_stop_backup`), and from 16 on a commit wakes those alone that send log.
#[must_use]
pub fn commits_wake_senders(major: u32) -> bool {
    major == 15
}
