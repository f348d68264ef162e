//! Apps that neither read nor close: a connection to one ends all the same when nobody wants anything of it any more.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::Notify;

use crate::support::client::{self, Raw};
use crate::support::frames::{self, DATA, END_HEADERS, Frames, HEADERS, frame};
use crate::support::h2c::H2c;
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};
use crate::support::wait;

/// More than the kernel takes on both ways to the app.
const BYTES: usize = 20 << 20;

fn impatient(origin: &Origin) -> Config {
    Config::before(origin)
        .set("server.workers", "1")
        .set("server.timeouts.request_header", r#""1s""#)
        .set("server.timeouts.request_body_idle", r#""1s""#)
        .set("server.timeouts.response_idle", r#""1s""#)
        .set("limits.max_request_size", r#""100MiB""#)
        .set("upstream.response_timeout", r#""2s""#)
}

/// Connections to this address that are open at the end that made them (proc(5), /proc/net/tcp).
fn open_to(address: SocketAddr) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc");
    let to = format!(":{:04X}", address.port());
    let is_open = |line: &&str| {
        let mut columns = line.split_whitespace().skip(2);
        columns.next().is_some_and(|remote| remote.ends_with(&to)) && columns.next() == Some("01")
    };
    table.lines().filter(is_open).count()
}

async fn none_open_to(address: SocketAddr) {
    wait::until("the end of all connections to the app", async || {
        (open_to(address) == 0).then_some(())
    })
    .await;
}

fn post(path: &str, bytes: usize) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {bytes}\r\n\r\n");
    [head.into_bytes(), vec![b'z'; bytes]].concat()
}

/// An app that reads heads only; it answers when it is told to.
async fn deaf_app(answer: Vec<u8>) -> (Origin, Arc<Notify>) {
    let answers = Arc::<Notify>::default();
    let notified = Arc::clone(&answers);
    let origin = Origin::start(move |_| Script::Deaf(Arc::clone(&notified), answer.clone())).await;
    (origin, answers)
}

#[tokio::test]
async fn upload_whose_client_hangs_up_leaves_no_connection_to_a_deaf_app() {
    let (origin, _) = deaf_app(Vec::new()).await;
    let gate = Gate::start(&impatient(&origin)).await;
    let mut raw = Raw::plain(gate.address).await;
    let sending = async { drop(raw.try_send(post("/upload", BYTES)).await) };
    tokio::select! {
        () = sending => {}
        () = origin.wait_for("POST ") => {}
    }
    drop(raw);
    none_open_to(origin.address).await;
}

#[tokio::test]
async fn upload_that_was_answered_leaves_no_connection_to_a_deaf_app() {
    let (origin, answers) = deaf_app(ok("early")).await;
    let gate = Gate::start(&impatient(&origin)).await;
    let mut raw = Raw::plain(gate.address).await;
    let sending = async { drop(raw.try_send(post("/early", BYTES)).await) };
    let answering = async {
        origin.wait_for("POST ").await;
        assert_eq!(open_to(origin.address), 1);
        answers.notify_one();
    };
    tokio::join!(sending, answering);
    assert_eq!(raw.answer().await.text(), "early");
    none_open_to(origin.address).await;
}

#[tokio::test]
async fn answer_whose_client_hangs_up_leaves_no_connection_to_a_deaf_app() {
    for tail in ["", "z"] {
        let (origin, answers) = deaf_app([ok(&"z".repeat(BYTES)), tail.into()].concat()).await;
        let gate = Gate::start(&impatient(&origin)).await;
        let mut raw = Raw::plain(gate.address).await;
        raw.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        answers.notify_one();
        raw.until("200 OK").await;
        drop(raw);
        none_open_to(origin.address).await;
    }
}

#[tokio::test]
async fn h2_upload_leaves_no_connection_to_a_deaf_app() {
    for answered in [false, true] {
        let (origin, answers) = deaf_app(ok("early")).await;
        let gate = Gate::start(&impatient(&origin)).await;
        let mut client = Frames::open(gate.address).await;
        client
            .send(&frame(HEADERS, END_HEADERS, 1, &frames::post("/early", "900000")))
            .await;
        for _ in 0..4 {
            client.send(&frame(DATA, 0, 1, &[0; 16_000])).await;
        }
        origin.wait_for("POST ").await;
        if answered {
            answers.notify_one();
            assert_eq!(client.fate(1).await, frames::Fate::Status(200));
        }
        drop(client);
        none_open_to(origin.address).await;
    }
}

/// More than the kernel takes on a Unix socket that nobody reads: what fills its buffer, and the 47.7 KiB of one message by
/// which that may be passed. With the head it is still less than the gate keeps before the first byte is taken from it; once
/// some have been, the gate may wait with far less, until the kernel has three quarters of the buffer free.
fn unread_bytes() -> usize {
    let buffer = std::fs::read_to_string("/proc/sys/net/core/wmem_default").expect("/proc");
    buffer.trim().parse::<usize>().expect("a number") + (47 << 10)
}

/// Whether nothing waits in the kernel of what was sent by the socket at this port (proc(5), /proc/net/tcp).
fn is_taken(from: SocketAddr) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc");
    let port = format!(":{:04X}", from.port());
    table.lines().skip(1).all(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, _, queues, ..] = fields.as_slice() else {
            return true;
        };
        let is_meant = local.ends_with(&port) || remote.ends_with(&port);
        !is_meant || *queues == "00000000:00000000"
    })
}

