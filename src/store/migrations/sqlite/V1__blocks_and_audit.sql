-- Times are microseconds since 1970, UTC.
CREATE TABLE blocks (
    network    TEXT PRIMARY KEY,
    reference  TEXT NOT NULL,
    reason     TEXT NOT NULL,
    source     TEXT NOT NULL CHECK (source IN ('manual', 'automatic')),
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) STRICT;
CREATE INDEX blocks_expires_at ON blocks (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE audit (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    origin  TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    result  TEXT NOT NULL
) STRICT;
