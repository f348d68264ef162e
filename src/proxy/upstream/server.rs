//! One server of the app: its idle connections, its load, whether it is left out after failures.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::{http1, http2};
use tokio::sync::oneshot;

use super::super::body::{Fate, RequestBody};
use super::super::config::UpstreamProtocol;
use super::super::worker::Worker;
use super::connect::{self, Made, Never};
use super::known::Known;

/// Idle connections are closed before the app closes them (Node.js does after 5 s), else a request fails with
/// "connection closed before message completed".
const IDLE_MAX: Duration = Duration::from_secs(4);
/// Idle connections of one worker to one server.
const IDLE_CONNECTIONS_MAX: usize = 512;
/// A server is left out after this many failed connects in a row, for a second, then two, up to a minute.
const FAILED_CONNECTS_MAX: u32 = 2;
const EJECTION_MAX: Duration = Duration::from_secs(60);
/// The same after this many requests in a row that it took and did not answer soundly.
const FAILED_ANSWERS_MAX: u32 = 5;
/// An HTTP/2 connection takes no more requests when the app has neither read nor reset an upload for so many seconds after
/// its answer.
const UNREAD_ROUNDS_MAX: u32 = 5;
/// A server that comes back, or is new beside others, gets its full share only after this long: it may be cold.
const SLOW_START: Duration = Duration::from_secs(10);
/// Its share at the beginning, of 1,000.
const SLOW_START_SHARE: u128 = 50;

pub(in crate::proxy) struct Server {
    known: Arc<Known>,
    idle: RefCell<Vec<Idle>>,
    /// The connection that all requests of an HTTP/2 server share.
    shared: RefCell<Option<Shared>>,
    /// How many such connections were made.
    made: Cell<u64>,
    /// Uploads on such connections that outlived their answers.
    unread: RefCell<Vec<Unread>>,
    pending: Cell<usize>,
    failed_connects: Cell<u32>,
    failed_answers: Cell<u32>,
    ejected_until: Cell<Duration>,
    /// Since when it has been usable (again), while that is less than [`SLOW_START`] ago.
    back_since: Cell<Option<Duration>>,
    failed_probe: Cell<bool>,
    /// Where its name leads; connections to other addresses are not used again.
    addresses: RefCell<Arc<Vec<SocketAddr>>>,
}

struct Idle {
    connection: Exclusive,
    peer: Option<SocketAddr>,
    since: Duration,
}

/// An HTTP/1.1 connection. When this is dropped it ends soon, whatever the app does.
pub(super) struct Exclusive {
    sender: http1::SendRequest<RequestBody>,
    _wanted: oneshot::Sender<Never>,
}

/// hyper's task for an upload waits for the app's window and for nothing besides, so that it ends with the connection only.
struct Unread {
    /// Lives as long as the upload.
    fate: Weak<Cell<Fate>>,
    /// Of the connection.
    number: u64,
    /// How often it was seen.
    rounds: u32,
}

#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    peer: Option<SocketAddr>,
    number: u64,
}

/// How good a choice a server is, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    /// In health, and not cold: chance decides how often one that has just come back counts as such.
    Ready,
    InHealth,
    /// It fails the active probe, but took connections when last tried.
    LastResort,
}

impl Tier {
    pub(super) const BEST_FIRST: [Self; 3] = [Self::Ready, Self::InHealth, Self::LastResort];
}

/// A connection in use for one request.
pub(in crate::proxy) struct Lease {
    sender: Sender,
    peer: Option<SocketAddr>,
    is_reused: bool,
    /// Which of the server's HTTP/2 connections it is.
    number: u64,
    /// A connection whose request body is still being sent cannot serve another request.
    upload: Option<Rc<Cell<Fate>>>,
    place: Place,
}

/// The way into a connection.
pub(super) enum Sender {
    Http1(Exclusive),
    Http2(http2::SendRequest<RequestBody>),
}

