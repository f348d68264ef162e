//! The log's archive and the base backups beside pgBackRest's, on the same machine, the same bytes, in the same run: what
//! a push costs, how fast a recovery is fed, how long a copy and its restore take. Needs root (clusters run as `postgres`) and, for the other side, `pgbackrest`.

#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    reason = "a benchmark starts processes and reads the real clock"
)]

mod base;
#[path = "../../tests/pitr/support/mod.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod support;
mod wal;

fn main() {
    assert!(
        std::path::Path::new("/usr/bin/pgbackrest").exists(),
        "there is nothing to compare with: apt-get install pgbackrest"
    );
    // `cargo bench --profile fast --bench pitr -- base` and `-- wal` run one of the two.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| word == name);
    if is_wanted("wal") {
        wal::compare();
    }
    if is_wanted("base") {
        base::compare();
    }
}
