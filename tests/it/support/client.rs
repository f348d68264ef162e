//! Clients: exact bytes over a socket, and hyper over HTTP/1.1 or HTTP/2, plain or TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::wait;

const ANSWER_BYTES_MAX: usize = 64 << 20;

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A socket that sends what the test says and parses answers as little as needed.
pub(crate) struct Raw {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

/// An answer as it came over the wire.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("no JSON ({error}): {text}"))
    }

    /// The status of a problem document, its form checked.
    pub(crate) fn problem(&self) -> serde_json::Value {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{problem}");
        assert!(problem["title"].is_string() && problem["type"].is_string(), "{problem}");
        problem
    }
}

impl Raw {
    pub(crate) async fn plain(address: SocketAddr) -> Self {
        let stream = wait::within("a connection", TcpStream::connect(address))
            .await
            .expect("the port accepts");
        Self::over(stream)
    }

    pub(crate) async fn tls(address: SocketAddr, config: Arc<ClientConfig>, name: &str) -> Self {
        Self::over(handshake(address, config, name).await.expect("the handshake succeeds"))
    }

    pub(crate) fn over(stream: impl Stream + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            buffer: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("the peer still reads");
    }

    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await?;
        self.stream.flush().await
    }

    /// One whole answer to a request that was not HEAD.
    pub(crate) async fn answer(&mut self) -> Answer {
        wait::within("an answer", self.try_answer())
            .await
            .expect("an answer comes before the connection ends")
    }

    /// `None`: the connection ended before a whole answer.
    pub(crate) async fn try_answer(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.fill().await?;
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers
            .map(|(name, value)| (name.to_string(), value.trim().to_string()))
            .collect();
        let mut answer = Answer {
            status,
            headers,
            body: Bytes::new(),
        };
        answer.body = self.body(&answer).await?.into();
        Some(answer)
    }

    async fn body(&mut self, head: &Answer) -> Option<Vec<u8>> {
        if head.status < 200 || head.status == 204 || head.status == 304 {
            return Some(Vec::new());
        }
        if head.header("transfer-encoding") == Some("chunked") {
            return self.chunks().await;
        }
        if let Some(length) = head.header("content-length") {
            return self.take(length.parse().ok()?).await;
        }
        while self.fill().await.is_some() {}
        Some(std::mem::take(&mut self.buffer))
    }

    async fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(self.line().await?.split(';').next()?.trim(), 16).ok()?;
            if size == 0 {
                while !self.line().await?.is_empty() {}
                return Some(body);
            }
            body.extend(self.take(size).await?);
            self.line().await?;
        }
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).take(at).collect();
                return Some(String::from_utf8_lossy(&line).into_owned());
            }
            self.fill().await?;
        }
    }

    /// Reads on until this text has come, and leaves what follows it.
    pub(crate) async fn until(&mut self, text: &str) {
        wait::within(text, async {
            loop {
                let found = self
                    .buffer
                    .windows(text.len())
                    .position(|window| window == text.as_bytes());
                if let Some(at) = found {
                    self.buffer.drain(..at + text.len());
                    return;
                }
                self.fill().await.expect("the text comes before the connection ends");
            }
        })
        .await;
    }

    /// Whether this text came and was not taken yet.
    pub(crate) fn has(&self, text: &str) -> bool {
        self.buffer.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// How often this text came and was not taken yet.
    pub(crate) fn count(&self, text: &str) -> usize {
        let windows = self.buffer.windows(text.len());
        windows.filter(|window| *window == text.as_bytes()).count()
    }

    pub(crate) async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            self.fill().await?;
        }
        Some(self.buffer.drain(..length).collect())
    }

    /// Waits for the first bytes of an answer, or the end of the connection.
    pub(crate) async fn anything(&mut self) {
        if self.buffer.is_empty() {
            let _ended: Option<()> = self.fill().await;
        }
    }

    async fn fill(&mut self) -> Option<()> {
        assert!(self.buffer.len() < ANSWER_BYTES_MAX, "an endless answer");
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(()),
        }
    }

    /// Waits until the peer ends the connection, by a close or a reset.
    pub(crate) async fn closed(&mut self) {
        wait::within("the end of the connection", async {
            while self.fill().await.is_some() {}
        })
        .await;
    }
}

pub(crate) async fn handshake(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_string()).expect("a valid server name");
    let tcp = wait::within("a connection", TcpStream::connect(address)).await?;
    wait::within("a handshake", TlsConnector::from(config).connect(name, tcp)).await
}

/// One plain GET for the address as host, on its own connection, with these extra header lines (each ending in CRLF).
pub(crate) async fn get(address: SocketAddr, path: &str, headers: &str) -> Answer {
    request(address, "GET", path, headers, "").await
}

pub(crate) async fn request(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    requested(address, method, path, headers, body).await.answer().await
}

/// Asks for `/` through a trusted proxy until this client's answer has the status. A block that comes into force ends what is under
/// way, so that a request of that moment may find its connection ended.
pub(crate) async fn until_status(address: SocketAddr, client: &str, wanted: u16) {
    let header = format!("x-forwarded-for: {client}\r\n");
    wait::until(&format!("the answer {wanted} to {client}"), async || {
        let mut raw = requested(address, "GET", "/", &header, "").await;
        let answer = wait::within("an answer or the end", raw.try_answer()).await?;
        (answer.status == wanted).then_some(())
    })
    .await;
}

/// A connection of its own with this request sent.
async fn requested(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Raw {
    let length = body.len();
    let mut raw = Raw::plain(address).await;
    raw.send(format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    ))
    .await;
    raw
}

/// A connection of plain HTTP/2 whose settings have come, so that it may ask for extended CONNECT (RFC 8441): an answer of the
/// gate itself proves it.
pub(crate) async fn h2_with_settings(address: SocketAddr) -> hyper::client::conn::http2::SendRequest<Empty<Bytes>> {
    let tcp = TcpStream::connect(address).await.expect("the port accepts");
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
        .await
        .expect("h2 begins");
    drop(tokio::spawn(connection));
    let request = http::Request::builder().method("TRACE").uri("http://a/");
    let request = request.body(Empty::new()).expect("a request");
    let response = wait::within("the settings", sender.send_request(request)).await;
    assert_eq!(response.expect("an answer").status(), 405);
    sender
}

/// Sends one request over HTTP/2 on any stream.
pub(crate) async fn h2(stream: impl Stream + 'static, request: http::Request<Full<Bytes>>) -> Answer {
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("h2 begins");
    let driver = tokio::spawn(connection);
    let response = wait::within("an answer over h2", sender.send_request(request))
        .await
        .expect("h2 answers");
    let (head, body) = response.into_parts();
    let body = wait::within("a body over h2", body.collect())
        .await
        .expect("the body ends well")
        .to_bytes();
    driver.abort();
    let headers = head.headers.iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    Answer {
        status: head.status.as_u16(),
        headers: headers.collect(),
        body,
    }
}
