//! HTTP/1.1 from clients, by hyper. A quiet connection is taken apart, so that idle clients cost little memory, and put
//! together again when bytes come.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use hyper::server::conn::http1::{Builder, Connection as Http};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};

use super::{ClientIo, Connection, Signal, State};
use crate::proxy::{pipeline, tunnel};

/// How much is read at once from a connection that was parked; the rest follows through hyper.
const FIRST_READ_BYTES: usize = 2048;
/// What is read of a request that was answered unread.
const DISCARDED_BYTES_MAX: usize = 32 << 20;
const DISCARDED_AT_ONCE_BYTES: usize = 16 * 1024;
/// hyper's smallest allowed cap is 8 KiB; ours are checked in the pipeline, where a refusal can be explained.
const HEADER_SLACK_BYTES: usize = 8 * 1024;

/// How a stretch of serving ended.
enum Pause {
    /// The connection is idle: its stream, without hyper's buffers.
    Parked(ClientIo),
    /// The app switched protocols; bytes that hyper had read already come first.
    Upgraded(ClientIo, Bytes),
    /// The last answer is out, and the client may still be sending.
    Unread(ClientIo),
    Closed,
}

pub(super) async fn serve(connection: Rc<Connection>, mut io: ClientIo) {
    loop {
        match Box::pin(serve_until_quiet(&connection, io)).await {
            Pause::Closed => return,
            Pause::Unread(io) => {
                connection.state.set(State::Lingering(connection.worker.coarse_tick()));
                connection.unless_closed(Box::pin(discard(io))).await;
                return;
            }
            Pause::Upgraded(mut io, early) => {
                let pending = connection.tunnel.borrow_mut().take();
                if let Some(pending) = pending {
                    io.unread(early);
                    connection.state.set(State::Tunnel);
                    connection.unless_closed(Box::pin(tunnel::run(io, *pending))).await;
                }
                return;
            }
            Pause::Parked(parked) => match awaken(&connection, parked).await {
                Some(awake) => io = awake,
                None => return,
            },
        }
    }
}

async fn serve_until_quiet(connection: &Rc<Connection>, io: ClientIo) -> Pause {
    let snapshot = connection.worker.snapshot();
    let caps = &snapshot.config.caps;
    let service = {
        let connection = Rc::clone(connection);
        service_fn(move |request| pipeline::serve(Rc::clone(&connection), request))
    };
    let mut builder = Builder::new();
    // Deadlines are the sweeper's, so hyper needs no timer.
    builder
        .header_read_timeout(None)
        .max_buf_size(caps.max_header_size.saturating_add(HEADER_SLACK_BYTES).max(16 * 1024));
    if caps.max_headers > 100 {
        builder.max_headers(caps.max_headers.saturating_add(1));
    }
    drop(snapshot);
    let mut http = Some(builder.serve_connection(TokioIo::new(io), service));
    std::future::poll_fn(|cx| {
        let Some(serving) = &mut http else {
            return Poll::Ready(Pause::Closed);
        };
        let polled = Pin::new(&mut *serving).poll(cx);
        loop {
            if let Poll::Ready(result) = polled {
                if let Err(error) = &result {
                    tracing::debug!(client = %connection.peer, %error, "connection ended");
                }
                let is_upgraded = connection.tunnel.borrow().is_some();
                let is_unread = connection.unread.get();
                let parts = (is_upgraded || is_unread).then(|| http.take().map(Http::into_parts));
                return Poll::Ready(parts.flatten().map_or(Pause::Closed, |parts| {
                    let io = parts.io.into_inner();
                    if is_upgraded {
                        Pause::Upgraded(io, parts.read_buf)
                    } else {
                        Pause::Unread(io)
                    }
                }));
            }
            match connection.poll_signal(cx) {
                Signal::None => return Poll::Pending,
                Signal::Close => return Poll::Ready(Pause::Closed),
                Signal::Park if connection.is_idle() => {
                    let parts = http.take().map(Http::into_parts);
                    return Poll::Ready(parts.map_or(Pause::Closed, |parts| {
                        let mut io = parts.io.into_inner();
                        io.unread(parts.read_buf);
                        Pause::Parked(io)
                    }));
                }
                Signal::Park | Signal::Drain => {}
            }
        }
    })
    .await
}

/// Reads and forgets what comes until the client ends its side too: bytes that are left in the socket when it closes turn the
/// close into a reset. The sweeper ends it after [`super::LINGER`].
async fn discard(mut io: ClientIo) {
    // hyper has done it, unless it could not parse what came.
    if io.shutdown().await.is_err() {
        return;
    }
    let mut space = vec![0; DISCARDED_AT_ONCE_BYTES];
    let mut left = DISCARDED_BYTES_MAX;
    while left > 0 {
        match io.read(&mut space).await {
            Ok(count @ 1..) => left = left.saturating_sub(count),
            Ok(_) | Err(_) => return,
        }
    }
}

/// Waits for the next bytes of a parked connection; `None`: it is over.
async fn awaken(connection: &Rc<Connection>, mut io: ClientIo) -> Option<ClientIo> {
    std::future::poll_fn(|cx| {
        loop {
            match connection.poll_signal(cx) {
                Signal::Close => return Poll::Ready(None),
                Signal::Park | Signal::Drain => {}
                Signal::None => break,
            }
        }
        let mut space = [0; FIRST_READ_BYTES];
        let mut buffer = ReadBuf::new(&mut space);
        match Pin::new(&mut io).poll_read(cx, &mut buffer) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                Poll::Ready(Some(Bytes::copy_from_slice(buffer.filled())))
            }
            Poll::Ready(_) => Poll::Ready(None),
        }
    })
    .await
    .map(|first| {
        io.unread(first);
        io
    })
}
