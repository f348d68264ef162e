//! WebSocket end to end, over HTTP/1.1 and in a stream of HTTP/2 (RFC 8441).

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::support::client::{self, Stream};
use crate::support::origin::{Origin, Script};
use crate::support::process::{Config, Gate};
use crate::support::wait;

/// An app that sends every message back.
struct Echo {
    address: std::net::SocketAddr,
    acceptor: JoinHandle<()>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let acceptor = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(async move {
                    let Ok(mut socket) = tokio_tungstenite::accept_async(tcp).await else {
                        return;
                    };
                    while let Some(Ok(message)) = socket.next().await {
                        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, acceptor }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn start(echo: &Echo) -> (Gate, Config) {
    let unused = Origin::answering("x").await;
    // The admin calls from 127.0.0.1, which can therefore not be blocked.
    let config = Config::before(&unused)
        .set("server.listen", r#"["[::1]:0"]"#)
        .set("upstream.servers", &format!(r#"["http://{}"]"#, echo.address));
    (Gate::start(&config).await, config)
}

async fn over_h1(gate: &Gate) -> WebSocketStream<TcpStream> {
    let tcp = TcpStream::connect(gate.address).await.expect("the port accepts");
    let opening = tokio_tungstenite::client_async(format!("ws://{}/chat", gate.address), tcp);
    wait::within("the handshake", opening).await.expect("a WebSocket").0
}

async fn over_h2(gate: &Gate) -> WebSocketStream<impl Stream> {
    let tcp = TcpStream::connect(gate.address).await.expect("the port accepts");
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
        .await
        .expect("h2 begins");
    drop(tokio::spawn(connection));
    // Extended CONNECT may be used once the server's settings have come: an answer proves that they have.
    let first = http::Request::get("http://a/")
        .body(Empty::<Bytes>::new())
        .expect("a request");
    wait::within("settings", sender.send_request(first))
        .await
        .expect("an answer");
    let request = http::Request::connect(format!("http://{}/chat", gate.address))
        .extension(hyper::ext::Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(Empty::<Bytes>::new())
        .expect("a request");
    let mut response = wait::within("the tunnel", sender.send_request(request))
        .await
        .expect("an answer");
    assert_eq!(response.status(), 200);
    let upgraded = hyper::upgrade::on(&mut response).await.expect("the stream is ours");
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
}

async fn echoes<S: Stream>(socket: &mut WebSocketStream<S>, message: Message) {
    wait::within("sending", socket.send(message.clone()))
        .await
        .expect("sent");
    let got = wait::within("the echo", socket.next()).await.expect("a message");
    assert_eq!(got.expect("a message"), message);
}

#[tokio::test]
async fn messages_pass_over_both_protocols_and_survive_a_reload() {
    let echo = Echo::start().await;
    let (gate, config) = start(&echo).await;
    let (mut h1, mut h2) = (over_h1(&gate).await, over_h2(&gate).await);
    let big = Message::binary(vec![7_u8; 1 << 20]);
    echoes(&mut h1, Message::text("one")).await;
    echoes(&mut h2, Message::text("two")).await;
    echoes(&mut h1, big.clone()).await;
    echoes(&mut h2, big).await;
    gate.rewrite(&config.set("limits.max_header_size", r#""8KiB""#));
    wait::until("the reload", async || {
        let big = format!("x-big: {}\r\n", "a".repeat(12 << 10));
        (client::get(gate.address, "/", &big).await.status == 431).then_some(())
    })
    .await;
    echoes(&mut h1, Message::text("three")).await;
    echoes(&mut h2, Message::text("four")).await;
}

#[tokio::test]
async fn block_of_the_client_closes_its_websockets() {
    let echo = Echo::start().await;
    let (gate, _) = start(&echo).await;
    let (mut h1, mut h2) = (over_h1(&gate).await, over_h2(&gate).await);
    echoes(&mut h1, Message::text("one")).await;
    echoes(&mut h2, Message::text("two")).await;
    let made = gate.admin("POST", "/api/infrastructure/ddos/block/::1", "").await;
    assert!((200..300).contains(&made.status), "{made:?}");
    for (name, end) in [
        ("h1", wait::within("the end of h1", h1.next()).await),
        ("h2", wait::within("the end of h2", h2.next()).await),
    ] {
        assert!(
            !matches!(end, Some(Ok(Message::Text(_) | Message::Binary(_)))),
            "{name}: {end:?}"
        );
    }
}

/// What becomes of an extended CONNECT, or of an upgrade, that the app answers with these fields; `{accept}` stands for the
/// proof that the key asks for.
async fn switch_with(fields: &'static str, over_h2: bool) -> u16 {
    use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
    let origin = Origin::start(move |head| {
        let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: "));
        let accept = derive_accept_key(key.unwrap_or_default().as_bytes());
        let fields = fields.replace("{accept}", &accept);
        Script::Answer(format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n").into_bytes())
    })
    .await;
    let gate = Gate::start(&Config::before(&origin)).await;
    if !over_h2 {
        let wish = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        return client::get(gate.address, "/", wish).await.status;
    }
    let mut sender = client::h2_with_settings(gate.address).await;
    let request = http::Request::connect(format!("http://{}/", gate.address))
        .extension(hyper::ext::Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(Empty::<Bytes>::new())
        .expect("a request");
    let response = wait::within("an answer", sender.send_request(request)).await;
    response.expect("an answer").status().as_u16()
}

#[tokio::test]
async fn tunnel_opens_only_by_an_answer_that_proves_the_wish_was_understood() {
    const SOUND: &str = "connection: Upgrade\r\nupgrade: WebSocket\r\nsec-websocket-accept: {accept}\r\n";
    assert_eq!(switch_with(SOUND, true).await, 200);
    assert_eq!(switch_with(SOUND, false).await, 101);
    for fields in [
        "upgrade: websocket\r\nsec-websocket-accept: {accept}\r\n",
        "connection: upgrade\r\nsec-websocket-accept: {accept}\r\n",
        "connection: upgrade\r\nupgrade: echo\r\nsec-websocket-accept: {accept}\r\n",
    ] {
        assert_eq!(switch_with(fields, true).await, 502, "over h2: {fields}");
        assert_eq!(switch_with(fields, false).await, 502, "over h1: {fields}");
    }
    // Over HTTP/1.1 the client has the key, and checks this itself.
    for fields in [
        "connection: upgrade\r\nupgrade: websocket\r\n",
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
    ] {
        assert_eq!(switch_with(fields, true).await, 502, "{fields}");
    }
}

/// An app that switches, and ends its own side of the tunnel first if it `hurries`; then says how much it got.
async fn counting_app(hurries: bool) -> (std::net::SocketAddr, JoinHandle<()>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let app = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert!(tcp.read_buf(&mut head).await.expect("a head") > 0);
        }
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        tcp.write_all(switch).await.expect("the answer");
        if hurries {
            tcp.write_all(b"all I have").await.expect("the words");
            tcp.shutdown().await.expect("the end of one side");
        }
        let mut got = Vec::new();
        tcp.read_to_end(&mut got)
            .await
            .expect("the client's side ends in order");
        assert_eq!(got.len(), 100_000);
        if !hurries {
            tcp.write_all(b"all I have").await.expect("the words");
        }
    });
    (address, app)
}

#[tokio::test]
async fn either_side_of_a_tunnel_may_end_while_the_other_goes_on() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    for hurries in [false, true] {
        let (address, app) = counting_app(hurries).await;
        let unused = Origin::answering("x").await;
        let config = Config::before(&unused).set("upstream.servers", &format!(r#"["http://{address}"]"#));
        let gate = Gate::start(&config).await;
        let mut tcp = TcpStream::connect(gate.address).await.expect("the port accepts");
        tcp.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
            .await
            .expect("the request");
        let mut got = Vec::new();
        while !got.windows(4).any(|window| window == b"\r\n\r\n") {
            let count = wait::within("the switch", tcp.read_buf(&mut got)).await.expect("bytes");
            assert!(count > 0, "{}", String::from_utf8_lossy(&got));
        }
        if hurries {
            // The app has said everything before the client begins.
            wait::within("the app's end", tcp.read_to_end(&mut got))
                .await
                .expect("an orderly end");
            assert!(got.ends_with(b"all I have"));
        }
        tcp.write_all(&vec![b'y'; 100_000])
            .await
            .expect("the client's side is open");
        tcp.shutdown().await.expect("the end of the client's side");
        if !hurries {
            wait::within("the app's end", tcp.read_to_end(&mut got))
                .await
                .expect("an orderly end");
            assert!(got.ends_with(b"all I have"));
        }
        wait::within("the app", app).await.expect("the app is content");
    }
}
