//! The app's servers as one worker sees them: choice, pool, retry. Nothing here is shared between workers.

mod connect;
mod known;
mod probe;
mod resolve;
mod server;
mod watch;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use smallvec::SmallVec;

pub(super) use known::Known;
use server::Tier;
pub(super) use server::{Lease, Server};
pub(super) use watch::{register, run as look_after};

use super::body::{Fate, RequestBody};
use super::config::Upstream as Config;
use super::error::Error;
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

/// Servers that could not be reached for this request.
type Tried = SmallVec<[Rc<Server>; ATTEMPTS_MAX]>;

/// Sends `request` to a server and waits for its headers. Retries only what was never sent, or what is idempotent,
/// has no body and went out on a reused connection that the server may just have closed (RFC 9110 section 9.2.2).
pub(super) async fn send(
    worker: &Rc<Worker>,
    config: &Config,
    mut request: Request<RequestBody>,
    fate: Option<Rc<std::cell::Cell<Fate>>>,
) -> Result<(Response<Incoming>, Lease), Error> {
    let mut attempt = 0;
    let mut tried = Tried::new();
    loop {
        attempt += 1;
        let server = worker.upstreams.choose(&tried, worker.coarse_tick(), worker.chance())?;
        let mut lease = match server.lease(worker, config.connect_timeout, fate.clone()).await {
            Ok(lease) => lease,
            Err(error) => {
                worker.metrics.upstream_errors.with_label_values(&[error.kind()]).inc();
                tracing::warn!(server = %server.name(), %error, "app server unreachable");
                // Nothing was sent, so another server may be tried whatever the method.
                tried.push(Rc::clone(&server));
                if attempt < ATTEMPTS_MAX && worker.upstreams.has_other(&tried, worker.coarse_tick()) {
                    continue;
                }
                return Err(if error.is_timeout() {
                    Error::UpstreamTimeout
                } else {
                    Error::Unreachable
                });
            }
        };
        let copy = (lease.is_reused() && attempt < ATTEMPTS_MAX)
            .then(|| replayable(&request))
            .flatten();
        match lease.send(request).await {
            Ok(response) => {
                server.succeeded();
                return Ok((response, lease));
            }
            Err(mut failure) => {
                let unsent = if attempt < ATTEMPTS_MAX {
                    failure.take_message()
                } else {
                    None
                };
                let Some(again) = unsent.or(copy) else {
                    // What the client did to its own request is not the app's failure.
                    if fate.is_none_or(|fate| matches!(fate.get(), Fate::Streaming | Fate::Complete)) {
                        worker.metrics.upstream_errors.with_label_values(&["bad_answer"]).inc();
                        tracing::warn!(server = %server.name(), error = %failure.error(), "app server failed to answer");
                        worker.upstreams.note_bad_answer(&server, worker.coarse_tick());
                    }
                    return Err(Error::BadAnswer);
                };
                request = again;
            }
        }
    }
}

/// A copy that can be sent again without doing anything twice.
fn replayable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !is_safe || !matches!(request.body(), RequestBody::Empty) {
        return None;
    }
    let mut copy = Request::new(RequestBody::Empty);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}
