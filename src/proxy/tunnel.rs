//! Tunnels: what follows a validated 101 (RFC 9110 section 7.8), or the 200 to an extended CONNECT (RFC 8441). Bytes are
//! copied both ways, with back-pressure and half-close, until both sides are done, the tunnel is idle for too long, its
//! client is blocked, or the drain ends.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use super::flight::{NEVER, Ticket};
use super::metrics::Outcome;

/// A tunnel that opens when its answer has been sent to the client.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) upstream: OnUpgrade,
    pub(super) ticket: Ticket,
    /// How long neither side may be silent.
    pub(super) idle: Duration,
}

/// A byte stream that puts the deadline off at each byte.
struct Watched<'a, S> {
    stream: S,
    ticket: &'a Ticket,
    idle: Duration,
}

impl<S> Watched<'_, S> {
    fn touch(&self) {
        self.ticket
            .deadline
            .set(self.ticket.worker().coarse_tick().saturating_add(self.idle));
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<'_, S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if result.is_ready() {
            self.touch();
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        if result.is_ready() {
            self.touch();
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Copies until the tunnel ends; dropping the future ends it too.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(client: S, pending: Pending) {
    let Pending { upstream, ticket, idle } = pending;
    ticket.outcome.set(Outcome::Tunnel);
    let upgraded = match ticket.guard(upstream).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(error)) => return tracing::debug!(%error, "the app's side of a tunnel did not open"),
        Err(why) => return tracing::debug!(?why, "a tunnel ended before it opened"),
    };
    let mut client = Watched {
        stream: client,
        ticket: &ticket,
        idle,
    };
    client.touch();
    let mut app = TokioIo::new(upgraded);
    let open = Open::new(&ticket);
    if let Ok(Ok((received, sent))) = ticket.guard(copy_bidirectional(&mut client, &mut app)).await {
        ticket.received.set(received);
        ticket.sent.set(sent);
    }
    drop(open);
    ticket.deadline.set(NEVER);
}

/// Counts an open tunnel for as long as it lives, also when its task is dropped.
struct Open<'a>(&'a Ticket);

impl<'a> Open<'a> {
    fn new(ticket: &'a Ticket) -> Self {
        ticket.worker().metrics.tunnels.inc();
        Self(ticket)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.worker().metrics.tunnels.dec();
    }
}
