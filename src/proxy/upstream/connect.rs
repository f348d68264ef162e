//! Making a connection to one of the app's servers.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::super::config::{UpstreamAddress, UpstreamProtocol};
use super::super::connection::Prefixed;
use super::super::probes;
use super::super::worker::Worker;
use super::known::Known;
use super::server::{Exclusive, Sender};

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
/// A connection that nobody wants any more has this long for its end: the app may still read what it answered already. One
/// that neither reads nor closes would keep it for ever.
const LINGER: Duration = Duration::from_secs(5);

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
            let (wanted, unwanted) = oneshot::channel();
            drive(connection.with_upgrades(), unwanted);
            Ok(Sender::Http1(Exclusive::new(sender, wanted)))
        }
        UpstreamProtocol::H2c => {
            let tasks = Tasks::default();
            let (sender, connection) = http2::Builder::new(tasks.clone())
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
            drive_http2(connection, tasks);
            Ok(Sender::Http2(sender))
        }
    }
}

/// Runs a connection in a task that ends with it, or soon after whoever wanted it has dropped the other end of the channel;
/// a failure reaches whoever waits for an answer on it.
fn drive(connection: impl Future<Output = hyper::Result<()>> + 'static, unwanted: oneshot::Receiver<Never>) {
    drop(tokio::task::spawn_local(async move {
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            biased;
            ended = &mut connection => Some(ended),
            _ = unwanted => tokio::time::timeout(LINGER, connection.as_mut()).await.ok(),
        };
        report(ended);
    }));
}

/// The same for HTTP/2, where `dispatch` ends with the last of its senders, and leaves the streams to a task of their own.
fn drive_http2(dispatch: impl Future<Output = hyper::Result<()>> + 'static, tasks: Tasks) {
    drop(tokio::task::spawn_local(async move {
        report(Some(dispatch.await));
        tokio::time::sleep(LINGER).await;
        tasks.end();
    }));
}

fn report(ended: Option<hyper::Result<()>>) {
    match ended {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(%error, "connection to the app ended"),
        None => tracing::debug!("connection closed on an app that neither reads nor closes"),
    }
}

/// Says by its end that a connection is wanted no more, and nothing else.
pub(super) type Never = std::convert::Infallible;

/// The tasks of one HTTP/2 connection, on this thread. The first that hyper asks for is the connection itself; those of its
/// streams end with it.
#[derive(Clone, Default)]
struct Tasks {
    connection: Rc<OnceCell<AbortHandle>>,
}

impl Tasks {
    fn end(&self) {
        if let Some(connection) = self.connection.get() {
            connection.abort();
        }
    }
}

impl<F: Future + 'static> Executor<F> for Tasks {
    fn execute(&self, future: F) {
        let task = tokio::task::spawn_local(async move {
            future.await;
        });
        self.connection.get_or_init(|| task.abort_handle());
    }
}
