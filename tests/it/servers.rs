//! Several servers of the app: shared load, failures that no client notices, probes, names that move, Unix sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use crate::support::client::{self, Raw};
use crate::support::dns::Names;
use crate::support::metrics::scrape;
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};
use crate::support::wait;

fn before_all(origins: &[&str]) -> String {
    format!("{origins:?}")
}

/// An address at which nobody listens, nor will as long as the socket is kept.
fn nobody() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let address = socket.local_addr().expect("a bound socket has an address");
    (socket, format!("http://{address}"))
}

/// Answers with its name, and to the probe as it is told.
async fn named(name: &'static str, is_well: &Arc<AtomicBool>) -> Origin {
    let is_well = Arc::clone(is_well);
    let choose = move |head: &str| match head.starts_with("GET /health ") {
        true if !is_well.load(Ordering::SeqCst) => {
            Script::Answer(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec())
        }
        _ => Script::Answer(ok(name)),
    };
    Origin::start(choose).await
}

async fn body(gate: &Gate) -> String {
    client::get(gate.address, "/", "").await.text()
}

#[tokio::test]
async fn all_servers_get_their_share() {
    let well = Arc::new(AtomicBool::new(true));
    let (a, b, c) = (
        named("a", &well).await,
        named("b", &well).await,
        named("c", &well).await,
    );
    let servers = before_all(&[&a.url(), &b.url(), &c.url()]);
    let gate = Gate::start(&Config::before(&a).set("upstream.servers", &servers)).await;
    let mut counts = [0; 3];
    for _ in 0..300 {
        match body(&gate).await.as_str() {
            "a" => counts[0] += 1,
            "b" => counts[1] += 1,
            "c" => counts[2] += 1,
            other => panic!("{other}"),
        }
    }
    // Ties are broken by chance: below 50 of 300 is less likely than one in a million runs.
    assert!(counts.iter().all(|count| *count >= 50), "{counts:?}");
}

#[tokio::test]
async fn dead_servers_cost_no_request_not_even_one_that_must_not_be_sent_twice() {
    let alive = Origin::answering("alive").await;
    let ((_first, dead), (_second, gone)) = (nobody(), nobody());
    let servers = before_all(&[&dead, &alive.url(), &gone]);
    let gate = Gate::start(&Config::before(&alive).set("upstream.servers", &servers)).await;
    for number in 0..50 {
        let answer = client::request(gate.address, "POST", &format!("/{number}"), "", "order").await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "alive"), "{number}");
    }
    assert_eq!(alive.heads().len(), 50, "each arrived once");
}

#[tokio::test]
async fn when_no_server_is_left_503_says_when_to_come_back() {
    let unused = Origin::answering("x").await;
    let ((_first, dead), (_second, gone)) = (nobody(), nobody());
    let servers = before_all(&[&dead, &gone]);
    let config = Config::before(&unused)
        .set("upstream.servers", &servers)
        .set("server.workers", "1");
    let gate = Gate::start(&config).await;
    for (method, body) in [("GET", ""), ("POST", "x=1")] {
        let answer = wait::until("503 in place of 502", async || {
            let answer = client::request(gate.address, method, "/", "", body).await;
            assert!(matches!(answer.status, 502 | 503), "{}", answer.status);
            (answer.status == 503).then_some(answer)
        })
        .await;
        let seconds: u64 = answer
            .header("retry-after")
            .and_then(|text| text.parse().ok())
            .expect("Retry-After");
        assert!((1..=60).contains(&seconds), "{seconds}");
        drop(answer.problem());
    }
}

/// Answers the first request, ends the connection at the second without a word, answers all later ones.
async fn forgetful() -> Origin {
    let seen = AtomicUsize::new(0);
    Origin::start(move |_| match seen.fetch_add(1, Ordering::SeqCst) {
        1 => Script::Close(Vec::new()),
        _ => Script::Answer(ok("answered")),
    })
    .await
}

