//! Reload: a new configuration is built whole, then swapped part by part; a broken one changes nothing and is visible in
//! the log, the metrics, `/health` and the admin page.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::Origin;
use super::build::Running;
use crate::admin;
use crate::backup;
use crate::clock::Clock;
use crate::config::watch::{Handle, Pace, Watcher};
use crate::config::{self, Config, Loaded, Style, diff};
use crate::guard::Guard;
use crate::proxy::{self, Gate};
use crate::telemetry::access_log;
use crate::telemetry::alert::Alerts;
use crate::telemetry::health::{Board, Condition};

/// The name under which the configuration stands on the health board.
const PART: &str = "config";

#[derive(Debug)]
pub(super) struct Reloader {
    origin: Origin,
    current: Mutex<Config>,
    gate: Arc<Gate>,
    admin: Arc<admin::Listener>,
    guard: Arc<Guard>,
    access_log: access_log::Sink,
    alerts: Alerts,
    vault: backup::Service,
    board: Board,
    clock: Clock,
    metrics: Metrics,
}

#[derive(Debug)]
struct Metrics {
    reloads: IntCounterVec,
    last_success: IntGauge,
    last_success_time: IntGauge,
}

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}", config::report(.0, Style::Plain))]
    Config(config::Errors),
    #[error(transparent)]
    Gate(#[from] proxy::Error),
    #[error(transparent)]
    Admin(#[from] admin::Error),
}

impl Reloader {
    pub(super) fn new(origin: Origin, loaded: &Loaded, running: &Running) -> anyhow::Result<Self> {
        let metrics = Metrics::register(&running.registry).context("the reload metrics cannot be registered")?;
        let reloader = Self {
            origin,
            current: Mutex::new(loaded.config.clone()),
            gate: Arc::clone(&running.gate),
            admin: Arc::clone(&running.admin),
            guard: Arc::clone(&running.guard),
            access_log: running.access_log.clone(),
            alerts: running.alerts.clone(),
            vault: running.vault.clone(),
            board: running.board.clone(),
            clock: running.clock,
            metrics,
        };
        reloader.succeeded(&[]);
        Ok(reloader)
    }

    /// Reads the configuration again and puts it into force; returns the files it depends on.
    fn reload(&self) -> Option<Vec<std::path::PathBuf>> {
        match self.try_reload() {
            Ok((files, waiting)) => {
                self.metrics.reloads.with_label_values(&["ok"]).inc();
                self.succeeded(&waiting);
                Some(files)
            }
            Err(error) => {
                self.metrics.reloads.with_label_values(&["failed"]).inc();
                self.metrics.last_success.set(0);
                tracing::error!(%error, "the new configuration is not used; the old one stays in force");
                self.board
                    .set(PART, Condition::Degraded(format!("the last reload failed: {error}")));
                None
            }
        }
    }

    fn try_reload(&self) -> Result<(Vec<std::path::PathBuf>, Vec<&'static str>), Error> {
        let loaded = Config::load(self.origin.path.as_deref(), &self.origin.overrides).map_err(Error::Config)?;
        for line in loaded.warnings.lines() {
            tracing::warn!("{line}");
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, waiting) = diff::keep_restart_only(&current, loaded.config);
        // First those that can refuse, for their certificates are read now. Should the second refuse, the first has the new
        // value already; the next successful reload brings both together.
        self.admin.reload(next.admin.clone())?;
        self.gate.reload(next.proxy.clone())?;
        self.guard.blocklist().set_protected(super::build::protected(&next));
        self.guard.reload(next.guard.clone());
        self.alerts.reload(next.alerts.clone());
        self.vault.reload(next.backup.clone());
        for change in diff::changes(&current, &next) {
            tracing::info!(key = change.key, "configuration changed");
        }
        *current = next;
        Ok((loaded.files, waiting))
    }

    fn succeeded(&self, waiting: &[&'static str]) {
        self.metrics.last_success.set(1);
        self.metrics.last_success_time.set(self.clock.wall().as_second());
        if waiting.is_empty() {
            self.board.set(PART, Condition::Healthy);
            return;
        }
        let keys = waiting.join(", ");
        tracing::warn!(keys, "these keys take effect at the next restart");
        self.board
            .set(PART, Condition::Degraded(format!("waiting for a restart: {keys}")));
    }
}

impl Metrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            reloads: IntCounterVec::new(
                Opts::new(
                    "foregate_config_reloads_total",
                    "Reloads of the configuration by result",
                ),
                &["result"],
            )?,
            last_success: IntGauge::new(
                "foregate_config_last_reload_success",
                "1: the configuration in force is the one on disk; 0: the last reload failed",
            )?,
            last_success_time: IntGauge::new(
                "foregate_config_last_reload_success_timestamp_seconds",
                "When a configuration was last put into force",
            )?,
        };
        registry.register(Box::new(metrics.reloads.clone()))?;
        registry.register(Box::new(metrics.last_success.clone()))?;
        registry.register(Box::new(metrics.last_success_time.clone()))?;
        Ok(metrics)
    }
}

/// Watches the files and SIGHUP until the set is dropped.
pub(super) fn watch(reloader: Arc<Reloader>, files: &[std::path::PathBuf]) -> anyhow::Result<JoinSet<()>> {
    let mut hangups = signal(SignalKind::hangup()).context("SIGHUP cannot be received")?;
    let (watcher, handle, mut changes) = Watcher::new(files, Pace::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(watcher.run());
    let poke: Handle = handle.clone();
    let access_log = reloader.access_log.clone();
    tasks.spawn(async move {
        while hangups.recv().await.is_some() {
            tracing::info!("SIGHUP: reloading");
            access_log.reopen();
            poke.poke();
        }
    });
    tasks.spawn(async move {
        while changes.recv().await.is_some() {
            announce_reloading();
            let reloading = Arc::clone(&reloader);
            // Reading files and certificates may wait for the disk.
            match tokio::task::spawn_blocking(move || reloading.reload()).await {
                Ok(Some(files)) => handle.follow(&files),
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "a reload ended by a panic"),
            }
            tell_systemd(&[NotifyState::Ready]);
        }
    });
    Ok(tasks)
}

fn announce_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell_systemd(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the monotonic clock cannot be read"),
    }
}

fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd cannot be told about the reload");
    }
}
