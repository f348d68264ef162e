//! The thin end: no runtime, no configuration. PostgreSQL starts one for each segment.

use std::fs::File as OpenFile;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{Answer, LINE_BYTES_MAX, Request};

/// Longer than the server's own retries; PostgreSQL itself sets no limit.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// What asking came to.
#[derive(Debug)]
pub enum Asked {
    Answered(Answer),
    /// Nobody listens there: the server is down.
    Unreachable(io::Error),
    /// It was reached, and went away or said nothing sensible. Whether it did what it was asked is not known.
    Broken(io::Error),
}

/// Asks the server at `socket`.
#[must_use]
pub fn ask(socket: &Path, request: &Request, file: &OpenFile) -> Asked {
    match UnixStream::connect(socket) {
        Ok(stream) => match converse(&stream, request, file) {
            Ok(answer) => Asked::Answered(answer),
            Err(error) => Asked::Broken(error),
        },
        Err(error) => Asked::Unreachable(error),
    }
}

fn converse(mut stream: &UnixStream, request: &Request, file: &OpenFile) -> io::Result<Answer> {
    stream.set_write_timeout(Some(SEND_TIMEOUT))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let line = request.to_string();
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(line.as_bytes())],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    stream.write_all(line.as_bytes().get(sent..).unwrap_or_default())?;
    let mut answer = String::new();
    stream.take(LINE_BYTES_MAX as u64 + 1).read_to_string(&mut answer)?;
    Answer::parse(&answer).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
