//! `[blocklist]`, and the networks of `[client]`.

use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::raw::Section;
use crate::config::values::{duration, flag, integer, list, network, number, path_prefix, word};
use crate::guard::suspicion::Config;
use crate::proxy::config::ForwardedHeader;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Ten years: beyond it a block should say that it is permanent.
const BLOCK_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);
const PROBE_PATHS: [&str; 4] = ["/.env", "/.git/", "/wp-login.php", "/phpmyadmin"];

/// What `[client]` says.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) trusted_proxies: Vec<IpNet>,
    pub(super) forwarded_header: ForwardedHeader,
    pub(super) ipv6_prefix: u8,
}

pub(in crate::config) const FORWARDED_HEADERS: &[(&str, ForwardedHeader)] = &[
    ("x-forwarded-for", ForwardedHeader::XForwardedFor),
    ("forwarded", ForwardedHeader::Forwarded),
];

pub(super) fn client(mut section: Section<'_>) -> Clients {
    let trusted_proxies = section.read("trusted_proxies", Vec::new(), list(network));
    if trusted_proxies.value.iter().any(|network| network.prefix_len() == 0) {
        trusted_proxies.warn(
            "believes everybody: any client can name any address as its own, and nobody is ever blocked",
            "name the networks of your proxies alone".to_owned(),
        );
    }
    let told_by = section.read(
        "forwarded_header",
        ForwardedHeader::XForwardedFor,
        word(FORWARDED_HEADERS),
    );
    let ipv6_prefix = section.read("ipv6_prefix", 64, integer(16..=128));
    if ipv6_prefix.value > 64 {
        let help = "a subscriber commands a /64 at the least, so use 64 or less".to_owned();
        ipv6_prefix.warn("lets one subscriber be many clients", help);
    }
    section.finish();
    Clients {
        trusted_proxies: trusted_proxies.value,
        forwarded_header: told_by.value,
        ipv6_prefix: ipv6_prefix.value,
    }
}

/// The detecting half, and whether loopback may be blocked.
pub(super) fn blocklist(mut section: Section<'_>) -> (Config, bool) {
    let threshold = section.read("suspicious_threshold", 5, integer(0..=100_000)).value;
    let window = section.read(
        "suspicious_window",
        Duration::from_secs(600),
        duration(Duration::from_secs(1)..=DAY),
    );
    let blocks = Duration::from_secs(1)..=BLOCK_MAX;
    let block = section.read("block_duration", Duration::from_secs(3600), duration(blocks.clone()));
    let escalation = section.read("escalation", 2.0, number(1.0..=1000.0)).value;
    let longest = section.read("max_block_duration", DAY, duration(blocks));
    let probe_paths = section.read(
        "probe_paths",
        PROBE_PATHS.map(str::to_owned).to_vec(),
        list(path_prefix),
    );
    let failed_logins = section
        .read("failed_logins_per_minute", 10, integer(0..=1_000_000))
        .value;
    let block_loopback = section.read("block_loopback", false, flag).value;
    if block.value > longest.value {
        let help = "raise blocklist.max_block_duration as well".to_owned();
        let what = "is longer than `blocklist.max_block_duration`";
        if block.is_written() {
            block.error(what, help)
        } else {
            longest.error("is shorter than `blocklist.block_duration`", None)
        }
    }
    if probe_paths.value.iter().any(|path| path == "/") {
        probe_paths.warn("holds \"/\", which makes every 404 a strike", None);
    }
    section.finish();
    let config = Config {
        threshold,
        window: window.value,
        block_duration: block.value,
        escalation,
        max_block_duration: longest.value,
        probe_paths: probe_paths.value,
        failed_logins_per_minute: failed_logins,
    };
    (config, block_loopback)
}

/// Networks that are never blocked: the trusted proxies first, then loopback unless told otherwise.
pub(in crate::config) fn never_block(trusted_proxies: &[IpNet], block_loopback: bool) -> Vec<IpNet> {
    let mut networks = trusted_proxies.to_vec();
    if !block_loopback {
        let v4 = Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8);
        let v6 = Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128);
        networks.extend([IpNet::from(v4), IpNet::from(v6)]);
    }
    networks
}
