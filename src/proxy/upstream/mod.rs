//! The app's servers as one worker sees them: choice, pool, retry. Nothing here is shared between workers.

mod connect;
mod known;
mod probe;
mod resolve;
mod server;
mod watch;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use smallvec::SmallVec;

pub(super) use known::Known;
use server::Tier;
pub(super) use server::{Lease, Server};
pub(super) use watch::{register, run as look_after};

use super::body::{Fate, RequestBody};
use super::config::Upstream as Config;
use super::error::Error;
use super::flight::{Ended, Ticket};
use super::worker::Worker;

/// The first try and, where it is safe, others.
const ATTEMPTS_MAX: usize = 3;

/// The servers of the app, with this worker's connections to them.
#[derive(Debug, Default)]
pub(super) struct Upstreams {
    servers: RefCell<Vec<Rc<Server>>>,
}

impl Upstreams {
    /// Takes a new list; connections to servers that stay are kept, and one that is new beside others starts slowly.
    pub(super) fn reload(&self, known: &[Arc<Known>], now: Duration) {
        let mut servers = self.servers.borrow_mut();
        let kept = |wanted| servers.iter().find(|server| server.is(wanted)).map(Rc::clone);
        let is_joining = known.iter().any(|wanted| kept(wanted).is_some());
        let next = known
            .iter()
            .map(|wanted| kept(wanted).unwrap_or_else(|| Rc::new(Server::new(wanted, is_joining.then_some(now)))));
        *servers = next.collect();
    }

    /// What needs doing once a second.
    pub(super) fn round(&self, now: Duration) {
        for server in self.servers.borrow().iter() {
            server.round(now);
        }
    }

    /// The server with the fewest requests pending among the best; ties are broken by chance, so that workers do not
    /// march in step. Those that were tried for this request are left out while there are others.
    fn choose(&self, tried: &Tried, now: Duration, chance: usize) -> Result<Rc<Server>, Error> {
        let servers = self.servers.borrow();
        if let [only] = servers.as_slice() {
            return Ok(Rc::clone(only));
        }
        let is_new = |server: &&Rc<Server>| !tried.iter().any(|tried| Rc::ptr_eq(tried, server));
        let best = Tier::BEST_FIRST.iter().find_map(|tier| {
            let candidates = || {
                servers
                    .iter()
                    .filter(is_new)
                    .filter(|server| server.is_in(*tier, now, chance))
            };
            let fewest = candidates().map(|server| server.pending()).min()?;
            let tied = || candidates().filter(|server| server.pending() == fewest);
            let pick = chance.checked_rem(tied().count()).unwrap_or(0);
            tied().nth(pick).map(Rc::clone)
        });
        best.ok_or_else(|| {
            let wait = servers.iter().map(|server| server.usable_in(now)).min();
            Error::NoServer {
                retry_after_s: wait.unwrap_or_default().as_secs().max(1),
            }
        })
    }

    /// Whether a server is left that was not tried and is not left out.
    fn has_other(&self, tried: &Tried, now: Duration) -> bool {
        let is_tried = |server| tried.iter().any(|tried| Rc::ptr_eq(tried, server));
        let servers = self.servers.borrow();
        servers
            .iter()
            .any(|server| !is_tried(server) && !server.is_ejected(now))
    }

    /// `server` took a request and did not answer it soundly. The last one left is never left out for that: most of
    /// what it answers may be sound.
    fn note_bad_answer(&self, server: &Rc<Server>, now: Duration) {
        let servers = self.servers.borrow();
        let mut others = servers.iter().filter(|other| !Rc::ptr_eq(other, server));
        if others.any(|other| !other.is_ejected(now)) {
            server.answer_failed(now);
        }
    }
}

/// Servers that could not be reached for this request, or did not take it.
type Tried = SmallVec<[Rc<Server>; ATTEMPTS_MAX]>;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    Failed(Error),
    /// The flight was ended meanwhile.
    Ended(Ended),
}

