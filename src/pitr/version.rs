//! What differs between the PostgreSQL versions that are supported, 13 to 17: all in one place.

/// Whether recovery has paused at its target, as a query with a boolean.
#[must_use]
pub fn paused(major: u32) -> &'static str {
    match major {
        // It says so as soon as a pause is asked for; at a target that is the same instant.
        ..=13 => "SELECT pg_is_wal_replay_paused()",
        _ => "SELECT pg_get_wal_replay_pause_state() = 'paused'",
    }
}

/// Whether `pg_amcheck` comes with the server.
#[must_use]
pub fn has_amcheck(major: u32) -> bool {
    major >= 14
}
