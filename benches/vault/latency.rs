//! The proxy's latency with and without a backup beside it: 400 requests per second over eight connections, evenly spaced.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::Cluster;

const CONNECTIONS: usize = 8;
const PACE: Duration = Duration::from_millis(20);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

pub(crate) fn compare(cluster: &Cluster) {
    let gate = Gate::start(cluster);
    drop(measure(gate.port, || {}));
    let quiet = measure(gate.port, || super::pause_at_least(Duration::from_secs(15)));
    let busy = measure(gate.port, || {
        super::timed(&mut cluster.foregate(&["create"]));
    });
    println!("| proxy | p50 | p99 | p99.9 |\n|---|--:|--:|--:|");
    for (name, latencies) in [("quiet", &quiet), ("during a backup", &busy)] {
        let [p50, p99, p999] = [500, 990, 999].map(|of| latencies[latencies.len() * of / 1000].as_micros());
        println!("| {name} | {p50} us | {p99} us | {p999} us |");
    }
}

struct Gate {
    process: Child,
    port: u16,
}

impl Gate {
    fn start(cluster: &Cluster) -> Self {
        let app = TcpListener::bind("127.0.0.1:0").expect("a port");
        let app_port = app.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            app.incoming()
                .flatten()
                .for_each(|stream| drop(std::thread::spawn(|| serve(stream))));
        });
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let config = cluster.path("gate.toml");
        let state = cluster.path("gate-state");
        std::fs::create_dir(&state).expect("a directory");
        let text = format!(
            "state_dir = \"{state}\"\n[server]\nlisten = [\"127.0.0.1:{port}\"]\n[tls]\nmode = \"off\"\n[upstream]\nservers = [\"http://127.0.0.1:{app_port}\"]\n\
             [limits]\nmode = \"observe\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[log]\naccess_log = \"\"\n"
        );
        std::fs::write(&config, text).expect("writable");
        let process = Command::new(env!("CARGO_BIN_EXE_foregate"))
            .args(["run", "--config", &config])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("foregate starts");
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the gate does not listen");
            super::pause(Duration::from_millis(20));
        }
        Self { process, port }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn serve(mut stream: TcpStream) {
    let mut buffer = [0; 8192];
    let mut filled = 0;
    while let Ok(read @ 1..) = stream.read(&mut buffer[filled..]) {
        filled += read;
        if buffer[..filled].ends_with(b"\r\n\r\n") {
            filled = 0;
            if stream.write_all(ANSWER).is_err() {
                return;
            }
        }
    }
}

/// Asks at an even pace while `meanwhile` runs. Time counts from when a request was due, so that a stall is not left out.
fn measure(port: u16, meanwhile: impl FnOnce()) -> Vec<Duration> {
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut all: Vec<Duration> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(|| ask(port, &stop))).collect();
        meanwhile();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let ended = clients.into_iter().map(|client| client.join().expect("a client"));
        ended.flatten().collect()
    });
    all.sort_unstable();
    all
}

fn ask(port: u16, stop: &std::sync::atomic::AtomicBool) -> Vec<Duration> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.set_nodelay(true).expect("an option");
    let mut latencies = Vec::new();
    let mut buffer = [0; 4096];
    let mut due = Instant::now();
    loop {
        due += PACE;
        super::pause_at_least(due.saturating_duration_since(Instant::now()));
        stream
            .write_all(b"GET /x HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .expect("it is sent");
        let mut filled = 0;
        while !buffer[..filled].ends_with(b"\r\n\r\nok") {
            let read = stream.read(&mut buffer[filled..]).expect("an answer");
            assert!(read > 0, "the gate hung up");
            filled += read;
        }
        latencies.push(due.elapsed());
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            return latencies;
        }
    }
}