/// On its first connection it answers, when it is told to, an upload of which it never reads a byte; on others it is sound.
async fn unread(listener: UnixListener, answers: Arc<Notify>) {
    let (mut deaf, _) = listener.accept().await.expect("a connection");
    answers.notified().await;
    let arrived = rustix::io::ioctl_fionread(&deaf).expect("a number");
    assert!(arrived < unread_bytes() as u64, "nothing waits in the gate");
    deaf.write_all(&ok("early")).await.expect("the answer");
    while let Ok((mut sound, _)) = listener.accept().await {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && matches!(sound.read_buf(&mut head).await, Ok(1..)) {}
        drop(sound.write_all(&ok("sound")).await);
    }
}

#[tokio::test]
async fn upload_that_its_app_has_not_read_yet_keeps_no_other_request_waiting() {
    let directory = tempfile::tempdir().expect("a folder");
    let path = directory.path().join("app");
    let (listener, answers) = (
        UnixListener::bind(&path).expect("a free path"),
        Arc::<Notify>::default(),
    );
    let app = tokio::spawn(unread(listener, Arc::clone(&answers)));
    let unused = Origin::answering("x").await;
    let config = Config::before(&unused)
        .set("server.workers", "1")
        .set("upstream.servers", &format!("[\"unix:{}\"]", path.display()));
    let gate = Gate::start(&config).await;
    let stream = TcpStream::connect(gate.address).await.expect("the port accepts");
    let from = stream.local_addr().expect("an address");
    let mut raw = Raw::over(stream);
    raw.send(post("/early", unread_bytes())).await;
    wait::until("the whole upload in the gate", async || is_taken(from).then_some(())).await;
    answers.notify_one();
    assert_eq!(raw.answer().await.text(), "early");
    raw.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(raw.answer().await.text(), "sound");
    app.abort();
}

/// A gate before `app`, and a client whose upload was answered before its end.
async fn answered_early(app: &H2c, unused: &Origin) -> (Gate, Raw) {
    let config = impatient(unused).set("upstream.servers", &format!("[{:?}]", app.url()));
    let gate = Gate::start(&config).await;
    let mut raw = Raw::plain(gate.address).await;
    drop(raw.try_send(post("/early", BYTES)).await);
    assert_eq!(raw.answer().await.text(), "early");
    (gate, raw)
}

#[tokio::test]
async fn h2c_app_that_opens_no_window_is_left_when_it_is_replaced() {
    let (app, other) = (H2c::answering_early().await, Origin::answering("other").await);
    let (gate, _raw) = answered_early(&app, &other).await;
    assert_eq!(open_to(app.address), 1);
    gate.rewrite(&impatient(&other));
    wait::until("the other app", async || {
        (client::get(gate.address, "/", "").await.text() == "other").then_some(())
    })
    .await;
    none_open_to(app.address).await;
}

#[tokio::test]
async fn h2c_connection_on_which_an_upload_is_stuck_gives_way_to_another() {
    let app = H2c::answering_early().await;
    let (gate, _raw) = answered_early(&app, &Origin::answering("x").await).await;
    wait::until("another connection alone", async || {
        assert_eq!(client::get(gate.address, "/", "").await.text(), "early");
        (app.connections() == 2 && open_to(app.address) == 1).then_some(())
    })
    .await;
}
