//! Connections to a subject: HTTP/1.1 by hand, HTTP/2 by the `h2` crate, both over TLS.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use memchr::memmem;
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate::NAME;

const READ_BYTES: usize = 64 * 1024;

/// An HTTP/1.1 connection over TLS.
#[derive(Debug)]
pub(super) struct Http1 {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body_bytes: usize,
    /// The subject will close the connection.
    pub(super) closes: bool,
}

pub(super) fn request(path: &str, more: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\nUser-Agent: peers/1\r\nAccept: */*\r\n{more}\r\n").into_bytes()
}

impl Http1 {
    pub(super) async fn connect(address: SocketAddr, tls: &Arc<ClientConfig>) -> anyhow::Result<Self> {
        Ok(Self {
            stream: handshake(address, tls).await?,
            buffer: Vec::new(),
        })
    }

    /// From this address, and without a trace in the kernel once it is dropped.
    pub(super) async fn connect_from(
        client: IpAddr,
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
    ) -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_zero_linger()?;
        socket.bind((client, 0).into())?;
        Ok(Self {
            stream: secured(socket.connect(address).await?, tls).await?,
            buffer: Vec::new(),
        })
    }

    /// Sends `request` and reads the whole answer; the body goes to `sink` piece by piece.
    pub(super) async fn exchange(&mut self, request: &[u8], mut sink: impl FnMut(&[u8])) -> anyhow::Result<Answer> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let (head_bytes, mut answer) = loop {
            self.fill().await?;
            if let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") {
                let head = self.buffer.get(..end).unwrap_or_default();
                break (end + 4, parse(head)?);
            }
        };
        let expected = answer.body_bytes;
        answer.body_bytes = 0;
        let mut begin = head_bytes;
        loop {
            let piece = self.buffer.get(begin..).unwrap_or_default();
            sink(piece);
            answer.body_bytes += piece.len();
            if answer.body_bytes >= expected {
                break;
            }
            self.buffer.clear();
            begin = 0;
            self.fill().await?;
        }
        ensure!(answer.body_bytes == expected, "more bytes than the answer has");
        Ok(answer)
    }

    /// Gives the buffer back, as a client would that waits for its user.
    pub(super) fn rest(&mut self) {
        self.buffer = Vec::new();
    }

    pub(super) async fn close(mut self) -> anyhow::Result<()> {
        self.stream.shutdown().await?;
        Ok(())
    }

    async fn fill(&mut self) -> anyhow::Result<()> {
        self.buffer.reserve(READ_BYTES);
        let count = self.stream.read_buf(&mut self.buffer).await?;
        ensure!(
            count > 0,
            "the subject closed the connection before its answer was complete"
        );
        Ok(())
    }
}

async fn handshake(address: SocketAddr, tls: &Arc<ClientConfig>) -> anyhow::Result<TlsStream<TcpStream>> {
    secured(TcpStream::connect(address).await.context("connecting")?, tls).await
}

async fn secured(stream: TcpStream, tls: &Arc<ClientConfig>) -> anyhow::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(NAME)?;
    let stream = TlsConnector::from(Arc::clone(tls))
        .connect(name, stream)
        .await
        .context("TLS handshake")?;
    let (_, session) = stream.get_ref();
    // With one key share on offer there is no reason for a second round either.
    ensure!(
        session.handshake_kind() == Some(HandshakeKind::Full),
        "not a full handshake"
    );
    ensure!(
        session.alpn_protocol() == tls.alpn_protocols.first().map(Vec::as_slice),
        "another protocol than the one offered"
    );
    Ok(stream)
}

fn parse(head: &[u8]) -> anyhow::Result<Answer> {
    let text = std::str::from_utf8(head).context("the head of an answer")?;
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line.get(9..12).and_then(|digits| digits.parse().ok());
    let mut length = None;
    let mut closes = false;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        } else if name.eq_ignore_ascii_case("connection") {
            closes = value.trim().eq_ignore_ascii_case("close");
        }
    }
    let (Some(status), Some(body_bytes)) = (status, length) else {
        bail!("an answer without status or length: {text}");
    };
    Ok(Answer {
        status,
        body_bytes,
        closes,
    })
}

/// An HTTP/2 connection over TLS; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Http2(h2::client::SendRequest<Bytes>);

impl Http2 {
    /// What drives the connection goes to `drivers`, and ends with them.
    pub(super) async fn connect(
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        drivers: &mut JoinSet<Result<(), h2::Error>>,
    ) -> anyhow::Result<Self> {
        let stream = handshake(address, tls).await?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 24)
            .handshake(stream)
            .await?;
        drivers.spawn_local(connection);
        Ok(Self(sender))
    }

    pub(super) async fn exchange(&mut self) -> anyhow::Result<Answer> {
        let request = http::Request::get(format!("https://{NAME}/"))
            .header(http::header::USER_AGENT, "peers/1")
            .header(http::header::ACCEPT, "*/*")
            .body(())?;
        std::future::poll_fn(|context| self.0.poll_ready(context)).await?;
        let (response, _) = self.0.send_request(request, true)?;
        let (head, mut body) = response.await?.into_parts();
        let mut body_bytes = 0;
        while let Some(piece) = body.data().await {
            let piece = piece?;
            body_bytes += piece.len();
            body.flow_control().release_capacity(piece.len())?;
        }
        Ok(Answer {
            status: head.status.as_u16(),
            body_bytes,
            closes: false,
        })
    }
}
