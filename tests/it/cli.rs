//! The command line, as a person or a unit file meets it.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

use crate::support::certificates::Authority;
use crate::support::client::{self, Raw};
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};
use crate::support::wait;

const USAGE: i32 = 64;

fn foregate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_foregate"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// `foregate check` of this text as a file of its own.
fn check(directory: &Path, text: &str) -> Output {
    let file = directory.join("config.toml");
    std::fs::write(&file, text).expect("the file is written");
    foregate(&["check", "--config", &file.display().to_string()])
}

#[test]
fn check_names_every_mistake_at_once_and_shows_no_secret() {
    let directory = folder();
    let hook = directory.path().join("hook");
    std::fs::write(&hook, "https://example.org/SECRET-HOOK").expect("the secret is written");
    let head = format!("[tls]\nmode = \"off\"\n[alerts]\nwebhook = {{ file = {hook:?} }}\n");
    let good = check(directory.path(), &head);
    assert!(good.status.success(), "{}", stderr(&good));
    assert!(stdout(&good).contains("webhook = \"[secret]\""), "{}", stdout(&good));
    assert!(!stdout(&good).contains("SECRET"), "{}", stdout(&good));

    let bad = check(
        directory.path(),
        &format!("{head}[limits]\nrequests_per_minut = 5\nmax_headers = \"many\"\n[serve]\n"),
    );
    assert_eq!(bad.status.code(), Some(USAGE));
    assert_eq!(stdout(&bad), "");
    let told = stderr(&bad);
    for part in [
        "requests_per_minut",
        "requests_per_minute",
        "max_headers",
        "serve",
        "config.toml:6",
        "3 errors",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert!(!told.contains("SECRET"), "{told}");
}

#[test]
fn check_reads_certificates_and_names_each_that_cannot_be_used() {
    let directory = folder();
    let authority = Authority::new();
    let at = directory.path();
    let good = authority.leaf(at, "good", &["localhost"]);
    let other = authority.leaf(at, "other", &["localhost"]);
    let expired = authority.leaf_until(at, "expired", &["localhost"], 2001);
    let pair = |cert: &Path, key: &Path| format!("{{ cert = {cert:?}, key = {key:?} }}");
    let with = |pairs: &[String], more: &str| {
        format!("[tls]\nmode = \"files\"\ncertificates = [{}]\n{more}", pairs.join(", "))
    };
    let sound = check(at, &with(&[pair(&good.cert, &good.key)], ""));
    assert!(sound.status.success(), "{}", stderr(&sound));
    let pairs = [
        pair(&good.cert, &good.key),
        pair(&at.join("absent.pem"), &good.key),
        pair(&good.cert, &other.key),
        pair(&expired.cert, &expired.key),
    ];
    let more = format!(
        "client_ca = {:?}\n[admin]\ntls = {}\n",
        at.join("clients.pem"),
        pair(&other.cert, &at.join("admin.key"))
    );
    let bad = check(at, &with(&pairs, &more));
    assert_eq!(bad.status.code(), Some(USAGE));
    let told = stderr(&bad);
    for part in ["absent.pem", "other.key", "clients.pem", "admin.key", "4 errors"] {
        assert!(told.contains(part), "{part} in {told}");
    }
}

#[test]
fn expired_certificate_is_told_by_check_and_stops_nothing() {
    let directory = folder();
    let at = directory.path();
    let expired = Authority::new().leaf_until(at, "expired", &["localhost"], 2001);
    let pair = format!("{{ cert = {:?}, key = {:?} }}", expired.cert, expired.key);
    let text = format!("[tls]\nmode = \"files\"\ncertificates = [{pair}]\n[admin]\ntls = {pair}\n");
    let checked = check(at, &text);
    assert!(checked.status.success(), "{}", stderr(&checked));
    let told = stderr(&checked);
    assert!(told.contains("warning"), "{told}");
    assert!(told.contains("expired.pem expired at 2001"), "{told}");
}

#[test]
fn check_makes_nothing() {
    let directory = folder();
    let state = directory.path().join("state");
    let checked = check(
        directory.path(),
        &format!("state_dir = {state:?}\n[tls]\nmode = \"self_signed\"\n"),
    );
    assert!(checked.status.success(), "{}", stderr(&checked));
    assert!(!state.exists());
}

#[test]
fn check_tries_the_access_log_and_the_directory_of_backups_and_makes_neither() {
    let directory = folder();
    let at = |path: &str| directory.path().join(path);
    let with = |log: &Path, repository: &Path| {
        let database = format!("[database]\nurl = {{ file = {:?} }}\n", at("url"));
        let text = format!(
            "[tls]\nmode = \"off\"\n[log]\naccess_log = {log:?}\n[backup]\nrepository = \"file://{}\"\n{database}",
            repository.display()
        );
        check(directory.path(), &text)
    };
    std::fs::write(at("url"), "postgres://user@127.0.0.1/app").expect("the address is written");
    let good = with(&at("access.log"), &at("deep/backups"));
    assert!(good.status.success(), "{}", stderr(&good));
    assert!(!stderr(&good).contains("no backup"), "{}", stderr(&good));
    assert!(!at("access.log").exists() && !at("deep").exists());

    // Backups that fail are seen and mended later: the gate starts.
    std::fs::write(at("file"), "kept").expect("a file");
    let doubtful = with(&at("file"), &at("file/backups"));
    assert!(doubtful.status.success(), "{}", stderr(&doubtful));
    assert!(
        stderr(&doubtful).contains("no backup can be written to"),
        "{}",
        stderr(&doubtful)
    );
    assert_eq!(std::fs::read_to_string(at("file")).expect("the file"), "kept");

    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
    // A log that cannot be opened stops the start.
    for wrong in ["absent/access.log", "file/access.log", ".", "socket"] {
        let refused = with(&at(wrong), &at("backups"));
        assert_eq!(refused.status.code(), Some(USAGE), "{wrong}: {}", stderr(&refused));
        assert!(stderr(&refused).contains("the access log"), "{}", stderr(&refused));
    }
}

#[test]
fn certificate_that_is_a_pipe_is_refused_and_not_waited_for() {
    let directory = folder();
    let pipe = directory.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).expect("a pipe");
    let refused = check(
        directory.path(),
        &format!("[tls]\nmode = \"files\"\ncertificates = [{{ cert = {pipe:?}, key = {pipe:?} }}]\n"),
    );
    assert_eq!(refused.status.code(), Some(USAGE));
    assert!(stderr(&refused).contains("not a regular file"), "{}", stderr(&refused));
}

