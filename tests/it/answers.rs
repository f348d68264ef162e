//! What becomes of the app's answers, and of requests that come back.

use crate::support::client::{self, Raw};
use crate::support::origin::{Origin, Script};
use crate::support::process::{Config, Gate};
use crate::support::wait;

#[tokio::test]
async fn request_that_comes_back_is_508() {
    let origin = Origin::answering("x").await;
    let config = Config::before(&origin);
    let gate = Gate::start(&config).await;
    // An app that is the gate itself.
    gate.rewrite(&config.set("upstream.servers", &format!("[\"http://{}\"]", gate.address)));
    let answer = wait::until("the loop", async || {
        let answer = client::get(gate.address, "/", "").await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(answer.status, 508, "{answer:?}");
}

#[tokio::test]
async fn fields_of_an_answer_that_may_not_be_joined_stay_apart_and_its_date_stays() {
    let origin = Origin::start(|_| {
        let head = "HTTP/1.1 401 Unauthorized\r\nset-cookie: a=1; Path=/\r\nset-cookie: b=2\r\n\
                    www-authenticate: Basic realm=\"x, y\"\r\nwww-authenticate: Bearer\r\n\
                    date: Thu, 01 Jan 2026 00:00:00 GMT\r\nconnection: x-hop\r\nx-hop: gone\r\nkeep-alive: timeout=5\r\n\
                    content-length: 0\r\n\r\n";
        Script::Answer(head.as_bytes().to_vec())
    })
    .await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let answer = client::get(gate.address, "/", "").await;
    let all = |wanted: &str| -> Vec<&str> {
        let fields = answer.headers.iter().filter(|(name, _)| name == wanted);
        fields.map(|(_, value)| value.as_str()).collect()
    };
    assert_eq!(all("set-cookie"), ["a=1; Path=/", "b=2"]);
    assert_eq!(all("www-authenticate"), ["Basic realm=\"x, y\"", "Bearer"]);
    assert_eq!(all("date"), ["Thu, 01 Jan 2026 00:00:00 GMT"]);
    assert!(all("x-hop").is_empty() && all("keep-alive").is_empty(), "{answer:?}");
}

#[tokio::test]
async fn client_of_http_1_0_gets_neither_chunks_nor_interim_answers() {
    let origin = Origin::start(|_| {
        let chunks = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                      3\r\nabc\r\n0\r\n\r\n";
        Script::Answer(chunks.as_bytes().to_vec())
    })
    .await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("GET / HTTP/1.0\r\n\r\n").await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.body.as_ref()), (200, b"abc".as_slice()));
    assert!(answer.header("transfer-encoding").is_none(), "{answer:?}");
    raw.closed().await;
}
