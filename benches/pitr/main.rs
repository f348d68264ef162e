//! The log's archive beside pgBackRest's, on the same machine, the same segments, in the same run: what a push costs,
//! and how fast a recovery is fed. Needs root (clusters run as `postgres`) and, for the other side, `pgbackrest`.

#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    reason = "a benchmark starts processes and reads the real clock"
)]

#[path = "../../tests/pitr/support/mod.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod support;
mod wal;

fn main() {
    wal::compare();
}
