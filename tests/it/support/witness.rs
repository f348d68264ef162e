//! Another client, that goes on asking while an attack runs: what it feels, and what the attack costs the gate in memory.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::process::{self, Gate};
use super::wait;

/// Where the other client calls from; the attackers are at 127.0.0.1.
const FROM: &str = "127.0.0.2:0";
const CONNECTIONS: usize = 4;
/// So many answers are measured before and after, and at least so many meanwhile.
const BESIDE: usize = 200;
const MEANWHILE: usize = 400;
/// The quantile that is judged: where attacks last, and for a few rounds of each among other tests, which a machine that stands
/// still for a moment must not spoil.
const JUDGED_LONG: usize = 99;
const JUDGED_SHORT: usize = 90;
/// How much longer that one may take than without the attack; and what nobody is harmed by, on a machine that the attackers, the
/// app and other tests share with the gate.
const SLOWER_MAX: u32 = 10;
const UNHARMED: Duration = Duration::from_millis(500);

const PHASES: [&str; 3] = ["before", "during", "after"];

#[derive(Debug, Clone, Default)]
struct Phase {
    latencies: Vec<Duration>,
    resident_bytes_max: u64,
}

impl Phase {
    fn quantile(&self, of_hundred: usize) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        sorted[(sorted.len() - 1) * of_hundred / 100]
    }
}

/// Runs `round` again and again, once at least and for `ATTACK_SECONDS`, while the other client is served.
pub(crate) async fn unharmed_by(name: &str, gate: &Gate, growth_bytes_max: u64, round: impl AsyncFnMut()) {
    watch(name, gate, growth_bytes_max, None, round).await;
}

/// The same over TLS.
pub(crate) async fn unharmed_over_tls_by(
    name: &str,
    gate: &Gate,
    growth_bytes_max: u64,
    tls: Arc<ClientConfig>,
    round: impl AsyncFnMut(),
) {
    watch(name, gate, growth_bytes_max, Some(tls), round).await;
}

async fn watch(
    name: &str,
    gate: &Gate,
    growth_bytes_max: u64,
    tls: Option<Arc<ClientConfig>>,
    mut round: impl AsyncFnMut(),
) {
    let seconds = std::env::var("ATTACK_SECONDS").ok().and_then(|text| text.parse().ok());
    let run = Duration::from_secs(seconds.unwrap_or(0));
    let (current, phases) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Mutex::new(vec![Phase::default(); PHASES.len()])),
    );
    let asking = {
        let (address, pid) = (gate.address, gate.pid());
        let (current, phases) = (Arc::clone(&current), Arc::clone(&phases));
        std::thread::spawn(move || ask(address, tls.as_ref(), pid, &current, &phases))
    };
    let answers = |phase: usize| phases.lock().expect("the other client is well")[phase].latencies.len();
    // If it panicked, that is told at the end.
    let is_over = || asking.is_finished();
    let measured = async |phase: usize| {
        wait::until(PHASES[phase], async || {
            (is_over() || answers(phase) >= BESIDE).then_some(())
        })
        .await;
    };
    measured(0).await;
    current.store(1, Ordering::Relaxed);
    let begun = Instant::now();
    while !is_over() && (begun.elapsed() < run || answers(1) < MEANWHILE) {
        round().await;
    }
    current.store(2, Ordering::Relaxed);
    measured(2).await;
    current.store(PHASES.len(), Ordering::Relaxed);
    wait::until("the end of the other client", async || {
        asking.is_finished().then_some(())
    })
    .await;
    asking.join().expect("every request of the other client is answered");
    let phases = phases.lock().expect("the other client is well").clone();
    report(name, &phases);
    let judged = if run.is_zero() { JUDGED_SHORT } else { JUDGED_LONG };
    let [before, during, after] = [0, 1, 2].map(|phase| phases[phase].quantile(judged));
    assert!(
        during <= UNHARMED.max(before.max(after) * SLOWER_MAX),
        "{name}: {judged} of a hundred waited up to {during:?}, before it was {before:?}, after it {after:?}"
    );
    let grown = phases[1]
        .resident_bytes_max
        .saturating_sub(phases[0].resident_bytes_max);
    assert!(grown < growth_bytes_max, "{name}: {grown} bytes more");
}

fn ask(
    address: SocketAddr,
    tls: Option<&Arc<ClientConfig>>,
    pid: u32,
    current: &AtomicUsize,
    phases: &Mutex<Vec<Phase>>,
) {
    let mut connections = Vec::with_capacity(CONNECTIONS);
    let mut measured = 0;
    process::reset_peak(pid);
    for number in 0.. {
        let phase = current.load(Ordering::Relaxed);
        if phase != measured {
            phases.lock().expect("the test is well")[measured].resident_bytes_max = process::peak_bytes(pid);
            process::reset_peak(pid);
            measured = phase;
        }
        if phase == PHASES.len() {
            return;
        }
        // Right before it is used for the first time: the gate waits for no head that is late.
        if connections.len() < CONNECTIONS {
            connections.push(connect(address, tls));
        }
        let begun = Instant::now();
        answered(&mut *connections[number % CONNECTIONS]);
        let latency = begun.elapsed();
        let mut phases = phases.lock().expect("the test is well");
        phases[phase].latencies.push(latency);
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

fn connect(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Box<dyn Stream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let from: SocketAddr = FROM.parse().expect("an address");
    socket.bind(&from.into()).expect("all of 127/8 is ours");
    socket.connect(&address.into()).expect("the port accepts");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(wait::DEADLINE)).expect("an option");
    stream.set_nodelay(true).expect("an option");
    let Some(tls) = tls else {
        return Box::new(stream);
    };
    let name = ServerName::try_from("localhost").expect("a name");
    let session = ClientConnection::new(Arc::clone(tls), name).expect("a session");
    Box::new(StreamOwned::new(session, stream))
}

/// One request and its whole answer, whose body is "x".
fn answered(stream: &mut dyn Stream) {
    stream
        .write_all(b"GET /other HTTP/1.1\r\nhost: a\r\n\r\n")
        .expect("the gate reads");
    let mut answer = Vec::new();
    let mut space = [0; 4096];
    while !answer.ends_with(b"\r\n\r\nx") {
        let count = match stream.read(&mut space) {
            // With a time-out on the socket the call is not taken up again by itself.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read.expect("an answer in time"),
        };
        assert!(count > 0, "the connection of the other client was closed");
        answer.extend(&space[..count]);
    }
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

/// One row of a table: on standard output, and in the file that `ATTACK_TABLE` names.
fn report(name: &str, phases: &[Phase]) {
    let millis = |duration: Duration| format!("{:.1}", duration.as_secs_f64() * 1000.0);
    let latencies: Vec<String> = phases
        .iter()
        .map(|phase| format!("{} / {}", millis(phase.quantile(50)), millis(phase.quantile(99))))
        .collect();
    let memory: Vec<String> = phases
        .iter()
        .map(|phase| format!("{:.1}", phase.resident_bytes_max as f64 / f64::from(1 << 20)))
        .collect();
    let row = format!(
        "| {name} | {} | {} | {} |\n",
        phases[1].latencies.len(),
        latencies.join(" | "),
        memory.join(" | ")
    );
    eprint!("{row}");
    if let Ok(path) = std::env::var("ATTACK_TABLE") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        file.expect("the table").write_all(row.as_bytes()).expect("the table");
    }
}
