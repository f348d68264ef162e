//! Clients that ask without pause while something else happens: none of them may fail, and each answer is timed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::client::{Answer, Raw};
use super::wait;

const CLIENTS: usize = 8;
/// A gate that drains waits so long for the next request on a connection.
pub(crate) const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// Half of the clients ask on one connection each, half on a new one for every request.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    /// How long each answer took so far.
    taken: Arc<Mutex<Vec<Duration>>>,
    clients: JoinSet<Result<(), String>>,
}

impl Load {
    pub(crate) fn start(address: SocketAddr) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            taken: Arc::default(),
            clients: JoinSet::new(),
        };
        for number in 0..CLIENTS {
            let (stop, taken) = (Arc::clone(&load.stop), Arc::clone(&load.taken));
            load.clients.spawn(async move {
                let mut kept: Option<(Raw, Instant)> = None;
                while !stop.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    let (mut raw, last) = match kept.take() {
                        Some((raw, last)) if number % 2 == 0 => (raw, Some(last)),
                        _ => (Raw::plain(address).await, None),
                    };
                    let answer = match ask(&mut raw).await {
                        Ok(answer) => answer,
                        // This client stood still for too long, and asks again, as any would.
                        Err(_) if last.is_some_and(|last| last.elapsed() >= DRAIN_GRACE) => continue,
                        Err(error) => return Err(error),
                    };
                    if answer.status != 200 {
                        return Err(format!("{answer:?}"));
                    }
                    let mut taken = taken.lock().map_err(|_| "another client panicked")?;
                    taken.push(begin.elapsed());
                    drop(taken);
                    // A draining gate says that this was the last answer; a client that heeds it loses nothing.
                    if answer.header("connection") != Some("close") {
                        kept = Some((raw, begin));
                    }
                }
                Ok(())
            });
        }
        load
    }

    fn answered(&self) -> usize {
        self.taken.lock().expect("no client panics").len()
    }

    /// Waits until so many more requests have been answered.
    pub(crate) async fn goes_on(&self, more: usize) {
        let from = self.answered();
        wait::until("more answers", async || (self.answered() >= from + more).then_some(())).await;
    }

    /// How long the answers took since the last call of this, the quickest first; at least so many.
    pub(crate) async fn latencies(&self, at_least: usize) -> Vec<Duration> {
        wait::until("answers to time", async || (self.answered() >= at_least).then_some(())).await;
        let mut taken = std::mem::take(&mut *self.taken.lock().expect("no client panics"));
        taken.sort_unstable();
        taken
    }

    /// Fails if any request did.
    pub(crate) async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("no client panics").expect("no request fails");
        }
    }
}

async fn ask(raw: &mut Raw) -> Result<Answer, String> {
    raw.try_send("GET /load HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .map_err(|error| format!("sending: {error}"))?;
    let answer = wait::within("an answer under load", raw.try_answer()).await;
    answer.ok_or_else(|| "a connection ended without an answer".to_owned())
}
