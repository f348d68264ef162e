//! One client connection: who it is from, what it is doing, and the signals that end it.

mod control;
mod h1;
mod h2;
mod io;
mod outbox;
mod unparsable;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;

pub use control::Control;
pub(super) use io::{ClientIo, Prefixed, Stream};

use super::config::Timeouts;
use super::flight::Flight;
use super::headers;
use super::shared::{Phase, Seat};
use super::tunnel;
use super::worker::Worker;

/// What a connection is doing; the sweeper's deadlines follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// TLS; accepted at this tick, the PROXY protocol before it included.
    Handshake(Duration),
    /// A request's headers are awaited: the first ones, or some bytes of the next have come.
    Head(Duration),
    /// Between requests.
    Idle(Duration),
    /// Requests are in flight; they have their own deadlines.
    Busy,
    /// An open tunnel: its flight has the deadline.
    Tunnel,
    /// The last answer is written, and what the client still sends is thrown away, since this tick.
    Lingering(Duration),
}

/// What a listener's connections are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tls,
    Plain,
    /// Plain HTTP that only sends clients to HTTPS.
    Redirect,
}

/// What the connection's task is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Signal {
    None,
    /// Give the buffers of an idle connection back.
    Park,
    /// HTTP/2: take no new streams, finish those that are open. HTTP/1.1 needs no signal: answers say
    /// `Connection: close`, and the sweeper closes what stays idle.
    Drain,
    /// Close now.
    Close,
}

/// How long a client that sends what nobody will read has to notice its answer.
const LINGER: Duration = Duration::from_secs(5);
/// An idle HTTP/1.1 connection gives its buffers back after this long.
const PARK_AFTER: Duration = Duration::from_secs(1);
/// While draining, an idle connection is kept this long for a request that is on its way.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) worker: Rc<Worker>,
    /// The peer, or the address that the PROXY protocol gave.
    pub(super) peer: IpAddr,
    pub(super) peer_text: HeaderValue,
    pub(super) is_tls: bool,
    /// The listener only sends clients to HTTPS.
    pub(super) is_redirect: bool,
    pub(super) is_http2: Cell<bool>,
    /// Ends after the requests that are in flight.
    pub(super) is_last: Cell<bool>,
    /// The name that the client gave in its handshake, kept only where client certificates are required.
    pub(super) server_name: RefCell<Option<Box<str>>>,
    pub(super) tunnel: RefCell<Option<Box<tunnel::Pending>>>,
    state: Cell<State>,
    in_flight: Cell<u32>,
    served: Cell<bool>,
    /// Bytes came since the last request was complete.
    heard: Cell<bool>,
    /// Part of a request will not be read.
    unread: Cell<bool>,
    /// Something was written, or is to be, and may not have reached the socket yet.
    unflushed: Cell<bool>,
    /// The write that waits, since this tick.
    write_blocked_since: Cell<Option<Duration>>,
    /// The latest request of HTTP/2, until the task of its stream has taken it.
    newest: RefCell<Option<Rc<Flight>>>,
    /// Since when a header block of HTTP/2 is under way.
    block_since: Cell<Option<Duration>>,
    signal: Cell<Signal>,
    waker: RefCell<Option<Waker>>,
}

/// Keeps a connection registered with its worker, and its place counted.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) connection: Rc<Connection>,
    key: usize,
    _seat: Seat,
}

impl Registration {
    pub(super) fn new(worker: &Rc<Worker>, peer: IpAddr, kind: Kind, accepted: Duration, seat: Seat) -> Self {
        let peer = peer.to_canonical();
        let state = match kind {
            Kind::Tls => State::Handshake(accepted),
            Kind::Plain | Kind::Redirect => State::Head(accepted),
        };
        let connection = Rc::new(Connection {
            worker: Rc::clone(worker),
            peer,
            peer_text: text_of(peer),
            is_tls: kind == Kind::Tls,
            is_redirect: kind == Kind::Redirect,
            is_http2: Cell::new(false),
            is_last: Cell::new(false),
            server_name: RefCell::new(None),
            tunnel: RefCell::new(None),
            state: Cell::new(state),
            in_flight: Cell::new(0),
            served: Cell::new(false),
            heard: Cell::new(false),
            unread: Cell::new(false),
            unflushed: Cell::new(false),
            write_blocked_since: Cell::new(None),
            newest: RefCell::new(None),
            block_since: Cell::new(None),
            signal: Cell::new(Signal::None),
            waker: RefCell::new(None),
        });
        let key = worker.connections.borrow_mut().insert(Rc::clone(&connection));
        worker.metrics.connections.inc();
        Self {
            connection,
            key,
            _seat: seat,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let worker = &self.connection.worker;
        drop(worker.connections.borrow_mut().try_remove(self.key));
        worker.metrics.connections.dec();
    }
}

/// An address as a header value.
fn text_of(address: IpAddr) -> HeaderValue {
    // Digits, dots, colons and letters are always a valid value.
    HeaderValue::try_from(address.to_string()).map_or(HeaderValue::from_static("unknown"), headers::seldom_twice)
}

impl Connection {
    /// Serves HTTP on an established stream until the connection ends.
    pub(super) async fn serve(self: Rc<Self>, early: Bytes, stream: Stream, http2: bool) {
        self.state.set(State::Head(self.worker.coarse_tick()));
        self.is_http2.set(http2);
        if http2 && self.worker.is_draining() {
            self.signal(Signal::Drain);
        }
        let io = ClientIo::new(early, stream, Rc::clone(&self));
        if http2 {
            h2::serve(self, io).await;
        } else {
            h1::serve(self, io).await;
        }
    }

