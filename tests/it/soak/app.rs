//! An app that answers everything and, unlike the recording one, keeps nothing.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
const HEAD_BYTES_MAX: usize = 64 << 10;

pub(crate) async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    drop(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(tokio::spawn(serve(stream)));
        }
    }));
    address
}

/// Ends with the connection, whatever the reason.
async fn serve(mut stream: TcpStream) -> Option<()> {
    let mut waiting = Vec::new();
    loop {
        let Some(end) = memchr::memmem::find(&waiting, b"\r\n\r\n") else {
            fill(&mut stream, &mut waiting).await?;
            continue;
        };
        let head: Vec<u8> = waiting.drain(..end + 4).collect();
        let length = memchr::memmem::find(&head, b"content-length: ").map_or(0, |at| {
            let digits = head[at + 16..].iter().take_while(|byte| byte.is_ascii_digit());
            digits.fold(0_usize, |value, digit| value * 10 + usize::from(digit - b'0'))
        });
        while waiting.len() < length {
            fill(&mut stream, &mut waiting).await?;
        }
        drop(waiting.drain(..length));
        match head.split(|&byte| byte == b' ').nth(1) {
            Some(b"/broken") => return stream.write_all(b"HTTP/1.1 200 OK\r\ncont").await.ok(),
            Some(b"/switch") => {
                stream.write_all(SWITCH).await.ok()?;
                return echo(stream, waiting).await;
            }
            _ => stream.write_all(OK).await.ok()?,
        }
    }
}

async fn fill(stream: &mut TcpStream, waiting: &mut Vec<u8>) -> Option<()> {
    assert!(waiting.len() < HEAD_BYTES_MAX + (2 << 20), "an endless request");
    (stream.read_buf(waiting).await.ok()? > 0).then_some(())
}

async fn echo(mut stream: TcpStream, mut waiting: Vec<u8>) -> Option<()> {
    loop {
        stream.write_all(&waiting).await.ok()?;
        waiting.clear();
        fill(&mut stream, &mut waiting).await?;
    }
}