#[tokio::test]
async fn only_what_can_be_repeated_without_harm_is_sent_again() {
    for (method, body, status, times) in [("GET", "", 200, 2), ("POST", "", 502, 1), ("PUT", "x", 502, 1)] {
        let app = forgetful().await;
        let gate = Gate::start(&Config::before(&app).set("server.workers", "1")).await;
        assert_eq!(client::get(gate.address, "/first", "").await.status, 200);
        let answer = client::request(gate.address, method, "/second", "", body).await;
        assert_eq!(answer.status, status, "{method}");
        let second = app.heads().iter().filter(|head| head.contains("/second")).count();
        assert_eq!(second, times, "{method}: {:?}", app.heads());
    }
}

/// Answers the first request of every connection, and ends it at the second without a word.
async fn short_of_breath() -> Origin {
    let origin = Origin::start(|head| match head.starts_with("GET /second") {
        true => Script::Close(Vec::new()),
        false => Script::Answer(ok("answered")),
    });
    origin.await
}

#[tokio::test]
async fn request_is_sent_again_to_another_server_if_there_is_one() {
    let (a, b) = (short_of_breath().await, Origin::answering("alive").await);
    let config = Config::before(&a)
        .set("upstream.servers", &before_all(&[&a.url(), &b.url()]))
        .set("server.workers", "1");
    let gate = Gate::start(&config).await;
    let mut repeated = 0;
    for number in 0..20 {
        // Kept connections to both, one of which is ended by the next request.
        for _ in 0..4 {
            assert_eq!(client::get(gate.address, "/first", "").await.status, 200);
        }
        let path = format!("/second/{number} ");
        let answer = client::get(gate.address, path.trim_end(), "").await;
        let times = |origin: &Origin| origin.heads().iter().filter(|head| head.contains(&path)).count();
        assert!(times(&a) <= 1, "a second time to the server that had just failed it");
        if answer.status == 200 {
            assert_eq!(times(&b), 1);
            repeated += times(&a);
        }
    }
    assert!(repeated > 0, "no request was sent again");
}

