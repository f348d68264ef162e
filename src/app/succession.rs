//! SIGUSR2: the binary is started anew, one at a time, and whoever takes over (`handover`) is waited for.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::task::JoinSet;

use super::handover::{Door, Listening, START_TIMEOUT};
use crate::telemetry::health::{Board, Condition};

/// The name under which it stands on the health board, where it was in trouble.
const PART: &str = "handover";
/// Between two attempts to open the door.
const RETRY: Duration = Duration::from_secs(5);
/// How long a successor may take from its start: to read its configuration, and to serve once it has the sockets.
const PATIENCE: Duration = START_TIMEOUT.saturating_add(Duration::from_secs(30));

#[derive(Debug)]
pub(super) struct Succession {
    orders: Signal,
    state_dir: PathBuf,
    board: Board,
    /// Where it cannot be opened (a disk that takes no writes), only an upgrade is in the way, and no traffic.
    door: Option<Door>,
}

impl Succession {
    /// `orders` is SIGUSR2.
    pub(super) fn prepare(orders: Signal, state_dir: &Path, board: &Board) -> Self {
        let mut succession = Self {
            orders,
            state_dir: state_dir.to_owned(),
            board: board.clone(),
            door: None,
        };
        if let Err(error) = succession.open() {
            tracing::error!("{error}");
        }
        succession
    }

    fn open(&mut self) -> Result<(), String> {
        let opened = Door::open(&self.state_dir).map_err(|error| format!("no successor can take over: {error:#}"));
        match opened {
            Ok(door) => self.door = Some(door),
            Err(text) => {
                self.board.set(PART, Condition::Degraded(text.clone()));
                return Err(text);
            }
        }
        Ok(())
    }

    /// Returns the process id of the one that has taken over. Each SIGUSR2 starts one.
    pub(super) async fn successor(mut self, sockets: &Listening) -> Option<u32> {
        let (door, mut is_ordered) = self.opened().await;
        // For as long as it takes: what has begun there would be lost with it.
        let mut taken = pin!(door.successor(sockets));
        let mut started = JoinSet::new();
        loop {
            if std::mem::take(&mut is_ordered) {
                match started.is_empty() {
                    true => drop(started.spawn(run())),
                    false => tracing::warn!("SIGUSR2 is ignored: a successor is under way"),
                }
            }
            tokio::select! {
                pid = &mut taken => return pid,
                Some(()) = self.orders.recv() => is_ordered = true,
                Some(_) = started.join_next() => {}
            }
        }
    }

    /// Waits until the door is open; with whether a successor is to be started. Without the door none could take over, and
    /// two would serve side by side for ever.
    async fn opened(&mut self) -> (Door, bool) {
        let mut is_ordered = false;
        loop {
            if let Some(door) = self.door.take() {
                return (door, is_ordered);
            }
            tokio::select! {
                Some(()) = self.orders.recv() => is_ordered = true,
                () = tokio::time::sleep(RETRY) => {}
            }
            match self.open() {
                Ok(()) => {
                    tracing::info!("successors can take over again");
                    self.board.set(PART, Condition::Healthy);
                }
                Err(error) if std::mem::take(&mut is_ordered) => {
                    tracing::error!("SIGUSR2 is ignored: {error}");
                }
                Err(_) => {}
            }
        }
    }
}

/// Starts a successor and waits for its end, which this process sees only if it fails: then it says so, and no zombie stays.
async fn run() {
    let mut successor = match start() {
        Ok(child) => child,
        Err(error) => return tracing::error!(%error, "SIGUSR2: no successor can be started"),
    };
    tracing::info!(pid = successor.id(), "SIGUSR2: started a successor");
    match tokio::time::timeout(PATIENCE, successor.wait()).await {
        Ok(Ok(status)) => tracing::error!(%status, "the successor ended before it took over; going on"),
        Ok(Err(error)) => tracing::error!(%error, "the successor cannot be waited for"),
        Err(_) => tracing::error!(
            pid = successor.id(),
            "the successor neither took over nor ended; it is waited for no longer"
        ),
    }
}

/// The binary anew with the same arguments: after an upgrade of the file, that is the new version.
#[expect(
    clippy::disallowed_methods,
    reason = "the successor must outlive this process, unlike the children of backups"
)]
fn start() -> std::io::Result<tokio::process::Child> {
    let mut arguments = std::env::args_os();
    let mut command = tokio::process::Command::new(arguments.next().unwrap_or_default());
    // It would tell the successor that the watchdog waits for another process (sd_watchdog_enabled(3)): without it, and with
    // the limit still there, the successor pings, as the service's new main process must.
    command.args(arguments).env_remove("WATCHDOG_PID").spawn()
}
