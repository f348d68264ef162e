//! Who comes first when there are not enough cores for all.

use rustix::process::{Pid, getpriority_process};

use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::wait;

/// The name and the nice value of each thread of the gate.
fn threads(gate: &Gate) -> Vec<(String, i32)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", gate.pid())).expect("Linux tells");
    tasks
        .filter_map(|task| {
            let task = task.ok()?;
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            let thread = Pid::from_raw(task.file_name().to_str()?.parse().ok()?);
            Some((name, getpriority_process(thread).ok()?))
        })
        .collect()
}

#[tokio::test]
async fn threads_of_the_vault_are_behind_those_of_the_gate() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    // A thread is there a moment before it has its name and its place.
    wait::until("the vault behind the workers", async || {
        let threads = threads(&gate);
        let nice_of = |beginning: &str| -> Vec<i32> {
            let named = threads.iter().filter(|(name, _)| name.starts_with(beginning));
            named.map(|(_, nice)| *nice).collect()
        };
        let (worst, least) = (
            nice_of("worker-").into_iter().max()?,
            nice_of("vault").into_iter().min()?,
        );
        ((worst + 10).min(19) == least).then_some(())
    })
    .await;
}
