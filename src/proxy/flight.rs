//! A request in flight: what the sweeper needs to end it (deadline, client address), and the account that becomes its
//! metrics and its access log line. One allocation per request, registered with its worker until it is dropped.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderValue, Method};

use super::connection::Connection;
use super::metrics::Outcome;
use super::worker::Worker;

/// Why a flight was ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Its deadline passed.
    Late,
    /// Its client was blocked while it was under way.
    Blocked,
}

/// Ticks (see `Clock::tick`) stand for "never" at this value.
pub(super) const NEVER: Duration = Duration::MAX;

#[derive(Debug)]
pub(super) struct Flight {
    pub(super) client: IpAddr,
    pub(super) method: Method,
    pub(super) target: Option<PathAndQuery>,
    pub(super) host: HeaderValue,
    pub(super) request_id: HeaderValue,
    pub(super) http2: bool,
    /// A gRPC call: its messages come when they come, and a refusal must be in its own words.
    pub(super) is_grpc: bool,
    pub(super) started: Duration,
    pub(super) upstream: Cell<Option<Duration>>,
    pub(super) status: Cell<u16>,
    pub(super) outcome: Cell<Outcome>,
    pub(super) received: Cell<u64>,
    pub(super) sent: Cell<u64>,
    /// The tick at which the sweeper ends this flight.
    pub(super) deadline: Cell<Duration>,
    ended: Cell<Option<Ended>>,
    waker: RefCell<Option<Waker>>,
}

/// Owns a registered flight; dropping it writes its account.
#[derive(Debug)]
pub(super) struct Ticket {
    flight: Rc<Flight>,
    connection: Rc<Connection>,
    key: usize,
}

impl Flight {
    pub(super) fn new(client: IpAddr, method: Method, target: Option<PathAndQuery>, started: Duration) -> Self {
        Self {
            client,
            method,
            target,
            host: HeaderValue::from_static(""),
            request_id: HeaderValue::from_static(""),
            http2: false,
            is_grpc: false,
            started,
            upstream: Cell::new(None),
            status: Cell::new(0),
            outcome: Cell::new(Outcome::Aborted),
            received: Cell::new(0),
            sent: Cell::new(0),
            deadline: Cell::new(NEVER),
            ended: Cell::new(None),
            waker: RefCell::new(None),
        }
    }

    /// Ends the flight: whoever waits on it through [`Flight::guard`] or [`Flight::poll_ended`] is woken.
    pub(super) fn end(&self, why: Ended) {
        if self.ended.get().is_none() {
            self.ended.set(Some(why));
            if let Some(waker) = self.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// Why it was ended, if it was; else the task is woken when it is.
    pub(super) fn poll_ended(&self, cx: &Context<'_>) -> Option<Ended> {
        if let Some(why) = self.ended.get() {
            return Some(why);
        }
        let mut slot = self.waker.borrow_mut();
        match slot.as_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *slot = Some(cx.waker().clone()),
        }
        None
    }

    /// Runs `future` until it is done or the flight is ended.
    pub(super) async fn guard<F: Future>(&self, future: F) -> Result<F::Output, Ended> {
        Guarded { flight: self, future }.await
    }
}

pin_project_lite::pin_project! {
    struct Guarded<'a, F> {
        flight: &'a Flight,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Guarded<'_, F> {
    type Output = Result<F::Output, Ended>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        this.flight
            .poll_ended(cx)
            .map_or(Poll::Pending, |why| Poll::Ready(Err(why)))
    }
}

impl Ticket {
    /// Registers `flight` with its connection and worker.
    pub(super) fn register(connection: &Rc<Connection>, flight: Flight) -> Self {
        connection.request_started();
        let flight = Rc::new(flight);
        let key = connection.worker.flights.borrow_mut().insert(Rc::clone(&flight));
        Self {
            flight,
            connection: Rc::clone(connection),
            key,
        }
    }

    /// Another handle on the flight, for a body that outlives the pipeline; the account stays with the ticket.
    pub(super) fn share(&self) -> Rc<Flight> {
        Rc::clone(&self.flight)
    }

    pub(super) fn worker(&self) -> &Rc<Worker> {
        &self.connection.worker
    }
}

impl std::ops::Deref for Ticket {
    type Target = Flight;

    fn deref(&self) -> &Flight {
        &self.flight
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // try_remove: a key can only be missing if the slab was cleared at shutdown.
        let worker = &self.connection.worker;
        drop(worker.flights.borrow_mut().try_remove(self.key));
        worker.account(&self.flight);
        self.connection.request_ended();
    }
}
