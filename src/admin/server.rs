//! The admin listener's connections: capped, with time-outs, plain on loopback or with TLS.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::routes::{self, Peer};
use super::{Config, Error, Parts, State, tls};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// No admin connection needs longer; the page makes new ones. A request that is under way then is finished.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// For what is being answered when a connection's time is over: longer than a request may take.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE_WHEN_EXHAUSTED: Duration = Duration::from_millis(100);

/// The admin listener, bound and ready to serve.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    pub(super) state: Arc<State>,
    tls: ArcSwapOption<ServerConfig>,
    router: Router,
}

/// Tokens and certificates, ready to be put into force.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    tls: Option<tls::Ready>,
}

impl Listener {
    /// `inherited` is used if it listens on the configured address; else a new socket is bound.
    pub fn bind(config: Config, parts: Parts, inherited: Vec<TcpListener>) -> Result<Self, Error> {
        let address = config.listen;
        let refuse = |source| Error::Listen { address, source };
        // With port 0 in the configuration any port will do.
        let is_meant = |at: SocketAddr| at.ip() == address.ip() && [0, at.port()].contains(&address.port());
        let ours = |socket: &TcpListener| socket.local_addr().is_ok_and(is_meant);
        let socket = match inherited.into_iter().find(ours) {
            Some(socket) => socket,
            None => TcpListener::bind(address).map_err(refuse)?,
        };
        socket.set_nonblocking(true).map_err(refuse)?;
        let tls = config.tls.as_ref().map(tls::prepare).transpose()?;
        let state = Arc::new(State::new(config, parts)?);
        let (router, _) = routes::router(&state);
        let listener = Self {
            socket,
            state,
            tls: ArcSwapOption::empty(),
            router,
        };
        listener.show(tls);
        Ok(listener)
    }

    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// A copy of the listening socket, for a successor.
    pub fn socket(&self) -> std::io::Result<TcpListener> {
        self.socket.try_clone()
    }

    /// Reads the certificates that `config` names; nothing changes until the result is put into force.
    pub fn prepare(&self, config: Config) -> Result<Prepared, Error> {
        let tls = config.tls.as_ref().map(tls::prepare).transpose()?;
        Ok(Prepared { config, tls })
    }

    /// Swaps tokens and certificates.
    pub fn commit(&self, prepared: Prepared) {
        self.show(prepared.tls);
        self.state.config.store(Arc::new(prepared.config));
    }

    /// The certificate that callers see from now on.
    fn show(&self, tls: Option<tls::Ready>) {
        let (config, expiry) = tls.map(|tls| (tls.config, tls.expiry)).unzip();
        self.tls.store(config);
        let shown = expiry.flatten().into_iter().collect();
        self.state.parts.certificates.set("admin", shown);
    }

    /// Serves until `stop`; then lets open requests finish.
    pub async fn serve(self: Arc<Self>, stop: CancellationToken) {
        let listener = match self.socket.try_clone().and_then(tokio::net::TcpListener::from_std) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the admin listener cannot be served"),
        };
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // Beyond a cap a connection is dropped at once: the page retries, an attacker gains nothing.
                    if let Some(place) = self.state.places.take(peer.ip()) {
                        let (listener, stop) = (Arc::clone(&self), stop.clone());
                        tasks.spawn(async move {
                            listener.connection(stream, peer, &stop).await;
                            drop(place);
                        });
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "an admin connection cannot be accepted");
                    tokio::time::sleep(PAUSE_WHEN_EXHAUSTED).await;
                }
            }
        }
        tasks.close();
        tasks.wait().await;
        self.state.tasks.close();
        self.state.tasks.wait().await;
    }

    async fn connection(&self, stream: TcpStream, peer: SocketAddr, stop: &CancellationToken) {
        let Some(tls) = self.tls.load_full() else {
            return self.http(stream, peer, stop).await;
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls).accept(stream)).await {
            Ok(Ok(stream)) => self.http(stream, peer, stop).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake of an admin connection failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake of an admin connection took too long"),
        }
    }

    async fn http<S>(&self, stream: S, peer: SocketAddr, stop: &CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = self
            .router
            .clone()
            .layer(axum::Extension(Peer(peer.ip().to_canonical())));
        let end = async {
            // Whichever comes first.
            drop(tokio::time::timeout(CONNECTION_TIMEOUT, stop.cancelled()).await);
        };
        if let Err(error) = converse(stream, router, end).await {
            tracing::debug!(%peer, %error, "an admin connection ended");
        }
    }
}

/// Serves `router` on `stream` until `end`; what is being answered then is answered, within a limit.
async fn converse<S>(stream: S, router: Router, end: impl Future<Output = ()>) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = end => connection.as_mut().graceful_shutdown(),
    }
    tokio::time::timeout(LAST_ANSWER_TIMEOUT, connection)
        .await
        .unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::{Notify, oneshot};

    #[tokio::test]
    async fn request_under_way_at_the_end_of_its_connections_time_is_still_answered() {
        let (asked, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (told, awaited) = (Arc::clone(&asked), Arc::clone(&answer));
        let handler = axum::routing::get(async move || {
            told.notify_one();
            awaited.notified().await;
            "done"
        });
        let (mut client, server) = tokio::io::duplex(4096);
        let (end, ended) = oneshot::channel::<()>();
        let router = Router::new().route("/", handler);
        let serving = async {
            converse(server, router, async { drop(ended.await) }).await.unwrap();
        };
        let using = async {
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            asked.notified().await;
            end.send(()).unwrap();
            // The connection hears of its end before the answer is there.
            tokio::task::yield_now().await;
            answer.notify_one();
            let mut heard = String::new();
            client.read_to_string(&mut heard).await.unwrap();
            assert!(heard.starts_with("HTTP/1.1 200") && heard.ends_with("done"), "{heard}");
        };
        tokio::join!(serving, using);
    }
}