/// Counts one pending request for as long as it lives.
struct Place {
    server: Rc<Server>,
    /// What may be left of the request then.
    upload: Option<Unread>,
}

impl Server {
    pub(super) fn new(known: &Arc<Known>, back_since: Option<Duration>) -> Self {
        Self {
            known: Arc::clone(known),
            idle: RefCell::new(Vec::new()),
            shared: RefCell::new(None),
            made: Cell::new(0),
            unread: RefCell::default(),
            pending: Cell::new(0),
            failed_connects: Cell::new(0),
            failed_answers: Cell::new(0),
            ejected_until: Cell::new(Duration::ZERO),
            back_since: Cell::new(back_since),
            failed_probe: Cell::new(known.fails_probe()),
            addresses: RefCell::new(known.addresses()),
        }
    }

    pub(super) fn is(&self, known: &Arc<Known>) -> bool {
        Arc::ptr_eq(&self.known, known)
    }

    /// As written in the config, for logs.
    pub(super) fn name(&self) -> String {
        self.known.name()
    }

    pub(super) fn pending(&self) -> usize {
        self.pending.get()
    }

    pub(super) fn is_ejected(&self, now: Duration) -> bool {
        self.ejected_until.get() > now
    }

    pub(super) fn usable_in(&self, now: Duration) -> Duration {
        self.ejected_until.get().saturating_sub(now)
    }

    pub(super) fn is_in(&self, tier: Tier, now: Duration, chance: usize) -> bool {
        if self.is_ejected(now) {
            return false;
        }
        match tier {
            Tier::Ready => !self.known.fails_probe() && self.has_warmed_up(now, chance),
            Tier::InHealth => !self.known.fails_probe(),
            Tier::LastResort => true,
        }
    }

    /// Always after [`SLOW_START`]; before, as often as it has come along.
    fn has_warmed_up(&self, now: Duration, chance: usize) -> bool {
        let Some(since) = self.back_since.get() else {
            return true;
        };
        let share = now.saturating_sub(since).as_millis() * 1_000 / SLOW_START.as_millis();
        if share >= 1_000 {
            self.back_since.set(None);
            return true;
        }
        // Other digits than those that break ties.
        (chance as u128 / 1_024) % 1_000 < share.max(SLOW_START_SHARE)
    }

    pub(super) fn succeeded(&self) {
        self.failed_connects.set(0);
        self.failed_answers.set(0);
    }

    fn connect_failed(&self, now: Duration) {
        let failures = self.failed_connects.get().saturating_add(1);
        self.failed_connects.set(failures);
        self.eject(failures, FAILED_CONNECTS_MAX, now);
    }

    /// It took a request and did not answer it soundly.
    pub(super) fn answer_failed(&self, now: Duration) {
        let failures = self.failed_answers.get().saturating_add(1);
        self.failed_answers.set(failures);
        self.eject(failures, FAILED_ANSWERS_MAX, now);
    }

    fn eject(&self, failures: u32, max: u32, now: Duration) {
        let Some(beyond) = failures.checked_sub(max) else {
            return;
        };
        let pause = Duration::from_secs(1u64.checked_shl(beyond).unwrap_or(u64::MAX)).min(EJECTION_MAX);
        let until = now + pause;
        if beyond == 0 {
            tracing::warn!(
                server = self.name(),
                "app server left out after {failures} failures in a row"
            );
        }
        self.ejected_until.set(until);
        self.back_since.set(Some(until));
    }

