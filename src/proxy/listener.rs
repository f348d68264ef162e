//! Listening sockets and what happens between accept and the first request: refusals, PROXY protocol, TLS.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::address;
use super::connection::{Kind, Registration, Stream};
use super::probes;
use super::proxy_protocol;
use super::shared::{Full, Phase, Seat};
use super::worker::Worker;

/// Connections that wait for accept, per listener; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// When no file descriptor is left, accepting again at once would spin.
const PAUSE_WHEN_EXHAUSTED: Duration = Duration::from_millis(50);
/// RFC 9113 section 3.4.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Binds one socket per worker on the same address: the kernel spreads connections over them (SO_REUSEPORT).
pub(super) fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let first = bind_one(address)?;
    // With port 0 the kernel has chosen; the others must share it.
    let address = first.local_addr()?;
    let others = (1..workers).map(|_| bind_one(address));
    std::iter::once(Ok(first)).chain(others).collect()
}

/// Takes the sockets out of `pool` that listen on `address`. With port 0 any port will do: those of the first socket there.
pub(super) fn take(pool: &mut Vec<std::net::TcpListener>, address: SocketAddr) -> Vec<std::net::TcpListener> {
    let at = |socket: &std::net::TcpListener| socket.local_addr().ok();
    let is_meant = |found: &SocketAddr| found.ip() == address.ip() && [0, found.port()].contains(&address.port());
    let Some(chosen) = pool.iter().filter_map(at).find(is_meant) else {
        return Vec::new();
    };
    let (ours, others) = std::mem::take(pool)
        .into_iter()
        .partition(|socket| at(socket) == Some(chosen));
    *pool = others;
    ours
}

/// Makes sockets from elsewhere ready for workers; where they are fewer than workers, several accept on one.
pub(super) fn adopt(mut sockets: Vec<std::net::TcpListener>, workers: usize) -> io::Result<Vec<std::net::TcpListener>> {
    for socket in &sockets {
        socket.set_nonblocking(true)?;
    }
    for number in 0..workers.saturating_sub(sockets.len()) {
        if let Some(socket) = sockets.get(number) {
            let copy = socket.try_clone()?;
            sockets.push(copy);
        }
    }
    Ok(sockets)
}

fn bind_one(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        // "[::]:443" beside "0.0.0.0:443" must not clash, and says what it means.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until the drain begins, then takes what the kernel has already queued.
pub(super) async fn accept(
    worker: Rc<Worker>,
    listener: std::net::TcpListener,
    kind: Kind,
    mut phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    // Accepted sockets inherit it, so that no connection pays for it.
    probes::set(&SockRef::from(&listener))?;
    let listener = TcpListener::from_std(listener)?;
    loop {
        tokio::select! {
            biased;
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => keep(&worker, stream, peer, kind),
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(PAUSE_WHEN_EXHAUSTED).await;
                }
            },
            changed = phase.changed() => {
                if changed.is_err() || *phase.borrow_and_update() != Phase::Serving {
                    return Ok(());
                }
            }
        }
    }
}

/// Decides at once whether to keep a new connection; nothing here waits.
fn keep(worker: &Rc<Worker>, stream: TcpStream, peer: SocketAddr, kind: Kind) {
    let snapshot = worker.snapshot();
    let server = &snapshot.config.server;
    let refuse = |stream: TcpStream, reason| refuse(worker, &stream, reason);
    let now = worker.now();
    if worker.shared.is_short_of_memory.load(Ordering::Relaxed) {
        return refuse(stream, "memory");
    }
    let peer_is_client = !server.proxy_protocol || kind == Kind::Redirect;
    if peer_is_client && worker.shared.guard.refuses_connection(peer.ip(), now) {
        return refuse(stream, "blocked");
    }
    let Ok(mut seat) = Seat::take(&worker.shared, server.max_connections) else {
        return refuse(stream, "full");
    };
    if peer_is_client && count_client(worker, &mut seat, peer).is_err() {
        return refuse(stream, "client_full");
    }
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a new connection was gone already");
        return;
    }
    drop(tokio::task::spawn_local(establish(
        Rc::clone(worker),
        stream,
        Caller {
            peer,
            kind,
            accepted: now.tick,
        },
        seat,
    )));
}

/// Who comes in, by which door, and when.
#[derive(Debug, Clone, Copy)]
struct Caller {
    peer: SocketAddr,
    kind: Kind,
    accepted: Duration,
}

/// Trusted proxies carry many clients on many connections, so their own address is not capped.
fn count_client(worker: &Worker, seat: &mut Seat, peer: SocketAddr) -> Result<(), Full> {
    let snapshot = worker.snapshot();
    let address = peer.ip().to_canonical();
    if address::is_trusted(address, &snapshot.config.trusted_proxies) {
        return Ok(());
    }
    let client = worker.shared.guard.client_of(address);
    seat.count_client(client, snapshot.config.server.max_connections_per_client)
}

