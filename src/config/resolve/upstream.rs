//! `[upstream]`.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::effective::server_url;
use crate::config::raw::{Node, Section, Setting};
use crate::config::values::{duration, excerpt, list, socket_address, text, url_path};
use crate::proxy::config::{HealthProbe, Upstream, UpstreamAddress, UpstreamProtocol, UpstreamServer};

const TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(24 * 3600);
/// Every worker probes and pools each of them.
const SERVERS_MAX: usize = 256;

/// What is wrong with a server's address, and what to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) what: &'static str,
    pub(super) help: String,
}

pub(super) fn upstream(mut section: Section<'_>, instead: Option<UpstreamServer>) -> Upstream {
    let servers = section.read("servers", default_servers(), list(server));
    check_servers(&servers);
    let connect_timeout = section
        .read("connect_timeout", Duration::from_secs(3), duration(TIMEOUTS))
        .value;
    let response_timeout = section
        .read("response_timeout", Duration::from_secs(60), duration(TIMEOUTS))
        .value;
    let name_servers = section.read("name_servers", Vec::new(), list(socket_address)).value;
    let health = health(section.section("health"));
    section.finish();
    Upstream {
        servers: instead.map_or(servers.value, |server| vec![server]),
        connect_timeout,
        response_timeout,
        health,
        name_servers,
    }
}

fn check_servers(servers: &Setting<'_, Vec<UpstreamServer>>) {
    if servers.value.is_empty() {
        servers.error(
            "must name at least one server",
            "as [\"http://127.0.0.1:3000\"]".to_owned(),
        );
    }
    if servers.value.len() > SERVERS_MAX {
        servers.error(format_args!("names more than {SERVERS_MAX} servers"), None);
        return;
    }
    for (index, server) in servers.value.iter().enumerate() {
        if servers
            .value
            .iter()
            .skip(index + 1)
            .any(|other| other.address == server.address)
        {
            servers.error(format_args!("holds {} twice", server_url(server)), None);
        }
    }
}

fn health(mut section: Section<'_>) -> Option<HealthProbe> {
    let path = section.read("path", None, |node| {
        if node.is_empty_string() {
            Some(None)
        } else {
            url_path(node).map(Some)
        }
    });
    let interval = section.read(
        "interval",
        Duration::from_secs(5),
        duration(Duration::from_millis(100)..=*TIMEOUTS.end()),
    );
    section.finish();
    if path.value.is_none() && path.is_written() && interval.is_written() && interval.value != Duration::from_secs(5) {
        interval.warn("has no effect without `upstream.health.path`", None);
    }
    path.value.map(|path| HealthProbe {
        path,
        interval: interval.value,
    })
}

fn server(node: &Node<'_>) -> Option<UpstreamServer> {
    match parse_server(text(node)?) {
        Ok(server) => Some(server),
        Err(Refused { what, help }) => {
            node.error(what, help);
            None
        }
    }
}

fn default_servers() -> Vec<UpstreamServer> {
    let address = UpstreamAddress::Host {
        host: "127.0.0.1".to_owned(),
        port: 3000,
    };
    vec![UpstreamServer {
        address,
        protocol: UpstreamProtocol::Http1,
    }]
}

/// `http://host:port`, `h2c://host:port` or `unix:/path`.
pub(super) fn parse_server(written: &str) -> Result<UpstreamServer, Refused> {
    if let Some(path) = written.strip_prefix("unix:") {
        return unix(path);
    }
    let Some((scheme, rest)) = written.split_once("://") else {
        let help = format!(
            "write \"http://{}\", \"h2c://host:port\" or \"unix:/path\"",
            excerpt(written)
        );
        return Err(Refused {
            what: "has no scheme",
            help,
        });
    };
    let protocol = match scheme {
        "http" => UpstreamProtocol::Http1,
        "h2c" => UpstreamProtocol::H2c,
        "https" => {
            let help = format!(
                "Foregate speaks plain HTTP to an app on the same machine or a trusted network: write \"http://{}\"",
                excerpt(rest.rsplit_once('@').map_or(rest, |(_, host)| host))
            );
            return Err(Refused {
                what: "is https, and TLS towards the app is not supported",
                help,
            });
        }
        _ => {
            let help = "write \"http://host:port\", \"h2c://host:port\" or \"unix:/path\"".to_owned();
            return Err(Refused {
                what: "has an unknown scheme",
                help,
            });
        }
    };
    let (host, port) = host_and_port(scheme, rest.strip_suffix('/').unwrap_or(rest))?;
    Ok(UpstreamServer {
        address: UpstreamAddress::Host { host, port },
        protocol,
    })
}

fn unix(path: &str) -> Result<UpstreamServer, Refused> {
    // The address of a Unix socket holds 108 bytes with the closing NUL (unix(7)).
    let what = if !path.starts_with('/') {
        "needs an absolute path"
    } else if path.len() > 107 {
        "has a path longer than the 107 bytes that a Unix socket may have"
    } else if path.contains('\0') {
        "must not hold a NUL byte"
    } else {
        let address = UpstreamAddress::Unix(PathBuf::from(path));
        return Ok(UpstreamServer {
            address,
            protocol: UpstreamProtocol::Http1,
        });
    };
    Err(Refused {
        what,
        help: "as \"unix:/run/app.sock\"".to_owned(),
    })
}

/// The default port is that of the scheme; an IPv6 address stands in brackets and is kept without them.
fn host_and_port(scheme: &str, rest: &str) -> Result<(String, u16), Refused> {
    let refuse = |what| {
        Err(Refused {
            what,
            help: format!("write \"{scheme}://host:port\" and nothing else"),
        })
    };
    if rest.contains('@') {
        return refuse("holds a user name or password, which no app is sent");
    }
    if rest.contains(['/', '?', '#']) {
        return refuse("holds a path, but requests keep the path that the client asked for");
    }
    let Ok(authority) = rest.parse::<http::uri::Authority>() else {
        return refuse("is not a host and a port");
    };
    let host = authority.host();
    let after_host = rest.get(host.len()..).unwrap_or_default();
    let port = match after_host.strip_prefix(':') {
        None => 80,
        Some(digits) => match digits.parse::<u16>() {
            Ok(port) if port > 0 && digits.bytes().all(|digit| digit.is_ascii_digit()) => port,
            _ => return refuse("has a port that is not between 1 and 65535"),
        },
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bare.is_some_and(|bare| bare.parse::<std::net::Ipv6Addr>().is_err()) || host.is_empty() {
        return refuse("is not a host and a port");
    }
    Ok((bare.unwrap_or(host).to_owned(), port))
}