#[test]
fn token_prints_a_line_that_the_configuration_takes() {
    let directory = folder();
    let made = foregate(&["token", "--name", "ops@example", "--role", "operator"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let text = stdout(&made);
    let after = |mark: &str| {
        let rest = text.split_once(mark).expect("the mark").1;
        rest.split(['\n', '"']).next().expect("a value").trim().to_owned()
    };
    let (token, hash) = (after("token (shown once): "), after("sha256 = \""));
    assert_eq!(hex::encode(Sha256::digest(&token)), hash);
    let line = text
        .lines()
        .find(|line| line.contains("sha256"))
        .expect("a line for the config");
    let checked = check(
        directory.path(),
        &format!("[tls]\nmode = \"off\"\n[admin]\ntokens = [\n{line}\n]\n"),
    );
    assert!(checked.status.success(), "{}", stderr(&checked));
    assert!(stdout(&checked).contains("operator"), "{}", stdout(&checked));

    for bad in [
        ["--name", "two words", "--role", "viewer"],
        ["--name", "a", "--role", "king"],
    ] {
        let refused = foregate(&[&["token"], bad.as_slice()].concat());
        assert_eq!(refused.status.code(), Some(USAGE), "{bad:?}");
    }
}

#[tokio::test]
async fn upstream_on_the_command_line_is_all_that_a_configuration_needs() {
    let directory = folder();
    let alone = foregate(&["check", "--upstream", "http://127.0.0.1:3210"]);
    assert!(alone.status.success(), "{}", stderr(&alone));
    assert!(
        stdout(&alone).contains(r#"servers = ["http://127.0.0.1:3210"]"#),
        "{}",
        stdout(&alone)
    );
    let wrong = foregate(&["run", "--upstream", "ftp://x"]);
    assert_eq!(wrong.status.code(), Some(USAGE), "{}", stderr(&wrong));

    // It wins over the file.
    let (ours, theirs) = (Origin::answering("ours").await, Origin::answering("theirs").await);
    let url = ours.url();
    let shape = |command: &mut Command| {
        command.args(["--upstream", &url]);
    };
    let gate = Gate::start_shaped(directory, &Config::before(&theirs), shape).await;
    assert_eq!(client::get(gate.address, "/", "").await.text(), "ours");
}

#[test]
fn start_with_a_bad_configuration_exits_64_before_anything_listens() {
    let directory = folder();
    let file = directory.path().join("config.toml");
    let state = directory.path().join("state");
    std::fs::write(&file, format!("state_dir = {state:?}\nnonsense = 1\n")).expect("the file is written");
    for arguments in [
        ["run", "--config", &file.display().to_string()].as_slice(),
        &[
            "run",
            "--config",
            &directory.path().join("absent.toml").display().to_string(),
        ],
        &["run"],
        &["nonsense"],
    ] {
        let refused = foregate(arguments);
        assert_eq!(
            refused.status.code(),
            Some(USAGE),
            "{arguments:?}: {}",
            stderr(&refused)
        );
        assert!(!stderr(&refused).is_empty());
    }
    assert!(!state.exists());
}

#[test]
fn start_that_fails_tells_all_that_was_logged_and_then_why() {
    let directory = folder();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let file = directory.path().join("config.toml");
    let state = directory.path().join("state");
    let text = format!(
        "state_dir = {state:?}\n[server]\nlisten = [\"127.0.0.1:0\"]\n[tls]\nmode = \"self_signed\"\n[admin]\nlisten = \"{}\"\n",
        taken.local_addr().expect("an address")
    );
    std::fs::write(&file, text).expect("the file is written");
    let failed = foregate(&["run", "--config", &file.display().to_string()]);
    assert_eq!(failed.status.code(), Some(1), "{}", stderr(&failed));
    let told = stderr(&failed);
    let logged = told.find("development certificate").expect("the log");
    let reason = told
        .find("foregate: the admin listener cannot be started")
        .expect("the reason");
    assert!(logged < reason, "{told}");
}

/// `foregate demo` on free ports; it ends with the test.
struct Demo {
    child: Child,
    gate: SocketAddr,
    admin: SocketAddr,
    token: String,
    client: Arc<ClientConfig>,
}

impl Demo {
    async fn start(directory: &Path) -> Self {
        let (addresses, out) = (directory.join("addresses.json"), directory.join("stdout"));
        let output = |path: &Path| std::fs::File::create(path).expect("a log file");
        let child = Command::new(env!("CARGO_BIN_EXE_foregate"))
            .args(["demo", "--port", "0", "--admin-port", "0", "--state-dir"])
            .arg(directory.join("state"))
            .env("FOREGATE_ADDRESS_FILE", &addresses)
            .stdin(Stdio::null())
            .stdout(output(&out))
            .stderr(output(&directory.join("stderr")))
            .spawn()
            .expect("the demo starts");
        let found: serde_json::Value = wait::until("the addresses of the demo", async || {
            serde_json::from_str(&std::fs::read_to_string(&addresses).ok()?).ok()
        })
        .await;
        let address =
            |value: &serde_json::Value| value.as_str().and_then(|text| text.parse().ok()).expect("an address");
        let welcome = std::fs::read_to_string(&out).expect("the welcome");
        let token = welcome.split_once("token: ").expect("a token").1;
        let token = token.split_whitespace().next().expect("a token").to_owned();
        let certificate =
            CertificateDer::from_pem_file(directory.join("state/self-signed.crt")).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(certificate).expect("a trust anchor");
        let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            child,
            gate: address(&found["gate"][0]),
            admin: address(&found["admin"]),
            token,
            client: Arc::new(client),
        }
    }

    /// The status of one request on its own connection; `None`: the connection was closed on us.
    async fn ask(&self) -> Option<u16> {
        let stream = client::handshake(self.gate, Arc::clone(&self.client), "localhost").await;
        let mut raw = Raw::over(stream.ok()?);
        raw.try_send("GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .ok()?;
        Some(wait::within("an answer", raw.try_answer()).await?.status)
    }

    async fn admin(&self, method: &str, path: &str) -> client::Answer {
        let path = format!("/api/infrastructure/ddos/{path}");
        let headers = format!("authorization: Bearer {}\r\n", self.token);
        client::request(self.admin, method, &path, &headers, "").await
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn demo_limits_then_blocks_and_its_admin_lifts_the_block() {
    let directory = folder();
    let demo = Demo::start(directory.path()).await;
    assert_eq!(demo.ask().await, Some(200));
    let mut seen = Vec::new();
    // Hundreds of handshakes.
    let limit = 3 * wait::DEADLINE;
    wait::until_at_most(limit, "the end of the connections of a blocked client", async || {
        let status = demo.ask().await;
        // Between two refusals the limit lets one more pass, now and then.
        if !seen.contains(&status) {
            seen.push(status);
        }
        status.is_none().then_some(())
    })
    .await;
    assert_eq!(seen, [Some(200), Some(429), Some(403), None], "as the welcome says");
    let blocks = demo.admin("GET", "blocks").await;
    assert!(blocks.text().contains("127.0.0.1"), "{blocks:?}");
    let lifted = demo.admin("POST", "unblock/127.0.0.1").await;
    assert_eq!(lifted.status, 200, "{lifted:?}");
    // The limit itself refills by and by.
    wait::until("an answer of the app", async || {
        (demo.ask().await == Some(200)).then_some(())
    })
    .await;
}
