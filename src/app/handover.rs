//! Takes the listening sockets over from a running Foregate, and hands them to the next: no connection is refused or reset
//! in between, because the sockets themselves, with what waits in their queues, pass from process to process.
//!
//! The old process listens on a Unix socket in `state_dir`. The new one connects, receives the sockets (SCM_RIGHTS, unix(7)),
//! starts, and says that it is ready; only then does the old one drain. If the new one fails before that, or takes too long,
//! the old one just goes on; one that was too late asks again once it is ready, so that the two never serve side by side for
//! longer than that takes. systemd's socket activation gives sockets in the same way, before anything else is asked.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::proxy::Sockets;

const SOCKET_NAME: &str = "handover.sock";
/// The kernel's cap on descriptors in one message (SCM_MAX_FD).
const SOCKETS_MAX: usize = 253;
/// How long the sockets may take to arrive.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the new process may take to start before the old one stops waiting and goes on.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a predecessor that could not be told to drain is asked again.
const ASKED_AGAIN: usize = 3;
/// After a failure, before the next successor is looked for.
const PAUSE: Duration = Duration::from_millis(100);
const READY: &[u8] = b"ready";
/// What a socket is for, in the message that carries it.
const GATE: u8 = b'g';
const REDIRECT: u8 = b'r';
const ADMIN: u8 = b'a';

/// All listening sockets of a Foregate.
#[derive(Debug, Default)]
pub(super) struct Listening {
    pub(super) gate: Sockets,
    pub(super) admin: Vec<TcpListener>,
}

/// Sockets from elsewhere, and whom to tell once they are served.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    pub(super) listening: Listening,
    predecessor: Option<UnixStream>,
}

impl Inherited {
    /// Asks systemd first, then a running Foregate with the same `state_dir`. Neither being there is the ordinary case.
    pub(super) fn take(state_dir: &Path) -> Self {
        let from_systemd = activated();
        if !from_systemd.is_empty() {
            // The unit does not say which is which; addresses will tell.
            let redirects = from_systemd
                .iter()
                .filter_map(|socket| socket.try_clone().ok())
                .collect();
            let gate = Sockets {
                gates: from_systemd,
                redirects,
            };
            return Self {
                listening: Listening {
                    gate,
                    admin: Vec::new(),
                },
                predecessor: None,
            };
        }
        match ask(state_dir) {
            None => Self::default(),
            Some(Ok((listening, stream))) => {
                tracing::info!("taking over from a running Foregate");
                Self {
                    listening,
                    predecessor: Some(stream),
                }
            }
            Some(Err(error)) => {
                let path = state_dir.join(SOCKET_NAME);
                tracing::warn!(%error, path = %path.display(), "a running Foregate did not hand its sockets over");
                Self::default()
            }
        }
    }

    /// Tells the predecessor to drain. One that has given up waiting serves on: it is asked anew, and hears at once that all is
    /// ready. One that is there no more needs no telling.
    ///
    /// # Errors
    /// A predecessor that goes on whatever it is told: two must not serve.
    pub(super) fn ready(self, state_dir: &Path) -> anyhow::Result<()> {
        let Some(stream) = self.predecessor else {
            return Ok(());
        };
        let mut told = tell(&stream);
        for _ in 0..ASKED_AGAIN {
            let Err(error) = told else {
                return Ok(());
            };
            tracing::warn!(%error, "the predecessor waits no longer; asking it again");
            let Some(asked) = ask(state_dir) else {
                return Ok(());
            };
            told = asked.and_then(|(_, stream)| tell(&stream));
        }
        told.context("the predecessor goes on, and cannot be told to drain")
    }
}

/// Asks a running Foregate for its sockets. `None`: there is none.
fn ask(state_dir: &Path) -> Option<anyhow::Result<(Listening, UnixStream)>> {
    let stream = UnixStream::connect(state_dir.join(SOCKET_NAME)).ok()?;
    Some(receive(&stream).map(|listening| (listening, stream)))
}

/// Says that all is ready, and waits until that is heard: whoever closes without having read it has given up just before.
fn tell(mut stream: &UnixStream) -> anyhow::Result<()> {
    use std::io::ErrorKind::{Interrupted, WouldBlock};
    stream.write_all(READY)?;
    match stream.read(&mut [0]) {
        // One that is slow to read it will.
        Err(error) if !matches!(error.kind(), Interrupted | WouldBlock) => Err(error.into()),
        _ => Ok(()),
    }
}

