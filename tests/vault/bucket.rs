//! Backups in a bucket: a server that speaks S3 (not ours, and checking signatures), with faults put before it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};

use crate::support::{Bed, Store, run, until};

const ACCESS: &str = "AKIATESTTESTTEST";
const SECRET: &str = "a-secret-that-nobody-may-print";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Status(u16),
    SlowDown,
    /// No answer, ever.
    Hang,
    /// The connection ends when half of the request is read.
    Cut,
    /// The request is carried out, and its answer lost.
    AnswerLost,
    /// It is carried out only when the client has given up, and never answered.
    Late,
    /// Status 200 comes at once, then a space each [`SPACES_EVERY`] for as long as [`SPACES`], and only then the answer.
    Spaces,
    /// It is answered with one bit of the body flipped.
    Flipped,
}

/// Longer than an impatient client lets a store be silent, and than all its attempts.
const LATE: Duration = Duration::from_secs(20);
/// Longer than an impatient client lets a store be silent, which it is for less.
const SPACES: Duration = Duration::from_secs(6);
const SPACES_EVERY: Duration = Duration::from_millis(250);

/// What goes wrong: requests of `method` whose target contains `part`, `times` of them.
struct Rule {
    method: &'static str,
    part: &'static str,
    fault: Fault,
    times: usize,
}

#[derive(Default)]
pub(crate) struct Script {
    rules: Vec<Rule>,
    pub(crate) seen: Vec<String>,
    /// From this request on nothing is answered.
    pub(crate) silent_from: Option<usize>,
    /// What goes on whether or not a client waits for it.
    behind: tokio::task::JoinSet<Option<()>>,
}

/// The server; it ends with the test.
pub(crate) struct Server {
    port: u16,
    pub(crate) script: Arc<Mutex<Script>>,
    directory: PathBuf,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub(crate) fn start(store: &Store) -> Self {
        let directory = store.directory().join("s3");
        std::fs::create_dir_all(directory.join("backups")).expect("a bucket");
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(&directory).expect("a store"));
        builder.set_auth(SimpleAuth::from_single(ACCESS, SECRET));
        let service = builder.build();
        let script = Arc::new(Mutex::new(Script::default()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let port = listener.local_addr().expect("an address").port();
        runtime.spawn(accept(listener, service, Arc::clone(&script)));
        Self {
            port,
            script,
            directory,
            _runtime: runtime,
        }
    }

    pub(crate) fn fail(&self, method: &'static str, part: &'static str, fault: Fault, times: usize) {
        let rule = Rule {
            method,
            part,
            fault,
            times,
        };
        self.script.lock().expect("not poisoned").rules.push(rule);
    }

    /// Everything works again. Returns what was asked for so far.
    pub(crate) fn heal(&self) -> Vec<String> {
        let mut script = self.script.lock().expect("not poisoned");
        script.rules.clear();
        script.silent_from = None;
        std::mem::take(&mut script.seen)
    }

    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        let pairs = [
            ("AWS_ENDPOINT", endpoint.as_str()),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", ACCESS),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_TIMEOUT", "10s"),
        ];
        let owned = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        owned.into()
    }

    /// For a test that waits until something that hangs is given up.
    pub(crate) fn impatient_environment(&self) -> Vec<(String, String)> {
        let mut environment = self.environment();
        environment.push(("AWS_TIMEOUT".to_owned(), "2s".to_owned()));
        environment
    }

    /// Stored objects, without what the server keeps for itself.
    pub(crate) fn objects(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.directory.join("backups")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("readable").flatten() {
                match entry.path() {
                    path if path.is_dir() => folders.push(path),
                    path => found.push(path),
                }
            }
        }
        found
    }
}

async fn accept(listener: tokio::net::TcpListener, service: S3Service, script: Arc<Mutex<Script>>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (service, script) = (service.clone(), Arc::clone(&script));
        let answer = service_fn(move |request| answer(service.clone(), Arc::clone(&script), request));
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
        connections.spawn(connection);
    }
}