    /// `address` as a header value; the peer's own is made once.
    pub(super) fn text_of(&self, address: IpAddr) -> HeaderValue {
        if address == self.peer {
            self.peer_text.clone()
        } else {
            text_of(address)
        }
    }

    pub(super) fn request_started(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
        self.served.set(true);
        self.heard.set(false);
        self.unread.set(false);
        self.state.set(State::Busy);
    }

    /// The rest of the request will not be read: closing at once would reset the connection, and the reset could reach the
    /// client before the answer (RFC 9112 section 9.6).
    pub(super) fn leave_unread(&self) {
        self.unread.set(true);
    }

    pub(super) fn request_ended(&self) {
        let left = self.in_flight.get().saturating_sub(1);
        self.in_flight.set(left);
        if left == 0 && self.state.get() == State::Busy {
            self.heard.set(false);
            self.state.set(State::Idle(self.worker.coarse_tick()));
        }
    }

    pub(super) fn note_newest(&self, flight: &Rc<Flight>) {
        *self.newest.borrow_mut() = Some(Rc::clone(flight));
    }

    fn take_newest(&self) -> Option<Rc<Flight>> {
        self.newest.borrow_mut().take()
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    pub(super) fn signal(&self, signal: Signal) {
        if signal > self.signal.get() {
            self.signal.set(signal);
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// The pending signal, taken; the task is woken when the next one comes.
    pub(super) fn poll_signal(&self, cx: &Context<'_>) -> Signal {
        let mut slot = self.waker.borrow_mut();
        match slot.as_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *slot = Some(cx.waker().clone()),
        }
        self.signal.replace(Signal::None)
    }

    /// Runs `future` until it is done or the connection must close; for handshakes and tunnels.
    pub(super) async fn unless_closed<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            if self.poll_signal(cx) == Signal::Close {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        })
        .await
    }

    /// Looks at the deadlines, once a second.
    pub(super) fn check(&self, now: Duration, timeouts: &Timeouts) {
        if self
            .write_blocked_since
            .get()
            .is_some_and(|since| now.saturating_sub(since) > timeouts.response_idle)
        {
            return self.signal(Signal::Close);
        }
        let is_past = |since: Duration, limit: Duration| now.saturating_sub(since) >= limit;
        // Whatever else goes on: until the block ends, no other frame can come on this connection.
        if self
            .block_since
            .get()
            .is_some_and(|since| is_past(since, timeouts.request_header))
        {
            return self.signal(Signal::Close);
        }
        match self.state.get() {
            State::Handshake(since) if is_past(since, timeouts.tls_handshake) => self.signal(Signal::Close),
            State::Head(since) if is_past(since, timeouts.request_header) => self.signal(Signal::Close),
            // What TLS or hyper has taken of an answer counts as written, and the client may still be reading it.
            State::Idle(_) if self.unflushed.get() => self.state.set(State::Idle(now)),
            State::Idle(since) if is_past(since, timeouts.keep_alive) => self.signal(Signal::Close),
            State::Lingering(since) if is_past(since, LINGER) => self.signal(Signal::Close),
            State::Idle(_) if self.is_last.get() => self.signal(Signal::Close),
            // A request may be on its way: it is answered, with `Connection: close`, if it comes in time.
            State::Idle(since)
                if self
                    .worker
                    .drains_since()
                    .is_some_and(|start| is_past(since.max(start), DRAIN_GRACE)) =>
            {
                self.signal(Signal::Close);
            }
            State::Idle(_) if self.heard.get() && !self.is_http2.get() => self.state.set(State::Head(now)),
            State::Idle(since) if is_past(since, PARK_AFTER) && !self.is_http2.get() => self.signal(Signal::Park),
            _ => {}
        }
    }

    pub(super) fn drain(&self, phase: Phase) {
        match phase {
            Phase::Serving => {}
            Phase::Draining if self.is_http2.get() => self.signal(Signal::Drain),
            Phase::Draining => {}
            Phase::Ending => self.signal(Signal::Close),
        }
    }

    /// The certificate that the client showed, or was not asked for, would not let it in any more. Requests in flight are
    /// answered; tunnels, which may last for ever, are ended by the worker.
    pub(super) fn end_unproven(&self) {
        match self.state.get() {
            _ if !self.is_tls => {}
            State::Tunnel | State::Lingering(_) => {}
            State::Handshake(_) | State::Head(_) | State::Idle(_) if !self.unflushed.get() => {
                self.signal(Signal::Close)
            }
            _ => {
                self.is_last.set(true);
                if self.is_http2.get() {
                    self.signal(Signal::Drain);
                }
            }
        }
    }

    fn is_idle(&self) -> bool {
        matches!(self.state.get(), State::Idle(_)) && !self.heard.get() && !self.unflushed.get()
    }
}
