//! The whole story of a request on one screen: who asks, may it pass, is it sound, where does it go, what comes back.
//! Every error leaves through `respond`; the ticket writes metrics and the access log once, whatever happens.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, STRICT_TRANSPORT_SECURITY, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::TokioIo;

use super::address::{self, Origin};
use super::body::{Fate, Patience, RequestBody, ResponseBody, Rules};
use super::config::{UpstreamProtocol, UpstreamServer};
use super::connection::{Connection, Signal};
use super::error::Error;
use super::flight::{Ended, Flight, Ticket};
use super::headers::{self, Forwarding};
use super::metrics::Outcome;
use super::request::Upgrade;
use super::snapshot::Snapshot;
use super::upstream::{self, Failure, Lease};
use super::{grpc, hold, request, respond, tunnel};
use crate::clock::Now;
use crate::guard::{Verdict, Visit};

/// The connection is closed without an answer: its client is blocked and has been told why often enough.
#[derive(Debug, thiserror::Error)]
#[error("closed on a blocked client")]
pub(super) struct Abort;

/// How the request body ended, shared with the body.
type BodyFate = Rc<Cell<Fate>>;

/// An answer of the app, with the connection that it came on.
struct Answer {
    response: Response<Incoming>,
    lease: Lease,
    /// The wish that the app granted with its 101.
    switched: Option<Upgrade>,
}

