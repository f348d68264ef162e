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
use hyper::body::{Body as _, Incoming};

use super::connection::{Connection, Signal};
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
/// A body slower than this, in bytes per second, is not on a slow line but an attack; that of the slowest mobile
/// networks is four times as fast. A body has no limit in time besides.
pub(super) const PACE_PER_SECOND: u64 = 240;

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
    /// The tick by which the client must have taken what it was given of the answer; a deadline of its own, which neither
    /// the app's silence nor what the client sends meanwhile puts off.
    taken_by: Cell<Duration>,
    connection: Rc<Connection>,
    /// Its place in the worker's list, until it is over.
    key: Cell<Option<usize>>,
    tickets: Cell<u32>,
    /// Its stream in HTTP/2 is to be dropped; `task` drives it.
    abandoned: Cell<bool>,
    task: RefCell<Option<Waker>>,
    ended: Cell<Option<Ended>>,
    /// Of the pipeline, and later of the answer's body.
    waker: RefCell<Option<Waker>>,
    /// What still comes of the request's body. Kept here and not by the task that sends it to the app: that one may wait for
    /// an app that reads no more, while hyper, as long as this lives, is in the middle of a request.
    pub(super) upload: RefCell<Option<Incoming>>,
    /// Of that task: one slot for both would lose whoever was polled first.
    upload_waker: RefCell<Option<Waker>>,
}

/// Owns a registered flight; dropping the last one writes its account. A piece of the answer holds one too until it is
/// written, so that a connection is not idle while its client still reads.
#[derive(Debug)]
pub(super) struct Ticket(Rc<Flight>);

impl Flight {
    pub(super) fn new(
        connection: &Rc<Connection>,
        client: IpAddr,
        method: Method,
        target: Option<PathAndQuery>,
        started: Duration,
    ) -> Self {
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
            taken_by: Cell::new(NEVER),
            connection: Rc::clone(connection),
            key: Cell::new(None),
            tickets: Cell::new(1),
            abandoned: Cell::new(false),
            task: RefCell::new(None),
            ended: Cell::new(None),
            waker: RefCell::new(None),
            upload: RefCell::new(None),
            upload_waker: RefCell::new(None),
        }
    }

    /// Ends the flight: whoever waits on it through [`Flight::guard`] or [`Flight::poll_ended`] is woken.
    pub(super) fn end(&self, why: Ended) {
        if self.ended.get().is_none() {
            self.ended.set(Some(why));
            for slot in [&self.waker, &self.upload_waker] {
                if let Some(waker) = slot.borrow_mut().take() {
                    waker.wake();
                }
            }
        }
    }

    pub(super) fn is_over_tls(&self) -> bool {
        self.connection.is_tls
    }

    /// Looks at the deadlines. Returns whether the client is too slow in taking its answer.
    pub(super) fn check(&self, now: Duration) -> bool {
        if self.deadline.get() <= now {
            self.end(Ended::Late);
        }
        self.taken_by.get() <= now
    }

    /// The client does not take its answer. hyper asks for no more of the body meanwhile, so the body cannot end it:
    /// the connection of HTTP/1.1 is closed, the stream of HTTP/2 reset. A piece that is stuck in a window of that stream
    /// stays there until the connection ends, which therefore does not count as busy with it.
    pub(super) fn give_up(&self) {
        if !self.http2 {
            return self.connection.signal(Signal::Close);
        }
        self.finish();
        self.abandoned.set(true);
        if let Some(waker) = self.task.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whether the stream is to be dropped; else its task is woken when it is.
    pub(super) fn poll_abandoned(&self, cx: &Context<'_>) -> bool {
        let mut slot = self.task.borrow_mut();
        match slot.as_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *slot = Some(cx.waker().clone()),
        }
        self.abandoned.get()
    }

    /// From `now` on the client has `patience` for a beginning, and for so many bytes what the slowest line needs.
    pub(super) fn hand_over(&self, bytes: usize, now: Duration, patience: Duration) {
        let transfer = Duration::from_secs(bytes as u64 / PACE_PER_SECOND);
        self.taken_by.set(now.saturating_add(patience).saturating_add(transfer));
    }

    /// The client has all that there is so far.
    pub(super) fn await_more(&self) {
        self.taken_by.set(NEVER);
    }

    /// Writes the account, once. With it ends an upload that outlives its answer: no deadline and no block would reach it.
    fn finish(&self) {
        let Some(key) = self.key.take() else { return };
        let worker = &self.connection.worker;
        if self.http2 {
            // This may be called by h2 while it lets go of the last piece, and the body would call it back.
            worker.drop_soon(self.upload.take());
        } else {
            self.end_upload();
        }
        if let Some(waker) = self.upload_waker.take() {
            waker.wake();
        }
        // try_remove: a key can only be missing if the slab was cleared at shutdown.
        drop(worker.flights.borrow_mut().try_remove(key));
        worker.account(self);
        self.connection.request_ended();
    }

    /// Why it was ended, if it was; else the task is woken when it is.
    pub(super) fn poll_ended(&self, cx: &Context<'_>) -> Option<Ended> {
        self.poll_ended_in(&self.waker, cx)
    }

    /// The same for the request's body, which another task polls.
    pub(super) fn poll_ended_by_upload(&self, cx: &Context<'_>) -> Option<Ended> {
        self.poll_ended_in(&self.upload_waker, cx)
    }

    fn poll_ended_in(&self, slot: &RefCell<Option<Waker>>, cx: &Context<'_>) -> Option<Ended> {
        if let Some(why) = self.ended.get() {
            return Some(why);
        }
        let mut slot = slot.borrow_mut();
        match slot.as_mut() {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *slot = Some(cx.waker().clone()),
        }
        None
    }

    /// Takes no more of the request's body. The client is to be given time to read its answer, though not all that it sends
    /// will be read.
    pub(super) fn end_upload(&self) {
        let Some(incoming) = self.upload.take() else { return };
        if !incoming.is_end_stream() {
            self.connection.leave_unread();
        }
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
        flight.key.set(Some(key));
        if flight.http2 {
            connection.note_newest(&flight);
        }
        Self(flight)
    }

    /// Another handle on the flight, for a body that outlives the pipeline; the account stays with the ticket.
    pub(super) fn share(&self) -> Rc<Flight> {
        Rc::clone(&self.0)
    }

    pub(super) fn worker(&self) -> &Rc<Worker> {
        &self.0.connection.worker
    }
}

impl std::ops::Deref for Ticket {
    type Target = Flight;

    fn deref(&self) -> &Flight {
        &self.0
    }
}

impl Clone for Ticket {
    fn clone(&self) -> Self {
        self.0.tickets.set(self.0.tickets.get().saturating_add(1));
        Self(Rc::clone(&self.0))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let left = self.0.tickets.get().saturating_sub(1);
        self.0.tickets.set(left);
        if left == 0 {
            self.0.finish();
        }
    }
}