    /// An idle connection, or a new one.
    pub(super) async fn lease(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        connect_timeout: Duration,
        upload: Option<Rc<Cell<Fate>>>,
    ) -> Result<Lease, connect::Error> {
        let mut place = Place::take(self);
        let now = worker.coarse_tick();
        let (made, is_reused) = match self.existing(now).await {
            Some(made) => (made, true),
            None => {
                let made = Box::pin(connect::connect(worker, &self.known, connect_timeout)).await;
                (made.inspect_err(|_| self.connect_failed(worker.coarse_tick()))?, false)
            }
        };
        let Made { sender, peer } = made;
        if let Sender::Http2(sender) = &sender {
            if !is_reused {
                let number = self.made.get() + 1;
                self.made.set(number);
                let sender = sender.clone();
                *self.shared.borrow_mut() = Some(Shared { sender, peer, number });
            }
            place.watch(upload.as_ref(), self.made.get());
        }
        Ok(Lease {
            sender,
            peer,
            is_reused,
            number: self.made.get(),
            upload,
            place,
        })
    }

    async fn existing(&self, now: Duration) -> Option<Made> {
        match self.known.config().protocol {
            UpstreamProtocol::Http1 => self.take_idle(now),
            UpstreamProtocol::H2c => {
                let Shared { mut sender, peer, .. } = self.shared.borrow().clone()?;
                sender.ready().await.ok()?;
                let sender = Sender::Http2(sender);
                Some(Made { sender, peer })
            }
        }
    }

    /// The latest that is ready. One that is not may be so for long: the app has answered, and not read the request's body.
    fn take_idle(&self, now: Duration) -> Option<Made> {
        let mut idle = self.idle.borrow_mut();
        let at = idle
            .iter()
            .rposition(|idle| idle.is_usable(now) && idle.connection.sender.is_ready())?;
        let Idle { connection, peer, .. } = idle.remove(at);
        let sender = Sender::Http1(connection);
        Some(Made { sender, peer })
    }

    /// What needs doing once a second: news of the name and the probe, connections that are too old.
    pub(super) fn round(&self, now: Duration) {
        if self.failed_probe.replace(self.known.fails_probe()) && !self.known.fails_probe() {
            self.back_since.set(Some(now));
        }
        let addresses = self.known.addresses();
        if !Arc::ptr_eq(&addresses, &self.addresses.borrow()) {
            *self.addresses.borrow_mut() = addresses;
            self.idle.borrow_mut().retain(|idle| self.leads_to(idle.peer));
            let mut shared = self.shared.borrow_mut();
            if shared.as_ref().is_some_and(|shared| !self.leads_to(shared.peer)) {
                *shared = None;
            }
        }
        self.idle.borrow_mut().retain(|idle| idle.is_usable(now));
        self.look_at_unread();
    }

    /// The app gets a new connection in the place of one that has an upload stuck; the old one ends with its last answer.
    fn look_at_unread(&self) {
        self.unread.borrow_mut().retain_mut(|upload| {
            upload.rounds += 1;
            let lives = upload.fate.strong_count() > 0;
            let is_stuck = lives && upload.rounds > UNREAD_ROUNDS_MAX;
            if is_stuck {
                self.abandon(upload.number);
            }
            lives && !is_stuck
        });
    }

    /// No further request uses this HTTP/2 connection.
    fn abandon(&self, number: u64) {
        let mut shared = self.shared.borrow_mut();
        if shared.as_ref().is_some_and(|shared| shared.number == number) {
            *shared = None;
        }
    }

    /// Whether the server's name (still) leads to `peer`; `None` is that of a server without a name.
    fn leads_to(&self, peer: Option<SocketAddr>) -> bool {
        peer.is_none_or(|peer| self.addresses.borrow().contains(&peer))
    }
}

impl Lease {
    pub(super) fn is_reused(&self) -> bool {
        self.is_reused
    }

