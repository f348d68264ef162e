//! Making a connection to one of the app's servers.

use std::rc::Rc;
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::super::body::RequestBody;
use super::super::config::UpstreamAddress;
use super::super::worker::Worker;

/// Caps on what an app may send as headers: well above what clients accept.
const RESPONSE_BUFFER_BYTES_MAX: usize = 256 * 1024;

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

pub(super) async fn connect(
    worker: &Rc<Worker>,
    address: &UpstreamAddress,
    timeout: Duration,
) -> Result<SendRequest<RequestBody>, Error> {
    let connecting = async {
        match address {
            UpstreamAddress::Host { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(Error::Refused)?;
                stream.set_nodelay(true).map_err(Error::Refused)?;
                handshake(stream).await
            }
            UpstreamAddress::Unix(path) => handshake(UnixStream::connect(path).await.map_err(Error::Refused)?).await,
        }
    };
    let sender = tokio::time::timeout(timeout, connecting)
        .await
        .map_err(|_| Error::Timeout(timeout))??;
    worker.metrics.upstream_connections.inc();
    Ok(sender)
}

async fn handshake<S>(stream: S) -> Result<SendRequest<RequestBody>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(RESPONSE_BUFFER_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await?;
    // The task ends with the connection; a failure reaches whoever waits for an answer on it.
    drop(tokio::task::spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to the app ended");
        }
    }));
    Ok(sender)
}
