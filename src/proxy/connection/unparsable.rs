//! Requests that hyper cannot parse. It answers them itself, with a bare status line, before our pipeline sees anything; this
//! puts the problem document in the place of that answer, and charges and counts the request like any other.

use std::fmt::Write as _;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderValue, Method};

use super::Connection;
use crate::guard::Visit;
use crate::proxy::error::Error;
use crate::proxy::flight::{Flight, Ticket};
use crate::proxy::{headers, request, respond};

/// How hyper's own refusals begin; 400, 414, 417 and 431 are all that it makes.
const REFUSAL: &[u8] = b"HTTP/1.1 4";
/// In every answer that went through the pipeline.
const OURS: &[u8] = b"x-request-id: ";

/// The answer to send instead of `written`, if that is one that hyper made. Called only with nothing in flight.
pub(super) fn instead_of(connection: &Rc<Connection>, written: &[u8]) -> Option<Bytes> {
    if !written.starts_with(REFUSAL) || memchr::memmem::find(written, OURS).is_some() {
        return None;
    }
    let caps = connection.worker.snapshot().config.caps.clone();
    let error = match written.get(9..12)? {
        b"431" => Error::HeadersTooLarge {
            limit_bytes: caps.max_header_size,
            limit_count: caps.max_headers,
        },
        b"414" => Error::BadRequest("the target is too long"),
        _ => Error::BadRequest("this is not a valid HTTP/1.1 request"),
    };
    Some(answer(connection, &error))
}

fn answer(connection: &Rc<Connection>, error: &Error) -> Bytes {
    let worker = &connection.worker;
    let now = worker.now();
    let mut flight = Flight::new(connection, connection.peer, Method::default(), None, now.tick);
    // What the client meant as method is unknown; the log says so.
    flight.method = Method::from_bytes(b"INVALID").unwrap_or_default();
    flight.request_id = request::id(worker, &http::HeaderMap::new(), false);
    let ticket = Ticket::register(connection, flight);
    connection.leave_unread();
    // Whatever the verdict, the answer is the same; this charges the client's quota.
    drop(worker.shared.guard.admit(
        Visit {
            address: connection.peer,
            method: "INVALID",
            path: "*",
        },
        now,
    ));
    let mut response = respond::response(error, &ticket.request_id, now.wall);
    ticket.status.set(response.status().as_u16());
    ticket.outcome.set(respond::outcome(error));
    ticket.sent.set(response.body().len() as u64);
    let security = &worker.snapshot().config.security_headers;
    headers::for_client(response.headers_mut(), security, None);
    respond::close_where_needed(error, false, response.headers_mut());
    response
        .headers_mut()
        .insert(headers::X_REQUEST_ID, ticket.request_id.clone());
    // hyper adds the date to all other answers.
    if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now.wall.into())) {
        response.headers_mut().insert(DATE, date);
    }
    let length = HeaderValue::from(response.body().len());
    response.headers_mut().insert(CONTENT_LENGTH, length);
    serialised(&response)
}

fn serialised(response: &http::Response<Bytes>) -> Bytes {
    let mut head = String::with_capacity(512);
    let status = response.status();
    // Writing to a String cannot fail.
    let _ = write!(
        head,
        "HTTP/1.1 {} {}\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or("")
    );
    let mut bytes = head.into_bytes();
    for (name, value) in response.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(response.body());
    Bytes::from(bytes)
}