#[tokio::test]
async fn server_that_takes_requests_and_never_answers_is_left_out() {
    let (alive, mute) = (Origin::answering("alive").await, Origin::start(|_| Script::Never).await);
    let config = Config::before(&alive)
        .set("upstream.servers", &before_all(&[&alive.url(), &mute.url()]))
        .set("upstream.response_timeout", r#""1s""#)
        .set("server.workers", "1");
    let gate = Gate::start(&config).await;
    wait::until("the mute server left out", async || {
        let status = client::get(gate.address, "/", "").await.status;
        assert!(matches!(status, 200 | 504), "{status}");
        gate.log().contains("left out after 5 failures").then_some(())
    })
    .await;
    // It may come back for a try: what counts is that ten in a row are not left to chance.
    wait::until("ten answers of the other one", async || {
        for _ in 0..10 {
            (body(&gate).await == "alive").then_some(())?;
        }
        Some(())
    })
    .await;
    assert!(gate.log().contains("did not answer in time"), "{}", gate.log());
}

#[tokio::test]
async fn client_that_is_late_with_its_body_is_not_held_against_the_server() {
    let (a, b) = (Origin::answering("x").await, Origin::answering("x").await);
    let config = crate::slow::hasty(&a)
        .set("server.timeouts.request_header", r#""10m""#)
        .set("upstream.servers", &before_all(&[&a.url(), &b.url()]))
        .set("server.workers", "1");
    let gate = Gate::start(&config).await;
    let mut late = Vec::new();
    for _ in 0..20 {
        let mut raw = Raw::plain(gate.address).await;
        raw.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc")
            .await;
        late.push(raw);
    }
    for raw in &mut late {
        assert_eq!(raw.answer().await.status, 408);
    }
    assert_eq!(client::get(gate.address, "/", "").await.status, 200);
    let text = scrape(gate.admin).await;
    let mut errors = text
        .lines()
        .filter(|line| line.starts_with("foregate_upstream_errors_total{"));
    assert!(errors.all(|line| line.ends_with(" 0")), "{text}");
}

#[tokio::test]
async fn server_that_fails_its_probe_gets_nothing_until_it_passes_again() {
    let (well, flag) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
    let (steady, shaky) = (named("steady", &well).await, named("shaky", &flag).await);
    let config = Config::before(&steady)
        .set("upstream.servers", &before_all(&[&steady.url(), &shaky.url()]))
        .set("upstream.health.path", r#""/health""#)
        // A probe may take as long: the steady one must pass each of them.
        .set("upstream.health.interval", r#""1s""#);
    let gate = Gate::start(&config).await;
    let up = format!("foregate_upstream_server_up{{server=\"{}\"}}", shaky.address);
    let shows = async |value: u8| {
        wait::until(&format!("{up} {value}"), async || {
            scrape(gate.admin)
                .await
                .contains(&format!("{up} {value}\n"))
                .then_some(())
        })
        .await;
    };
    shows(1).await;
    wait::until("an answer of the shaky server", async || {
        (body(&gate).await == "shaky").then_some(())
    })
    .await;
    flag.store(false, Ordering::SeqCst);
    shows(0).await;
    for _ in 0..100 {
        assert_eq!(body(&gate).await, "steady");
    }
    let health = gate.admin("GET", "/health/comprehensive", "").await.text();
    assert!(health.contains("1 of 2 app servers fail"), "{health}");
    flag.store(true, Ordering::SeqCst);
    shows(1).await;
    wait::until("the shaky server in use again", async || {
        (body(&gate).await == "shaky").then_some(())
    })
    .await;
}

#[tokio::test]
async fn probe_that_fails_everywhere_does_not_stop_traffic() {
    let well = Arc::new(AtomicBool::new(false));
    let (a, b) = (named("app", &well).await, named("app", &well).await);
    let config = Config::before(&a)
        .set("upstream.servers", &before_all(&[&a.url(), &b.url()]))
        .set("upstream.health.path", r#""/health""#)
        .set("upstream.health.interval", r#""100ms""#);
    let gate = Gate::start(&config).await;
    wait::until("both probes failing", async || {
        let health = gate.admin("GET", "/health/comprehensive", "").await.text();
        health.contains("2 of 2 app servers fail").then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(body(&gate).await, "app");
    }
}

#[tokio::test]
async fn name_that_moves_is_followed_even_on_kept_connections() {
    let old = app_at("127.0.0.2:0", "old").await;
    let new = app_at(&format!("127.0.0.3:{}", old.port()), "new").await;
    let names = Names::start(old.ip()).await;
    let unused = Origin::answering("x").await;
    let config = Config::before(&unused)
        .set("server.workers", "1")
        .set("upstream.servers", &format!("[\"http://app.test:{}\"]", old.port()))
        .set("upstream.name_servers", &format!("[\"{}\"]", names.address));
    let gate = Gate::start(&config).await;
    let mut kept = Raw::plain(gate.address).await;
    let mut ask = async || {
        kept.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        kept.answer().await.text()
    };
    wait::until("the old place", async || (ask().await == "old").then_some(())).await;
    names.point_to(new.ip());
    // Each request leaves a pooled connection to the old place behind, which must not be used for ever.
    wait::until("the new place", async || (ask().await == "new").then_some(())).await;
    for _ in 0..20 {
        assert_eq!(ask().await, "new");
    }
    names.fail();
    let asked = names.asked();
    wait::until("two more lookups", async || (names.asked() > asked + 1).then_some(())).await;
    assert_eq!(
        ask().await,
        "new",
        "the last known address stays while the lookup fails"
    );
}

/// Answers every request on kept connections with its name.
async fn app_at(address: &str, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(address).await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    drop(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(tokio::spawn(answer_all(stream, name)));
        }
    }));
    address
}

async fn answer_all(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, name: &'static str) {
    let mut seen = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut piece).await {
        seen.extend_from_slice(&piece[..length]);
        if seen.ends_with(b"\r\n\r\n") {
            seen.clear();
            if stream.write_all(&ok(name)).await.is_err() {
                return;
            }
        }
    }
}

#[tokio::test]
async fn app_may_listen_on_a_unix_socket() {
    let folder = tempfile::tempdir().expect("a private folder");
    let path = folder.path().join("app.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    drop(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(tokio::spawn(answer_all(stream, "by socket")));
        }
    }));
    let unused = Origin::answering("x").await;
    let servers = before_all(&[&format!("unix:{}", path.display())]);
    let gate = Gate::start(&Config::before(&unused).set("upstream.servers", &servers)).await;
    assert_eq!(body(&gate).await, "by socket");
    drop(std::fs::remove_file(&path));
}
