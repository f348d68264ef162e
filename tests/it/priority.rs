//! Who comes first when there are not enough cores for all.

use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};

/// The name and the nice value of each thread of the gate (proc(5), `/proc/pid/stat`).
fn threads(gate: &Gate) -> Vec<(String, i32)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", gate.pid())).expect("Linux tells");
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    stats
        .map(|stat| {
            let (before, after) = stat.rsplit_once(')').expect("a name in parentheses");
            let (_, name) = before.split_once('(').expect("a name in parentheses");
            // The nineteenth field; the third follows the name.
            let nice = after.split_whitespace().nth(16).and_then(|field| field.parse().ok());
            (name.to_owned(), nice.expect("a nice value"))
        })
        .collect()
}

#[tokio::test]
async fn threads_of_the_vault_are_behind_those_of_the_gate() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let threads = threads(&gate);
    let nice_of = |beginning: &str| -> Vec<i32> {
        let named = threads.iter().filter(|(name, _)| name.starts_with(beginning));
        named.map(|(_, nice)| *nice).collect()
    };
    let (workers, vault) = (nice_of("worker-"), nice_of("vault"));
    assert!(!workers.is_empty() && !vault.is_empty(), "{threads:?}");
    let least = vault.iter().min();
    assert!(
        workers.iter().max().map(|nice| (nice + 10).min(19)).as_ref() == least,
        "{threads:?}"
    );
}