impl From<Ended> for Failure {
    fn from(why: Ended) -> Self {
        Self::Ended(why)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What became of a request on one connection.
enum Sent {
    Answered(Response<Incoming>),
    /// It may be sent once more.
    Again(Request<RequestBody>),
}

/// How the request body fared; `None`: there is none.
type BodyFate = Option<Rc<Cell<Fate>>>;

/// Sends `request` to a server and waits for its headers, or for the end of the flight. Retries, on another server if there
/// is one, only what was never sent, what the server says that it did not process (RFC 9113 section 8.7), or what is
/// idempotent, has no body and went out on a reused connection that the server may just have closed (RFC 9110 section 9.2.2).
pub(super) async fn send(
    worker: &Rc<Worker>,
    config: &Config,
    mut request: Request<RequestBody>,
    fate: BodyFate,
    ticket: &Ticket,
) -> Result<(Response<Incoming>, Lease), Failure> {
    let mut attempt = 0;
    let mut tried = Tried::new();
    loop {
        attempt += 1;
        let server = worker.upstreams.choose(&tried, worker.coarse_tick(), worker.chance())?;
        let leasing = server.lease(worker, config.connect_timeout, fate.clone());
        let mut lease = match ticket.guard(leasing).await? {
            Ok(lease) => lease,
            Err(error) => {
                worker.metrics.upstream_errors.with_label_values(&[error.kind()]).inc();
                tracing::warn!(server = %server.name(), %error, "app server unreachable");
                // Nothing was sent, so another server may be tried whatever the method.
                tried.push(Rc::clone(&server));
                if attempt < ATTEMPTS_MAX && worker.upstreams.has_other(&tried, worker.coarse_tick()) {
                    continue;
                }
                return Err(Failure::Failed(if error.is_timeout() {
                    Error::UpstreamTimeout
                } else {
                    Error::Unreachable
                }));
            }
        };
        match exchange(
            worker,
            &server,
            &mut lease,
            request,
            &fate,
            ticket,
            attempt < ATTEMPTS_MAX,
        )
        .await?
        {
            Sent::Answered(response) => return Ok((response, lease)),
            Sent::Again(again) => request = again,
        }
        drop(lease);
        tried.push(server);
        if !worker.upstreams.has_other(&tried, worker.coarse_tick()) {
            tried.clear();
        }
    }
}

/// One attempt.
async fn exchange(
    worker: &Rc<Worker>,
    server: &Rc<Server>,
    lease: &mut Lease,
    request: Request<RequestBody>,
    fate: &BodyFate,
    ticket: &Ticket,
    may_repeat: bool,
) -> Result<Sent, Failure> {
    let copy = may_repeat.then(|| Copy::of(&request, lease)).flatten();
    let sent = match ticket.guard(lease.send(request)).await {
        Ok(sent) => sent,
        Err(why) => {
            // Not what the client is late with, and not what it is blocked for.
            let is_apps = |fate: &Rc<Cell<Fate>>| matches!(fate.get(), Fate::Untaken | Fate::Complete);
            if why == Ended::Late && fate.as_ref().is_none_or(is_apps) {
                blame(
                    worker,
                    server,
                    "response_timeout",
                    "app server did not answer in time",
                    None,
                );
                lease.abandon();
            }
            return Err(why.into());
        }
    };
    let mut failure = match sent {
        Ok(response) if is_framed(response.headers()) => {
            server.succeeded();
            return Ok(Sent::Answered(response));
        }
        // With the answer, which is dropped unread, its connection goes.
        Ok(_) => {
            let what = "app server answered in a coding that is not understood, or with two lengths";
            blame(worker, server, "bad_answer", what, None);
            return Err(Failure::Failed(Error::BadAnswer));
        }
        Err(failure) => failure,
    };
    let refusal = Refusal::of(failure.error());
    if refusal == Some(Refusal::Connection) {
        lease.abandon();
    }
    let unsent = if may_repeat { failure.take_message() } else { None };
    let repeated = copy.and_then(|copy| copy.after(refusal));
    if let Some(again) = unsent.or(repeated) {
        return Ok(Sent::Again(again));
    }
    // What the client did to its own request is not the app's failure.
    let is_sound = |fate: &Rc<Cell<Fate>>| matches!(fate.get(), Fate::Streaming | Fate::Untaken | Fate::Complete);
    if fate.as_ref().is_none_or(is_sound) {
        let error = Some(failure.error());
        blame(worker, server, "bad_answer", "app server failed to answer", error);
    }
    Err(Failure::Failed(Error::BadAnswer))
}

/// hyper takes a body in another coding than chunked for one that ends with the connection, and prefers chunks to a length
/// beside them: the client would be given coded bytes as the plain ones, or what a smuggler wrote (RFC 9112 section 6.1).
fn is_framed(answer: &HeaderMap) -> bool {
    let mut codings = answer.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return true };
    coding.as_bytes().eq_ignore_ascii_case(b"chunked")
        && codings.next().is_none()
        && !answer.contains_key(CONTENT_LENGTH)
}

fn blame(worker: &Worker, server: &Rc<Server>, kind: &str, what: &str, error: Option<&hyper::Error>) {
    worker.metrics.upstream_errors.with_label_values(&[kind]).inc();
    let error = error.map(tracing::field::display);
    tracing::warn!(server = %server.name(), error, "{what}");
    worker.upstreams.note_bad_answer(server, worker.coarse_tick());
}

/// What an HTTP/2 server says that it did not process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// REFUSED_STREAM: this request.
    Stream,
    /// GOAWAY: this and all later ones of the connection. h2 reports it only to streams beyond the last one that the server
    /// processed; the others hear of the end of the connection.
    Connection,
}

impl Refusal {
    fn of(error: &hyper::Error) -> Option<Self> {
        let cause = std::error::Error::source(error)?.downcast_ref::<h2::Error>()?;
        if !cause.is_remote() {
            return None;
        }
        if cause.is_go_away() {
            return Some(Self::Connection);
        }
        (cause.is_reset() && cause.reason() == Some(h2::Reason::REFUSED_STREAM)).then_some(Self::Stream)
    }
}

/// A request without a body, to be sent again if that does nothing twice. hyper does not give a request back that HTTP/2 has
/// begun to send; of one with a body, the body would be gone.
struct Copy {
    request: Request<RequestBody>,
    /// The server may close a connection that was idle at the moment at which the request is sent, and repeating it is safe.
    after_close: bool,
}

impl Copy {
    fn of(request: &Request<RequestBody>, lease: &Lease) -> Option<Self> {
        let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
        let after_close = lease.is_reused() && is_safe;
        let is_needed = after_close || lease.is_http2();
        if !is_needed || !matches!(request.body(), RequestBody::Empty) {
            return None;
        }
        let mut copy = Request::new(RequestBody::Empty);
        copy.method_mut().clone_from(request.method());
        copy.uri_mut().clone_from(request.uri());
        copy.headers_mut().clone_from(request.headers());
        Some(Self {
            request: copy,
            after_close,
        })
    }

    fn after(self, refusal: Option<Refusal>) -> Option<Request<RequestBody>> {
        (self.after_close || refusal.is_some()).then_some(self.request)
    }
}
