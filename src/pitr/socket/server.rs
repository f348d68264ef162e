//! The server's end. Who may ask is told by the kernel (SO_PEERCRED), not by the socket's mode alone: ourselves, root,
//! and the user as whom PostgreSQL runs.

use std::fs::File as OpenFile;
use std::io::{self, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Answer, LINE_BYTES_MAX, Request};

/// PostgreSQL archives one file at a time and recovers one at a time.
const CLIENTS_MAX: usize = 16;
/// Those who may not ask, and are told so.
const STRANGERS_MAX: usize = 2;
/// A client sends its request in the first breath.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// When the system is out of descriptors: do not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who may ask, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub path: PathBuf,
    /// The user id of PostgreSQL, where it is not our own.
    pub user: Option<u32>,
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    listener: tokio::net::UnixListener,
    user: Option<u32>,
}

impl Listener {
    /// Replaces the socket of a predecessor: from now on clients come to us.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn bind(config: &Config) -> io::Result<Self> {
        // Made aside and renamed, so that no client finds the place empty or the mode not yet set.
        let aside = config.path.with_extension(format!("{}", std::process::id()));
        remove(&aside)?;
        let listener = std::os::unix::net::UnixListener::bind(&aside)?;
        let mode = if config.user.is_some() { 0o666 } else { 0o600 };
        std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&aside, &config.path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: tokio::net::UnixListener::from_std(listener)?,
            user: config.user,
        })
    }

    /// Serves for ever. `answer` gets the request and the client's open file.
    pub async fn serve<A, F>(self, answer: A)
    where
        A: Fn(Request, OpenFile) -> F + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let answer = Arc::new(answer);
        let permits = Arc::new(Semaphore::new(CLIENTS_MAX));
        let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
        let mut clients = JoinSet::new();
        loop {
            while clients.try_join_next().is_some() {}
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let stranger = stranger(&stream, self.user);
                    let permit = match stranger {
                        None => Arc::clone(&permits).acquire_owned().await.ok(),
                        // They are told why; so many at a time that they are in nobody's way.
                        Some(_) => Arc::clone(&strangers).try_acquire_owned().ok(),
                    };
                    let Some(permit) = permit else { continue };
                    let answer = Arc::clone(&answer);
                    clients.spawn(async move {
                        if let Err(error) = converse(stream, stranger, &*answer).await {
                            tracing::warn!(%error, "a client of the archive's socket was not served");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the archive's socket cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// The peer's user id, if it may not use the socket. Whoever cannot be told is nobody.
fn stranger(stream: &tokio::net::UnixStream, user: Option<u32>) -> Option<u32> {
    let peer = stream.peer_cred().map_or(u32::MAX, |peer| peer.uid());
    let own = rustix::process::getuid().as_raw();
    let is_welcome = peer == own || peer == 0 || Some(peer) == user;
    (!is_welcome).then_some(peer)
}

async fn converse<A, F>(stream: tokio::net::UnixStream, stranger: Option<u32>, answer: &A) -> io::Result<()>
where
    A: Fn(Request, OpenFile) -> F,
    F: Future<Output = Answer>,
{
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    let (stream, received) = tokio::task::spawn_blocking(move || {
        let received = receive(&stream);
        (stream, received)
    })
    .await
    .map_err(io::Error::other)?;
    let answer = match (received, stranger) {
        (Ok(_), Some(peer)) => Answer::Failed(format!("user id {peer} may not use this socket; see pitr.user")),
        (Ok((request, file)), None) => answer(request, file).await,
        (Err(error), _) => Answer::Failed(error.to_string()),
    };
    let line = answer.to_string();
    let told = tokio::task::spawn_blocking(move || (&stream).write_all(line.as_bytes()));
    told.await.map_err(io::Error::other)?
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// One message: the line and the file.
fn receive(stream: &UnixStream) -> io::Result<(Request, OpenFile)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut line = [0; LINE_BYTES_MAX];
    let received = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut line)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let file = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let file: OwnedFd = file.ok_or_else(|| io::Error::other("no file came with the request"))?;
    let line = line.get(..received.bytes).unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(io::Error::other)?;
    let request = line.parse().map_err(|why: String| io::Error::other(why))?;
    let file = OpenFile::from(file);
    // Reading from a pipe or writing to one would let the client hold a thread.
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("what came with the request is no regular file"));
    }
    Ok((request, file))
}
