//! A service manager's end of sd_notify(3): what each process tells it, in order.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt};
use tempfile::TempDir;

use super::wait;

pub(crate) struct Manager {
    directory: TempDir,
    socket: UnixDatagram,
}

impl Manager {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a private folder");
        let socket = UnixDatagram::bind(path(&directory)).expect("a socket");
        socket.set_nonblocking(true).expect("an option");
        // Who says it: as systemd, which heeds the main process alone, unless the unit says otherwise.
        sockopt::set_socket_passcred(&socket, true).expect("an option");
        Self { directory, socket }
    }

    /// Has the process that `command` starts tell this manager.
    pub(crate) fn is_told_by(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", path(&self.directory));
    }

    /// Waits until the process `pid` says `line`; what is said before that is passed over.
    pub(crate) async fn hears(&self, pid: u32, line: &str) {
        wait::until(&format!("{line} of process {pid}"), async || {
            while let Some((from, said)) = self.next() {
                if from == pid && said.lines().any(|said| said == line) {
                    return Some(());
                }
            }
            None
        })
        .await;
    }

    /// The next message, if one waits.
    fn next(&self) -> Option<(u32, String)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 4096];
        let pieces = &mut [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(&self.socket, pieces, &mut ancillary, RecvFlags::empty()).ok()?;
        let from = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid.as_raw_nonzero().get()),
            _ => None,
        });
        let said = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
        Some((from?.unsigned_abs(), said))
    }
}

fn path(directory: &TempDir) -> PathBuf {
    directory.path().join("notify")
}
