//! Names of servers become addresses: looked up again whenever the answer has expired, on the control plane, so that
//! neither a new connection nor a worker waits for DNS. While a lookup fails the last known addresses stay.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ProtocolConfig, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;

use super::known::Known;

/// An answer is used for as long as it says, within these bounds: a TTL of 0 must not make a busy loop, and a name
/// of the hosts file, which has no TTL, is looked up again once a minute.
const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_secs(60);
/// One name server gets this long, twice.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// More addresses than this are left out.
const ADDRESSES_MAX: usize = 64;

/// Keeps the addresses of a server up to date; `name_servers` empty: those of `/etc/resolv.conf`.
pub(super) async fn keep(known: Arc<Known>, name_servers: Vec<SocketAddr>) {
    let Some((host, port)) = known.host_to_resolve() else {
        return;
    };
    let mut is_failing = false;
    loop {
        let pause = match lookup(host, &name_servers).await {
            Ok((addresses, ttl)) => {
                let addresses: Vec<_> = addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
                if known.set_addresses(addresses.clone()) || is_failing {
                    tracing::info!(server = known.name(), ?addresses, "app server's name resolved");
                }
                is_failing = false;
                ttl
            }
            Err(error) => {
                if !is_failing {
                    let kept = known.addresses();
                    tracing::warn!(server = known.name(), %error, ?kept, "app server's name cannot be resolved");
                }
                is_failing = true;
                TTL_MIN
            }
        };
        tokio::time::sleep(pause.clamp(TTL_MIN, TTL_MAX)).await;
    }
}

/// A resolver for one lookup, so that changes of `/etc/resolv.conf` and `/etc/hosts` are seen; it costs two small
/// files a minute.
async fn lookup(host: &str, name_servers: &[SocketAddr]) -> Result<(Vec<IpAddr>, Duration), NetError> {
    let mut builder = if name_servers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let servers = name_servers.iter().map(|address| name_server(*address)).collect();
        let config = ResolverConfig::from_name_servers(servers);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    limit(builder.options_mut());
    let answer = builder.build()?.lookup_ip(host).await?;
    let addresses: Vec<_> = answer.iter().take(ADDRESSES_MAX).collect();
    if addresses.is_empty() {
        return Err(NetError::from("the answer holds no address"));
    }
    let seconds = answer.as_lookup().answers().iter().map(|record| record.ttl).min();
    Ok((addresses, Duration::from_secs(seconds.unwrap_or_default().into())))
}

fn limit(options: &mut ResolverOpts) {
    options.cache_size = 0;
    options.timeout = QUERY_TIMEOUT;
    options.attempts = 2;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connection = |protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = address.port();
        connection
    };
    let connections = vec![connection(ProtocolConfig::Udp), connection(ProtocolConfig::Tcp)];
    NameServerConfig::new(address.ip(), true, connections)
}
