//! The data plane: everything between a client and the app. Never waits for disk, database or the control plane.
//!
//! [`Gate`] and its [`Workers`] are what the composition root sees: start, reload, drain. Each worker is one thread (`worker`) with its own
//! listeners (`listener`), connections (`connection`) and pool (`upstream`); `pipeline` tells the story of a request.

mod account;
pub mod address;
mod body;
pub mod config;
mod connection;
mod error;
mod flight;
mod grpc;
pub mod headers;
mod hold;
mod listener;
mod memory;
mod metrics;
mod pipeline;
mod probes;
pub mod proxy_protocol;
mod request;
mod respond;
mod shared;
mod snapshot;
pub mod target;
mod tls;
mod tunnel;
mod upstream;
mod worker;
mod workers;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use http::HeaderValue;
use prometheus::Registry;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use config::Config;
#[doc(hidden)]
pub use connection::Control;
pub use hold::{Held, Holder};
pub use workers::Workers;

use crate::clock::Clock;
use crate::guard::Guard;
use crate::telemetry::access_log::Sink;
use crate::telemetry::certificates::{Certificates, Expiry};
use crate::telemetry::health::Board;
use connection::Kind;
use metrics::Metrics;
use shared::{Census, Shared};
use snapshot::Snapshot;
use upstream::Known;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("TLS can be switched on or off at a restart only")]
    TlsSwitched,
    #[error("a listening socket cannot be copied")]
    Copy(#[source] std::io::Error),
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("a worker thread cannot be started")]
    Thread(#[source] std::io::Error),
    #[error("a metric cannot be registered")]
    Metric(#[from] prometheus::Error),
    #[error("no randomness is available")]
    Random(#[from] getrandom::Error),
}

/// What the data plane uses of other parts.
#[derive(Debug, Clone)]
pub struct Parts {
    pub guard: Arc<Guard>,
    pub clock: Clock,
    pub access_log: Sink,
    pub registry: Registry,
    pub board: Board,
    pub certificates: Certificates,
}

/// Listening sockets that pass from process to process.
#[derive(Debug, Default)]
pub struct Sockets {
    pub gates: Vec<TcpListener>,
    /// Those of plain HTTP that is only redirected.
    pub redirects: Vec<TcpListener>,
}

/// The running data plane.
#[derive(Debug)]
pub struct Gate {
    addresses: Vec<SocketAddr>,
    redirects: Vec<SocketAddr>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    certificates: Certificates,
    shared: Arc<Shared>,
    /// Looks after the app's servers and the memory that is left; ends with the gate.
    _watch: JoinSet<()>,
}

impl Gate {
    /// Binds, prepares TLS and starts the workers. Nothing is served unless all of it works.
    ///
    /// `inherited` are listening sockets from a predecessor or systemd: those on a configured address are used instead of
    /// new ones, so that what waits in their queues is served. To be called on the control plane's runtime.
    pub fn start(config: Config, parts: Parts, inherited: Sockets) -> Result<(Self, Workers), Error> {
        let listeners = bind_all(&config, inherited)?;
        let addresses = addresses_of(&listeners, |kind| kind != Kind::Redirect);
        let https_port = addresses.first().map_or(443, SocketAddr::port);
        let shared = Arc::new(Shared {
            metrics: Metrics::register(&parts.registry)?,
            guard: parts.guard,
            clock: parts.clock,
            access_log: parts.access_log,
            census: Census::default(),
            is_short_of_memory: AtomicBool::new(false),
            rounds: (0..config.server.workers).map(|_| AtomicU64::new(0)).collect(),
            https_port,
            hold: hold::Hold::new(config.server.workers),
        });
        let via = HeaderValue::try_from(format!("1.1 fg-{:08x}", getrandom::u32()?))
            .unwrap_or_else(|_| HeaderValue::from_static("1.1 foregate"));
        let servers = known(&config, &[]);
        let first = prepare(config, servers, via, None, &shared)?;
        first.show(&parts.certificates);
        let up = upstream::register(&parts.registry)?;
        let memory = memory::Gauges::register(&parts.registry)?;
        let (snapshot, snapshots) = watch::channel(Arc::new(first.snapshot));
        let mut watch = JoinSet::new();
        drop(watch.spawn(memory::watch(
            snapshots.clone(),
            Arc::clone(&shared),
            memory,
            parts.board.clone(),
        )));
        drop(watch.spawn(upstream::look_after(snapshots.clone(), up, parts.board)));
        let redirects = addresses_of(&listeners, |kind| kind == Kind::Redirect);
        let workers = Workers::start(listeners, &shared, snapshots)?;
        let gate = Self {
            addresses,
            redirects,
            snapshot,
            certificates: parts.certificates,
            shared,
            _watch: watch,
        };
        Ok((gate, workers))
    }

    /// Where the gate listens, in the order of the config.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// By which requests can be held back; it does not keep the gate alive.
    #[must_use]
    pub fn holder(&self) -> Holder {
        Holder::new(&self.shared)
    }

    /// Where plain HTTP is redirected from.
    #[must_use]
    pub fn redirects(&self) -> &[SocketAddr] {
        &self.redirects
    }

    /// For how long the worker that is furthest behind has made no round; about a second is ordinary.
    #[must_use]
    pub fn stuck_for(&self) -> Duration {
        self.shared.oldest_round(self.shared.clock.tick())
    }

    /// Makes a configuration ready for requests and connections to come; an error changes nothing, nor does the result by
    /// itself. Listen addresses and the number of workers stay what they were.
    pub fn prepare(&self, config: Config) -> Result<Prepared, Error> {
        let current = Arc::clone(&self.snapshot.borrow());
        // What a listener is for was settled when it was bound: it would serve plain HTTP and call it https.
        if (current.config.tls == config::Tls::Off) != (config.tls == config::Tls::Off) {
            return Err(Error::TlsSwitched);
        }
        let servers = known(&config, &current.servers);
        prepare(config, servers, current.via.clone(), current.tls.as_ref(), &self.shared)
    }

    /// Puts into force what was prepared.
    pub fn commit(&self, prepared: Prepared) {
        prepared.show(&self.certificates);
        self.snapshot.send_replace(Arc::new(prepared.snapshot));
    }
}

/// One listening socket with what its connections are for.
type Listener = (Kind, TcpListener);

/// For each address the sockets that were inherited for it, or else one new one per worker.
fn bind_all(config: &Config, mut inherited: Sockets) -> Result<Vec<Vec<Listener>>, Error> {
    let server = &config.server;
    let kind = if config.tls == config::Tls::Off {
        Kind::Plain
    } else {
        Kind::Tls
    };
    let gates = server.listen.iter().map(|address| (kind, *address));
    let redirects = server.redirect_http.iter().map(|address| (Kind::Redirect, *address));
    let bind = |(kind, address): (Kind, SocketAddr)| {
        let pool = if kind == Kind::Redirect {
            &mut inherited.redirects
        } else {
            &mut inherited.gates
        };
        let ours = listener::take(pool, address);
        let sockets = if ours.is_empty() {
            listener::bind(address, server.workers)
        } else {
            listener::adopt(ours, server.workers)
        };
        let sockets = sockets.map_err(|source| Error::Listen { address, source })?;
        Ok(sockets.into_iter().map(|socket| (kind, socket)).collect())
    };
    gates.chain(redirects).map(bind).collect()
}

fn addresses_of(listeners: &[Vec<Listener>], wanted: impl Fn(Kind) -> bool) -> Vec<SocketAddr> {
    let firsts = listeners.iter().filter_map(|sockets| sockets.first());
    firsts
        .filter(|(kind, _)| wanted(*kind))
        .filter_map(|(_, socket)| socket.local_addr().ok())
        .collect()
}

/// What is known of the servers of `config`, kept from `before` where they are the same.
fn known(config: &Config, before: &[Arc<Known>]) -> Vec<Arc<Known>> {
    let kept = |wanted| before.iter().find(|known| known.config() == wanted).map(Arc::clone);
    let servers = config.upstream.servers.iter();
    servers
        .map(|wanted| kept(wanted).unwrap_or_else(|| Arc::new(Known::new(wanted))))
        .collect()
}

/// A configuration with everything read that it names, ready to be put into force.
#[derive(Debug)]
pub struct Prepared {
    snapshot: Snapshot,
}

impl Prepared {
    fn show(&self, certificates: &Certificates) {
        let tls = self.snapshot.tls.as_ref();
        certificates.set("gate", tls.map(|tls| tls.expiries.clone()).unwrap_or_default());
    }
}

/// What is wrong with the certificates and keys of `config`, and when those that are sound expire; reads the files, and
/// changes nothing.
#[must_use]
pub fn check(config: &Config) -> (Vec<Error>, Vec<Expiry>) {
    let (faults, expiries) = tls::check(&config.tls);
    (faults.into_iter().map(Error::from).collect(), expiries)
}

fn prepare(
    config: Config,
    servers: Vec<Arc<Known>>,
    via: HeaderValue,
    before: Option<&tls::Ready>,
    shared: &Shared,
) -> Result<Prepared, Error> {
    let tls = tls::prepare(&config.tls, before, shared.clock.wall())?;
    let snapshot = Snapshot {
        config,
        tls,
        servers,
        via,
    };
    Ok(Prepared { snapshot })
}
