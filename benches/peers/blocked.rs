//! A client that is blocked and comes again and again: what each of its connections costs the subject.
//!
//! It does what any client does, and so finds out where it is turned away: by a reset before the handshake (Foregate, once
//! it has told the client why ten times; HAProxy by a rule on the connection), or by a 403 (nginx, which looks at the
//! address when it has the request).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustls::ClientConfig;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::client::{Http1, request};
use super::subject::Subject;

/// Whoever is blocked; all other clients of the benchmark are 127.0.0.1.
pub(super) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));

/// Of the admin listener of a gate that lives for seconds, on loopback.
const TOKEN: &str = "fgt_of_a_benchmark_on_loopback";
/// Connections at a time.
const CONNECTIONS: usize = 32;
/// Requests of a block that are told why.
const TOLD: usize = 10;

pub(super) fn token_hash() -> String {
    hex::encode(Sha256::digest(TOKEN))
}

/// A subject at which the client is blocked.
#[derive(Debug)]
pub(super) struct Door {
    subject: Subject,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl Door {
    pub(super) async fn open(
        subject: Subject,
        address: SocketAddr,
        admin: SocketAddr,
        tls: &Arc<ClientConfig>,
    ) -> anyhow::Result<Self> {
        let door = Self {
            subject,
            address,
            tls: Arc::clone(tls),
        };
        if subject == Subject::Foregate {
            block(admin).await.context("blocking the client")?;
            for _ in 0..TOLD {
                ensure!(knock(address, tls).await? == 403, "a blocked client is let in");
            }
        }
        Ok(door)
    }

    /// Comes again and again, and returns how often.
    pub(super) async fn turn_away(&self, duration: Duration) -> anyhow::Result<u64> {
        let deadline = Instant::now() + duration;
        let mut tasks = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (subject, address, tls) = (self.subject, self.address, Arc::clone(&self.tls));
            tasks.spawn_local(async move {
                let mut turned_away = 0;
                while Instant::now() < deadline {
                    match (subject, knock(address, &tls).await) {
                        (Subject::Nginx, Ok(403)) => {}
                        (Subject::Foregate | Subject::Haproxy, Err(error)) => ensure_reset(&error)?,
                        (_, Ok(status)) => bail!("a blocked client gets as far as {status}"),
                        (_, Err(error)) => return Err(error),
                    }
                    turned_away += 1;
                }
                anyhow::Ok(turned_away)
            });
        }
        let mut sum = 0;
        while let Some(turned_away) = tasks.join_next().await {
            sum += turned_away??;
        }
        Ok(sum)
    }
}

/// The status of one request on a connection of its own.
async fn knock(address: SocketAddr, tls: &Arc<ClientConfig>) -> anyhow::Result<u16> {
    let mut connection = Http1::connect_from(CLIENT, address, tls).await?;
    let answer = connection.exchange(&request("/", ""), |_| ()).await?;
    Ok(answer.status)
}

/// Anything else, such as a port that is not to be had, would be the benchmark's own failure.
fn ensure_reset(error: &anyhow::Error) -> anyhow::Result<()> {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let kind = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    let kind = kind.map(std::io::Error::kind);
    ensure!(
        matches!(kind, Some(ConnectionReset | BrokenPipe | UnexpectedEof)),
        "turned away otherwise than by the end of the connection: {error:#}"
    );
    Ok(())
}

async fn block(admin: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(admin).await?;
    let order = format!(
        "POST /api/infrastructure/ddos/block/{CLIENT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(order.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    Ok(())
}
