//! Threads for work that is long and not urgent: while cores are wanted by others, the gate first of all, they wait.

use tokio::sync::oneshot;

/// As the programs that feed us or are fed by us.
pub(super) const BEHIND: i32 = 10;
/// Behind those as well.
pub(super) const LAST: i32 = 15;

/// Runs `work` on a thread of its own at `nice`; threads that it starts are as nice. Not one of tokio's, since a priority
/// that was lowered cannot be raised again. The receiver hears nothing where `work` panicked, or no thread could be had.
pub(super) fn spawn<T: Send + 'static>(nice: i32, work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
    let (done, ended) = oneshot::channel();
    let started = std::thread::Builder::new().spawn(move || {
        // Refused to nobody; and if it were, the work would only be in the way.
        let _ = rustix::process::nice(nice);
        // Nobody waits any more where the whole run was given up.
        drop(done.send(work()));
    });
    // `done` went with the work that could not begin.
    drop(started);
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_nice() -> i32 {
        rustix::process::nice(0).expect("asked")
    }

    #[tokio::test]
    async fn work_and_its_threads_are_nice_and_nobody_else() {
        let before = own_nice();
        let both = spawn(3, || (own_nice(), std::thread::spawn(own_nice).join().expect("asked")));
        assert_eq!(both.await, Ok((before + 3, before + 3)));
        assert_eq!(own_nice(), before);
    }

    #[tokio::test]
    async fn work_that_panics_is_heard_of() {
        let panicking = spawn(0, || {
            std::panic::resume_unwind(Box::new("for a test"));
        });
        assert!(panicking.await.is_err());
    }
}
