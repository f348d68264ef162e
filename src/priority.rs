//! How far a thread is behind the gate's when there are not enough cores for all: its nice value, counted from that of the
//! process's first thread. It is inherited by the threads and programs that the thread starts, and only ever lowered, since
//! raising it again is a privilege (setpriority(2)).

/// Long work that nobody waits for with a request in hand.
pub const BEHIND: i32 = 10;
/// Behind that as well.
pub const LAST: i32 = 15;

/// Puts the calling thread `by` behind the process's first. Refused to nobody; and if it were, it would only be in the way.
pub fn fall_behind(by: i32) {
    let _ = rustix::process::nice(further(by));
}

/// What the calling thread's nice value lacks to be `by` behind the process's first.
#[must_use]
pub fn further(by: i32) -> i32 {
    let own = rustix::process::getpriority_process(None).ok();
    // The first thread has the process's number.
    let first = rustix::process::getpriority_process(Some(rustix::process::getpid())).ok();
    let behind = own.zip(first).map(|(own, first)| own - first);
    (by - behind.unwrap_or_default()).max(0)
}

/// A runtime with all its threads [`BEHIND`], those for blocking calls too.
///
/// # Errors
/// When its threads or its poll cannot be had.
pub fn runtime_behind(name: &str, threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .on_thread_start(|| fall_behind(BEHIND))
        .enable_all()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind() -> i32 {
        100 - further(100)
    }

    #[test]
    fn thread_falls_behind_as_far_as_it_is_told_and_no_further() {
        let told = std::thread::spawn(|| {
            fall_behind(3);
            let once = behind();
            fall_behind(3);
            fall_behind(2);
            let inherited = std::thread::spawn(behind).join().expect("asked");
            (once, behind(), inherited)
        });
        assert_eq!(told.join().expect("asked"), (3, 3, 3));
        assert_eq!(behind(), 0, "a test's thread is not the one that fell behind");
    }

    #[test]
    fn every_thread_of_a_runtime_that_is_behind_is_behind() {
        let runtime = runtime_behind("test", 1).expect("a runtime");
        let (task, blocking) = (runtime.spawn(async { behind() }), runtime.spawn_blocking(behind));
        let both = runtime.block_on(async { (task.await.expect("ran"), blocking.await.expect("ran")) });
        assert_eq!(both, (BEHIND, BEHIND));
    }
}