    pub(super) fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2(_))
    }

    /// No further request uses this HTTP/2 connection; those that are under way may still be answered.
    pub(super) fn abandon(&self) {
        self.place.server.abandon(self.number);
    }

    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match &mut self.sender {
            Sender::Http1(connection) => connection.sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(for_http2(request)).await,
        }
    }

    /// The answer is complete at `now`: the connection may serve another request.
    pub(in crate::proxy) fn give_back(self, now: Duration) {
        let is_sent = self.upload.is_none_or(|fate| fate.get() == Fate::Complete);
        let Sender::Http1(connection) = self.sender else { return };
        let (server, peer) = (&self.place.server, self.peer);
        if is_sent && !connection.sender.is_closed() && server.leads_to(peer) {
            let mut idle = server.idle.borrow_mut();
            if idle.len() < IDLE_CONNECTIONS_MAX {
                let since = now;
                idle.push(Idle {
                    connection,
                    peer,
                    since,
                });
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

impl Idle {
    fn is_usable(&self, now: Duration) -> bool {
        !self.connection.sender.is_closed() && now.saturating_sub(self.since) <= IDLE_MAX
    }
}

impl Exclusive {
    pub(super) fn new(sender: http1::SendRequest<RequestBody>, wanted: oneshot::Sender<Never>) -> Self {
        let _wanted = wanted;
        Self { sender, _wanted }
    }
}

impl Place {
    fn take(server: &Rc<Server>) -> Self {
        server.pending.set(server.pending.get() + 1);
        Self {
            server: Rc::clone(server),
            upload: None,
        }
    }

    /// Tells the server of the upload if it outlives its answer on the HTTP/2 connection of this number.
    fn watch(&mut self, upload: Option<&Rc<Cell<Fate>>>, number: u64) {
        self.upload = upload.map(|fate| Unread {
            fate: Rc::downgrade(fate),
            number,
            rounds: 0,
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.pending.set(self.server.pending.get().saturating_sub(1));
        let upload = self.upload.take().filter(|upload| upload.fate.strong_count() > 0);
        self.server.unread.borrow_mut().extend(upload);
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("known", &self.known)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("server", &self.place.server.name())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::config::{UpstreamAddress, UpstreamServer};

    fn server(back_since: Option<Duration>) -> Server {
        let config = UpstreamServer {
            address: UpstreamAddress::Host {
                host: "127.0.0.1".to_owned(),
                port: 1,
            },
            protocol: UpstreamProtocol::Http1,
        };
        Server::new(&Arc::new(Known::new(&config)), back_since)
    }

    /// In how many of 1,000 equally spread choices the server takes part `after` it came back.
    fn share(server: &Server, after: Duration) -> usize {
        let chances = (0..1_000).map(|number| number * 1_024);
        chances
            .filter(|chance| server.is_in(Tier::Ready, after, *chance))
            .count()
    }

    #[test]
    fn server_that_comes_back_gets_its_share_by_and_by() {
        let server = server(Some(Duration::ZERO));
        assert_eq!(share(&server, Duration::ZERO), 50);
        assert_eq!(share(&server, Duration::from_secs(5)), 500);
        assert_eq!(share(&server, Duration::from_secs(10)), 1_000);
        assert_eq!(share(&server, Duration::ZERO), 1_000, "once warm, always warm");
    }

    #[test]
    fn each_further_failure_doubles_the_time_for_which_a_server_is_left_out() {
        let server = server(None);
        server.connect_failed(Duration::ZERO);
        assert!(!server.is_ejected(Duration::ZERO), "once is no pattern");
        let mut pauses = Vec::new();
        for _ in 0..8 {
            server.connect_failed(Duration::ZERO);
            pauses.push(server.usable_in(Duration::ZERO).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(!server.is_in(Tier::LastResort, Duration::from_secs(59), 0));
        assert!(server.is_in(Tier::LastResort, Duration::from_secs(60), 0));
        server.succeeded();
        server.connect_failed(Duration::from_secs(61));
        assert!(!server.is_ejected(Duration::from_secs(61)), "a success wipes the slate");
    }

    #[test]
    fn bad_answers_are_borne_a_little_longer() {
        let server = server(None);
        for _ in 0..4 {
            server.answer_failed(Duration::ZERO);
        }
        assert!(!server.is_ejected(Duration::ZERO));
        server.answer_failed(Duration::ZERO);
        assert!(server.is_ejected(Duration::ZERO));
    }
}
