//! Tells the outside that Foregate is ready: systemd, and whoever asked for an address file.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use sd_notify::NotifyState;

use super::build::Running;
use crate::proxy::Gate;

/// Names a file that receives the bound addresses as JSON once everything listens: for tests and scripts that use port 0.
const ADDRESS_FILE_VARIABLE: &str = "FOREGATE_ADDRESS_FILE";

/// Fails at nothing: a predecessor may be draining already, and somebody has to serve.
pub(super) fn ready(running: &Running) {
    let gate = running.gate.addresses();
    let redirect = running.gate.redirects();
    let admin = running.admin.address().ok();
    if let Some(path) = std::env::var_os(ADDRESS_FILE_VARIABLE) {
        let json = serde_json::json!({ "gate": gate, "redirect": redirect, "admin": admin });
        if let Err(error) = write_whole(Path::new(&path), json.to_string().as_bytes()) {
            tracing::error!(%error, "{ADDRESS_FILE_VARIABLE} cannot be written");
        }
    }
    // Without systemd there is nobody to tell, which is no error.
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(%error, "systemd cannot be told that Foregate is ready");
    }
    let admin = admin.map_or_else(String::new, |address| address.to_string());
    tracing::info!(?gate, ?redirect, admin, "serving");
}

/// Pings systemd's watchdog for as long as every worker makes progress (sd_watchdog_enabled(3)).
pub(super) async fn watchdog(gate: Arc<Gate>) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticker = tokio::time::interval(limit / 3);
    loop {
        ticker.tick().await;
        let stuck = gate.stuck_for();
        if stuck > limit / 2 {
            tracing::error!(?stuck, "a worker makes no progress; the watchdog is not pinged");
        } else if let Err(error) = sd_notify::notify(&[NotifyState::Watchdog]) {
            tracing::warn!(%error, "the watchdog cannot be pinged");
        }
    }
}

/// From now on the process `pid` is the service (MAINPID of sd_notify(3)), and it alone is heard. So a reload that is under
/// way here is over for systemd, and the successor has the watchdog's whole time for its first ping.
pub(super) fn succeeded_by(pid: u32) {
    let states = [NotifyState::MainPid(pid), NotifyState::Ready, NotifyState::Watchdog];
    if let Err(error) = sd_notify::notify(&states) {
        tracing::warn!(%error, pid, "systemd cannot be told about the successor");
    }
}

pub(super) fn stopping() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Stopping]) {
        tracing::warn!(%error, "systemd cannot be told that Foregate is stopping");
    }
}

/// Never seen half written.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    std::fs::rename(&temporary, path)
}
