//! What all workers know of one server of the app: where its name leads, and whether it passes the active probe.
//! Written by the control plane (`watch`), read by workers without a lock.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;

use super::super::config::{UpstreamAddress, UpstreamServer};

#[derive(Debug)]
pub(in crate::proxy) struct Known {
    config: UpstreamServer,
    /// Of a server given by name; empty until the name was resolved for the first time.
    addresses: ArcSwap<Vec<SocketAddr>>,
    probe_failed: AtomicBool,
}

impl Known {
    pub(in crate::proxy) fn new(config: &UpstreamServer) -> Self {
        Self {
            config: config.clone(),
            addresses: ArcSwap::default(),
            probe_failed: AtomicBool::new(false),
        }
    }

    pub(in crate::proxy) fn config(&self) -> &UpstreamServer {
        &self.config
    }

    /// As written in the config, for logs and labels.
    pub(in crate::proxy) fn name(&self) -> String {
        match &self.config.address {
            UpstreamAddress::Host { host, port } => format!("{host}:{port}"),
            UpstreamAddress::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// The host that has to be looked up, with the port; an address or a socket's path needs no looking up.
    pub(super) fn host_to_resolve(&self) -> Option<(&str, u16)> {
        match &self.config.address {
            UpstreamAddress::Host { host, port } if host.parse::<IpAddr>().is_err() => Some((host, *port)),
            UpstreamAddress::Host { .. } | UpstreamAddress::Unix(_) => None,
        }
    }

    pub(super) fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        self.addresses.load_full()
    }

    /// In an order that does not depend on that of the answer. Says whether anything changed.
    pub(super) fn set_addresses(&self, mut addresses: Vec<SocketAddr>) -> bool {
        addresses.sort_unstable();
        addresses.dedup();
        let is_new = **self.addresses.load() != addresses;
        if is_new {
            self.addresses.store(Arc::new(addresses));
        }
        is_new
    }

    pub(super) fn fails_probe(&self) -> bool {
        self.probe_failed.load(Ordering::Relaxed)
    }

    /// Says whether that is news.
    pub(super) fn set_fails_probe(&self, fails: bool) -> bool {
        self.probe_failed.swap(fails, Ordering::Relaxed) != fails
    }
}
