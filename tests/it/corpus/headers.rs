//! Fields that a client may not set, delete or forge (RFC 9110 section 7.6).

use super::{Case, Want, run};
use Want::{Answered, Passes, Refused};

const FORGED: &[Case] = &[
    (
        "X-Forwarded-For",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n",
        Passes(&["x-forwarded-for: 127.0.0.1\r\n"], &["6.6.6.6"]),
    ),
    (
        "X-Forwarded-For by underscore",
        "GET /c HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 6.6.6.6\r\n\r\n",
        Passes(&[], &["6.6.6.6"]),
    ),
    (
        "X-Forwarded-For by dots",
        "GET /c HTTP/1.1\r\nHost: a\r\nX.Forwarded.For: 6.6.6.6\r\n\r\n",
        Passes(&[], &["6.6.6.6"]),
    ),
    (
        "X-Forwarded-For by both",
        "GET /c HTTP/1.1\r\nHost: a\r\nX_Forwarded.For: 6.6.6.6\r\n\r\n",
        Passes(&[], &["6.6.6.6"]),
    ),
    (
        "X-Real-IP",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Real-IP: 6.6.6.6\r\n\r\n",
        Passes(&["x-real-ip: 127.0.0.1\r\n"], &["6.6.6.6"]),
    ),
    (
        "X-Real-IP by underscore",
        "GET /c HTTP/1.1\r\nHost: a\r\nX_Real_IP: 6.6.6.6\r\n\r\n",
        Passes(&[], &["6.6.6.6"]),
    ),
    (
        "X-Real-IP by dot",
        "GET /c HTTP/1.1\r\nHost: a\r\nX.Real.IP: 6.6.6.6\r\n\r\n",
        Passes(&[], &["6.6.6.6"]),
    ),
    (
        "X-Forwarded-Proto",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n\r\n",
        Passes(&["x-forwarded-proto: http\r\n"], &["https"]),
    ),
    (
        "X-Forwarded-Host",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Forwarded-Host: evil\r\n\r\n",
        Passes(&["x-forwarded-host: a\r\n"], &["evil"]),
    ),
    (
        "X-Forwarded-Port",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Forwarded-Port: 666\r\n\r\n",
        Passes(&[], &["666"]),
    ),
    (
        "X-Forwarded-Server",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Forwarded-Server: evil\r\n\r\n",
        Passes(&[], &["evil"]),
    ),
    (
        "Forwarded",
        "GET /c HTTP/1.1\r\nHost: a\r\nForwarded: for=6.6.6.6\r\n\r\n",
        Passes(&[], &["6.6.6.6"]),
    ),
    (
        "True-Client-IP",
        "GET /c HTTP/1.1\r\nHost: a\r\nTrue-Client-IP: 6.6.6.6\r\n\r\n",
        Passes(&[], &["6.6.6.6"]),
    ),
    (
        "X-Request-Id of a stranger",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Request-Id: forged\r\n\r\n",
        Passes(&["x-request-id: "], &["forged"]),
    ),
    (
        "X-Original-URL",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Original-URL: /admin\r\n\r\n",
        Passes(&[], &["/admin"]),
    ),
    (
        "X-Rewrite-URL",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Rewrite-URL: /admin\r\n\r\n",
        Passes(&[], &["/admin"]),
    ),
    (
        "httpoxy",
        "GET /c HTTP/1.1\r\nHost: a\r\nProxy: http://evil\r\n\r\n",
        Passes(&[], &["evil"]),
    ),
    (
        "Host by underscore would be Host",
        "GET /c HTTP/1.1\r\nHost: a\r\nContent.Length: 7\r\nAuthorization_: x\r\n\r\n",
        Passes(&[], &["content.length"]),
    ),
];