impl Listening {
    /// What each socket is for, one byte each, with the socket.
    fn tagged(&self) -> Vec<(u8, &TcpListener)> {
        let gates = self.gate.gates.iter().map(|socket| (GATE, socket));
        let redirects = self.gate.redirects.iter().map(|socket| (REDIRECT, socket));
        let admin = self.admin.iter().map(|socket| (ADMIN, socket));
        gates.chain(redirects).chain(admin).collect()
    }

    fn untagged(tags: &[u8], sockets: impl Iterator<Item = TcpListener>) -> Self {
        let mut listening = Self::default();
        for (tag, socket) in tags.iter().zip(sockets) {
            match *tag {
                GATE => listening.gate.gates.push(socket),
                REDIRECT => listening.gate.redirects.push(socket),
                ADMIN => listening.admin.push(socket),
                // A newer version's kind of socket, of which this one knows nothing.
                _ => {}
            }
        }
        listening
    }
}

/// Sockets that systemd opened for us (sd_listen_fds(3)).
fn activated() -> Vec<TcpListener> {
    let mut given = listenfd::ListenFd::from_env();
    (0..given.len())
        .filter_map(|index| given.take_tcp_listener(index).ok().flatten())
        .collect()
}

fn receive(stream: &UnixStream) -> anyhow::Result<Listening> {
    stream.set_read_timeout(Some(RECEIVE_TIMEOUT))?;
    stream.set_write_timeout(Some(RECEIVE_TIMEOUT))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut tags = [0; SOCKETS_MAX];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut tags)], &mut ancillary, flags)?;
    anyhow::ensure!(received.bytes > 0, "it closed the connection");
    let descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<OwnedFd>>(),
        _ => Vec::new(),
    });
    let tags = tags.get(..received.bytes).unwrap_or_default();
    Ok(Listening::untagged(tags, descriptors.map(TcpListener::from)))
}

/// Waits for a successor and hands it `sockets`.
#[derive(Debug)]
pub(super) struct Door {
    listener: tokio::net::UnixListener,
    /// How long a successor may take to start.
    patience: Duration,
}

