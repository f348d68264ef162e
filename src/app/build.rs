//! Builds all parts in order, each from its own resolved `Config`.

use std::sync::Arc;

use anyhow::Context as _;
use ipnet::IpNet;
use prometheus::{IntGaugeVec, Opts, Registry};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::handover::Inherited;
use crate::admin;
use crate::backup;
use crate::clock::Clock;
use crate::config::{Config, Loaded};
use crate::guard::Guard;
use crate::guard::blocklist::{Blocklist, Keeper};
use crate::pitr;
use crate::proxy::{self, Gate};
use crate::store::Store;
use crate::telemetry::access_log;
use crate::telemetry::alert::Alerts;
use crate::telemetry::certificates::Certificates;
use crate::telemetry::health::Board;

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) gate: Arc<Gate>,
    pub(super) workers: proxy::Workers,
    pub(super) guard: Arc<Guard>,
    pub(super) blocks: Keeper,
    pub(super) admin: Arc<admin::Listener>,
    pub(super) recovery: pitr::Handles,
    pub(super) board: Board,
    pub(super) registry: Registry,
    pub(super) clock: Clock,
    pub(super) access_log: access_log::Sink,
    pub(super) access_writer: access_log::Writer,
    pub(super) alerts: Alerts,
    pub(super) vault: backup::Service,
    /// What goes on beside: alerts being sent.
    pub(super) beside: JoinSet<()>,
    /// The vault's schedule; it is waited for, since it undoes what it stops.
    pub(super) schedule: JoinSet<()>,
    pub(super) stop_vault: CancellationToken,
}

pub(super) async fn start(loaded: &Loaded, inherited: &mut Inherited, behind: &Handle) -> anyhow::Result<Running> {
    let config = &loaded.config;
    let clock = Clock::system();
    let registry = registry()?;
    let board = Board::default();
    let (access_log, access_writer) =
        access_log::start(&config.log.access_log, &registry).context("the access log cannot be started")?;
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("state_dir {} cannot be made", config.state_dir.display()))?;
    let (store, guard, blocks) = guard(config, &board, &registry).await?;
    let (alerts, mut beside) =
        Alerts::start(config.alerts.clone(), clock, &registry).context("alerts cannot be started")?;
    let certificates = Certificates::register(&registry).context("the certificates' metric cannot be registered")?;
    let parts = proxy::Parts {
        guard: Arc::clone(&guard),
        clock,
        access_log: access_log.clone(),
        registry: registry.clone(),
        board: board.clone(),
        certificates: certificates.clone(),
    };
    let listening = std::mem::take(&mut inherited.listening);
    let (gate, workers) =
        Gate::start(config.proxy.clone(), parts, listening.gate).context("the gate cannot be started")?;
    let vault_parts = backup::service::Parts {
        clock,
        alerts: alerts.clone(),
        board: board.clone(),
        registry: registry.clone(),
        hold: hold(gate.holder()),
        runtime: behind.clone(),
    };
    let vault = backup::Service::new(config.backup.clone(), vault_parts).context("the vault cannot be started")?;
    let stop_vault = CancellationToken::new();
    let alarms = super::alarms::watch(board.clone(), alerts.clone(), certificates.clone(), clock);
    drop(beside.spawn(alarms));
    let schedule = JoinSet::from_iter([vault.clone().run(stop_vault.clone())]);
    let recovery = pitr::Handles::default();
    let admin_parts = admin::Parts {
        guard: Arc::clone(&guard),
        store,
        recovery: recovery.clone(),
        board: board.clone(),
        registry: registry.clone(),
        clock,
        vault: vault.clone(),
        certificates,
    };
    let admin = admin::Listener::bind(config.admin.clone(), admin_parts, listening.admin)
        .context("the admin listener cannot be started")?;
    Ok(Running {
        gate: Arc::new(gate),
        workers,
        guard,
        blocks,
        admin: Arc::new(admin),
        recovery,
        board,
        registry,
        clock,
        access_log,
        access_writer,
        alerts,
        vault,
        beside,
        schedule,
        stop_vault,
    })
}

/// What keeps the blocks, and who may pass.
async fn guard(config: &Config, board: &Board, registry: &Registry) -> anyhow::Result<(Store, Arc<Guard>, Keeper)> {
    let store = Store::open(&config.store, board.clone()).context("the store cannot be prepared")?;
    let (blocklist, blocks) = Blocklist::open(store.clone(), &config.state_dir, registry)
        .await
        .context("the blocklist cannot be started")?;
    blocklist.set_protected(protected(config));
    let guard = Arc::new(Guard::new(config.guard.clone(), blocklist));
    guard
        .register(registry)
        .context("the guard's metrics cannot be registered")?;
    Ok((store, guard, blocks))
}

/// The vault asks for quiet without knowing of the gate.
fn hold(holder: proxy::Holder) -> backup::Hold {
    backup::Hold(Arc::new(move || {
        let holder = holder.clone();
        Box::pin(async move { Box::new(holder.hold().await) as Box<dyn Send> })
    }))
}

/// Networks that no order may block, with the reason that the caller is told.
pub(super) fn protected(config: &Config) -> Vec<(IpNet, &'static str)> {
    let exempt = config
        .guard
        .exempt
        .iter()
        .map(|network| (*network, "exempt (limits.exempt)"));
    let never = config.guard.never_block.iter().map(|network| {
        let is_loopback = network.addr().is_loopback();
        (
            *network,
            if is_loopback {
                "loopback (blocklist.block_loopback)"
            } else {
                "a trusted proxy"
            },
        )
    });
    exempt.chain(never).collect()
}

/// The metrics of the process itself and of the build; the parts add theirs.
fn registry() -> anyhow::Result<Registry> {
    let registry = Registry::new();
    let process = prometheus::process_collector::ProcessCollector::for_self();
    registry
        .register(Box::new(process))
        .context("the process metrics cannot be registered")?;
    let build = IntGaugeVec::new(
        Opts::new("foregate_build_info", "1, with the version as a label"),
        &["version"],
    )?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    registry.register(Box::new(build))?;
    Ok(registry)
}
