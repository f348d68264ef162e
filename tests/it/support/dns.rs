//! A name server that knows one name, and says for one second where it leads.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

struct State {
    /// `None`: it answers that it has failed.
    leads_to: Option<IpAddr>,
    asked: usize,
}

pub(crate) struct Names {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

impl Names {
    pub(crate) async fn start(leads_to: IpAddr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let address = socket.local_addr().expect("a bound socket has an address");
        let state = Arc::new(Mutex::new(State {
            leads_to: Some(leads_to),
            asked: 0,
        }));
        let shared = Arc::clone(&state);
        let server = tokio::spawn(async move {
            let mut query = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                let answer = answer(
                    &query[..length],
                    &mut shared.lock().expect("no test thread panics here"),
                );
                drop(socket.send_to(&answer, from).await);
            }
        });
        Self { address, state, server }
    }

    pub(crate) fn point_to(&self, ip: IpAddr) {
        self.state.lock().expect("no test thread panics here").leads_to = Some(ip);
    }

    pub(crate) fn fail(&self) {
        self.state.lock().expect("no test thread panics here").leads_to = None;
    }

    pub(crate) fn asked(&self) -> usize {
        self.state.lock().expect("no test thread panics here").asked
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// RFC 1035 section 4: the question is sent back, with one record behind it if an IPv4 address was asked for.
fn answer(query: &[u8], state: &mut State) -> Vec<u8> {
    state.asked += 1;
    let name_length = query[12..]
        .iter()
        .position(|byte| *byte == 0)
        .expect("a question ends in the root");
    let question = &query[12..12 + name_length + 5];
    let wants_ipv4 = question[name_length + 1..name_length + 3] == [0, 1];
    let address = match state.leads_to {
        Some(IpAddr::V4(address)) if wants_ipv4 => Some(address),
        _ => None,
    };
    let code = if state.leads_to.is_none() { 2 } else { 0 };
    let mut out = query[..2].to_vec();
    out.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    out.extend(question);
    if let Some(address) = address {
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        out.extend(address.octets());
    }
    out
}
