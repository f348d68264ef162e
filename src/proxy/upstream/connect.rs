//! Making a connection to one of the app's servers.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::super::config::{UpstreamAddress, UpstreamProtocol};
use super::super::connection::{OnThisThread, Prefixed};
use super::super::probes;
use super::super::worker::Worker;
use super::known::Known;
use super::server::Sender;

/// Caps on what an app may send as headers: well above what clients accept.
const RESPONSE_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// What an HTTP/2 app may send ahead, per stream and per connection.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// A quiet HTTP/2 connection is asked by PING whether it is still there; all requests share it, and would wait for it.
const PING_AFTER: Duration = Duration::from_secs(5);
const PONG_WITHIN: Duration = Duration::from_secs(5);
/// Cancelled streams whose late frames are still known for what they are. Frames of forgotten ones look like an attack of the
/// app (h2#856), so that no count of them ends the connection: it is the clients who cancel.
const CANCELLED_STREAMS_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Refused(#[source] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
}

impl Error {
    /// For the `kind` label.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "connect_timeout",
            Self::Refused(_) => "connect_refused",
            Self::Http(_) => "connect_http",
        }
    }

    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout(_))
    }
}

/// A connection that was just made, and to which address if the server is given by name.
pub(super) struct Made {
    pub(super) sender: Sender,
    pub(super) peer: Option<SocketAddr>,
}

pub(super) async fn connect(worker: &Rc<Worker>, server: &Known, timeout: Duration) -> Result<Made, Error> {
    let protocol = server.config().protocol;
    let connecting = async {
        match &server.config().address {
            UpstreamAddress::Host { host, port } => {
                let (stream, peer) = match server.addresses().as_slice() {
                    // An address, or a name that is not resolved yet.
                    [] => (
                        TcpStream::connect((host.as_str(), *port))
                            .await
                            .map_err(Error::Refused)?,
                        None,
                    ),
                    addresses => any_of(addresses, worker.chance(), timeout).await?,
                };
                stream.set_nodelay(true).map_err(Error::Refused)?;
                probes::set(&SockRef::from(&stream)).map_err(Error::Refused)?;
                let sender = handshake(stream, protocol).await?;
                Ok::<_, Error>(Made { sender, peer })
            }
            UpstreamAddress::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(Error::Refused)?;
                let sender = handshake(stream, protocol).await?;
                Ok(Made { sender, peer: None })
            }
        }
    };
    let made = tokio::time::timeout(timeout, connecting)
        .await
        .map_err(|_| Error::Timeout(timeout))??;
    worker.metrics.upstream_connections.inc();
    Ok(made)
}

/// The addresses of one name in turn, beginning anywhere; each gets its share of the time.
async fn any_of(
    addresses: &[SocketAddr],
    chance: usize,
    timeout: Duration,
) -> Result<(TcpStream, Option<SocketAddr>), Error> {
    let share = timeout / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let start = chance.checked_rem(addresses.len()).unwrap_or(0);
    let (before, after) = addresses.split_at(start);
    let mut last = Error::Timeout(timeout);
    for address in after.iter().chain(before) {
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, Some(*address))),
            Ok(Err(error)) => last = Error::Refused(error),
            Err(_) => last = Error::Timeout(share),
        }
    }
    Err(last)
}

async fn handshake<S>(stream: S, protocol: UpstreamProtocol) -> Result<Sender, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // The wrapper sends single pieces by send(2).
    let io = TokioIo::new(Prefixed::new(Bytes::new(), stream));
    match protocol {
        UpstreamProtocol::Http1 => {
            let (sender, connection) = http1::Builder::new()
                .max_buf_size(RESPONSE_BUFFER_BYTES_MAX)
                .handshake(io)
                .await?;
            drive(connection.with_upgrades());
            Ok(Sender::Http1(sender))
        }
        UpstreamProtocol::H2c => {
            let (sender, connection) = http2::Builder::new(OnThisThread)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .timer(TokioTimer::new())
                .keep_alive_interval(PING_AFTER)
                .keep_alive_timeout(PONG_WITHIN)
                .keep_alive_while_idle(true)
                .max_concurrent_reset_streams(CANCELLED_STREAMS_MAX)
                .max_local_error_reset_streams(None)
                .handshake(io)
                .await?;
            drive(connection);
            Ok(Sender::Http2(sender))
        }
    }
}

/// Runs a connection in a task that ends with it; a failure reaches whoever waits for an answer on it.
fn drive(connection: impl Future<Output = hyper::Result<()>> + 'static) {
    drop(tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the app ended");
        }
    }));
}
