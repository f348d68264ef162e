//! All routes in one table: method, path, who may, what happens. A route without a role cannot be written down.

mod backups;
mod ddos;
mod health;
mod page;
mod pitr;
mod recovery;
mod trail;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, MatchedPath, Request};
use axum::handler::Handler;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, on};
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};
use tokio_util::task::TaskTracker;

use super::auth::{Access, Caller, authorize};
use super::problem::Error;
use super::{Role, State};

pub(super) use axum::routing::MethodFilter;

/// No request of the API has a larger body.
const BODY_BYTES_MAX: usize = 16 * 1024;
/// From a request's headers to its answer, its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The page loads nothing from elsewhere and runs no inline script.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// The address that a request came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

type Shared = axum::extract::State<Arc<State>>;

const GET: (MethodFilter, &str) = (MethodFilter::GET, "GET");
const POST: (MethodFilter, &str) = (MethodFilter::POST, "POST");
const DELETE: (MethodFilter, &str) = (MethodFilter::DELETE, "DELETE");

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) access: Access,
}

/// Collects routes with what they ask of callers.
struct Table {
    state: Arc<State>,
    /// Each path with what its methods do.
    paths: Vec<(&'static str, MethodRouter<Arc<State>>)>,
    entries: Vec<Entry>,
}

pub(super) fn router(state: &Arc<State>) -> (Router, Vec<Entry>) {
    use Access::{AtLeast, Metrics, Open};
    use Role::{Operator, Viewer};

    let mut table = Table {
        state: Arc::clone(state),
        paths: Vec::new(),
        entries: Vec::new(),
    };
    table.add(GET, "/", Open, page::index);
    table.add(GET, "/app.js", Open, page::script);
    table.add(GET, "/backups.js", Open, page::backups_script);
    table.add(GET, "/recovery.js", Open, page::recovery_script);
    table.add(GET, "/style.css", Open, page::style);
    table.add(GET, "/health", Open, health::brief);
    table.add(GET, "/health/db", AtLeast(Viewer), health::database);
    table.add(GET, "/health/comprehensive", AtLeast(Viewer), health::comprehensive);
    table.add(GET, "/metrics", Metrics, health::metrics);
    table.add(GET, "/api/infrastructure/me", AtLeast(Viewer), page::me);
    table.add(GET, "/api/infrastructure/ddos/stats", AtLeast(Viewer), ddos::stats);
    table.add(GET, "/api/infrastructure/ddos/ip/{ip}", AtLeast(Viewer), ddos::client);
    table.add(GET, "/api/infrastructure/ddos/blocks", AtLeast(Viewer), ddos::blocks);
    table.add(
        POST,
        "/api/infrastructure/ddos/block/{ip}",
        AtLeast(Operator),
        ddos::block,
    );
    table.add(
        POST,
        "/api/infrastructure/ddos/unblock/{ip}",
        AtLeast(Operator),
        ddos::unblock,
    );
    backup_routes(&mut table);
    table.add(GET, "/api/infrastructure/config", AtLeast(Viewer), health::config);
    table.add(GET, "/api/infrastructure/audit", AtLeast(Viewer), trail::list);
    table.add(GET, "/api/infrastructure/pitr/config", AtLeast(Viewer), pitr::config);
    table.add(GET, "/api/infrastructure/pitr/stats", AtLeast(Viewer), pitr::stats);
    add_recovery(&mut table);
    table.finish()
}

fn backup_routes(table: &mut Table) {
    use Access::AtLeast;
    use Role::{Admin, Operator, Viewer};
    table.add(GET, "/api/infrastructure/backups", AtLeast(Viewer), backups::list);
    table.add(
        GET,
        "/api/infrastructure/backups/stats",
        AtLeast(Viewer),
        backups::stats,
    );
    table.add(GET, "/api/infrastructure/backups/runs", AtLeast(Viewer), backups::runs);
    table.add(GET, "/api/infrastructure/backups/{id}", AtLeast(Viewer), backups::show);
    table.add(
        POST,
        "/api/infrastructure/backups/create",
        AtLeast(Operator),
        backups::create,
    );
    table.add(
        POST,
        "/api/infrastructure/backups/restore",
        AtLeast(Admin),
        backups::restore,
    );
    table.add(
        POST,
        "/api/infrastructure/backups/prune",
        AtLeast(Admin),
        backups::prune,
    );
    table.add(
        POST,
        "/api/infrastructure/backups/{id}/verify",
        AtLeast(Operator),
        backups::verify,
    );
    table.add(
        DELETE,
        "/api/infrastructure/backups/{id}",
        AtLeast(Admin),
        backups::delete,
    );
    table.add(
        POST,
        "/api/infrastructure/backups/{id}/undelete",
        AtLeast(Admin),
        backups::undelete,
    );
}

/// Looking is for everyone who may see; ordering work on the database server is not.
fn add_recovery(table: &mut Table) {
    let (see, order) = (Access::AtLeast(Role::Viewer), Access::AtLeast(Role::Operator));
    table.add(GET, "/api/infrastructure/pitr/window", see, recovery::window);
    table.add(GET, "/api/infrastructure/pitr/base-backups", see, recovery::bases);
    table.add(GET, "/api/infrastructure/pitr/drills", see, recovery::drills);
    table.add(POST, "/api/infrastructure/pitr/base-backup", order, recovery::take_base);
    table.add(POST, "/api/infrastructure/pitr/drill", order, recovery::drill);
    table.add(POST, "/api/infrastructure/pitr/recover", order, recovery::recover);
}

impl Table {
    fn add<H, T>(&mut self, method: (MethodFilter, &'static str), path: &'static str, access: Access, handler: H)
    where
        H: Handler<T, Arc<State>>,
        T: 'static,
    {
        let (filter, name) = method;
        let state = Arc::clone(&self.state);
        let check = from_fn(move |request: Request, next: Next| {
            let state = Arc::clone(&state);
            let tasks = (name != "GET").then(|| state.tasks.clone());
            let handled = async move { admit(&state, access, request, next).await };
            async move {
                match tasks {
                    None => handled.await,
                    Some(tasks) => to_its_end(&tasks, handled).await,
                }
            }
        });
        let route: MethodRouter<Arc<State>> = on(filter, handler).layer(check);
        match self.paths.iter_mut().find(|(known, _)| *known == path) {
            Some((_, others)) => *others = std::mem::take(others).merge(route),
            None => self.paths.push((path, route)),
        }
        self.entries.push(Entry {
            method: name,
            path,
            access,
        });
    }

    fn finish(self) -> (Router, Vec<Entry>) {
        let state = Arc::clone(&self.state);
        let observe = from_fn(move |request: Request, next: Next| {
            let state = Arc::clone(&state);
            async move { observe(&state, request, next).await }
        });
        let mut router = Router::new();
        for (path, route) in self.paths {
            let allowed = allowed(&self.entries, path);
            router = router.route(path, route.fallback(wrong_method(allowed)));
        }
        let router = router
            .fallback(|| async { Error::NotFound })
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(observe)
            .with_state(self.state);
        (router, self.entries)
    }
}

/// What `Allow` says of a path.
fn allowed(entries: &[Entry], path: &str) -> String {
    let methods = entries.iter().filter(|entry| entry.path == path);
    let mut names: Vec<&str> = methods.map(|entry| entry.method).collect();
    if names.contains(&"GET") {
        names.push("HEAD");
    }
    names.push("OPTIONS");
    names.join(", ")
}

fn wrong_method(allowed: String) -> impl Fn(Method) -> std::future::Ready<Response> + Clone + Send + Sync + 'static {
    move |method| {
        let refused = Error::MethodNotAllowed {
            allowed: allowed.clone(),
        };
        let mut response = refused.into_response();
        if method == Method::OPTIONS {
            let allow = response.headers_mut().remove(http::header::ALLOW);
            response = http::StatusCode::NO_CONTENT.into_response();
            response
                .headers_mut()
                .extend(allow.map(|allow| (http::header::ALLOW, allow)));
        }
        std::future::ready(response)
    }
}

/// An optional JSON body; an unknown member is a mistake, not to be passed over.
fn order<T: Default + serde::de::DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Error> {
    let bytes = body.map_err(|error| {
        if error.status() == http::StatusCode::PAYLOAD_TOO_LARGE {
            Error::TooLarge
        } else {
            Error::NotJson
        }
    })?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    serde_json::from_slice(&bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Error::Invalid(ddos::quoted(&error.to_string())),
        _ => Error::NotJson,
    })
}

