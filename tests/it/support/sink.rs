//! An app that reads bodies of any length, keeps nothing, and answers with their number of bytes.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const HEAD_BYTES_MAX: usize = 64 << 10;
const NAME: &[u8] = b"content-length: ";

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

/// One request, whose connection then ends.
async fn serve(mut stream: TcpStream) -> Option<()> {
    let mut head = Vec::new();
    let end = loop {
        if let Some(at) = memchr::memmem::find(&head, b"\r\n\r\n") {
            break at + 4;
        }
        assert!(head.len() < HEAD_BYTES_MAX, "an endless head");
        if stream.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    };
    let at = memchr::memmem::find(&head.to_ascii_lowercase(), NAME).expect("a length") + NAME.len();
    let digits = head[at..].iter().take_while(|byte| byte.is_ascii_digit());
    let length = digits.fold(0_usize, |value, digit| value * 10 + usize::from(digit - b'0'));
    let mut count = head.len() - end;
    let mut space = vec![0; 256 << 10];
    while count < length {
        match stream.read(&mut space).await.ok()? {
            0 => return None,
            more => count += more,
        }
    }
    let body = count.to_string();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await.ok()
}
