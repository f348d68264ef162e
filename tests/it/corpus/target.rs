//! What is asked for: methods, targets, versions, hosts (RFC 9112 section 3).

use super::{Case, Want, run};
use Want::{Answered, Passes, Refused};

const TARGETS: &[Case] = &[
    (
        "absolute form wins over Host",
        "GET http://b/c HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["get /c http/1.1\r\n", "host: b\r\n"], &["host: a\r\n"]),
    ),
    (
        "absolute form without a path",
        "GET http://b HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["get / http/1.1\r\n", "host: b\r\n"], &[]),
    ),
    (
        "absolute form with a user",
        "GET http://u@b/c HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    (
        "authority form without CONNECT",
        "GET b:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    ("star for GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    (
        "star for OPTIONS",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["options * http/1.1\r\n"], &[]),
    ),
    (
        "path without a slash",
        "GET c HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    ("empty target", "GET  HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    (
        "two spaces before the target",
        "GET  /c HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    (
        "tab after the method",
        "GET\t/c HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    (
        "space in the target",
        "GET /c d HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    (
        "dot segments are removed",
        "GET /x/../c/./d HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["get /c/d http/1.1\r\n"], &[".."]),
    ),
    (
        "encoded dot segments are removed",
        "GET /x/%2e%2E/c HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["get /c http/1.1\r\n"], &["%2e"]),
    ),
    (
        "slashes are collapsed",
        "GET //c///d HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["get /c/d http/1.1\r\n"], &[]),
    ),
    (
        "climbing above the root",
        "GET /../etc HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    ("encoded slash", "GET /a%2fb HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    (
        "encoded backslash",
        "GET /a%5cb HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    ("backslash", "GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("encoded NUL", "GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    ("half an escape", "GET /a%2 HTTP/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    (
        "no hex in an escape",
        "GET /a%zz HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    (
        "encoded line end stays encoded",
        "GET /a%0d%0ab HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["get /a%0d%0ab http/1.1\r\n"], &[]),
    ),
    (
        "encoded letters are decoded",
        "GET /%61dmin HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["get /admin http/1.1\r\n"], &[]),
    ),
    (
        "twice encoded stays once encoded",
        "GET /%252e%252e/c HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["get /%252e%252e/c http/1.1\r\n"], &[]),
    ),
    (
        "query is left alone",
        "GET /c?a=%2f..//%00 HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["get /c?a=%2f..//%00 http/1.1\r\n"], &[]),
    ),
    (
        "fragment",
        "GET /c#d HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["get /c http/1.1\r\n"], &["#"]),
    ),
    (
        "raw UTF-8 in the path",
        "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    (
        "control character in the path",
        "GET /a\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    (
        "DEL in the path",
        "GET /a\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    (
        "double quote in the path",
        "GET /a\"b HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["get /a"], &["smuggled"]),
    ),
];

const METHODS: &[Case] = &[
    ("TRACE", "TRACE /c HTTP/1.1\r\nHost: a\r\n\r\n", Answered(405)),
    (
        "CONNECT",
        "CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n",
        Answered(405),
    ),
    (
        "method in lower case is another",
        "get /c HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["get /c http/1.1\r\n"], &[]),
    ),
    (
        "unknown method",
        "BREW /c HTTP/1.1\r\nHost: a\r\n\r\n",
        Passes(&["brew /c http/1.1\r\n"], &[]),
    ),
    (
        "method with a separator",
        "GE(T /c HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    (
        "method with a NUL",
        "GE\0T /c HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    ("version 1.2", "GET /c HTTP/1.2\r\nHost: a\r\n\r\n", Refused(400)),
    (
        "version 2.0 without its preface",
        "GET /c HTTP/2.0\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    ("version 0.9", "GET /c\r\n\r\n", Refused(400)),
    (
        "version in lower case",
        "GET /c http/1.1\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    (
        "version with a long minor",
        "GET /c HTTP/1.10\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    ("another protocol", "GET /c ICY/1.1\r\nHost: a\r\n\r\n", Refused(400)),
    (
        "HTTP/1.0 is forwarded as 1.1",
        "GET /c HTTP/1.0\r\nHost: a\r\n\r\n",
        Passes(&["get /c http/1.1\r\n", "host: a\r\n"], &[]),
    ),
    ("not HTTP at all", "\x16\x03\x01\x02\x00\x01\r\n\r\n", Refused(400)),
    ("SSH", "SSH-2.0-OpenSSH_9.2\r\n\r\n", Refused(400)),
];

const HOSTS: &[Case] = &[
    ("no Host", "GET /c HTTP/1.1\r\n\r\n", Refused(400)),
    (
        "two Hosts",
        "GET /c HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        Refused(400),
    ),
    (
        "two equal Hosts",
        "GET /c HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        Refused(400),
    ),
    (
        "two Hosts in one line",
        "GET /c HTTP/1.1\r\nHost: a, b\r\n\r\n",
        Refused(400),
    ),
    ("empty Host", "GET /c HTTP/1.1\r\nHost:\r\n\r\n", Refused(400)),
    ("Host with a path", "GET /c HTTP/1.1\r\nHost: a/b\r\n\r\n", Refused(400)),
    ("Host with a user", "GET /c HTTP/1.1\r\nHost: u@a\r\n\r\n", Refused(400)),
    (
        "Host with a space",
        "GET /c HTTP/1.1\r\nHost: a b\r\n\r\n",
        Refused(400),
    ),
    (
        "Host with a query",
        "GET /c HTTP/1.1\r\nHost: a?b\r\n\r\n",
        Refused(400),
    ),
    (
        "Host with angle brackets",
        "GET /c HTTP/1.1\r\nHost: <script>\r\n\r\n",
        Refused(400),
    ),
    (
        "Host with a port",
        "GET /c HTTP/1.1\r\nHost: a:8080\r\n\r\n",
        Passes(&["host: a:8080\r\n"], &[]),
    ),
    (
        "Host with a port that is none",
        "GET /c HTTP/1.1\r\nHost: a:http\r\n\r\n",
        Refused(400),
    ),
    (
        "Host with a port out of range",
        "GET /c HTTP/1.1\r\nHost: a:99999\r\n\r\n",
        Refused(400),
    ),
    (
        "Host with two ports",
        "GET /c HTTP/1.1\r\nHost: a:80:80\r\n\r\n",
        Refused(400),
    ),
    (
        "Host is an IPv6 address",
        "GET /c HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        Passes(&["host: [::1]:80\r\n"], &[]),
    ),
    (
        "Host with an open bracket",
        "GET /c HTTP/1.1\r\nHost: [::1\r\n\r\n",
        Refused(400),
    ),
    (
        "Host in other case",
        "GET /c HTTP/1.1\r\nhOST: a\r\n\r\n",
        Passes(&["host: a\r\n"], &[]),
    ),
    (
        "Host alias",
        "GET /c HTTP/1.1\r\nHost: a\r\nX-Forwarded-Host: evil\r\nX_Forwarded_Host: evil\r\n\r\n",
        Passes(&["x-forwarded-host: a\r\n"], &["evil"]),
    ),
    (
        "bad Host under an absolute form",
        "GET http://b/c HTTP/1.1\r\nHost: a, b\r\n\r\n",
        Refused(400),
    ),
];

#[tokio::test]
async fn path_has_one_reading_which_the_app_gets() {
    run(TARGETS).await;
}

#[tokio::test]
async fn method_or_version_that_is_none_is_refused() {
    run(METHODS).await;
}

#[tokio::test]
async fn host_is_exactly_one_and_valid() {
    run(HOSTS).await;
}
