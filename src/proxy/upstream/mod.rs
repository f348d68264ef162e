//! The app's servers as one worker sees them: choice, pool, retry. Nothing here is shared between workers.

mod connect;
mod server;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;

pub(super) use server::{Lease, Server};

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
    /// Takes a new configuration; connections to servers that stay are kept.
    pub(super) fn reload(&self, config: &Config) {
        let mut servers = self.servers.borrow_mut();
        let kept = |wanted| servers.iter().find(|server| server.is(wanted)).map(Rc::clone);
        let next = config
            .servers
            .iter()
            .map(|wanted| kept(wanted).unwrap_or_else(|| Rc::new(Server::new(wanted))));
        *servers = next.collect();
    }

    /// Closes connections that were idle for so long that the app may be about to close them.
    pub(super) fn close_idle(&self, now: Duration) {
        for server in self.servers.borrow().iter() {
            server.close_idle(now);
        }
    }

    /// The server with the fewest requests pending; ties are broken by chance, so that workers do not march in step.
    fn choose(&self, now: Duration, chance: usize) -> Result<Rc<Server>, Error> {
        let servers = self.servers.borrow();
        let is_only = servers.len() == 1;
        let usable = || servers.iter().filter(|server| is_only || server.is_usable(now));
        let Some(fewest) = usable().map(|server| server.pending()).min() else {
            let wait = servers
                .iter()
                .map(|server| server.usable_in(now))
                .min()
                .unwrap_or_default();
            return Err(Error::NoServer {
                retry_after_s: wait.as_secs().max(1),
            });
        };
        let tied = || usable().filter(|server| server.pending() == fewest);
        let pick = chance.checked_rem(tied().count()).unwrap_or(0);
        tied().nth(pick).map(Rc::clone).ok_or(Error::Unreachable)
    }
}

/// Sends `request` to a server and waits for its headers. Retries only what was never sent, or what is idempotent,
/// has no body and went out on a reused connection that the server may just have closed (RFC 9110 section 9.2.2).
pub(super) async fn send(
    worker: &Rc<Worker>,
    config: &Config,
    mut request: Request<RequestBody>,
    fate: Option<Rc<std::cell::Cell<Fate>>>,
) -> Result<(Response<Incoming>, Lease), Error> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let server = worker.upstreams.choose(worker.coarse_tick(), worker.chance())?;
        let mut lease = match server.lease(worker, config.connect_timeout, fate.clone()).await {
            Ok(lease) => lease,
            Err(error) => {
                worker.metrics.upstream_errors.with_label_values(&[error.kind()]).inc();
                tracing::warn!(server = %server.name(), %error, "app server unreachable");
                // Nothing was sent, so another server may be tried whatever the method.
                if attempt < ATTEMPTS_MAX
                    && worker
                        .upstreams
                        .choose(worker.coarse_tick(), 0)
                        .is_ok_and(|next| !Rc::ptr_eq(&next, &server))
                {
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
