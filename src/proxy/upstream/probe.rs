//! The active probe: `upstream.health.path` is asked of every server at every interval, once for all workers.
//!
//! A server that fails [`FALL`] times in a row is used only when no better one is left, and again after [`RISE`]
//! successes. A failing probe alone never makes the gate refuse: the path may be wrong, and the app still fine.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus::IntGauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::known::Known;
use crate::proxy::config::{HealthProbe, UpstreamAddress, UpstreamProtocol};

const FALL: u32 = 2;
const RISE: u32 = 2;
/// A probe is late after this, or after the interval if that is shorter.
const TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// Why a probe failed, for the log.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no connection: {0}")]
    Connect(#[from] std::io::Error),
    #[error("no answer: {0}")]
    Http(#[from] hyper::Error),
    #[error("the probe cannot be written as a request: {0}")]
    Request(#[from] http::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("no answer within {0:?}")]
    Late(Duration),
}

/// Probes one server for ever; `up` shows 1 or 0, and `changed` is told when that
/// changes.
pub(super) async fn keep(known: Arc<Known>, probe: HealthProbe, up: IntGauge, changed: Arc<Notify>) {
    let timeout = probe.interval.min(TIMEOUT_MAX);
    let mut ticker = tokio::time::interval(probe.interval);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut streak = Streak::default();
    up.set(i64::from(!known.fails_probe()));
    loop {
        ticker.tick().await;
        let result = tokio::time::timeout(timeout, ask(&known, &probe.path))
            .await
            .unwrap_or(Err(Failure::Late(timeout)));
        let Some(fails) = streak.note(result.is_err()) else {
            continue;
        };
        if known.set_fails_probe(fails) {
            up.set(i64::from(!fails));
            match &result {
                Err(error) => tracing::warn!(server = known.name(), %error, "app server fails its health probe"),
                Ok(()) => tracing::info!(server = known.name(), "app server passes its health probe again"),
            }
            changed.notify_one();
        }
    }
}

/// Equal results in a row.
#[derive(Debug, Default)]
struct Streak {
    failed: bool,
    length: u32,
}

impl Streak {
    /// What the server is to be taken for from now on, once that many results agree.
    fn note(&mut self, failed: bool) -> Option<bool> {
        self.length = if self.failed == failed {
            self.length.saturating_add(1)
        } else {
            1
        };
        self.failed = failed;
        (self.length >= if failed { FALL } else { RISE }).then_some(failed)
    }
}

async fn ask(known: &Known, path: &str) -> Result<(), Failure> {
    let protocol = known.config().protocol;
    let status = match &known.config().address {
        UpstreamAddress::Unix(socket) => {
            exchange(UnixStream::connect(socket).await?, protocol, "localhost", path).await
        }
        UpstreamAddress::Host { host, port } => {
            let resolved = known.addresses();
            let stream = match resolved.as_slice() {
                [] => TcpStream::connect((host.as_str(), *port)).await?,
                addresses => TcpStream::connect(addresses).await?,
            };
            exchange(stream, protocol, &known.name(), path).await
        }
    }?;
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(Failure::Status(status))
    }
}

async fn exchange<S>(stream: S, protocol: UpstreamProtocol, host: &str, path: &str) -> Result<StatusCode, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let request = Request::get(path).header(USER_AGENT, concat!("foregate/", env!("CARGO_PKG_VERSION")));
    let empty = Empty::<Bytes>::new();
    // Ends the connection when the answer's head is here, or when the probe is given up.
    let mut driver = JoinSet::new();
    match protocol {
        UpstreamProtocol::Http1 => {
            let (mut sender, connection) = http1::handshake(io).await?;
            drop(driver.spawn(connection));
            let request = request.header(HOST, host).body(empty)?;
            Ok(sender.send_request(request).await?.status())
        }
        UpstreamProtocol::H2c => {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            drop(driver.spawn(connection));
            let request = request.uri(format!("http://{host}{path}")).body(empty)?;
            Ok(sender.send_request(request).await?.status())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_or_one_success_alone_changes_nothing() {
        let mut streak = Streak::default();
        assert_eq!(streak.note(true), None);
        assert_eq!(streak.note(false), None);
        assert_eq!(streak.note(true), None);
        assert_eq!(streak.note(true), Some(true));
        assert_eq!(streak.note(false), None);
        assert_eq!(streak.note(false), Some(false));
    }
}
