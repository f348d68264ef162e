//! Another client, that goes on asking while an attack runs: what it feels, and what the attack costs the gate in memory.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::process::Gate;
use super::wait;

/// Where the other client calls from; the attackers are at 127.0.0.1.
const FROM: &str = "127.0.0.2:0";
const CONNECTIONS: usize = 4;
/// So many answers are measured before and after, and at least so many meanwhile.
const BESIDE: usize = 200;
const MEANWHILE: usize = 50;
/// No machine is so busy that an unharmed client waits this long for every second answer.
const MEDIAN_MAX: Duration = Duration::from_secs(1);

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
pub(crate) async fn unharmed_by(name: &str, gate: &Gate, growth_bytes_max: u64, mut round: impl AsyncFnMut()) {
    let seconds = std::env::var("ATTACK_SECONDS").ok().and_then(|text| text.parse().ok());
    let run = Duration::from_secs(seconds.unwrap_or(0));
    let (current, phases) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Mutex::new(vec![Phase::default(); PHASES.len()])),
    );
    let asking = {
        let (address, status) = (gate.address, format!("/proc/{}/status", gate.pid()));
        let (current, phases) = (Arc::clone(&current), Arc::clone(&phases));
        std::thread::spawn(move || ask(address, &status, &current, &phases))
    };
    let answers = |phase: usize| phases.lock().expect("the other client is well")[phase].latencies.len();
    let measured = async |phase: usize| {
        wait::until(PHASES[phase], async || (answers(phase) >= BESIDE).then_some(())).await;
    };
    measured(0).await;
    current.store(1, Ordering::Relaxed);
    let begun = Instant::now();
    while begun.elapsed() < run || answers(1) < MEANWHILE {
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
    assert!(
        phases[1].quantile(50) < MEDIAN_MAX,
        "{name}: others wait {:?}",
        phases[1].quantile(50)
    );
    let grown = phases[1]
        .resident_bytes_max
        .saturating_sub(phases[0].resident_bytes_max);
    assert!(grown < growth_bytes_max, "{name}: {grown} bytes more");
}

fn ask(address: SocketAddr, status: &str, current: &AtomicUsize, phases: &Mutex<Vec<Phase>>) {
    let mut connections: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(address)).collect();
    for number in 0.. {
        let phase = current.load(Ordering::Relaxed);
        if phase == PHASES.len() {
            return;
        }
        let begun = Instant::now();
        answered(&mut connections[number % CONNECTIONS]);
        let latency = begun.elapsed();
        let mut phases = phases.lock().expect("the test is well");
        phases[phase].latencies.push(latency);
        if number % 10 == 0 {
            phases[phase].resident_bytes_max = phases[phase].resident_bytes_max.max(resident_bytes(status));
        }
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let from: SocketAddr = FROM.parse().expect("an address");
    socket.bind(&from.into()).expect("all of 127/8 is ours");
    socket.connect(&address.into()).expect("the port accepts");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(wait::DEADLINE)).expect("an option");
    stream.set_nodelay(true).expect("an option");
    stream
}

/// One request and its whole answer, whose body is "x".
fn answered(stream: &mut TcpStream) {
    stream
        .write_all(b"GET /other HTTP/1.1\r\nhost: a\r\n\r\n")
        .expect("the gate reads");
    let mut answer = Vec::new();
    let mut space = [0; 4096];
    while !answer.ends_with(b"\r\n\r\nx") {
        let count = stream.read(&mut space).expect("an answer in time");
        assert!(count > 0, "the connection of the other client was closed");
        answer.extend(&space[..count]);
    }
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

fn resident_bytes(status: &str) -> u64 {
    let status = std::fs::read_to_string(status).expect("the gate runs");
    super::process::resident_bytes_in(&status)
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
