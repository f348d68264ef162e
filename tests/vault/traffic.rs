//! Requests while a restore exchanges the databases: they wait for it, and not for ever.
#![cfg(debug_assertions)]
#![expect(clippy::disallowed_methods, reason = "the app asks its database by psql")]

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{BACKUPS, Hook, Server, read_message};
use crate::support::{Bed, PORT, Pause, until};

/// An app that answers with what its database says, and 500 if it says nothing.
fn start_app(socket: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    drop(std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let socket = socket.clone();
            drop(std::thread::spawn(move || {
                while !read_message(&mut stream).is_empty() {
                    let asked = Command::new("psql")
                        .args(["-XAtqw", "-p", PORT, "-U", "postgres", "-d", "app", "-h", &socket])
                        .args(["-c", "SELECT count(*) FROM app.t"])
                        .stdin(Stdio::null())
                        .stderr(Stdio::null())
                        .output();
                    let asked = asked.expect("psql starts");
                    let status = if asked.status.success() { "200 OK" } else { "500 Down" };
                    let body = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    drop(stream.write_all(answer.as_bytes()));
                }
            }));
        }
    }));
    address
}

/// Sends a request; the answer is whoever reads the stream's.
fn send(gate: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(gate).expect("the gate listens");
    let limit = Some(Duration::from_secs(60));
    stream.set_read_timeout(limit).expect("a timeout");
    let request = b"GET /count HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request).expect("the gate reads");
    stream
}

#[test]
fn requests_in_a_slow_swap_are_held_and_answered_by_the_new_database_or_told_to_come_back() {
    let bed = Bed::new();
    let (hook, app) = (Hook::start(), start_app(bed.socket().display().to_string()));
    let pause = Pause::at("Emptied", &bed);
    let server = Server::before(&bed, &hook, app, &pause.environment());
    server.settle();
    let id = server.good()[0]["id"].clone();
    bed.sql("app", "DELETE FROM app.t WHERE id > 5");
    assert!(read_message(&mut send(server.gate)).ends_with("\r\n\r\n5"));
    let mut accepted = Value::Null;
    until("the restore to be accepted", || {
        let (status, answer) = server.post(&format!("{BACKUPS}/restore"), &json!({"id": id}));
        accepted = answer;
        status == 202
    });
    pause.wait();
    // Nobody can connect to the database now. One waits as long as the gate lets it.
    let begun = Instant::now();
    let late = read_message(&mut send(server.gate));
    assert!(late.starts_with("HTTP/1.1 503"), "{late}");
    assert!(late.to_lowercase().contains("\r\nretry-after: "), "{late}");
    assert!(
        begun.elapsed() >= Duration::from_secs(5),
        "it was held for {:?}",
        begun.elapsed()
    );
    // Another one comes in time: it is on its way before the swap goes on.
    let mut held = send(server.gate);
    let mut byte = [0];
    held.set_nonblocking(true).expect("an option");
    until("it is not answered at once", || {
        let waiting = held
            .peek(&mut byte)
            .expect_err("no answer while the database is closed");
        waiting.kind() == std::io::ErrorKind::WouldBlock && begun.elapsed() > Duration::from_millis(5_500)
    });
    held.set_nonblocking(false).expect("an option");
    pause.let_go();
    let answer = read_message(&mut held);
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n20000"),
        "{answer}"
    );
    let status = accepted["status"].as_str().expect("an address");
    until("the end of the run", || {
        server.get(status)["run"]["state"] == "succeeded"
    });
}