const HOPS: &[Case] = &[
    (
        "Connection nominates a field",
        "GET /c HTTP/1.1\r\nHost: a\r\nConnection: x-mine\r\nX-Mine: secret\r\n\r\n",
        Passes(&[], &["x-mine", "secret"]),
    ),
    (
        "Connection nominates X-Forwarded-For",
        "GET /c HTTP/1.1\r\nHost: a\r\nConnection: x-forwarded-for, x-real-ip\r\n\r\n",
        Passes(&["x-forwarded-for: 127.0.0.1\r\n", "x-real-ip: 127.0.0.1\r\n"], &[]),
    ),
    (
        "Connection nominates X-Forwarded-Proto",
        "GET /c HTTP/1.1\r\nHost: a\r\nConnection: X-Forwarded-Proto, X-Forwarded-Host\r\n\r\n",
        Passes(&["x-forwarded-proto: http\r\n", "x-forwarded-host: a\r\n"], &[]),
    ),
    (
        "Connection nominates X-Request-Id",
        "GET /c HTTP/1.1\r\nHost: a\r\nConnection: x-request-id\r\n\r\n",
        Passes(&["x-request-id: "], &[]),
    ),
    (
        "Connection nominates Host",
        "GET /c HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n",
        Passes(&["host: a\r\n"], &[]),
    ),
    (
        "Connection nominates Authorization",
        "GET /c HTTP/1.1\r\nHost: a\r\nConnection: authorization\r\nAuthorization: Basic eA==\r\n\r\n",
        Passes(&["authorization: basic ea==\r\n"], &[]),
    ),
    (
        "Connection nominates Cookie",
        "GET /c HTTP/1.1\r\nHost: a\r\nConnection: cookie\r\nCookie: a=b\r\n\r\n",
        Passes(&["cookie: a=b\r\n"], &[]),
    ),
    (
        "Connection nominates Content-Length",
        "POST /c HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\nabc",
        Passes(&["content-length: 3\r\n"], &[]),
    ),
    (
        "Connection nominates nonsense",
        "GET /c HTTP/1.1\r\nHost: a\r\nConnection: ,, (,\r\n\r\n",
        Passes(&["get /c "], &[]),
    ),
    (
        "two Connection lines",
        "GET /c HTTP/1.1\r\nHost: a\r\nConnection: x-one\r\nConnection: x-two\r\nX-One: secret\r\nX-Two: secret\r\n\r\n",
        Passes(&[], &["secret"]),
    ),
    (
        "Keep-Alive",
        "GET /c HTTP/1.1\r\nHost: a\r\nKeep-Alive: timeout=9\r\n\r\n",
        Passes(&[], &["keep-alive"]),
    ),
    (
        "Proxy-Connection",
        "GET /c HTTP/1.1\r\nHost: a\r\nProxy-Connection: keep-alive\r\n\r\n",
        Passes(&[], &["proxy-connection"]),
    ),
    (
        "Proxy-Authorization",
        "GET /c HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic eA==\r\n\r\n",
        Passes(&[], &["proxy-authorization"]),
    ),
    (
        "TE beyond trailers",
        "GET /c HTTP/1.1\r\nHost: a\r\nTE: gzip, trailers\r\n\r\n",
        Passes(&["te: trailers\r\n"], &["gzip"]),
    ),
    (
        "TE without trailers",
        "GET /c HTTP/1.1\r\nHost: a\r\nTE: gzip\r\n\r\n",
        Passes(&[], &["gzip"]),
    ),
    (
        "Upgrade without Connection",
        "GET /c HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        Passes(&[], &["upgrade"]),
    ),
    (
        "Upgrade to h2c",
        "GET /c HTTP/1.1\r\nHost: a\r\nConnection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        Passes(&[], &["upgrade", "h2c", "http2-settings"]),
    ),
    (
        "Upgrade to h2c in a list",
        "GET /c HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket, h2c,\r\n\r\n",
        Passes(&[], &["upgrade", "h2c"]),
    ),
    (
        "Forwarding fields of any other name",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Forwarded-Prefix: /forged\r\nX-Forwarded-User: forged\r\nX_Forwarded_Ssl: forged\r\n\r\n",
        Passes(&[], &["forged"]),
    ),
    (
        "Expect of something unknown",
        "POST /c HTTP/1.1\r\nHost: a\r\nExpect: tea\r\nContent-Length: 0\r\n\r\n",
        Answered(417),
    ),
    (
        "Via of this very proxy's kind passes",
        "GET /c HTTP/1.1\r\nHost: a\r\nVia: 1.1 other\r\n\r\n",
        Passes(&["via: 1.1 other"], &[]),
    ),
    (
        "Via is added",
        "GET /c HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["via: 1.1 "], &[]),
    ),
    (
        "Max-Forwards of a GET",
        "GET /c HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n",
        Passes(&["get /c "], &[]),
    ),
    (
        "field of bytes above ASCII",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Y: \u{e9}\r\n\r\n",
        Passes(&["x-y: "], &[]),
    ),
    (
        "field with an empty value",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Y:\r\n\r\n",
        Passes(&["x-y: \r\n"], &[]),
    ),
    (
        "name of pseudo form",
        "GET /c HTTP/1.1\r\nHost: a\r\n:path: /x\r\n\r\n",
        Refused(400),
    ),
];

#[tokio::test]
async fn client_cannot_forge_what_the_proxy_vouches_for() {
    run(FORGED).await;
}

#[tokio::test]
async fn hop_by_hop_fields_stay_on_their_hop() {
    run(HOPS).await;
}
