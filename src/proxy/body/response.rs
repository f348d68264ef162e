//! An answer's body on its way to the client, in pieces that each keep its flight going until they are written.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::Error;
use crate::proxy::flight::{NEVER, Ticket};
use crate::proxy::headers;
use crate::proxy::metrics::Outcome;
use crate::proxy::upstream::Lease;

/// How long each side may keep the other waiting in the middle of an answer.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct Patience {
    pub(in crate::proxy) app: Duration,
    pub(in crate::proxy) client: Duration,
}

/// A response body on its way to the client.
#[derive(Debug)]
pub(in crate::proxy) struct ResponseBody {
    source: Source,
    patience: Patience,
    /// Dropped with the body: the account is written when the answer is complete or the client is gone.
    ticket: Option<Ticket>,
}

#[derive(Debug)]
enum Source {
    /// Made by Foregate.
    Own(Bytes),
    /// From the app; the lease gives the connection back to the pool at the end.
    App {
        incoming: Incoming,
        lease: Option<Lease>,
        /// What is left of a frame that was too large for HTTP/2.
        rest: Bytes,
    },
}

/// In HTTP/2 a piece is taken whole as soon as a client's window is open for one byte, and stays in memory until all of it
/// may be sent.
const HTTP2_PIECE_BYTES_MAX: usize = 16 * 1024;

/// A part of an answer; its flight is not over before it is written.
#[derive(Debug)]
pub(in crate::proxy) struct Piece {
    bytes: Bytes,
    _ticket: Option<Ticket>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl ResponseBody {
    /// Nothing, with no account of its own.
    pub(in crate::proxy) fn empty() -> Self {
        Self {
            source: Source::Own(Bytes::new()),
            patience: Patience {
                app: NEVER,
                client: NEVER,
            },
            ticket: None,
        }
    }

    pub(in crate::proxy) fn own(bytes: Bytes, patience: Duration, ticket: Ticket) -> Self {
        ticket.deadline.set(NEVER);
        ticket.hand_over(bytes.len(), ticket.worker().coarse_tick(), patience);
        Self {
            source: Source::Own(bytes),
            patience: Patience {
                app: NEVER,
                client: patience,
            },
            ticket: Some(ticket),
        }
    }

    pub(in crate::proxy) fn app(incoming: Incoming, lease: Lease, patience: Patience, ticket: Ticket) -> Self {
        // HTTP/2 asks for nothing of the body before the client's window is open.
        ticket.hand_over(0, ticket.worker().coarse_tick(), patience.client);
        let lease = if incoming.is_end_stream() {
            lease.give_back(ticket.worker().coarse_tick());
            None
        } else {
            Some(lease)
        };
        Self {
            source: Source::App {
                incoming,
                lease,
                rest: Bytes::new(),
            },
            patience,
            ticket: Some(ticket),
        }
    }

    fn complete(&self) {
        if let Some(ticket) = &self.ticket
            && ticket.outcome.get() == Outcome::Aborted
        {
            ticket.outcome.set(Outcome::App);
        }
    }
}

/// What a body yields when it is asked for more.
type Next = Option<Result<Frame<Bytes>, Error>>;

impl ResponseBody {
    /// The next part of at most one piece, and whether it is the last.
    fn poll_app(&mut self, cx: &mut Context<'_>) -> Poll<(Next, bool)> {
        let Source::App { incoming, lease, rest } = &mut self.source else {
            return Poll::Ready((None, true));
        };
        if !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(HTTP2_PIECE_BYTES_MAX));
            let is_last = rest.is_empty() && incoming.is_end_stream();
            return Poll::Ready((Some(Ok(Frame::data(piece))), is_last));
        }
        let Poll::Ready(mut next) = Pin::new(&mut *incoming).poll_frame(cx) else {
            if let Some(ticket) = &self.ticket {
                ticket.await_more();
            }
            return Poll::Pending;
        };
        // Trailers are the last frame: nobody asks for another.
        let is_last = |next: &Result<Frame<Bytes>, _>| next.as_ref().is_ok_and(Frame::is_trailers);
        let mut ended = next.as_ref().is_none_or(is_last) || incoming.is_end_stream();
        if ended
            && let Some(lease) = lease.take()
            && let Some(ticket) = &self.ticket
        {
            lease.give_back(ticket.worker().coarse_tick());
        }
        if let Some(Ok(frame)) = &mut next {
            if let Some(data) = frame.data_mut()
                && data.len() > HTTP2_PIECE_BYTES_MAX
                && self.ticket.as_ref().is_some_and(|ticket| ticket.http2)
            {
                *rest = data.split_off(HTTP2_PIECE_BYTES_MAX);
                ended = false;
            }
            if let Some(trailers) = frame.trailers_mut() {
                headers::for_trailers(trailers);
            }
        }
        Poll::Ready((next.map(|result| result.map_err(Error::from)), ended))
    }

    /// Notes what goes to the client.
    fn hand_over(&self, bytes: &Bytes) {
        let Some(ticket) = &self.ticket else { return };
        let now = ticket.worker().coarse_tick();
        ticket.deadline.set(now.saturating_add(self.patience.app));
        ticket.hand_over(bytes.len(), now, self.patience.client);
        ticket.sent.set(ticket.sent.get() + bytes.len() as u64);
    }

    fn piece(&self, bytes: Bytes) -> Piece {
        Piece {
            bytes,
            _ticket: self.ticket.clone(),
        }
    }
}

impl Body for ResponseBody {
    type Data = Piece;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, Error>>> {
        let this = &mut *self;
        if let Source::Own(bytes) = &mut this.source {
            let bytes = std::mem::take(bytes);
            return Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(this.piece(bytes)))));
        }
        if let Some(ticket) = &this.ticket
            && let Some(why) = ticket.poll_ended(cx)
        {
            return Poll::Ready(Some(Err(why.into())));
        }
        let (next, ended) = ready!(this.poll_app(cx));
        if ended && !matches!(next, Some(Err(_))) {
            this.complete();
        }
        Poll::Ready(next.map(|result| {
            let frame = result?;
            this.hand_over(frame.data_ref().unwrap_or(&Bytes::new()));
            Ok(frame.map_data(|bytes| this.piece(bytes)))
        }))
    }

    fn is_end_stream(&self) -> bool {
        let ended = match &self.source {
            Source::Own(bytes) => bytes.is_empty(),
            Source::App { incoming, rest, .. } => rest.is_empty() && incoming.is_end_stream(),
        };
        if ended {
            self.complete();
        }
        ended
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::App { incoming, rest, .. } if rest.is_empty() => incoming.size_hint(),
            // Asked before the first frame only, when nothing is left over.
            Source::App { .. } => SizeHint::default(),
        }
    }
}
