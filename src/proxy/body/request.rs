//! A request's body on its way to the app: what the client owes of it, what the app has not taken, and how it ended.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::Error;
use crate::proxy::flight::{Flight, PACE_PER_SECOND, Ticket};
use crate::proxy::grpc::Messages;
use crate::proxy::headers;

/// How a request body ended, told to the pipeline, which only sees hyper's error about the upstream connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Fate {
    /// More of it is awaited from the client.
    Streaming,
    /// What has come of it waits for the app.
    Untaken,
    Complete,
    TooLarge,
    /// The client stopped sending, or hung up.
    ClientFailed,
    /// What the client sent is no body: a chunk that is none.
    Malformed,
}

impl Fate {
    /// Of a body whose reading failed. hyper's decoder reports what it cannot read as invalid, an end or a failure of
    /// the connection otherwise.
    fn of(error: &hyper::Error) -> Self {
        use std::io::ErrorKind::{InvalidData, InvalidInput};
        let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
        match cause.map(std::io::Error::kind) {
            Some(InvalidData | InvalidInput) => Self::Malformed,
            _ => Self::ClientFailed,
        }
    }
}

/// A request body on its way to the app.
#[derive(Debug)]
pub(in crate::proxy) enum RequestBody {
    Empty,
    Streaming(Box<Upload>),
}

#[derive(Debug)]
pub(in crate::proxy) struct Upload {
    /// Has the body itself.
    flight: Rc<Flight>,
    fate: Rc<Cell<Fate>>,
    rules: Rules,
    /// Of a call whose client may pause between messages.
    messages: Messages,
    /// What has to have been received before the client's deadline is put off again.
    due: u64,
    /// The client's deadline.
    due_by: Duration,
    /// When the app was last given something.
    handed_on: Duration,
    clock: crate::clock::Clock,
}

/// What a request body is held to.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct Rules {
    /// In bytes; passing it ends the body with an error at that byte, so that the app never sees more.
    pub(in crate::proxy) limit: u64,
    /// Something has to arrive within this, ...
    pub(in crate::proxy) idle: Duration,
    /// ... and so many bytes of it until the app has answered.
    pub(in crate::proxy) pace: u64,
    /// For gRPC, whose messages come when they come: how long the client may be silent between two of them. Within one it
    /// is held to the rules of any body.
    pub(in crate::proxy) pause: Option<Duration>,
    /// How long the app has for taking what has come, and for its headers once the last byte is sent.
    pub(in crate::proxy) response_timeout: Duration,
}

impl Rules {
    pub(in crate::proxy) fn new(
        limit: u64,
        idle: Duration,
        response_timeout: Duration,
        pause: Option<Duration>,
    ) -> Self {
        Self {
            limit,
            idle,
            pace: idle.as_secs() * PACE_PER_SECOND,
            pause,
            response_timeout,
        }
    }
}

impl RequestBody {
    pub(in crate::proxy) fn streaming(ticket: &Ticket, incoming: Incoming, rules: Rules) -> (Self, Rc<Cell<Fate>>) {
        let fate = Rc::new(Cell::new(Fate::Streaming));
        let clock = ticket.worker().clock;
        let now = clock.tick();
        let due_by = now + rules.pause.unwrap_or(rules.idle);
        ticket.deadline.set(due_by);
        *ticket.upload.borrow_mut() = Some(incoming);
        let upload = Upload {
            flight: ticket.share(),
            fate: Rc::clone(&fate),
            due: rules.pace,
            due_by,
            handed_on: now,
            messages: Messages::default(),
            rules,
            clock,
        };
        (Self::Streaming(Box::new(upload)), fate)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // HTTP/1.1 does not ask for the end of a body whose length it has sent, and HTTP/2 may tell of it in a frame of its own.
        if self.is_taken_whole() {
            self.finish(self.clock.tick());
        }
        self.flight.end_upload();
    }
}

