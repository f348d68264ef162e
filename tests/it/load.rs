//! A change in the middle of traffic: reloads and the handover to a new process fail no request; many connections are served.

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use crate::support::client::{self, Raw};
use crate::support::load::Load;
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::wait;

#[tokio::test]
async fn fifty_reloads_under_load_fail_no_request() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin);
    let gate = Gate::start(&config).await;
    let load = Load::start(gate.address);
    for round in 0..50 {
        let value = format!("\"nosniff-{round}\"");
        gate.rewrite(&config.clone().set("headers.x_content_type_options", &value));
        gate.signal(Signal::HUP);
        wait::until("the reload", async || {
            let answer = client::get(gate.address, "/", "").await;
            let seen = answer.header("x-content-type-options").map(str::to_string);
            (seen == Some(format!("nosniff-{round}"))).then_some(())
        })
        .await;
    }
    load.goes_on(100).await;
    load.end().await;
}

#[tokio::test]
async fn successor_takes_over_under_load_without_a_failed_request() {
    let origin = Origin::answering("x").await;
    // The successor finds the sockets by their configured address, so the port must be known: this socket, which never
    // listens, keeps it from others, while the gate binds beside it (SO_REUSEPORT).
    let keeper = tokio::net::TcpSocket::new_v4().expect("a socket");
    keeper.set_reuseport(true).expect("an option");
    keeper.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let address = keeper.local_addr().expect("a bound socket has an address");
    let config = Config::before(&origin).set("server.listen", &format!("[\"{address}\"]"));
    let mut gate = Gate::start(&config).await;
    let load = Load::start(gate.address);
    load.goes_on(100).await;
    let successor = Successor::of(&gate).await;
    load.goes_on(200).await;
    assert!(gate.exited().await.success(), "{}", gate.log());
    load.goes_on(200).await;
    load.end().await;
    assert_eq!(client::get(gate.address, "/", "").await.status, 200);
    drop(successor);
}

/// The new process, which is the child of the old gate and would outlive the test.
pub(crate) struct Successor(rustix::process::Pid);

impl Successor {
    /// Has the gate start it, and waits until it serves.
    pub(crate) async fn of(gate: &Gate) -> Self {
        let addresses = gate.path("addresses.json");
        std::fs::remove_file(&addresses).expect("the old addresses");
        gate.signal(Signal::USR2);
        wait::until("the addresses of the successor", async || {
            addresses.exists().then_some(())
        })
        .await;
        Self::find(gate)
    }

    /// The only other process that has this test's configuration on its command line.
    pub(crate) fn find(gate: &Gate) -> Self {
        let config = gate.path("config.toml").display().to_string();
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        let found = processes.filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            (line.contains(&config) && pid.unsigned_abs() != gate.pid()).then_some(pid)
        });
        let pid = found.last().expect("the successor runs");
        Self(rustix::process::Pid::from_raw(pid).expect("a process id"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.as_raw_nonzero().get().unsigned_abs()
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        rustix::process::kill_process(self.0, Signal::KILL).ok();
    }
}

#[tokio::test]
async fn ten_thousand_connections_are_held_and_each_is_answered() {
    const CONNECTIONS: usize = 10_000;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )
    .expect("the soft limit may be raised to the hard one");
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin)
        .set("server.max_connections", "20000")
        .set("server.max_connections_per_client", "20000")
        // A busy machine takes its time to open them all, and the first ones must wait for the last.
        .set("server.timeouts.request_header", r#""10m""#)
        .set("server.timeouts.keep_alive", r#""10m""#);
    let gate = Gate::start(&config).await;
    let mut open = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        open.push(Raw::plain(gate.address).await);
    }
    for raw in &mut open {
        raw.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(raw.answer().await.status, 200);
    }
    let per_connection = gate.resident_bytes() / CONNECTIONS as u64;
    assert!(per_connection < 64 << 10, "{per_connection} bytes per connection");
    // The first ones are still open, and serve.
    for raw in open.iter_mut().take(100) {
        raw.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(raw.answer().await.status, 200);
    }
}
