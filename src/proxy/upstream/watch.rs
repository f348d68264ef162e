//! Looks after the app's servers for all workers, on the control plane: resolves their names and probes them, and says
//! on the health board when one of them fails its probe.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use prometheus::{IntGaugeVec, Opts, Registry};
use tokio::sync::Notify;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;

use super::known::Known;
use super::{probe, resolve};
use crate::proxy::config::HealthProbe;
use crate::proxy::snapshot::Snapshot;
use crate::telemetry::health::{Board, Condition};

/// What is done for one server; it is started anew when any of it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Orders {
    probe: Option<HealthProbe>,
    name_servers: Vec<SocketAddr>,
}

/// The gauge of the active probe.
pub(in crate::proxy) fn register(registry: &Registry) -> Result<IntGaugeVec, prometheus::Error> {
    let opts = Opts::new(
        "foregate_upstream_server_up",
        "1 while an app server passes its active health probe",
    );
    let up = IntGaugeVec::new(opts, &["server"])?;
    registry.register(Box::new(up.clone()))?;
    Ok(up)
}

/// Runs until the gate is gone. Servers that a reload leaves as they were are not disturbed.
pub(in crate::proxy) async fn run(mut snapshots: Receiver<Arc<Snapshot>>, up: IntGaugeVec, board: Board) {
    let mut kept: HashMap<String, (Arc<Known>, Orders, JoinSet<()>)> = HashMap::new();
    let probed = Arc::new(Notify::new());
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let orders = Orders {
            probe: snapshot.config.upstream.health.clone(),
            name_servers: snapshot.config.upstream.name_servers.clone(),
        };
        kept.retain(|name, (known, had, _)| {
            let stays = *had == orders && snapshot.servers.iter().any(|server| Arc::ptr_eq(server, known));
            if !stays {
                drop(up.remove_label_values(&[name]));
                known.set_fails_probe(false);
            }
            stays
        });
        for known in &snapshot.servers {
            let start = || {
                let tasks = look_after(known, &orders, &up, &probed);
                (Arc::clone(known), orders.clone(), tasks)
            };
            kept.entry(known.name()).or_insert_with(start);
        }
        // What the probes find, until the next reload.
        loop {
            tell(&snapshot.servers, &board);
            tokio::select! {
                () = probed.notified() => {}
                changed = snapshots.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                }
            }
        }
    }
}

fn look_after(known: &Arc<Known>, orders: &Orders, up: &IntGaugeVec, probed: &Arc<Notify>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    drop(tasks.spawn(resolve::keep(Arc::clone(known), orders.name_servers.clone())));
    if let Some(probe) = orders.probe.clone() {
        let gauge = up.with_label_values(&[&known.name()]);
        drop(tasks.spawn(probe::keep(Arc::clone(known), probe, gauge, Arc::clone(probed))));
    }
    tasks
}

fn tell(servers: &[Arc<Known>], board: &Board) {
    let failing: Vec<_> = servers
        .iter()
        .filter(|known| known.fails_probe())
        .map(|known| known.name())
        .collect();
    let condition = if failing.is_empty() {
        Condition::Healthy
    } else {
        Condition::Degraded(format!(
            "{} of {} app servers fail the probe of upstream.health: {}",
            failing.len(),
            servers.len(),
            failing.join(", ")
        ))
    };
    board.set("upstream", condition);
}
