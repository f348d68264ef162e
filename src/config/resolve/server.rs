//! `[server]`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::config::raw::{Section, Setting};
use crate::config::values::{duration, flag, integer, list, optional_size, show_duration, socket_address};
use crate::proxy::config::{Server, Timeouts};

const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// Longer is a mistake in the unit, not a wish.
const TIMEOUT_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Beyond it, threads only take turns.
const WORKERS_MAX: usize = 1024;
/// Each is a socket for every worker.
const ADDRESSES_MAX: usize = 64;
const CONNECTIONS_MAX: usize = 10_000_000;
/// Less than a gate needs to start.
const MEMORY_MIN: u64 = 16 << 20;

pub(super) fn server(mut section: Section<'_>) -> Server {
    let listen = section.read("listen", default_listen(), list(socket_address));
    if listen.value.is_empty() {
        listen.error(
            "must name at least one address",
            "as [\"0.0.0.0:443\", \"[::]:443\"]".to_owned(),
        );
    }
    let redirect_http = section.read("redirect_http", Vec::new(), list(socket_address));
    check_addresses(&listen, &redirect_http);
    let workers = section.read("workers", 0, integer(0..=WORKERS_MAX)).value;
    let max_connections = section.read("max_connections", 10_000, integer(1..=CONNECTIONS_MAX));
    let per_client = section.read("max_connections_per_client", 100, integer(1..=CONNECTIONS_MAX));
    if per_client.value > max_connections.value {
        per_client.warn("is more than `server.max_connections`: it never refuses anything", None);
    }
    let server = Server {
        listen: listen.value,
        redirect_http: redirect_http.value,
        workers: if workers == 0 { cores() } else { workers },
        proxy_protocol: section.read("proxy_protocol", false, flag).value,
        max_connections: max_connections.value,
        max_connections_per_client: per_client.value,
        memory_limit: section
            .read("memory_limit", None, optional_size(MEMORY_MIN..=u64::MAX))
            .value,
        drain_timeout: section
            .read(
                "drain_timeout",
                Duration::from_secs(30),
                duration(Duration::ZERO..=TIMEOUT_MAX),
            )
            .value,
        timeouts: timeouts(section.section("timeouts")),
    };
    section.finish();
    server
}

fn check_addresses(listen: &Setting<'_, Vec<SocketAddr>>, redirect_http: &Setting<'_, Vec<SocketAddr>>) {
    let mut seen = Vec::new();
    for setting in [listen, redirect_http] {
        if setting.value.len() > ADDRESSES_MAX {
            setting.error(format_args!("names more than {ADDRESSES_MAX} addresses"), None);
            return;
        }
        for address in &setting.value {
            // With port 0 the system chooses another port each time.
            if address.port() > 0 && seen.contains(address) {
                setting.error(format_args!("holds {address}, which is already listened on"), None);
            }
            seen.push(*address);
        }
    }
}

fn timeouts(mut section: Section<'_>) -> Timeouts {
    let mut read = |key, seconds| section.read(key, Duration::from_secs(seconds), duration(TIMEOUT_MIN..=TIMEOUT_MAX));
    let tls_handshake = read("tls_handshake", 10).value;
    let request_header = read("request_header", 10);
    let request_body_idle = read("request_body_idle", 30).value;
    let response_idle = read("response_idle", 60).value;
    let keep_alive = read("keep_alive", 75).value;
    let tunnel_idle = read("tunnel_idle", 3600).value;
    if request_header.value > Duration::from_secs(120) {
        let shown = show_duration(request_header.value);
        request_header.warn(
            format_args!("gives slow clients {shown}: each may hold a connection that long"),
            None,
        );
    }
    section.finish();
    Timeouts {
        tls_handshake,
        request_header: request_header.value,
        request_body_idle,
        response_idle,
        keep_alive,
        tunnel_idle,
    }
}

fn default_listen() -> Vec<SocketAddr> {
    vec![(Ipv4Addr::UNSPECIFIED, 443).into(), (Ipv6Addr::UNSPECIFIED, 443).into()]
}

/// The cores that this process may use, within its cgroup and affinity.
fn cores() -> usize {
    std::thread::available_parallelism()
        .map_or(1, NonZeroUsize::get)
        .min(WORKERS_MAX)
}
