//! Waiting for a condition with a deadline, never for an amount of time.

use std::time::{Duration, Instant};

/// Long enough for a busy machine; a passing test never spends it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// Probes until the answer is there; the panic names what was awaited.
pub(crate) async fn until<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    until_at_most(DEADLINE, what, probe).await
}

/// The same for what takes many steps.
pub(crate) async fn until_at_most<T>(limit: Duration, what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// The future's answer, or a panic that names it.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(answer) => answer,
        Err(_) => panic!("waited {DEADLINE:?} in vain for {what}"),
    }
}
