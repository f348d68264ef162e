//! Tunnels: what follows a validated 101 (RFC 9110 section 7.8). Bytes are copied both ways until one side closes, the
//! tunnel is idle for too long, its client is blocked, or the drain ends.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use super::{ClientIo, Connection, State};
use crate::proxy::flight::Ticket;
use crate::proxy::metrics::Outcome;

/// A tunnel that opens when the 101 has been sent to the client.
#[derive(Debug)]
pub(in crate::proxy) struct Pending {
    pub(in crate::proxy) upstream: OnUpgrade,
    pub(in crate::proxy) ticket: Ticket,
}

/// Marks the tunnel as alive at each byte from the client's side.
struct Watched<'a> {
    io: ClientIo,
    connection: &'a Connection,
}

impl Watched<'_> {
    fn touch(&self) {
        self.connection
            .state
            .set(State::Tunnel(self.connection.worker.coarse_tick()));
    }
}

impl AsyncRead for Watched<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        if result.is_ready() {
            self.touch();
        }
        result
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        if result.is_ready() {
            self.touch();
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

pub(super) async fn run(connection: &Rc<Connection>, mut io: ClientIo, early: Bytes, pending: Pending) {
    let Pending { upstream, ticket } = pending;
    io.unread(early);
    let upgraded = match upstream.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            tracing::debug!(%error, "the app's side of a tunnel did not open");
            return;
        }
    };
    let mut client = Watched { io, connection };
    client.touch();
    let mut app = TokioIo::new(upgraded);
    connection.worker.metrics.tunnels.inc();
    let copying = ticket.guard(copy_bidirectional(&mut client, &mut app));
    if let Some(Ok(Ok((received, sent)))) = connection.unless_closed(copying).await {
        ticket.received.set(received);
        ticket.sent.set(sent);
    }
    ticket.outcome.set(Outcome::Tunnel);
    connection.worker.metrics.tunnels.dec();
}
