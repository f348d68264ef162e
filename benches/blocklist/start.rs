//! A real process over a filled store, from its start to its first answer. `FOREGATE_BIN` names another one than that which
//! was built with the benchmark.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts to connect: the precision of the figure.
const POLL: Duration = Duration::from_millis(1);

/// Ends with its owner, whatever happens.
struct Gate(Child);

impl Drop for Gate {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts the gate and asks for a client that is blocked, until it says no: then the blocks are in force. The app behind it
/// is not asked.
pub(super) fn first_refusal(state: &Path, postgres: Option<&str>, blocked: IpAddr) -> Duration {
    let listen = free_address();
    let config = state.join("bench.toml");
    let store = postgres.map_or(String::new(), |url| {
        let file = state.join("bench-database-url");
        std::fs::write(&file, url).expect("the address is written");
        format!("[store]\npostgres = {{ file = {file:?} }}\n")
    });
    let text = format!(
        "state_dir = {state:?}\n[server]\nlisten = [\"{listen}\"]\n[tls]\nmode = \"off\"\n\
         [upstream]\nservers = [\"http://127.0.0.1:1\"]\n[client]\ntrusted_proxies = [\"127.0.0.1/32\"]\n\
         [admin]\nlisten = \"127.0.0.1:0\"\n[log]\naccess_log = \"\"\n{store}"
    );
    std::fs::write(&config, text).expect("the configuration is written");
    let program = std::env::var_os("FOREGATE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_foregate").into());
    let begin = Instant::now();
    // Dies with this program, however that ends.
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(program)
        .args(["run", "--config"])
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(state.join("bench-log.txt")).expect("a file for what it says"))
        .spawn()
        .expect("the gate starts");
    let mut gate = Gate(child);
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {blocked}\r\n\r\n");
    let mut stream = loop {
        match TcpStream::connect(listen) {
            Ok(stream) => break stream,
            Err(error) => {
                let ended = gate.0.try_wait().expect("the gate is our child");
                assert!(ended.is_none() && begin.elapsed() < PATIENCE, "{error}, {ended:?}");
                std::thread::sleep(POLL);
            }
        }
    };
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream.write_all(request.as_bytes()).expect("the gate reads");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("the gate answers");
    let took = begin.elapsed();
    assert_eq!(&answer, b"HTTP/1.1 403", "a block that is not in force");
    took
}

/// Free now; another program could take it before the gate does, and the benchmark would say so.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound socket has an address")
}
