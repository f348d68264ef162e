//! The proxy's latency with and without a backup in its own process, as in production: 400 requests per second over eight
//! connections, evenly spaced, the connections among each other too.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::Digest as _;

use crate::cluster::Cluster;

const CONNECTIONS: u32 = 8;
const ROUNDS: usize = 3;
/// Each of the times without a backup.
const QUIET: Duration = Duration::from_secs(10);
/// During a backup, of what it is without.
const P99_MAX: f64 = 1.5;
const BACKUPS: &str = "/api/infrastructure/backups";
const PACE: Duration = Duration::from_millis(20);
const REQUESTS_PER_SECOND: usize = 50 * CONNECTIONS as usize;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

pub(crate) fn compare(cluster: &Cluster) {
    let gate = Gate::start(cluster);
    let pause = || super::pause_at_least(QUIET);
    drop(measure(gate.port, || {}));
    let mut quiet = measure(gate.port, pause);
    let before = super::peak_kib(gate.process.id());
    let (mut busy, mut beside, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    // In turn: what else the machine does meets all.
    for _ in 0..ROUNDS {
        busy.extend(measure(gate.port, || gate.back_up()));
        beside.extend(measure(gate.port, || {
            super::dump(cluster);
        }));
        idle.extend(measure(gate.port, || {
            let plain = cluster.foregate(&["create", "--json"]);
            let mut command = Command::new("chrt");
            command
                .args(["-i", "0"])
                .arg(plain.get_program())
                .args(plain.get_args());
            for (name, value) in plain.get_envs() {
                if let Some(value) = value {
                    command.env(name, value);
                }
            }
            assert!(
                command
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()
                    .expect("ran")
                    .success()
            );
        }));
        quiet.extend(measure(gate.port, pause));
    }
    let after = super::peak_kib(gate.process.id());
    println!(
        "| proxy | p50 | p99 | of the quiet one's | p99.9 | p99 of a second, median | of the quiet one's | memory at most |\n|---|--:|--:|--:|--:|--:|--:|--:|"
    );
    let (usual, usual_of_a_second) = (percentile(&quiet, 990), p99_of_a_second(&quiet));
    for (name, asked, memory) in [
        ("quiet", &quiet, before),
        ("during a backup", &busy, after),
        ("during pg_dump -F c by hand", &beside, after),
        ("during a backup by a process of its own, SCHED_IDLE", &idle, after),
    ] {
        let [p50, p99, p999] = [500, 990, 999].map(|of| percentile(asked, of));
        let second = p99_of_a_second(asked);
        let ratio = super::judged(p99.as_secs_f64() / usual.as_secs_f64(), P99_MAX);
        println!(
            "| {name} | {} us | {} us | {ratio} | {} us | {} us | {:.2} | {} |",
            p50.as_micros(),
            p99.as_micros(),
            p999.as_micros(),
            second.as_micros(),
            second.as_secs_f64() / usual_of_a_second.as_secs_f64(),
            super::judged_memory(memory),
        );
    }
}

fn percentile(asked: &[Asked], thousandths: usize) -> Duration {
    rank(asked.iter().map(|(_, took)| *took), thousandths)
}

fn rank(latencies: impl Iterator<Item = Duration>, thousandths: usize) -> Duration {
    let mut sorted: Vec<Duration> = latencies.collect();
    sorted.sort_unstable();
    sorted[sorted.len() * thousandths / 1000]
}

/// The median of what each second by itself gives: the few in which the machine was elsewhere decide nothing.
fn p99_of_a_second(asked: &[Asked]) -> Duration {
    let begun = asked.iter().map(|(due, _)| *due).min().expect("something was asked");
    let mut seconds: BTreeMap<u64, Vec<Duration>> = BTreeMap::new();
    for (due, took) in asked {
        let second = due.duration_since(begun).as_secs();
        seconds.entry(second).or_default().push(*took);
    }
    // One that was cut off has too few.
    let whole = seconds
        .values()
        .filter(|second| second.len() >= REQUESTS_PER_SECOND / 2);
    rank(whole.map(|second| rank(second.iter().copied(), 990)), 500)
}

struct Gate {
    process: Child,
    port: u16,
    admin: String,
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
        let (config, addresses) = (cluster.path("gate.toml"), cluster.path("gate-addresses.json"));
        let state = cluster.path("gate-state");
        std::fs::create_dir(&state).expect("a directory");
        let text = format!(
            "state_dir = \"{state}\"\n[server]\nlisten = [\"127.0.0.1:0\"]\n[tls]\nmode = \"off\"\n[upstream]\nservers = [\"http://127.0.0.1:{app_port}\"]\n\
             [limits]\nmode = \"observe\"\n[log]\naccess_log = \"\"\n[database]\nurl = {{ env = \"DATABASE_URL\" }}\n\
             [admin]\nlisten = \"127.0.0.1:0\"\ntokens = [{{ name = \"bench\", role = \"admin\", sha256 = \"{hash}\" }}]\n\
             [backup]\nrepository = \"file://{repository}\"\nrecipients = [\"{recipient}\"]\n\
             daily = \"\"\nweekly = \"\"\nmonthly = \"\"\ncleanup = \"\"\nverify = \"\"\n",
            hash = hex::encode(sha2::Sha256::digest("bench")),
            repository = cluster.path("repository"),
            recipient = cluster.recipient(),
        );
        std::fs::write(&config, text).expect("writable");
        let process = Command::new(env!("CARGO_BIN_EXE_foregate"))
            .args(["run", "--config", &config])
            .env("DATABASE_URL", cluster.address())
            .env("FOREGATE_ADDRESS_FILE", &addresses)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("foregate starts");
        let deadline = Instant::now() + Duration::from_secs(20);
        let ready = loop {
            let text = std::fs::read_to_string(&addresses).unwrap_or_default();
            if let Ok(ready) = serde_json::from_str::<serde_json::Value>(&text) {
                break ready;
            }
            assert!(Instant::now() < deadline, "the gate does not listen");
            super::pause(Duration::from_millis(20));
        };
        let gate: std::net::SocketAddr = ready["gate"][0]
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("an address");
        let admin = ready["admin"].as_str().expect("an address").to_owned();
        Self {
            process,
            port: gate.port(),
            admin,
        }
    }

    /// One backup by the gate's own vault, to its end.
    fn back_up(&self) {
        let accepted = self.admin("POST", &format!("{BACKUPS}/create"));
        let status = accepted["status"].as_str().expect("a status address").to_owned();
        loop {
            let run = self.admin("GET", &status)["run"]["state"].clone();
            match run.as_str() {
                Some("running") => super::pause(Duration::from_millis(100)),
                other => return assert_eq!(other, Some("succeeded")),
            }
        }
    }

    fn admin(&self, method: &str, path: &str) -> serde_json::Value {
        let mut stream = TcpStream::connect(&self.admin).expect("the gate listens");
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer bench\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("it is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        serde_json::from_str(body).expect("JSON")
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn serve(mut stream: TcpStream) {
    come_first();
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

/// When a request was due, and how long after that its answer had come.
type Asked = (Instant, Duration);

/// Asks at an even pace while `meanwhile` runs. Time counts from when a request was due, so that a stall is not left out.
fn measure(port: u16, meanwhile: impl FnOnce()) -> Vec<Asked> {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let begun = Instant::now();
        let clients = (0..CONNECTIONS).map(|number| {
            let (first, stop) = (begun + PACE * number / CONNECTIONS, &stop);
            scope.spawn(move || ask(port, first, stop))
        });
        let clients: Vec<_> = clients.collect();
        meanwhile();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let ended = clients.into_iter().map(|client| client.join().expect("a client"));
        ended.flatten().collect()
    })
}

fn ask(port: u16, first: Instant, stop: &std::sync::atomic::AtomicBool) -> Vec<Asked> {
    come_first();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.set_nodelay(true).expect("an option");
    let mut latencies = Vec::new();
    let mut buffer = [0; 4096];
    let mut due = first;
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
        latencies.push((due, due.elapsed()));
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            return latencies;
        }
    }
}

/// Clients and app stand for other machines: what is measured is the gate's wait for a core, not theirs. A nice value alone
/// would not do: whoever runs is left to run to the end of its slice (EEVDF), whoever else comes.
fn come_first() {
    let thread = std::fs::read_link("/proc/thread-self").expect("Linux tells");
    let set = Command::new("chrt")
        .args(["--fifo", "--pid", "1"])
        .arg(thread.file_name().expect("its id"))
        .stdout(Stdio::null())
        .status();
    assert!(set.expect("chrt of util-linux").success(), "only root may come first");
}
