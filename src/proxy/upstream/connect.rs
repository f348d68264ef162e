//! Making a connection to one of the app's servers.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::super::config::{UpstreamAddress, UpstreamProtocol, UpstreamServer};
use super::super::connection::{OnThisThread, Prefixed};
use super::super::worker::Worker;
use super::server::Sender;

/// Caps on what an app may send as headers: well above what clients accept.
const RESPONSE_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// What an HTTP/2 app may send ahead, per stream and per connection.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

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

pub(super) async fn connect(worker: &Rc<Worker>, server: &UpstreamServer, timeout: Duration) -> Result<Sender, Error> {
    let connecting = async {
        match &server.address {
            UpstreamAddress::Host { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(Error::Refused)?;
                stream.set_nodelay(true).map_err(Error::Refused)?;
                handshake(stream, server.protocol).await
            }
            UpstreamAddress::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(Error::Refused)?;
                handshake(stream, server.protocol).await
            }
        }
    };
    let sender = tokio::time::timeout(timeout, connecting)
        .await
        .map_err(|_| Error::Timeout(timeout))??;
    worker.metrics.upstream_connections.inc();
    Ok(sender)
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
