//! TCP keep-alive, the same towards clients and the app: a tunnel may be quiet for an hour, yet a machine that is gone is
//! found out by the kernel within two minutes, at no cost to us.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

const AFTER: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_secs(15);
const COUNT: u32 = 4;

/// Sets it on a connection, or on a listener, whose accepted sockets inherit it.
pub(super) fn set(socket: &SockRef<'_>) -> io::Result<()> {
    let probes = TcpKeepalive::new()
        .with_time(AFTER)
        .with_interval(EVERY)
        .with_retries(COUNT);
    socket.set_tcp_keepalive(&probes)
}
