//! What the server does by itself, on its schedule.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use crate::support::cluster::Cluster;
use crate::support::server::{Server, archive_through};
use crate::support::until;

/// What was posted to it so far.
fn listener() -> (String, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = format!("http://{}/hook", listener.local_addr().expect("an address"));
    let heard = Arc::new(Mutex::new(String::new()));
    let told = Arc::clone(&heard);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut bytes = [0; 8192];
            let mut request = String::new();
            // A message is short, but head and body may come apart.
            while !request.contains("}") {
                match stream.read(&mut bytes) {
                    Ok(0) | Err(_) => break,
                    Ok(read) => request.push_str(&String::from_utf8_lossy(bytes.get(..read).unwrap_or_default())),
                }
            }
            told.lock().expect("unpoisoned").push_str(&request);
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
        }
    });
    (address, heard)
}

#[test]
fn what_is_due_is_done_and_a_drill_that_fails_is_told_and_remembered() {
    let cluster = Cluster::new();
    archive_through(&cluster);
    let (address, heard) = listener();
    let hook = cluster.root().join("hook");
    std::fs::write(&hook, address).expect("written");
    let more = format!(
        "base_backup = \"00:00\"\ndrill = \"00:00\"\nchecks = [{{ sql = \"SELECT 'right'\", expect = \"wrong\" }}]\n\
         [alerts]\nwebhook = {{ file = \"{}\" }}\n",
        hook.display()
    );
    let server = Server::start_with(&cluster, &more, &[]);
    until("the base backup that is due", || {
        server.metric("foregate_pitr_base_backups_total{result=\"passed\"}") == Some(1.0)
    });
    cluster.finish_segment();
    until("the drill that is due", || {
        server.metric("foregate_pitr_drills_total{result=\"failed\"}") == Some(1.0)
    });
    assert_eq!(server.metric("foregate_pitr_last_drill_passed"), Some(0.0));
    assert!(server.metric("foregate_pitr_window_latest_timestamp_seconds") > Some(0.0));
    assert!(server.metric("foregate_pitr_recovery_point_seconds") >= Some(0.0));
    until("the webhook", || {
        heard.lock().expect("unpoisoned").contains("the last drill failed")
    });
    // What is known of it lies in the repository.
    server.kill();
    let server = Server::start_with(&cluster, &more, &[]);
    until("it is remembered", || server.get("/health").contains("degraded"));
    until("its metric too", || {
        server.metric("foregate_pitr_last_drill_passed") == Some(0.0)
    });
    assert_eq!(
        server.metric("foregate_pitr_base_backups_total{result=\"passed\"}"),
        Some(0.0),
        "the period has been served"
    );
}
