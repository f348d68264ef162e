//! A gRPC app and its client by tonic, with text for messages, so that no code has to be generated.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::{Buf as _, BufMut as _};
use futures_util::{Stream, StreamExt as _};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Context, Poll, Service, tokio_stream::wrappers::ReceiverStream};
use tonic::metadata::MetadataValue;
use tonic::server::{Grpc, NamedService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use super::certificates::Authority;
use super::{client, wait};

pub(crate) type Client = tonic::client::Grpc<Channel>;

/// Messages that are text.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, item: String, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(item.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        let text = String::from_utf8(bytes.into()).map_err(|error| Status::data_loss(error.to_string()))?;
        Ok(Some(text))
    }
}

/// What the app has noticed, and what lets it go on.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    seen: Mutex<Vec<String>>,
    pub(crate) go_on: Notify,
}

impl Notes {
    fn add(&self, note: impl Into<String>) {
        let mut seen = self.seen.lock().expect("no test thread panics while it notes");
        seen.push(note.into());
    }

    pub(crate) async fn wait_for(&self, note: &str) {
        wait::until(note, async || {
            let seen = self.seen.lock().expect("no test thread panics while it notes");
            seen.iter().any(|known| known == note).then_some(())
        })
        .await;
    }
}

/// Notes that a call ended before the app had answered.
struct Unfinished(Arc<Notes>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.add("unary call given up");
    }
}

pub(crate) struct App {
    pub(crate) address: SocketAddr,
    pub(crate) notes: Arc<Notes>,
    server: JoinHandle<()>,
}

impl App {
    pub(crate) fn start() -> Self {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = incoming.local_addr().expect("a bound socket has an address");
        let notes = Arc::<Notes>::default();
        let service = Methods(Arc::clone(&notes));
        let server = tokio::spawn(async move {
            let serving = Server::builder().add_service(service).serve_with_incoming(incoming);
            serving.await.expect("the app serves until the test ends");
        });
        Self { address, notes, server }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[derive(Clone)]
struct Methods(Arc<Notes>);

impl NamedService for Methods {
    const NAME: &'static str = "test.Echo";
}

type Answers = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;

impl Service<http::Request<Body>> for Methods {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let notes = Arc::clone(&self.0);
        Box::pin(async move {
            let mut grpc = Grpc::new(Text);
            let method = request.uri().path().trim_start_matches("/test.Echo/").to_owned();
            if let Some(timeout) = request.headers().get("grpc-timeout") {
                notes.add(format!(
                    "grpc-timeout {}",
                    timeout.to_str().unwrap_or_default().len() > 1
                ));
            }
            Ok(match method.as_str() {
                "Count" | "FailLate" | "Hang" => {
                    let call = move |request| answers(Arc::clone(&notes), method.clone(), request);
                    grpc.server_streaming(tower::service_fn(call), request).await
                }
                "Join" => grpc.client_streaming(tower::service_fn(join), request).await,
                "Chat" => grpc.streaming(tower::service_fn(chat), request).await,
                _ => {
                    let call = move |request| unary(Arc::clone(&notes), method.clone(), request);
                    grpc.unary(tower::service_fn(call), request).await
                }
            })
        })
    }
}

async fn unary(notes: Arc<Notes>, method: String, request: Request<String>) -> Result<Response<String>, Status> {
    match method.as_str() {
        "Unary" => {
            let asked = request.metadata().get("x-asked").cloned();
            let binary = request.metadata().get_bin("x-asked-bin").cloned();
            let mut response = Response::new(request.into_inner());
            if let Some(asked) = asked {
                response.metadata_mut().insert("x-answered", asked);
            }
            if let Some(binary) = binary {
                response.metadata_mut().insert_bin("x-answered-bin", binary);
            }
            Ok(response)
        }
        "Fail" => {
            let mut status = Status::with_details(tonic::Code::NotFound, "no such thing: \u{fc}", "details".into());
            status
                .metadata_mut()
                .insert("x-why", MetadataValue::from_static("because"));
            Err(status)
        }
        "Wait" => {
            let unfinished = Unfinished(notes);
            unfinished.0.add("unary call begun");
            std::future::pending::<()>().await;
            drop(unfinished);
            Err(Status::internal("never reached"))
        }
        other => Err(Status::unimplemented(other)),
    }
}

/// Pieces that do not come at once: the second one only when the test says so.
async fn answers(notes: Arc<Notes>, method: String, request: Request<String>) -> Result<Response<Answers>, Status> {
    let count: usize = request.into_inner().parse().unwrap_or(1);
    let (sender, receiver) = mpsc::channel(1);
    drop(tokio::spawn(async move {
        for number in 0..count {
            if number == 1 {
                notes.go_on.notified().await;
            }
            if sender.send(Ok(format!("answer {number}"))).await.is_err() {
                return;
            }
        }
        match method.as_str() {
            "FailLate" => drop(sender.send(Err(Status::resource_exhausted("no more"))).await),
            "Hang" => {
                sender.closed().await;
                notes.add("stream given up");
            }
            _ => {}
        }
    }));
    Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
}

async fn join(request: Request<Streaming<String>>) -> Result<Response<String>, Status> {
    let mut messages = request.into_inner();
    let (mut count, mut length) = (0, 0);
    while let Some(message) = messages.message().await? {
        count += 1;
        length += message.len();
    }
    Ok(Response::new(format!("{count} messages, {length} bytes")))
}

async fn chat(request: Request<Streaming<String>>) -> Result<Response<Answers>, Status> {
    let answers = request.into_inner().map(|message| Ok(format!("you said {}", message?)));
    Ok(Response::new(Box::pin(answers)))
}

/// A client over plain HTTP/2.
pub(crate) async fn plain(gate: SocketAddr) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{gate}")).expect("an address");
    let channel = wait::within("a gRPC channel", endpoint.connect()).await;
    Client::new(channel.expect("a channel"))
}

/// A client over TLS.
pub(crate) async fn secured(gate: SocketAddr, authority: &Authority) -> Client {
    let config = authority.client(&["h2"]);
    let connect = move |_| {
        let config = Arc::clone(&config);
        async move {
            let stream = client::handshake(gate, config, "localhost").await?;
            std::io::Result::Ok(TokioIo::<tokio_rustls::client::TlsStream<TcpStream>>::new(stream))
        }
    };
    let endpoint = Endpoint::from_static("https://localhost");
    let channel = endpoint.connect_with_connector(tower::service_fn(connect)).await;
    Client::new(channel.expect("a channel"))
}