impl Upload {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = match self.flight.upload.borrow_mut().as_mut() {
            Some(incoming) => Pin::new(incoming).poll_frame(cx),
            None => return Poll::Ready((self.fate.get() != Fate::Complete).then_some(Err(Error::Over))),
        };
        let Poll::Ready(next) = polled else {
            // The sweeper ends the flight when the client sends nothing for too long.
            if let Some(why) = self.flight.poll_ended_by_upload(cx) {
                if self.fate.get() == Fate::Streaming {
                    self.fate.set(Fate::ClientFailed);
                }
                return Poll::Ready(Some(Err(why.into())));
            }
            self.await_client();
            return Poll::Pending;
        };
        let now = self.clock.tick();
        match next {
            None => {
                self.finish(now);
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                self.fate.set(Fate::of(&error));
                Poll::Ready(Some(Err(error.into())))
            }
            Some(Ok(frame)) => Poll::Ready(Some(self.pass(frame, now))),
        }
    }

    fn pass(&mut self, mut frame: Frame<Bytes>, now: Duration) -> Result<Frame<Bytes>, Error> {
        let was_between = self.is_between();
        if let Some(data) = frame.data_ref() {
            if self.rules.pause.is_some() {
                self.messages.pass(data);
            }
            let received = self.flight.received.get() + data.len() as u64;
            if received > self.rules.limit {
                self.fate.set(Fate::TooLarge);
                return Err(Error::TooLarge);
            }
            self.flight.received.set(received);
        }
        if let Some(trailers) = frame.trailers_mut() {
            headers::for_trailers(trailers);
        }
        if frame.is_trailers() || self.is_end_stream() {
            self.finish(now);
        } else {
            self.note_progress(was_between, now);
            self.hand_on(now);
        }
        Ok(frame)
    }

    /// Until the app asks for more, it is the app that is waited for; where the client has longer, as between two messages,
    /// the app has as long.
    fn hand_on(&mut self, now: Duration) {
        self.fate.set(Fate::Untaken);
        self.handed_on = now;
        self.put_off(self.due_by.max(now + self.rules.response_timeout));
    }

    /// The app asks for more. The time that it took is none of the client's.
    fn await_client(&mut self) {
        if self.fate.get() == Fate::Untaken {
            self.fate.set(Fate::Streaming);
            self.due_by += self.clock.tick().saturating_sub(self.handed_on);
            self.put_off(self.due_by);
        }
    }

    /// Puts the client's deadline off if enough has come since it was set. An app that has answered already, while the body still
    /// comes, knows what it waits for.
    fn note_progress(&mut self, was_between: bool, now: Duration) {
        let received = self.flight.received.get();
        let is_between = self.is_between();
        // A message that begins is due like any body, whatever the pause before it could have been.
        if self.is_answered() || received >= self.due || was_between || is_between {
            self.due = received + self.rules.pace;
            let pause = self.rules.pause.filter(|_| is_between || self.is_answered());
            self.due_by = now + pause.unwrap_or(self.rules.idle);
        }
    }

    fn is_end_stream(&self) -> bool {
        let incoming = self.flight.upload.borrow();
        self.fate.get() == Fate::Complete || incoming.as_ref().is_some_and(Incoming::is_end_stream)
    }

    /// Whether all of the length that was announced has been taken.
    fn is_taken_whole(&self) -> bool {
        let incoming = self.flight.upload.borrow();
        incoming
            .as_ref()
            .is_some_and(|incoming| incoming.size_hint().exact() == Some(0))
    }

    /// Whether the client owes nothing of a message that it began.
    fn is_between(&self) -> bool {
        self.rules.pause.is_some() && self.messages.is_between()
    }

    fn is_answered(&self) -> bool {
        self.flight.status.get() != 0
    }

    /// The answer has its own patience, which what the client sends meanwhile must not shorten.
    fn put_off(&self, deadline: Duration) {
        let floor = if self.is_answered() {
            self.flight.deadline.get()
        } else {
            Duration::ZERO
        };
        self.flight.deadline.set(deadline.max(floor));
    }

    fn finish(&self, now: Duration) {
        if matches!(self.fate.get(), Fate::Streaming | Fate::Untaken) {
            self.fate.set(Fate::Complete);
            drop(self.flight.upload.take());
            self.put_off(now + self.rules.response_timeout);
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Streaming(upload) => upload.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streaming(upload) => upload.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streaming(upload) => {
                let incoming = upload.flight.upload.borrow();
                incoming.as_ref().map_or_else(SizeHint::default, Incoming::size_hint)
            }
        }
    }
}
