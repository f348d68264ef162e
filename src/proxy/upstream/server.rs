//! One server of the app: its idle connections, its load, whether it is left out after failures.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::SendRequest;

use super::super::body::{Fate, RequestBody};
use super::super::config::{UpstreamAddress, UpstreamServer};
use super::super::worker::Worker;
use super::connect;

/// Idle connections are closed before the app closes them (Node.js does after 5 s), else a request fails with
/// "connection closed before message completed".
const IDLE_MAX: Duration = Duration::from_secs(4);
/// Idle connections of one worker to one server.
const IDLE_CONNECTIONS_MAX: usize = 512;
/// A server is left out after this many failed connects in a row, for a second, then two, up to a minute.
const FAILURES_BEFORE_EJECTION: u32 = 2;
const EJECTION_MAX: Duration = Duration::from_secs(60);

pub(in crate::proxy) struct Server {
    config: UpstreamServer,
    idle: RefCell<Vec<Idle>>,
    pending: Cell<usize>,
    failures: Cell<u32>,
    ejected_until: Cell<Duration>,
}

struct Idle {
    sender: SendRequest<RequestBody>,
    since: Duration,
}

/// A connection in use for one request.
pub(in crate::proxy) struct Lease {
    place: Place,
    sender: SendRequest<RequestBody>,
    is_reused: bool,
    /// A connection whose request body is still being sent cannot serve another request.
    upload: Option<Rc<Cell<Fate>>>,
}

/// Counts one pending request for as long as it lives.
struct Place(Rc<Server>);

impl Server {
    pub(super) fn new(config: &UpstreamServer) -> Self {
        Self {
            config: config.clone(),
            idle: RefCell::new(Vec::new()),
            pending: Cell::new(0),
            failures: Cell::new(0),
            ejected_until: Cell::new(Duration::ZERO),
        }
    }

    pub(super) fn is(&self, config: &UpstreamServer) -> bool {
        self.config == *config
    }

    /// As written in the config, for logs.
    pub(super) fn name(&self) -> String {
        match &self.config.address {
            UpstreamAddress::Host { host, port } => format!("{host}:{port}"),
            UpstreamAddress::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    pub(super) fn pending(&self) -> usize {
        self.pending.get()
    }

    pub(super) fn is_usable(&self, now: Duration) -> bool {
        self.ejected_until.get() <= now
    }

    pub(super) fn usable_in(&self, now: Duration) -> Duration {
        self.ejected_until.get().saturating_sub(now)
    }

    pub(super) fn succeeded(&self) {
        self.failures.set(0);
    }

    fn failed(&self, now: Duration) {
        let failures = self.failures.get().saturating_add(1);
        self.failures.set(failures);
        if let Some(beyond) = failures.checked_sub(FAILURES_BEFORE_EJECTION) {
            let pause = Duration::from_secs(1u64.checked_shl(beyond).unwrap_or(u64::MAX)).min(EJECTION_MAX);
            self.ejected_until.set(now + pause);
        }
    }

    /// An idle connection, or a new one.
    pub(super) async fn lease(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        connect_timeout: Duration,
        upload: Option<Rc<Cell<Fate>>>,
    ) -> Result<Lease, connect::Error> {
        let place = Place::take(self);
        let now = worker.coarse_tick();
        if let Some(sender) = self.take_idle(now).await {
            return Ok(Lease {
                place,
                sender,
                is_reused: true,
                upload,
            });
        }
        let made = Box::pin(connect::connect(worker, &self.config.address, connect_timeout)).await;
        let sender = made.inspect_err(|_| self.failed(worker.coarse_tick()))?;
        Ok(Lease {
            place,
            sender,
            is_reused: false,
            upload,
        })
    }

    async fn take_idle(&self, now: Duration) -> Option<SendRequest<RequestBody>> {
        loop {
            let Idle { mut sender, since } = self.idle.borrow_mut().pop()?;
            if sender.is_closed() || now.saturating_sub(since) > IDLE_MAX {
                continue;
            }
            // Ready at once, or as soon as its task has run after the last answer; an error means that it was closed.
            if sender.is_ready() || sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    pub(super) fn close_idle(&self, now: Duration) {
        self.idle
            .borrow_mut()
            .retain(|idle| !idle.sender.is_closed() && now.saturating_sub(idle.since) <= IDLE_MAX);
    }
}

impl Lease {
    pub(super) fn is_reused(&self) -> bool {
        self.is_reused
    }

    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        self.sender.try_send_request(request).await
    }

    /// The answer is complete at `now`: the connection may serve another request.
    pub(in crate::proxy) fn give_back(self, now: Duration) {
        let is_sent = self.upload.is_none_or(|fate| fate.get() == Fate::Complete);
        if is_sent && !self.sender.is_closed() {
            let mut idle = self.place.0.idle.borrow_mut();
            if idle.len() < IDLE_CONNECTIONS_MAX {
                idle.push(Idle {
                    sender: self.sender,
                    since: now,
                });
            }
        }
    }
}

impl Place {
    fn take(server: &Rc<Server>) -> Self {
        server.pending.set(server.pending.get() + 1);
        Self(Rc::clone(server))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.pending.set(self.0.pending.get().saturating_sub(1));
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("config", &self.config)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("server", &self.place.0.name())
            .finish_non_exhaustive()
    }
}
