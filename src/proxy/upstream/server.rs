//! One server of the app: its idle connections, its load, whether it is left out after failures.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::{http1, http2};

use super::super::body::{Fate, RequestBody};
use super::super::config::{UpstreamAddress, UpstreamProtocol, UpstreamServer};
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
    /// The connection that all requests of an HTTP/2 server share.
    shared: RefCell<Option<http2::SendRequest<RequestBody>>>,
    pending: Cell<usize>,
    failures: Cell<u32>,
    ejected_until: Cell<Duration>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Duration,
}

/// A connection in use for one request.
pub(in crate::proxy) struct Lease {
    place: Place,
    sender: Sender,
    is_reused: bool,
    /// A connection whose request body is still being sent cannot serve another request.
    upload: Option<Rc<Cell<Fate>>>,
}

/// The way into a connection.
pub(super) enum Sender {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

/// Counts one pending request for as long as it lives.
struct Place(Rc<Server>);

impl Server {
    pub(super) fn new(config: &UpstreamServer) -> Self {
        Self {
            config: config.clone(),
            idle: RefCell::new(Vec::new()),
            shared: RefCell::new(None),
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
        let (sender, is_reused) = match self.existing(now).await {
            Some(sender) => (sender, true),
            None => {
                let made = Box::pin(connect::connect(worker, &self.config, connect_timeout)).await;
                (made.inspect_err(|_| self.failed(worker.coarse_tick()))?, false)
            }
        };
        if let Sender::Http2(sender) = &sender {
            *self.shared.borrow_mut() = Some(sender.clone());
        }
        Ok(Lease {
            place,
            sender,
            is_reused,
            upload,
        })
    }

    async fn existing(&self, now: Duration) -> Option<Sender> {
        match self.config.protocol {
            UpstreamProtocol::Http1 => self.take_idle(now).await.map(Sender::Http1),
            UpstreamProtocol::H2c => {
                let mut sender = self.shared.borrow().clone()?;
                sender.ready().await.is_ok().then_some(Sender::Http2(sender))
            }
        }
    }

    async fn take_idle(&self, now: Duration) -> Option<http1::SendRequest<RequestBody>> {
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
        match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(for_http2(request)).await,
        }
    }

    /// The answer is complete at `now`: the connection may serve another request.
    pub(in crate::proxy) fn give_back(self, now: Duration) {
        let is_sent = self.upload.is_none_or(|fate| fate.get() == Fate::Complete);
        let Sender::Http1(sender) = self.sender else { return };
        if is_sent && !sender.is_closed() {
            let mut idle = self.place.0.idle.borrow_mut();
            if idle.len() < IDLE_CONNECTIONS_MAX {
                idle.push(Idle { sender, since: now });
            }
        }
    }
}

/// HTTP/2 carries the host in the target and has no connection fields (RFC 9113 sections 8.2.2 and 8.3.1).
fn for_http2(mut request: Request<RequestBody>) -> Request<RequestBody> {
    request.headers_mut().remove(CONNECTION);
    request.headers_mut().remove(UPGRADE);
    let host = request.headers_mut().remove(HOST);
    let authority = host.and_then(|host| Authority::from_maybe_shared(Bytes::copy_from_slice(host.as_bytes())).ok());
    let mut target = std::mem::take(request.uri_mut()).into_parts();
    target.scheme = Some(Scheme::HTTP);
    target.authority = Some(authority.unwrap_or_else(|| Authority::from_static("localhost")));
    // A path and an authority that were valid apart are valid together.
    *request.uri_mut() = Uri::from_parts(target).unwrap_or_default();
    *request.version_mut() = http::Version::HTTP_2;
    request
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
