//! Reload: a new configuration is built whole, then swapped part by part; a broken one changes nothing and is visible in
//! the log, the metrics, `/health` and the admin page.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use sd_notify::NotifyState;
use tokio::signal::unix::Signal;
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
use crate::telemetry::alert::Alerts;
use crate::telemetry::health::{Board, Condition};
use crate::telemetry::{access_log, logging};

/// The name under which the configuration stands on the health board.
const PART: &str = "config";

#[derive(Debug)]
pub(super) struct Reloader {
    origin: Origin,
    current: Mutex<InForce>,
    gate: Arc<Gate>,
    admin: Arc<admin::Listener>,
    guard: Arc<Guard>,
    access_log: access_log::Sink,
    log: logging::Steering,
    alerts: Alerts,
    vault: backup::Service,
    board: Board,
    clock: Clock,
    metrics: Metrics,
}

#[derive(Debug)]
struct InForce {
    config: Config,
    is_blank: bool,
    /// What it was read from.
    files: Vec<PathBuf>,
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
    #[error("the file holds no key at all: was it not written to the end?")]
    Blank,
    #[error(transparent)]
    Gate(#[from] proxy::Error),
    #[error(transparent)]
    Admin(#[from] admin::Error),
    #[error(transparent)]
    AccessLog(#[from] access_log::Error),
}

impl Reloader {
    pub(super) fn new(
        origin: Origin,
        loaded: &Loaded,
        running: &Running,
        log: logging::Steering,
    ) -> anyhow::Result<Self> {
        let metrics = Metrics::register(&running.registry).context("the reload metrics cannot be registered")?;
        let reloader = Self {
            origin,
            current: Mutex::new(InForce {
                config: loaded.config.clone(),
                is_blank: loaded.is_blank,
                files: loaded.files.clone(),
            }),
            gate: Arc::clone(&running.gate),
            admin: Arc::clone(&running.admin),
            guard: Arc::clone(&running.guard),
            access_log: running.access_log.clone(),
            log,
            alerts: running.alerts.clone(),
            vault: running.vault.clone(),
            board: running.board.clone(),
            clock: running.clock,
            metrics,
        };
        reloader.succeeded(&[]);
        Ok(reloader)
    }

    /// Reads the configuration again and puts it into force, and sees to it that what it depends on is watched: after a
    /// failure also what the new one names, since a file that is missing or wrong may be put right by itself.
    fn reload(&self, watched: &Handle) {
        // Followed first and read after that, so that no change falls between the two.
        watched.follow(&self.files());
        match self.try_reload() {
            Ok(waiting) => {
                watched.follow(&self.current().files);
                self.metrics.reloads.with_label_values(&["ok"]).inc();
                self.succeeded(&waiting);
            }
            Err(error) => {
                // With its causes.
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::error!(%error, "the new configuration is not used; the old one stays in force");
                // The reason first: whoever is called by the metric looks for it.
                self.board
                    .set(PART, Condition::Degraded(format!("the last reload failed: {error}")));
                self.metrics.reloads.with_label_values(&["failed"]).inc();
                self.metrics.last_success.set(0);
            }
        }
    }

    /// What the configuration in force was read from, and what the one on disk names.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = match self.load() {
            Ok(loaded) => loaded.files,
            Err(errors) => errors.files().to_vec(),
        };
        files.extend(self.current().files.iter().cloned());
        files
    }

    fn load(&self) -> Result<Loaded, config::Errors> {
        Config::load(self.origin.path.as_deref(), &self.origin.overrides)
    }

    fn current(&self) -> MutexGuard<'_, InForce> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_reload(&self) -> Result<Vec<&'static str>, Error> {
        let loaded = self.load().map_err(Error::Config)?;
        // A file without a key means the defaults: another app, no tokens, no exempt networks. Whoever wants that says it by
        // a restart; far more often the file was emptied to be written, and the writing failed or is not over.
        if loaded.is_blank && !self.current().is_blank {
            return Err(Error::Blank);
        }
        for line in loaded.warnings.lines() {
            tracing::warn!("{line}");
        }
        let mut current = self.current();
        let (next, waiting) = diff::keep_restart_only(&current.config, loaded.config);
        // Every part by name, so that a new one is thought of. These three keep their old values until a restart.
        let Config {
            proxy,
            guard,
            admin,
            backup,
            alerts,
            log,
            store: _,
            pitr: _,
            state_dir: _,
        } = next.clone();
        // First all that can refuse, for it reads and opens files; nothing is in force yet.
        let admin = self.admin.prepare(admin)?;
        let gate = self.gate.prepare(proxy)?;
        let moves = current.config.log.access_log != log.access_log;
        let access_log = moves.then(|| self.access_log.prepare(&log.access_log)).transpose()?;
        // From here on nothing can refuse.
        self.admin.commit(admin);
        self.gate.commit(gate);
        if let Some(access_log) = access_log {
            self.access_log.commit(access_log);
        }
        if current.config.log.format != log.format {
            self.log.set_format(log.format);
        }
        self.guard.blocklist().set_protected(super::build::protected(&next));
        self.guard.reload(guard);
        self.alerts.reload(alerts);
        self.vault.reload(backup);
        for change in diff::changes(&current.config, &next) {
            tracing::info!(key = change.key, "configuration changed");
        }
        *current = InForce {
            config: next,
            is_blank: loaded.is_blank,
            files: loaded.files,
        };
        Ok(waiting)
    }

    fn succeeded(&self, waiting: &[&'static str]) {
        let condition = if waiting.is_empty() {
            Condition::Healthy
        } else {
            let keys = waiting.join(", ");
            tracing::warn!(keys, "these keys take effect at the next restart");
            Condition::Degraded(format!("waiting for a restart: {keys}"))
        };
        self.board.set(PART, condition);
        self.metrics.last_success.set(1);
        self.metrics.last_success_time.set(self.clock.wall().as_second());
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
pub(super) fn watch(reloader: Arc<Reloader>, files: &[PathBuf], mut hangups: Signal) -> JoinSet<()> {
    let (watcher, handle, mut changes) = Watcher::new(files, Pace::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(watcher.run());
    // What was written while this process started was read too early, and the watcher takes it for what is in force.
    handle.poke();
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
            let (reloading, watched) = (Arc::clone(&reloader), handle.clone());
            // Reading files and certificates may wait for the disk.
            if let Err(error) = tokio::task::spawn_blocking(move || reloading.reload(&watched)).await {
                tracing::error!(%error, "a reload ended by a panic");
            }
            tell_systemd(&[NotifyState::Ready]);
        }
    });
    tasks
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