/// Closes with a reset rather than a lingering socket.
fn refuse(worker: &Worker, stream: &TcpStream, reason: &str) {
    worker.metrics.refused_connections.with_label_values(&[reason]).inc();
    // A socket that is gone already needs no reset.
    drop(stream.set_zero_linger());
}

async fn establish(worker: Rc<Worker>, mut stream: TcpStream, caller: Caller, mut seat: Seat) {
    let snapshot = worker.snapshot();
    let Caller {
        mut peer,
        kind,
        accepted,
    } = caller;
    let mut early = Bytes::new();
    if snapshot.config.server.proxy_protocol && kind != Kind::Redirect {
        match introduce(&worker, &mut stream, peer, &mut seat).await {
            Ok(introduced) => (peer, early) = introduced,
            Err(reason) => return refuse(&worker, &stream, reason),
        }
    }
    let registration = Registration::new(&worker, peer.ip(), kind, accepted, seat);
    let connection = Rc::clone(&registration.connection);
    let tls = snapshot.tls.as_ref().filter(|_| kind == Kind::Tls);
    let tls = tls.map(|tls| Arc::clone(&tls.config));
    let is_tls = tls.is_some();
    let established = connection
        .unless_closed(Box::pin(handshake(&worker, stream, early, tls)))
        .await;
    let Some(established) = established else {
        // Too late, or the drain's patience is over: the handshake was dropped, and could not count itself.
        if is_tls {
            worker.metrics.handshakes.with_label_values(&["failed"]).inc();
        }
        return;
    };
    let Some(Established {
        stream,
        early,
        is_http2,
    }) = established
    else {
        return;
    };
    if let Stream::Tls(stream) = &stream
        && snapshot.config.tls.wants_client_certificates()
    {
        *connection.server_name.borrow_mut() = stream.get_ref().1.server_name().map(Box::from);
    }
    // A task of its own, so that the handshake's state is not kept for as long as the connection lives.
    drop(tokio::task::spawn_local(async move {
        Rc::clone(&registration.connection).serve(early, stream, is_http2).await;
        drop(registration);
    }));
}

/// Reads the PROXY header: the client whom it names, and what came behind it. The error is the reason to refuse.
async fn introduce(
    worker: &Worker,
    stream: &mut TcpStream,
    peer: SocketAddr,
    seat: &mut Seat,
) -> Result<(SocketAddr, Bytes), &'static str> {
    let limit = worker.snapshot().config.server.timeouts.tls_handshake;
    let header = match tokio::time::timeout(limit, proxy_protocol::read(stream)).await {
        Ok(Ok(header)) => header,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "no PROXY protocol header");
            return Err("proxy_protocol");
        }
        Err(_) => return Err("proxy_protocol"),
    };
    let client = header.source.unwrap_or(peer);
    if worker.shared.guard.refuses_connection(client.ip(), worker.now()) {
        return Err("blocked");
    }
    match count_client(worker, seat, client) {
        Ok(()) => Ok((client, header.rest)),
        Err(_) => Err("client_full"),
    }
}

/// A stream on which HTTP can begin.
struct Established {
    stream: Stream,
    early: Bytes,
    is_http2: bool,
}

async fn handshake(
    worker: &Worker,
    mut stream: TcpStream,
    early: Bytes,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> Option<Established> {
    let Some(tls) = tls else {
        let (early, is_http2) = sniff(&mut stream, early).await?;
        return Some(Established {
            stream: Stream::Plain(stream),
            early,
            is_http2,
        });
    };
    // TLS bytes that came with the PROXY header are fed in first.
    let accepting = TlsAcceptor::from(tls).accept(super::connection::Prefixed::new(early, stream));
    match accepting.await {
        Ok(stream) => {
            worker.metrics.handshakes.with_label_values(&["ok"]).inc();
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Some(Established {
                stream: Stream::Tls(Box::new(stream)),
                early: Bytes::new(),
                is_http2,
            })
        }
        Err(error) => {
            worker.metrics.handshakes.with_label_values(&["failed"]).inc();
            tracing::debug!(%error, "TLS handshake failed");
            None
        }
    }
}

/// Without TLS the first bytes tell HTTP/2 with prior knowledge from HTTP/1.1. `None`: the client left.
async fn sniff(stream: &mut TcpStream, early: Bytes) -> Option<(Bytes, bool)> {
    let mut first = early.to_vec();
    loop {
        let seen = first.len().min(HTTP2_PREFACE.len());
        if first.get(..seen) != HTTP2_PREFACE.get(..seen) {
            return Some((Bytes::from(first), false));
        }
        if seen == HTTP2_PREFACE.len() {
            return Some((Bytes::from(first), true));
        }
        if stream.read_buf(&mut first).await.ok()? == 0 {
            return None;
        }
    }
}
