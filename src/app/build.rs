//! Builds all parts in order, each from its own resolved `Config`.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use prometheus::Registry;

use crate::clock::Clock;
use crate::config::Loaded;
use crate::guard::Guard;
use crate::guard::blocklist::Blocklist;
use crate::proxy::{self, Gate};
use crate::telemetry::access_log;
use crate::telemetry::health::Board;

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) gate: Arc<Gate>,
    pub(super) guard: Arc<Guard>,
    pub(super) board: Board,
    pub(super) registry: Registry,
    pub(super) clock: Clock,
    pub(super) access_log: access_log::Sink,
    pub(super) access_writer: access_log::Writer,
    pub(super) admin_address: SocketAddr,
}

pub(super) async fn start(loaded: &Loaded) -> anyhow::Result<Running> {
    let config = &loaded.config;
    let clock = Clock::system();
    let registry = Registry::new();
    let board = Board::default();
    let (access_log, access_writer) =
        access_log::start(&config.log.access_log, &registry).context("the access log cannot be started")?;
    let blocklist = Blocklist::default();
    let guard = Arc::new(Guard::new(config.guard.clone(), blocklist));
    guard
        .register(&registry)
        .context("the guard's metrics cannot be registered")?;
    let parts = proxy::Parts {
        guard: Arc::clone(&guard),
        clock,
        access_log: access_log.clone(),
        registry: registry.clone(),
    };
    let gate = Gate::start(config.proxy.clone(), parts).context("the gate cannot be started")?;
    Ok(Running {
        gate: Arc::new(gate),
        guard,
        board,
        registry,
        clock,
        access_log,
        access_writer,
        admin_address: config.admin.listen,
    })
}
