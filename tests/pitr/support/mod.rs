//! Private clusters, a server of ours, and what both need.

pub(crate) mod cluster;
pub(crate) mod server;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Long enough for a machine that builds at the same time.
const PATIENCE: Duration = Duration::from_secs(120);

/// Polls until `condition` holds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited for: {what}");
        // Most conditions start a program to ask: without a rest in between, they keep a core from what is waited for.
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

pub(crate) fn output(program: &str, args: &[&str], directory: &Path) -> Output {
    // Files rather than pipes: a server that is left behind would hold a pipe open.
    let (out, err) = (
        tempfile::tempfile().expect("a file"),
        tempfile::tempfile().expect("a file"),
    );
    let copy = |file: &std::fs::File| file.try_clone().expect("a second handle");
    let status = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(copy(&out))
        .stderr(copy(&err))
        .current_dir(directory)
        .status()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    Output {
        status,
        stdout: contents(&out),
        stderr: contents(&err),
    }
}

fn contents(mut file: &std::fs::File) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).expect("rewound");
    std::io::Read::read_to_end(&mut file, &mut bytes).expect("read");
    bytes
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = output(program, args, Path::new("/"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?}: {} {stderr}",
        output.status
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The arguments that run something as the user `postgres`.
pub(crate) fn as_postgres<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["--reuid", "postgres", "--regid", "postgres", "--clear-groups"];
    all.extend(args);
    all
}

/// Every file below `folder`.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .flat_map(|entry| {
            let path = entry.path();
            if path.is_dir() { files(&path) } else { vec![path] }
        })
        .collect();
    found.sort();
    found
}