impl Door {
    /// Replaces the door of a predecessor: from now on successors come to us.
    pub(super) fn open(state_dir: &Path) -> anyhow::Result<Self> {
        let path = state_dir.join(SOCKET_NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("{} cannot be replaced", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        Ok(Self {
            listener,
            patience: START_TIMEOUT,
        })
    }

    /// Returns the successor's process id once it serves. One that fails on the way leaves everything as it was.
    pub(super) async fn successor(&self, listening: &Listening) -> Option<u32> {
        loop {
            match self.hand_over(listening).await {
                Ok(pid) => return pid,
                Err(error) => tracing::warn!(%error, "a successor did not take over; going on"),
            }
            // What fails at once, as when no more files may be opened, must not be asked for without end.
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn hand_over(&self, listening: &Listening) -> anyhow::Result<Option<u32>> {
        let (stream, _) = self.listener.accept().await?;
        let own = rustix::process::getuid().as_raw();
        let credentials = stream.peer_cred()?;
        let peer = credentials.uid();
        anyhow::ensure!(
            peer == own || peer == 0,
            "uid {peer} may not take the sockets of uid {own}"
        );
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        let tagged = listening.tagged().into_iter();
        let copies = tagged.map(|(tag, socket)| Ok((tag, socket.try_clone()?)));
        let sockets = copies.collect::<std::io::Result<Vec<_>>>()?;
        let patience = self.patience;
        tokio::task::spawn_blocking(move || give(&stream, &sockets, patience)).await??;
        Ok(credentials.pid().and_then(|pid| u32::try_from(pid).ok()))
    }
}

fn give(mut stream: &UnixStream, sockets: &[(u8, TcpListener)], patience: Duration) -> anyhow::Result<()> {
    anyhow::ensure!(
        sockets.len() <= SOCKETS_MAX,
        "{} sockets are too many for one message",
        sockets.len()
    );
    stream.set_write_timeout(Some(RECEIVE_TIMEOUT))?;
    stream.set_read_timeout(Some(patience))?;
    let descriptors: Vec<BorrowedFd<'_>> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
    let tags: Vec<u8> = sockets.iter().map(|(tag, _)| *tag).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    anyhow::ensure!(
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)),
        "the message has no room"
    );
    sendmsg(stream, &[IoSlice::new(&tags)], &mut ancillary, SendFlags::empty())?;
    let mut answer = [0; READY.len()];
    stream.read_exact(&mut answer).context("it ended before it was ready")?;
    anyhow::ensure!(answer == READY, "it said something else than that it is ready");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listening() -> Listening {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Listening {
            gate: Sockets::default(),
            admin: vec![socket],
        }
    }

    /// What a start takes over from the door in this directory.
    async fn taken(directory: &Path) -> Inherited {
        let directory = directory.to_owned();
        let taking = tokio::task::spawn_blocking(move || Inherited::take(&directory));
        let inherited = taking.await.expect("no panic");
        assert_eq!(inherited.listening.admin.len(), 1);
        inherited
    }

    async fn ready(inherited: Inherited, directory: &Path) -> anyhow::Result<()> {
        let directory = directory.to_owned();
        let telling = tokio::task::spawn_blocking(move || inherited.ready(&directory));
        telling.await.expect("no panic")
    }

    #[tokio::test]
    async fn successor_that_was_too_late_takes_over_all_the_same() {
        let directory = tempfile::tempdir().expect("a folder");
        let mut door = Door::open(directory.path()).expect("a door");
        door.patience = Duration::from_millis(1);
        let sockets = listening();
        let late = async {
            let mut inherited = taken(directory.path()).await;
            let stream = inherited.predecessor.take().expect("a predecessor");
            let given_up = tokio::task::spawn_blocking(move || {
                stream.set_read_timeout(None).expect("it waits");
                assert_eq!((&stream).read(&mut [0]).expect("closed"), 0);
                stream
            });
            inherited.predecessor = Some(given_up.await.expect("no panic"));
            ready(inherited, directory.path()).await
        };
        // Once the late one asks again, it has all that it needs.
        let (heard, late) = tokio::join!(patient(&mut door, &sockets), late);
        late.expect("it has taken over");
        assert_eq!(heard, Some(std::process::id()));
    }

    /// Has no patience with the first successor, and all of it with the second.
    async fn patient(door: &mut Door, sockets: &Listening) -> Option<u32> {
        door.hand_over(sockets).await.expect_err("it took too long");
        door.patience = START_TIMEOUT;
        door.hand_over(sockets).await.expect("ready at once")
    }

    #[tokio::test]
    async fn predecessor_that_gives_up_at_the_very_word_is_asked_again() {
        let directory = tempfile::tempdir().expect("a folder");
        let door = Door::open(directory.path()).expect("a door");
        let sockets = listening();
        let (given_up, gives_up) = tokio::sync::oneshot::channel();
        let predecessor = async {
            let (stream, _) = door.listener.accept().await.expect("a successor");
            let stream = stream.into_std().expect("a stream");
            stream.set_nonblocking(false).expect("it waits");
            let socket = sockets.admin[0].try_clone().expect("a copy");
            let given = give(&stream, &[(ADMIN, socket)], Duration::from_millis(1));
            given.expect_err("no word yet");
            given_up.send(()).expect("somebody waits");
            stream.set_nonblocking(true).expect("it waits no more");
            let stream = tokio::net::UnixStream::from_std(stream).expect("a stream");
            stream.readable().await.expect("the word");
            drop(stream);
            door.hand_over(&sockets).await.expect("ready at once")
        };
        let successor = async {
            let inherited = taken(directory.path()).await;
            gives_up.await.expect("it has");
            ready(inherited, directory.path()).await
        };
        let (heard, told) = tokio::join!(predecessor, successor);
        told.expect("it has taken over");
        assert_eq!(heard, Some(std::process::id()));
    }

    #[tokio::test]
    async fn predecessor_that_died_is_not_waited_for() {
        let directory = tempfile::tempdir().expect("a folder");
        let mut door = Door::open(directory.path()).expect("a door");
        door.patience = Duration::from_millis(1);
        let sockets = listening();
        let (handed, inherited) = tokio::join!(door.hand_over(&sockets), taken(directory.path()));
        handed.expect_err("it took too long");
        drop(door);
        ready(inherited, directory.path()).await.expect("alone");
    }
}
