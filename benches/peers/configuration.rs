//! The configuration files of the three subjects. What one does, all do: the same limits, the same headers to the app
//! and to the client, connections kept on both sides, no access log, one worker.

use std::net::SocketAddr;
use std::path::Path;

use super::blocked;
use super::certificate::Certificate;
use super::row::Quotas;
use super::subject::Subject;

#[derive(Debug, Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) listen: SocketAddr,
    /// Where Foregate takes orders.
    pub(super) admin: SocketAddr,
    pub(super) upstream: SocketAddr,
    pub(super) certificate: &'a Certificate,
    /// Belongs to this trial alone.
    pub(super) directory: &'a Path,
    pub(super) quotas: Quotas,
    /// Clients' connections that the subject must be able to hold.
    pub(super) connections_max: usize,
}

/// Connections to the upstream that nginx keeps; it counts them among its own.
const KEPT: usize = 512;

pub(super) fn text(subject: Subject, scene: &Scene<'_>) -> String {
    match subject {
        Subject::Nginx => nginx(scene),
        Subject::Haproxy => haproxy(scene),
        Subject::Foregate => foregate(scene),
    }
}

/// Requests per minute and per hour.
fn quota(quotas: Quotas) -> (u64, u64) {
    match quotas {
        Quotas::Ample | Quotas::Blocked => (1_000_000_000, 4_000_000_000),
        Quotas::Tiny => (1, 1),
        // One request is on the minute's account for 30 s, longer than the trial takes.
        Quotas::Remembered => (2, 20),
    }
}

/// Clients are on loopback, which is never blocked unless told so, and whoever is never blocked is given no strikes: they
/// are part of what a refusal costs. The threshold is one that a trial of some seconds cannot reach.
fn foregate(scene: &Scene<'_>) -> String {
    let Scene {
        listen,
        admin,
        upstream,
        certificate,
        directory,
        quotas,
        connections_max,
    } = scene;
    let (minute, hour) = quota(*quotas);
    let token = blocked::token_hash();
    let trusted = if *quotas == Quotas::Remembered {
        r#""127.0.0.0/8""#
    } else {
        ""
    };
    format!(
        r#"state_dir = "{directory}/state"
[server]
listen = ["{listen}"]
workers = 1
max_connections = {connections_max}
max_connections_per_client = {connections_max}
drain_timeout = "1s"
[tls]
certificates = [{{ cert = "{chain}", key = "{key}" }}]
[upstream]
servers = ["http://{upstream}"]
[client]
trusted_proxies = [{trusted}]
[limits]
requests_per_minute = {minute}
requests_per_hour = {hour}
[blocklist]
block_loopback = true
suspicious_threshold = 1000
[admin]
listen = "{admin}"
tokens = [{{ name = "peers", role = "operator", sha256 = "{token}" }}]
[log]
access_log = ""
"#,
        directory = directory.display(),
        chain = certificate.chain.display(),
        key = certificate.key.display(),
    )
}

/// Rate and burst of the two zones. nginx knows no quota per hour: the hour's quota is the burst of the second zone.
fn nginx_limits(quotas: Quotas) -> [(&'static str, &'static str); 2] {
    match quotas {
        Quotas::Ample | Quotas::Blocked => [("1000000r/s", "burst=1000000 nodelay"); 2],
        Quotas::Tiny => [("1r/m", ""); 2],
        Quotas::Remembered => [("2r/m", "burst=2 nodelay"), ("1r/m", "burst=20 nodelay")],
    }
}

/// nginx has no earlier place for it: the handshake is part of what such a client costs it.
fn nginx_deny(quotas: Quotas) -> String {
    if quotas == Quotas::Blocked {
        format!("deny {};", blocked::CLIENT)
    } else {
        String::new()
    }
}

fn nginx(scene: &Scene<'_>) -> String {
    let Scene {
        listen,
        upstream,
        certificate,
        directory,
        quotas,
        connections_max,
        ..
    } = scene;
    let directory = directory.display();
    let [(minute_rate, minute_burst), (hour_rate, hour_burst)] = nginx_limits(*quotas);
    let real_address = if *quotas == Quotas::Remembered {
        "set_real_ip_from 127.0.0.0/8; real_ip_header X-Forwarded-For;"
    } else {
        ""
    };
    let both_sides = connections_max + KEPT;
    let deny = nginx_deny(*quotas);
    // Downloads: never through a file, which neither of the others would do.
    format!(
        r#"daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log crit;
events {{ worker_connections {both_sides}; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  limit_req_zone $binary_remote_addr zone=minute:128m rate={minute_rate};
  limit_req_zone $binary_remote_addr zone=hour:128m rate={hour_rate};
  limit_req_status 429;
  {real_address}
  upstream app {{ server {upstream}; keepalive {KEPT}; keepalive_requests 1000000000; keepalive_timeout 75s; }}
  server {{
    listen {listen} ssl http2 backlog=4096;
    server_name localhost;
    ssl_certificate {chain};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    keepalive_timeout 75s;
    keepalive_requests 1000000000;
    client_max_body_size 10m;
    add_header Strict-Transport-Security "max-age=31536000; includeSubDomains";
    add_header X-Content-Type-Options "nosniff";
    add_header X-Frame-Options "DENY";
    add_header Referrer-Policy "strict-origin-when-cross-origin";
    location / {{
      {deny}
      limit_req zone=minute {minute_burst};
      limit_req zone=hour {hour_burst};
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_max_temp_file_size 0;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $host;
      proxy_set_header X-Request-Id $request_id;
    }}
  }}
}}
"#,
        chain = certificate.chain.display(),
        key = certificate.key.display(),
    )
}

fn haproxy(scene: &Scene<'_>) -> String {
    let Scene {
        listen,
        upstream,
        certificate,
        quotas,
        connections_max,
        ..
    } = scene;
    let (minute, hour) = quota(*quotas);
    let source = if *quotas == Quotas::Remembered {
        "http-request set-src hdr_ip(x-forwarded-for)"
    } else {
        ""
    };
    let reject = if *quotas == Quotas::Blocked {
        format!("tcp-request connection reject if {{ src {} }}", blocked::CLIENT)
    } else {
        String::new()
    };
    format!(
        r#"global
  nbthread 1
  maxconn {connections_max}
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  timeout connect 3s
  timeout client 75s
  timeout server 60s
  timeout http-request 10s
  timeout http-keep-alive 75s
backend minute
  stick-table type ip size 1m expire 1m store http_req_rate(1m)
backend hour
  stick-table type ip size 1m expire 1h store http_req_rate(1h)
frontend gate
  bind {listen} ssl crt {combined} alpn h2,http/1.1 backlog 4096
  {reject}
  {source}
  http-request track-sc0 src table minute
  http-request track-sc1 src table hour
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {minute} }} || {{ sc_http_req_rate(1) gt {hour} }}
  option forwardfor
  http-request set-header X-Real-IP %[src]
  http-request set-header X-Forwarded-Proto https
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header X-Request-Id %[uuid()]
  http-response set-header Strict-Transport-Security "max-age=31536000; includeSubDomains"
  http-response set-header X-Content-Type-Options nosniff
  http-response set-header X-Frame-Options DENY
  http-response set-header Referrer-Policy strict-origin-when-cross-origin
  default_backend app
backend app
  http-reuse always
  server app {upstream}
"#,
        combined = certificate.combined.display(),
    )
}
