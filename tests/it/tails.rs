//! The end of an answer that TLS still holds, because its client reads late, arrives: neither putting the connection away
//! nor a drain loses it, and nobody has to send anything for it.

use std::net::SocketAddr;
use std::sync::Arc;

use rustix::process::Signal;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use crate::early::until_parked;
use crate::support::certificates::Authority;
use crate::support::client::Raw;
use crate::support::frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, WINDOW_UPDATE, frame};
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};
use crate::support::wait;

/// What the kernel holds of an answer, on either side, is about twice this.
const SOCKET_BUFFER_BYTES: usize = 64 << 10;
/// Of some of these the kernel takes all but an end that is short enough for TLS.
const SIZES: std::ops::Range<usize> = 2..32;
const STEP_BYTES: usize = 16 << 10;

/// A client that has asked for so many bytes, and reads nothing yet.
struct Late {
    raw: Raw,
    protocol: &'static str,
    length: usize,
}

impl Late {
    async fn asks(address: SocketAddr, protocol: &'static str, length: usize, tls: Arc<ClientConfig>) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        let buffer = u32::try_from(SOCKET_BUFFER_BYTES).expect("a small number");
        socket.set_recv_buffer_size(buffer).expect("an option");
        let stream = wait::within("a connection", socket.connect(address)).await;
        let name = ServerName::try_from("localhost").expect("a name");
        let handshake = TlsConnector::from(tls).connect(name, stream.expect("the port accepts"));
        let mut raw = Raw::over(wait::within("a handshake", handshake).await.expect("TLS"));
        if protocol == "h2" {
            let windows = [
                frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]),
                frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()),
            ];
            let head = frames::get(&format!("/{length}"));
            let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &head);
            raw.send([PREFACE, &windows.concat(), &head].concat()).await;
        } else {
            raw.send(format!("GET /{length} HTTP/1.1\r\nhost: localhost\r\n\r\n"))
                .await;
        }
        Self { raw, protocol, length }
    }

    async fn reads_all(mut self) {
        let what = format!("all of {} bytes over {}", self.length, self.protocol);
        let read = wait::within(&what, async {
            if self.protocol == "h2" {
                self.data().await
            } else {
                Some(self.raw.try_answer().await?.body.len())
            }
        })
        .await;
        assert_eq!(read, Some(self.length), "{what}");
    }

    async fn data(&mut self) -> Option<usize> {
        let mut read = 0;
        while read < self.length {
            let head = self.raw.take(9).await?;
            let payload = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            self.raw.take(payload).await?;
            read += if head[3] == DATA { payload } else { 0 };
        }
        Some(read)
    }
}

/// A gate whose sockets hold little, and clients of it that all have an answer waiting.
async fn late_clients(protocols: &[&'static str]) -> (Gate, Origin, Vec<Late>, TempDir, Authority) {
    let origin = Origin::start(|head| {
        let length = head.split([' ', '/']).nth(2).and_then(|length| length.parse().ok());
        Script::Answer(ok(&"z".repeat(length.unwrap_or(1))))
    })
    .await;
    let directory = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    let leaf = authority.leaf(directory.path(), "leaf", &["localhost"]);
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    // Those that are accepted inherit it.
    SockRef::from(&socket)
        .set_send_buffer_size(SOCKET_BUFFER_BYTES)
        .expect("an option");
    let address = socket.local_addr().expect("a bound socket has an address");
    let config = Config::before(&origin)
        .tls(&[&leaf])
        .set("server.workers", "1")
        .set("server.timeouts.tls_handshake", r#""2s""#)
        .set("server.listen", &format!("[\"{address}\"]"));
    let gate = Gate::start_activated(&config, socket).await;
    let mut clients = Vec::new();
    for length in SIZES.map(|steps| steps * STEP_BYTES) {
        for &protocol in protocols {
            let tls = authority.client(&[protocol]);
            clients.push(Late::asks(address, protocol, length, tls).await);
        }
    }
    let asked = clients.len();
    wait::until("all requests at the app", async || {
        (origin.heads().len() == asked).then_some(())
    })
    .await;
    (gate, origin, clients, directory, authority)
}

async fn get_the_end_of_their_answers(protocol: &'static str) {
    let (gate, _origin, clients, ..) = late_clients(&[protocol]).await;
    until_parked(&gate).await;
    for client in clients {
        client.reads_all().await;
    }
}

#[tokio::test]
async fn late_readers_get_the_end_of_their_answers_over_h2() {
    get_the_end_of_their_answers("h2").await;
}

#[tokio::test]
async fn late_readers_get_the_end_of_their_answers_over_h1() {
    get_the_end_of_their_answers("http/1.1").await;
}

#[tokio::test]
async fn drain_leaves_late_readers_the_time_to_get_the_end_of_their_answers() {
    let (mut gate, _origin, clients, _directory, authority) = late_clients(&["http/1.1", "h2"]).await;
    let mut idle = Raw::tls(gate.address, authority.client(&["http/1.1"]), "localhost").await;
    idle.send("GET /1 HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(idle.answer().await.status, 200);
    gate.signal(Signal::TERM);
    idle.closed().await;
    for client in clients {
        client.reads_all().await;
    }
    assert!(gate.exited().await.success(), "{}", gate.log());
}
