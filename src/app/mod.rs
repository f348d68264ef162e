//! The composition root: build in order, run, reload, drain. The only place that knows all parts.

mod alarms;
mod announce;
mod build;
mod check;
mod handover;
mod limits;
mod recovery;
mod reload;
mod succession;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Loaded, Overrides};
use crate::priority;
use crate::proxy::Sockets;
use crate::telemetry::logging::{self, Log};
use build::Running;
pub use check::{Checked, check};
use handover::{Inherited, Listening};
use succession::Succession;

/// The control plane's threads: admin, store, schedules. Small, since nothing there is on a request's path.
const CONTROL_THREADS: usize = 2;
/// The vault's threads.
const VAULT_THREADS: usize = 2;
/// How long the control plane gets to write what is queued once the gate has drained.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a swap of databases that is under way gets to finish, or else to be undone.
const VAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Where the configuration comes from, at start and at each reload.
#[derive(Debug, Clone)]
pub struct Origin {
    pub path: Option<PathBuf>,
    pub overrides: Overrides,
}

/// Serves until SIGTERM or SIGINT, or until a successor has taken over; then drains.
pub fn run(origin: Origin, loaded: &Loaded) -> anyhow::Result<()> {
    // Kept to the end, also that of a start that fails: what it holds is written before the error is told.
    let log = logging::start(loaded.config.log.format).context("the log cannot be started")?;
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
    // Apart, since its threads wait while the gate's want a core: a piece of a backup is long to write, even to memory.
    let vault = priority::runtime_behind("vault", VAULT_THREADS).context("the vault's runtime cannot be started")?;
    let served = runtime.block_on(serve(origin, loaded, &log, vault.handle()));
    // A disk that does not answer must not hold the end up.
    vault.shutdown_timeout(FLUSH_TIMEOUT);
    runtime.shutdown_timeout(FLUSH_TIMEOUT);
    served
}

async fn serve(origin: Origin, loaded: &Loaded, log: &Log, behind: &Handle) -> anyhow::Result<()> {
    // Before anything else, so that a signal during the start neither ends the process nor is lost.
    let mut signals = Signals::new()?;
    let (hangups, upgrades) = (receive(SignalKind::hangup())?, receive(SignalKind::user_defined2())?);
    let mut inherited = Inherited::take(&loaded.config.state_dir);
    let running = build::start(loaded, &mut inherited, behind).await?;
    log.register(&running.registry)
        .context("the log's metric cannot be registered")?;
    let reloader = Arc::new(reload::Reloader::new(origin, loaded, &running, log.steering())?);
    let stop_admin = CancellationToken::new();
    let admin = JoinSet::from_iter([Arc::clone(&running.admin).serve(stop_admin.clone())]);
    let stop_pitr = CancellationToken::new();
    let pitr = recovery::start(&loaded.config, &running, &stop_pitr, behind).await;
    let sockets = listening(&running)?;
    inherited.ready(&loaded.config.state_dir)?;
    // Only now: until the predecessor drains, whoever asks for the sockets has to ask there.
    let succession = Succession::prepare(upgrades, &loaded.config.state_dir, &running.board);
    announce::ready(&running);
    let mut reloading = reload::watch(reloader, &loaded.files, hangups);
    reloading.spawn(announce::watchdog(Arc::clone(&running.gate)));
    tokio::select! {
        why = signals.end() => {
            tracing::info!("{why}: draining");
            announce::stopping();
        }
        successor = succession.successor(&sockets) => {
            tracing::info!(pid = successor, "a successor has taken over: draining");
            if let Some(pid) = successor {
                announce::succeeded_by(pid);
            }
        }
    }
    reloading.shutdown().await;
    drop(sockets);
    stop(running).await;
    stop_pitr.cancel();
    if tokio::time::timeout(FLUSH_TIMEOUT, pitr.join_all()).await.is_err() {
        tracing::warn!("point-in-time recovery did not end in time");
    }
    stop_admin.cancel();
    if tokio::time::timeout(FLUSH_TIMEOUT, admin.join_all()).await.is_err() {
        tracing::warn!("the admin listener did not end in time");
    }
    tracing::info!("stopped");
    Ok(())
}

/// Everything that listens, for a successor.
fn listening(running: &Running) -> anyhow::Result<Listening> {
    let copy = |sockets: &[TcpListener]| {
        sockets
            .iter()
            .map(TcpListener::try_clone)
            .collect::<Result<Vec<_>, _>>()
    };
    let ours = running.workers.sockets();
    let copies = || {
        let gate = Sockets {
            gates: copy(&ours.gates)?,
            redirects: copy(&ours.redirects)?,
        };
        std::io::Result::Ok(Listening {
            gate,
            admin: vec![running.admin.socket()?],
        })
    };
    copies().context("a listening socket cannot be copied")
}

/// The gate first, so that what its last requests caused can still be stored; the admin listener last, so that the
/// drain can be watched.
async fn stop(running: Running) {
    let Running {
        workers,
        blocks,
        access_log,
        access_writer,
        stop_vault,
        mut schedule,
        mut beside,
        ..
    } = running;
    // A backup is not waited for: the drain of the gate is what clients see, and the next start makes up for the backup. A
    // swap of databases is, for half a swap shuts the app out.
    stop_vault.cancel();
    workers.drain().await;
    if tokio::time::timeout(VAULT_TIMEOUT, schedule.join_next()).await.is_err() {
        tracing::warn!("the vault did not end in time");
    }
    beside.shutdown().await;
    if !blocks.shutdown(FLUSH_TIMEOUT).await {
        tracing::warn!("not all blocks reached the store; they are kept in state_dir and written at the next start");
    }
    drop(access_log);
    access_writer.stop();
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: receive(SignalKind::terminate())?,
            interrupt: receive(SignalKind::interrupt())?,
        })
    }

    /// Returns the signal that ends the process.
    async fn end(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn receive(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).context("signals cannot be received")
}
