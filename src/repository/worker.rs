//! Threads for work that is long and not urgent: while cores are wanted by others, the gate first of all, they wait.

use tokio::sync::oneshot;

use crate::priority;

/// Runs `work` on a thread of its own, this far behind the gate's; so are threads that it starts. Not one of tokio's, since a
/// priority that was lowered cannot be raised again. The receiver hears nothing where `work` panicked, or no thread could be
/// had.
pub(super) fn spawn<T: Send + 'static>(behind: i32, work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
    let (done, ended) = oneshot::channel();
    let started = std::thread::Builder::new().spawn(move || {
        priority::fall_behind(behind);
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

    #[tokio::test]
    async fn work_is_behind_and_nobody_else() {
        assert_eq!(spawn(3, || priority::further(5)).await, Ok(2));
        assert_eq!(priority::further(5), 5);
    }

    #[tokio::test]
    async fn work_that_panics_is_heard_of() {
        let panicking = spawn(0, || {
            std::panic::resume_unwind(Box::new("for a test"));
        });
        assert!(panicking.await.is_err());
    }
}