pub(super) async fn serve(
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Abort> {
    let worker = &connection.worker;
    let snapshot = worker.snapshot();
    let now = worker.now();
    let (mut parts, incoming) = request.into_parts();
    let has_body = !incoming.is_end_stream();
    let config = &snapshot.config;
    let origin = address::origin(
        connection.peer,
        &config.trusted_proxies,
        config.forwarded_header,
        &parts.headers,
    );
    let request_id = request::id(worker, &parts.headers, origin.via_trusted);
    let host = request::take_target(&mut parts);

    let mut flight = Flight::new(
        &connection,
        origin.client,
        parts.method.clone(),
        parts.uri.path_and_query().cloned(),
        now.tick,
    );
    flight.http2 = connection.is_http2.get();
    flight.is_grpc = flight.http2 && grpc::is_call(&parts.headers);
    flight.request_id = request_id.clone();
    flight.host = host.as_ref().map_or(HeaderValue::from_static(""), Clone::clone);
    let ticket = Ticket::register(&connection, flight);

    // The limit is charged first: a malformed request costs as much as any other, and so does one that is sent elsewhere.
    let admitted = admit(worker, &ticket, now);
    if connection.is_redirect && admitted.is_ok() {
        if has_body {
            connection.leave_unread();
        }
        return Ok(respond::redirect(&connection, host, &parts.uri, ticket));
    }
    let answer = match admitted.and(host) {
        Err(error) => Err(error),
        Ok(host) => forward(&connection, &snapshot, parts, incoming, origin, host, &ticket).await,
    };
    let mut response = match answer {
        Ok(answer) => deliver(&connection, &snapshot, answer, ticket),
        Err(error) => {
            if has_body {
                connection.leave_unread();
            }
            refuse(&connection, &snapshot, &error, ticket)?
        }
    };
    let is_last = worker.is_draining() || connection.is_last.get();
    if is_last && !connection.is_http2.get() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

fn visit(ticket: &Ticket) -> Visit<'_> {
    let path = ticket.target.as_ref().map_or("*", |target| target.path());
    Visit {
        address: ticket.client,
        method: ticket.method.as_str(),
        path,
    }
}

fn admit(worker: &super::worker::Worker, ticket: &Ticket, now: Now) -> Result<(), Error> {
    match worker.shared.guard.admit(visit(ticket), now) {
        Verdict::Pass => Ok(()),
        Verdict::PassOverLimit(excess) => {
            tracing::debug!(client = %ticket.client, violated = ?excess.violated, "over its limit; only observed");
            Ok(())
        }
        Verdict::Limited(excess) => Err(Error::Limited(excess)),
        Verdict::Blocked(entry) => Err(Error::Blocked(entry)),
    }
}

async fn forward(
    connection: &Rc<Connection>,
    snapshot: &Snapshot,
    mut parts: Parts,
    incoming: Incoming,
    origin: Origin,
    host: HeaderValue,
    ticket: &Ticket,
) -> Result<Answer, Error> {
    let config = &snapshot.config;
    let upgrade = request::take_upgrade(&connection.worker, &mut parts);
    request::check(&parts, &config.caps, &snapshot.via, &connection.worker.local)?;
    request::count_hop(&mut parts)?;
    request::check_server_name(connection.server_name.borrow().as_deref(), &host)?;
    // The bytes of an extended CONNECT's stream belong to the tunnel.
    let incoming = if matches!(upgrade, Some(Upgrade::Stream { .. })) {
        None
    } else {
        Some(incoming)
    };
    if connection.worker.shared.hold.is_on() {
        hold::wait(&connection.worker, ticket).await?;
    }
    let (body, fate) = request_body(&parts, incoming, ticket, snapshot)?;

    headers::for_upstream(
        &mut parts.headers,
        Forwarding {
            client: connection.text_of(origin.client),
            chain: request::chain(connection, &origin),
            via_trusted: origin.via_trusted,
            scheme: HeaderValue::from_static(if connection.is_tls { "https" } else { "http" }),
            host,
            request_id: ticket.request_id.clone(),
            via: &snapshot.via,
            upgrade: upgrade.as_ref().map(|upgrade| upgrade.protocol().clone()),
        },
    );
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    let request = Request::from_parts(parts, body);

    let sent = connection.worker.clock.tick();
    let sending = upstream::send(&connection.worker, &config.upstream, request, fate.clone(), ticket);
    let (response, lease) = match sending.await {
        Ok(answer) => answer,
        Err(Failure::Failed(error)) => {
            let limit = config.caps.max_request_size;
            return Err(fate.and_then(|fate| fault_of(fate.get(), limit)).unwrap_or(error));
        }
        Err(Failure::Ended(Ended::Late)) => return Err(late(fate.map(|fate| fate.get()))),
        Err(Failure::Ended(Ended::Blocked)) => return Err(blocked_meanwhile(connection, ticket)),
    };
    let now = connection.worker.now();
    ticket.upstream.set(Some(now.tick.saturating_sub(sent)));
    ticket
        .deadline
        .set(now.tick.saturating_add(config.server.timeouts.tunnel_idle));
    connection
        .worker
        .shared
        .guard
        .answered(visit(ticket), response.status().as_u16(), now);

    let switched = match (response.status(), upgrade) {
        (StatusCode::SWITCHING_PROTOCOLS, Some(wanted)) if wanted.is_granted(response.headers()) => Some(wanted),
        // A 101 that nobody asked for would let the app's bytes pass for something else (Pingora CVE-2026-2833).
        (StatusCode::SWITCHING_PROTOCOLS, _) => return Err(Error::BadAnswer),
        _ => None,
    };
    Ok(Answer {
        response,
        lease,
        switched,
    })
}

fn request_body(
    parts: &Parts,
    incoming: Option<Incoming>,
    ticket: &Ticket,
    snapshot: &Snapshot,
) -> Result<(RequestBody, Option<BodyFate>), Error> {
    let limit = snapshot.config.caps.max_request_size;
    let response_timeout = snapshot.config.upstream.response_timeout;
    let Some(incoming) = incoming.filter(|incoming| !incoming.is_end_stream()) else {
        ticket.deadline.set(ticket.started.saturating_add(response_timeout));
        return Ok((RequestBody::Empty, None));
    };
    if incoming.size_hint().lower() > limit {
        return Err(Error::BodyTooLarge { limit });
    }
    if parts.method == Method::TRACE {
        return Err(Error::BadRequest("TRACE carries no body"));
    }
    let timeouts = &snapshot.config.server.timeouts;
    // Anybody can call a body gRPC: the patience for it is only for apps that speak it.
    let speaks_grpc = |server: &UpstreamServer| server.protocol == UpstreamProtocol::H2c;
    let is_call = ticket.is_grpc && snapshot.config.upstream.servers.iter().all(speaks_grpc);
    let pause = is_call.then_some(timeouts.tunnel_idle);
    let rules = Rules::new(limit, timeouts.request_body_idle, response_timeout, pause);
    let (body, fate) = RequestBody::streaming(ticket, incoming, rules);
    Ok((body, Some(fate)))
}

/// hyper only says that the request could not be sent; the body knows whether that was the client's doing.
fn fault_of(body: Fate, limit: u64) -> Option<Error> {
    match body {
        Fate::TooLarge => Some(Error::BodyTooLarge { limit }),
        Fate::ClientFailed => Some(Error::RequestTimeout),
        Fate::Malformed => Some(Error::BadRequest("the body is not framed as HTTP/1.1 frames it")),
        Fate::Streaming | Fate::Untaken | Fate::Complete => None,
    }
}

fn late(fate: Option<Fate>) -> Error {
    match fate {
        Some(Fate::Streaming | Fate::ClientFailed) => Error::RequestTimeout,
        _ => Error::UpstreamTimeout,
    }
}

fn blocked_meanwhile(connection: &Connection, ticket: &Ticket) -> Error {
    let wall = connection.worker.now().wall;
    let entry = connection.worker.shared.guard.blocklist().find(ticket.client, wall);
    entry.map_or(
        Error::Internal("blocked, and lifted at the same moment"),
        Error::Blocked,
    )
}

/// The app's answer as the client gets it.
fn deliver(connection: &Rc<Connection>, snapshot: &Snapshot, answer: Answer, ticket: Ticket) -> Response<ResponseBody> {
    let Answer {
        mut response,
        lease,
        switched,
    } = answer;
    ticket.status.set(response.status().as_u16());
    let protocol = match &switched {
        Some(Upgrade::Switch(_)) => response.headers().get(UPGRADE).cloned(),
        _ => None,
    };
    headers::for_client(response.headers_mut(), &snapshot.config.security_headers, protocol);
    response
        .headers_mut()
        .insert(headers::X_REQUEST_ID, ticket.request_id.clone());
    let (idle, patience) = {
        let timeouts = &snapshot.config.server.timeouts;
        (timeouts.tunnel_idle, timeouts.response_idle)
    };
    if let Some(upgrade) = switched {
        open_tunnel(connection, upgrade, &mut response, ticket, idle);
        return response.map(|_| ResponseBody::empty());
    }
    *response.version_mut() = Version::HTTP_11;
    response.extensions_mut().clear();
    response.map(|incoming| {
        ResponseBody::app(
            incoming,
            lease,
            Patience {
                app: idle,
                client: patience,
            },
            ticket,
        )
    })
}

/// HTTP/1.1: the connection becomes the tunnel once the 101 is out. HTTP/2: the stream does, in a task of its own.
fn open_tunnel(
    connection: &Rc<Connection>,
    upgrade: Upgrade,
    response: &mut Response<Incoming>,
    ticket: Ticket,
    idle: Duration,
) {
    let upstream = hyper::upgrade::on(&mut *response);
    ticket.deadline.set(ticket.started.saturating_add(idle));
    let pending = tunnel::Pending { upstream, ticket, idle };
    match upgrade {
        Upgrade::Switch(_) => *connection.tunnel.borrow_mut() = Some(Box::new(pending)),
        Upgrade::Stream { stream, .. } => {
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
            drop(tokio::task::spawn_local(async move {
                match stream.await {
                    Ok(client) => tunnel::run(TokioIo::new(client), pending).await,
                    Err(error) => tracing::debug!(%error, "the client's side of a tunnel did not open"),
                }
            }));
        }
    }
}

/// Foregate's own answer.
fn refuse(
    connection: &Rc<Connection>,
    snapshot: &Snapshot,
    error: &Error,
    ticket: Ticket,
) -> Result<Response<ResponseBody>, Abort> {
    let now = connection.worker.now();
    if let Error::Blocked(entry) = error {
        ticket.outcome.set(Outcome::Blocked);
        if ticket.client == connection.peer && connection.worker.shared.guard.cuts_off(entry, now) {
            connection.signal(Signal::Close);
            return Err(Abort);
        }
    }
    ticket.outcome.set(respond::outcome(error));
    let mut response = respond::response(error, &ticket.request_id, now.wall);
    ticket.status.set(response.status().as_u16());
    if ticket.is_grpc {
        let message = respond::message(error, &ticket.request_id, now.wall);
        response = grpc::refusal(response, &message);
    }
    ticket.sent.set(response.body().len() as u64);
    headers::secure(response.headers_mut(), &snapshot.config.security_headers);
    if connection.is_redirect {
        // Never over plain HTTP (RFC 6797 section 7.2).
        response.headers_mut().remove(STRICT_TRANSPORT_SECURITY);
    }
    // A proxy's connection is not closed on its other clients.
    let is_shared =
        connection.is_http2.get() || (ticket.outcome.get() == Outcome::Blocked && ticket.client != connection.peer);
    respond::close_where_needed(error, is_shared, response.headers_mut());
    response
        .headers_mut()
        .insert(headers::X_REQUEST_ID, ticket.request_id.clone());
    let is_head = ticket.method == Method::HEAD;
    let patience = snapshot.config.server.timeouts.response_idle;
    Ok(response.map(|bytes| ResponseBody::own(if is_head { Bytes::new() } else { bytes }, patience, ticket)))
}