async fn answer(
    service: S3Service,
    script: Arc<Mutex<Script>>,
    mut request: hyper::Request<Incoming>,
) -> Result<hyper::Response<s3s::Body>, std::io::Error> {
    let fault = {
        let mut script = script.lock().expect("not poisoned");
        let target = request.uri().to_string();
        script.seen.push(format!("{} {target}", request.method()));
        let is_silent = script.silent_from.is_some_and(|from| script.seen.len() > from);
        let matches =
            |rule: &&mut Rule| rule.times > 0 && rule.method == request.method().as_str() && target.contains(rule.part);
        let rule = script.rules.iter_mut().find(matches);
        let fault = rule.map(|rule| {
            rule.times -= 1;
            rule.fault
        });
        if is_silent { Some(Fault::Hang) } else { fault }
    };
    let refuse = |status: u16, code: &str| {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as told</Message></Error>");
        let response = hyper::Response::builder().status(status);
        response
            .body(s3s::Body::from(Bytes::from(body)))
            .map_err(std::io::Error::other)
    };
    match fault {
        Some(Fault::Status(status)) => refuse(status, "InternalError"),
        Some(Fault::SlowDown) => refuse(503, "SlowDown"),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Cut) => {
            drop(request.body_mut().frame().await);
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
        Some(Fault::AnswerLost) => {
            service
                .call(request.map(s3s::Body::from))
                .await
                .map_err(std::io::Error::other)?;
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
        Some(Fault::Late) => {
            let request = request.map(s3s::Body::from);
            let late = async move {
                tokio::time::sleep(LATE).await;
                service.call(request).await.ok().map(drop)
            };
            script.lock().expect("not poisoned").behind.spawn(late);
            std::future::pending().await
        }
        Some(Fault::Spaces) => Ok(hyper::Response::new(slowly(service, &script, request))),
        Some(Fault::Flipped) => flipped(service, request).await,
        None => service
            .call(request.map(s3s::Body::from))
            .await
            .map_err(std::io::Error::other),
    }
}

async fn flipped(
    service: S3Service,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<s3s::Body>, std::io::Error> {
    let answer = service.call(request.map(s3s::Body::from)).await;
    let (head, body) = answer.map_err(std::io::Error::other)?.into_parts();
    let mut body = body.collect().await.map_err(std::io::Error::other)?.to_bytes().to_vec();
    let middle = body.len() / 2;
    *body.get_mut(middle).expect("a body") ^= 1;
    Ok(hyper::Response::from_parts(head, s3s::Body::from(Bytes::from(body))))
}

/// The body of the answer behind many spaces.
fn slowly(service: S3Service, script: &Mutex<Script>, request: hyper::Request<Incoming>) -> s3s::Body {
    let (mut sender, body) = http_body_util::channel::Channel::<Bytes, std::io::Error>::new(1);
    let spaces = async move {
        let mut ticks = tokio::time::interval(SPACES_EVERY);
        for _ in 0..SPACES.as_millis() / SPACES_EVERY.as_millis() {
            ticks.tick().await;
            sender.send_data(Bytes::from_static(b" ")).await.ok()?;
        }
        let answer = service.call(request.map(s3s::Body::from)).await.ok()?;
        let answer = answer.into_body().collect().await.ok()?.to_bytes();
        sender.send_data(answer).await.ok()
    };
    script.lock().expect("not poisoned").behind.spawn(spaces);
    s3s::Body::http_body_unsync(body)
}

/// A store whose repository is a bucket, and 20 MB of files: three parts of an upload.
fn files() -> (Store, Server, PathBuf) {
    let mut store = Store::new();
    let server = Server::start(&store);
    store.url = "s3://backups/team/app".to_owned();
    store.environment = server.environment();
    let files = store.directory().join("app");
    let script = format!("mkdir {0} && head -c 20000000 /dev/urandom > {0}/blob", files.display());
    run("bash", &["-c", &script]);
    (store, server, files)
}

fn create(store: &Store, files: &std::path::Path) -> Result<(), String> {
    let path = files.display().to_string();
    let args = ["create", "--files", "app", "--path", &path];
    let output = store
        .command(Some(&store.key()), &args)
        .output()
        .expect("foregate starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains(SECRET), "{text}");
    output.status.success().then_some(()).ok_or(text)
}

#[test]
fn a_database_goes_to_a_bucket_and_comes_back() {
    let mut bed = Bed::new();
    let server = Server::start(&bed);
    bed.move_repository("s3://backups", server.environment());
    bed.ok(&["create"]);
    bed.sql("app", "DELETE FROM app.t");
    bed.ok(&["restore", "latest"]);
    assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
    bed.ok(&["verify", "latest", "--restore"]);
    bed.ok(&["create", "--label", "daily"]);
    bed.ok(&["prune"]);
    assert_eq!(bed.good(), 2);
    server.heal();
    bed.ok(&["restore", "latest", "--dry-run"]);
    let mut listings = server.heal();
    listings.retain(|seen| seen.contains("list-type=2"));
    let asked = listings.len();
    listings.sort();
    listings.dedup();
    assert_eq!(listings.len(), asked, "nothing is listed twice");
}

/// On the day that the machine burned, the keys at hand may be those that only read.
#[test]
fn keys_that_may_only_read_a_bucket_bring_the_database_back() {
    let mut bed = Bed::new();
    let server = Server::start(&bed);
    bed.move_repository("s3://backups", server.environment());
    bed.ok(&["create"]);
    bed.sql("app", "DELETE FROM app.t");
    for method in ["PUT", "POST", "DELETE"] {
        server.fail(method, "", Fault::Status(403), usize::MAX);
    }
    let told = bed.ok(&["restore", "--json"]);
    assert!(told.contains("may only be read"), "{told}");
    assert_eq!(bed.sql("app", "SELECT count(*) FROM app.t"), "20000");
    bed.fails(&["create"]);
}

#[test]
fn a_large_file_set_goes_to_a_bucket_in_parts_and_comes_back() {
    let (store, server, files) = files();
    create(&store, &files).expect("it works");
    let parts = server.heal().iter().filter(|seen| seen.contains("partNumber=")).count();
    assert!(parts >= 3, "{parts} parts");
    let into = store.directory().join("into");
    store.ok(&["restore", "latest", "--into", &into.display().to_string()]);
    let back = into.join(files.strip_prefix("/").expect("absolute")).join("blob");
    let same = std::fs::read(back).expect("it is back") == std::fs::read(files.join("blob")).expect("it is there");
    assert!(same);
}

#[test]
fn errors_that_pass_are_waited_out() {
    let (mut store, server, files) = files();
    store.environment = server.impatient_environment();
    for (method, part, fault) in [
        ("PUT", "partNumber=2", Fault::Status(500)),
        ("PUT", "partNumber=1", Fault::SlowDown),
        ("PUT", "partNumber=3", Fault::Cut),
        ("POST", "uploads", Fault::SlowDown),
        ("GET", "files.zst.age", Fault::Status(500)),
        ("GET", "files.zst.age", Fault::Hang),
        ("GET", "list-type=2", Fault::SlowDown),
        ("PUT", "manifest.json", Fault::SlowDown),
    ] {
        server.fail(method, part, fault, 1);
    }
    create(&store, &files).expect("the second attempt of each works");
    assert_eq!(store.good(), 1);
}

#[test]
fn upload_whose_parts_are_put_together_for_longer_than_a_store_may_be_silent_is_waited_for() {
    let (mut store, server, files) = files();
    store.environment = server.impatient_environment();
    server.fail("POST", "uploadId=", Fault::Spaces, 1);
    create(&store, &files).expect("spaces are no silence");
    assert_eq!(store.good(), 1);
}

#[test]
fn upload_that_was_completed_counts_though_the_answer_was_lost() {
    let (mut store, server, files) = files();
    store.environment = server.impatient_environment();
    for (fault, times) in [
        // Asked again, the store knows of no such upload.
        (Fault::AnswerLost, 1),
        (Fault::AnswerLost, usize::MAX),
        (Fault::Late, usize::MAX),
    ] {
        let before = store.good();
        server.fail("POST", "uploadId=", fault, times);
        create(&store, &files).unwrap_or_else(|error| panic!("{fault:?}, {times} times: {error}"));
        let seen = server.heal();
        assert_eq!(store.good(), before + 1, "{fault:?}, {times} times");
        let is_abort = |seen: &&String| seen.starts_with("DELETE") && seen.contains("uploadId=");
        assert!(!seen.iter().any(|seen| is_abort(&seen)), "{seen:?}");
    }
}

#[test]
fn errors_that_stay_leave_no_backup_and_nothing_behind() {
    let (mut store, server, files) = files();
    store.environment = server.impatient_environment();
    for (method, part, fault) in [
        ("PUT", "partNumber=2", Fault::Status(500)),
        ("PUT", "partNumber=2", Fault::Hang),
        ("PUT", "partNumber=3", Fault::Cut),
        ("POST", "uploadId=", Fault::Status(500)),
        ("GET", "files.zst.age", Fault::Status(500)),
        ("PUT", "manifest.json", Fault::Status(500)),
        ("PUT", "manifest.json", Fault::AnswerLost),
    ] {
        server.fail(method, part, fault, usize::MAX);
        let error = create(&store, &files).expect_err("it cannot work");
        let seen = server.heal();
        assert_eq!(store.good(), 0, "{fault:?} at {part}: {error}");
        let aborted = seen
            .iter()
            .any(|seen| seen.starts_with("DELETE") && seen.contains("uploadId="));
        assert!(
            aborted || !part.starts_with("partNumber"),
            "{fault:?} at {part}: {seen:?}"
        );
        let left: Vec<_> = server.objects();
        assert!(
            !left.iter().any(|path| path.ends_with("files.zst.age")),
            "{fault:?} at {part}: {left:?}"
        );
    }
    create(&store, &files).expect("it works again");
    assert_eq!(store.good(), 1);
}

#[test]
fn what_is_damaged_in_a_bucket_is_found() {
    let (store, server, files) = files();
    create(&store, &files).expect("it works");
    let object = server
        .objects()
        .into_iter()
        .find(|path| path.ends_with("files.zst.age"));
    let object = object.expect("it is stored");
    let whole = std::fs::read(&object).expect("readable");
    let id = object.parent().and_then(|folder| folder.file_name()).expect("a folder");
    let id = id.to_string_lossy().into_owned();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for damaged in [flipped, whole[..whole.len() - 100].to_vec(), whole[..9 << 20].to_vec()] {
        std::fs::write(&object, damaged).expect("writable");
        store.fails(&["verify", &id]);
        assert_eq!(store.good(), 0);
    }
}

#[test]
fn keys_come_from_the_environment_or_a_file_and_wrong_ones_are_not_printed() {
    let (mut store, server, _) = files();
    store.environment.retain(|(name, _)| !name.contains("KEY"));
    let file = store.directory().join("credentials");
    let write = |secret: &str| {
        let text = format!("[default]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {secret}\n");
        std::fs::write(&file, text).expect("writable");
    };
    write(SECRET);
    let named = ("AWS_SHARED_CREDENTIALS_FILE".to_owned(), file.display().to_string());
    store.environment.push(named);
    store.ok(&["list"]);
    write("another-secret");
    let refused = store.fails(&["list"]);
    assert!(refused.contains("listing"), "{refused}");
    assert!(
        !refused.contains("another-secret") && !refused.contains(SECRET),
        "{refused}"
    );
    drop(server);
}

/// Killed in the middle of an upload: no object, no backup, and the next run works.
#[test]
fn killed_while_it_uploads_it_leaves_no_backup() {
    let (store, server, files) = files();
    server.fail("PUT", "partNumber=2", Fault::Hang, usize::MAX);
    let path = files.display().to_string();
    let mut running = store.start(&["create", "--files", "app", "--path", &path]);
    until("the second part is on its way", || {
        let script = server.script.lock().expect("not poisoned");
        script.seen.iter().any(|seen| seen.contains("partNumber=2"))
    });
    running.kill().expect("it is killed");
    running.wait().expect("it ends");
    server.heal();
    assert_eq!(store.good(), 0);
    create(&store, &files).expect("it works");
    assert_eq!(store.good(), 1);
}