/// Runs a change to its end, its audit entry included, also when the caller hangs up meanwhile.
async fn to_its_end(tasks: &TaskTracker, handled: impl Future<Output = Response> + Send + 'static) -> Response {
    tasks.spawn(handled).await.unwrap_or_else(|_| {
        Error::Unavailable("interrupted; look whether the change is in force".to_owned()).into_response()
    })
}

/// Who calls, and whether they may; handlers find the caller among the extensions.
async fn admit(state: &State, access: Access, mut request: Request, next: Next) -> Response {
    let address = request
        .extensions()
        .get::<Peer>()
        .map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0);
    let now = state.parts.clock.tick();
    match authorize(
        access,
        &state.config.load(),
        &state.attempts,
        request.headers(),
        address,
        now,
    ) {
        Ok(caller) => {
            if let Some(caller) = caller {
                state.places.know(caller.address);
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
        Err(error) => {
            // Looking is not worth a line; trying to change something is.
            if let Error::Forbidden { caller, .. } = &error
                && request.method() != Method::GET
            {
                let path = ddos::quoted(request.uri().path());
                trail::record(state, caller, "forbidden", &path, &error.to_string()).await;
            }
            error.into_response()
        }
    }
}

/// What holds for every answer: the host check, security headers, the count.
async fn observe(state: &State, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", MatchedPath::as_str)
        .to_owned();
    let is_loopback = state.config.load().listen.ip().to_canonical().is_loopback();
    let mut response = if is_loopback && !is_local_host(request.headers()) {
        Error::WrongHost.into_response()
    } else {
        let late = late(request.method());
        let answering = tokio::time::timeout(REQUEST_TIMEOUT, next.run(request));
        answering.await.unwrap_or_else(|_| late.into_response())
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CONTENT_SECURITY_POLICY, PAGE_POLICY);
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    state
        .requests
        .with_label_values(&[route.as_str(), response.status().as_str()])
        .inc();
    response
}

/// What is said of a request that was not answered in time: a change has not ended with it (see [`to_its_end`]).
fn late(method: &Method) -> Error {
    if method.is_safe() {
        Error::TooLong
    } else {
        Error::GoesOn
    }
}

/// A page in a browser whose name points here (DNS rebinding) names another host than this machine's.
fn is_local_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    };
    let bare = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

/// The caller; present on every route that asks for a role.
impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        parts.extensions.get::<Self>().cloned().ok_or(Error::NoToken)
    }
}

/// Static bytes with their type.
fn asset(kind: &'static str, bytes: &'static [u8]) -> Response {
    let mut response = Response::new(Body::from(bytes));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, value.parse().unwrap());
        is_local_host(&headers)
    }

    #[test]
    fn caller_who_waited_too_long_is_told_that_a_change_goes_on() {
        for method in [Method::POST, Method::DELETE] {
            let told = late(&method).to_string();
            assert!(told.contains("goes on") && told.contains("runs"), "{method}: {told}");
        }
        for method in [Method::GET, Method::HEAD] {
            assert!(matches!(late(&method), Error::TooLong), "{method}");
        }
    }

    #[test]
    fn foreign_host_names_are_refused_on_loopback() {
        for good in [
            "localhost",
            "LOCALHOST:8444",
            "127.0.0.1:8444",
            "[::1]:8444",
            "[::1]",
            "192.0.2.1",
        ] {
            assert!(host(good), "{good}");
        }
        for bad in ["evil.example", "evil.example:8444", "localhost.evil.example", ""] {
            assert!(!host(bad), "{bad}");
        }
    }
}
