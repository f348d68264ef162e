//! Tells the outside that Foregate is ready: systemd, and whoever asked for an address file.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use sd_notify::NotifyState;

use super::build::Running;

/// Names a file that receives the bound addresses as JSON once everything listens: for tests and scripts that use port 0.
const ADDRESS_FILE_VARIABLE: &str = "FOREGATE_ADDRESS_FILE";

pub(super) fn ready(running: &Running) -> anyhow::Result<()> {
    let gate = running.gate.addresses();
    let redirect = running.gate.redirects();
    let admin = running.admin.address().context("the admin listener has no address")?;
    if let Some(path) = std::env::var_os(ADDRESS_FILE_VARIABLE) {
        let json = serde_json::json!({ "gate": gate, "redirect": redirect, "admin": admin });
        write_whole(Path::new(&path), json.to_string().as_bytes())
            .with_context(|| format!("{ADDRESS_FILE_VARIABLE} cannot be written"))?;
    }
    // Without systemd there is nobody to tell, which is no error.
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(%error, "systemd cannot be told that Foregate is ready");
    }
    tracing::info!(?gate, ?redirect, %admin, "serving");
    Ok(())
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
