//! The composition root: build in order, run, reload, drain. The only place that knows all parts.

mod announce;
mod build;
mod limits;
mod reload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Loaded, Overrides};
use crate::telemetry::logging;
use build::Running;

/// The control plane's threads: admin, store, schedules. Small, since nothing there is on a request's path.
const CONTROL_THREADS: usize = 2;
/// How long the control plane gets to write what is queued once the gate has drained.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the configuration comes from, at start and at each reload.
#[derive(Debug, Clone)]
pub struct Origin {
    pub path: Option<PathBuf>,
    pub overrides: Overrides,
}

/// Serves until SIGTERM or SIGINT, then drains.
pub fn run(origin: Origin, loaded: Loaded) -> anyhow::Result<()> {
    logging::start(loaded.config.log.format);
    limits::raise_open_files();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // Set already only when several gates run in one process, as tests do: the same provider either way.
    drop(provider.install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("the control runtime cannot be started")?;
    runtime.block_on(serve(origin, loaded))
}

async fn serve(origin: Origin, loaded: Loaded) -> anyhow::Result<()> {
    // Before anything else, so that a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("signals cannot be received")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be received")?;
    let drain_timeout = loaded.config.proxy.server.drain_timeout;

    let running = build::start(&loaded).await?;
    announce::ready(&running)?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
    }
    announce::stopping();
    stop(running, drain_timeout).await;
    Ok(())
}

/// The gate first, so that what its last requests caused can still be stored; the admin listener last, so that the
/// drain can be watched.
async fn stop(running: Running, drain_timeout: Duration) {
    let Running {
        gate,
        access_log,
        access_writer,
        ..
    } = running;
    match Arc::try_unwrap(gate) {
        Ok(gate) => gate.drain(drain_timeout).await,
        Err(_) => tracing::error!("a reload still holds the gate; ending without a drain"),
    }
    drop(access_log);
    access_writer.stop();
    tracing::info!("stopped");
}
