//! From what is written to what is meant: a file per section, each filling the `Config` of the part it belongs to.
//!
//! Reading goes on after a mistake, with the default in the place of what could not be read, so that all mistakes
//! are found in one pass; the result of such a reading is thrown away.

mod admin;
mod alerts;
mod backup;
pub(super) mod blocklist;
pub(super) mod headers;
mod limits;
mod log;
pub(super) mod pitr;
mod server;
mod store;
mod tls;
mod upstream;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use self::upstream::{Refused, parse_server};
use super::finding::Finding;
use super::raw::Section;
use super::values::file;
use super::{Config, Overrides, Wanted};
use crate::backup::Settings;
use crate::pitr::config::Config as Recovery;
use crate::proxy::config::{Server, Tls, UpstreamServer};
use crate::{guard, proxy};

const STATE_DIR: &str = "/var/lib/foregate";
/// The sections that the vault's commands do not need.
const NOT_OF_THE_VAULT: [&str; 11] = [
    "server",
    "tls",
    "upstream",
    "client",
    "limits",
    "blocklist",
    "headers",
    "store",
    "admin",
    "alerts",
    "log",
];

/// The configuration, and the files besides it that it depends on.
pub(super) fn config(mut root: Section<'_>, base: &Path, overrides: &Overrides) -> (Config, Vec<PathBuf>) {
    let instead = overrides
        .upstream
        .as_deref()
        .and_then(|written| override_upstream(written, &root));
    let state_dir = root.read("state_dir", PathBuf::from(STATE_DIR), file(base)).value;
    let mut files = Vec::new();
    let server = server::server(root.section("server"));
    let tls = tls::tls(root.section("tls"), base, &state_dir);
    let redirect = root.section("server");
    warn_about_redirect(redirect, &tls);
    let upstream = upstream::upstream(root.section("upstream"), instead);
    let clients = blocklist::client(root.section("client"));
    let limits = limits::limits(root.section("limits"));
    let (suspicion, block_loopback) = blocklist::blocklist(root.section("blocklist"));
    let security_headers = headers::headers(root.section("headers"));
    let store = store::store(root.section("store"), base, &state_dir, &mut files);
    let admin = admin::admin(root.section("admin"), base);
    let backup = backup::backup(&mut root, base, &state_dir, Wanted::ALL, &mut files);
    let pitr = pitr::pitr(root.section("pitr"), base, &state_dir);
    if pitr.enabled
        && backup.database.is_none()
        // One that is written and wrong has been reported.
        && !root.section("database").was_written("url")
        && let Some(node) = root.section("pitr").get("enabled")
    {
        node.error("needs `database.url`", "as url = { env = \"DATABASE_URL\" }".to_owned());
    }
    if backup.database.is_none()
        && !root.section("database").was_written("url")
        && let Some(node) = root.get("backup")
    {
        node.warn(
            "has no effect without `database.url`: nothing is backed up, files neither",
            "as url = { env = \"DATABASE_URL\" }".to_owned(),
        );
    }
    let alerts = alerts::alerts(root.section("alerts"), base, &mut files);
    let log = log::log(root.section("log"), base);
    check_admin_address(&mut root, &server, admin.listen);
    root.finish();
    let config = Config {
        guard: guard::Config {
            limits: limits.guard,
            suspicion,
            exempt: limits.exempt,
            never_block: blocklist::never_block(&clients.trusted_proxies, block_loopback),
            ipv6_prefix: clients.ipv6_prefix,
        },
        proxy: proxy::Config {
            server,
            tls,
            upstream,
            trusted_proxies: clients.trusted_proxies,
            forwarded_header: clients.forwarded_header,
            caps: limits.caps,
            security_headers,
        },
        store,
        admin,
        backup,
        pitr,
        alerts,
        log,
        state_dir,
    };
    files.extend(certificate_files(&config));
    (config, files)
}

/// The vault's sections alone, and the files besides the configuration that they depend on.
pub(super) fn vault(
    mut root: Section<'_>,
    base: &Path,
    wanted: Wanted,
) -> ((Settings, Option<Recovery>), Vec<PathBuf>) {
    let state_dir = root.read("state_dir", PathBuf::from(STATE_DIR), file(base)).value;
    let mut files = Vec::new();
    let backup = backup::backup(&mut root, base, &state_dir, wanted, &mut files);
    let pitr = root.section("pitr");
    let pitr = wanted.pitr.then(|| pitr::pitr(pitr, base, &state_dir));
    for name in NOT_OF_THE_VAULT {
        drop(root.get(name));
    }
    root.finish();
    ((backup, pitr), files)
}

fn override_upstream(written: &str, root: &Section<'_>) -> Option<UpstreamServer> {
    match parse_server(written) {
        Ok(server) => Some(server),
        Err(Refused { what, help }) => {
            root.sink()
                .push_error(|| Finding::whole(format!("`--upstream` {what}")).with_help(help));
            None
        }
    }
}

/// Redirecting to https makes sense only where https is served, here or by what stands before.
fn warn_about_redirect(mut server: Section<'_>, tls: &Tls) {
    if let Some(node) = server.get("redirect_http")
        && *tls == Tls::Off
        && node.elements().is_some_and(|elements| !elements.is_empty())
    {
        node.warn(
            "redirects to https, but `tls.mode` is \"off\"",
            "right only if a TLS terminator stands before".to_owned(),
        );
    }
}

/// The listeners of both planes must not meet: the one that starts second would fail.
fn check_admin_address(root: &mut Section<'_>, server: &Server, admin: SocketAddr) {
    let meet = |address: &SocketAddr| {
        let any = address.ip().is_unspecified() || admin.ip().is_unspecified();
        admin.port() > 0 && address.port() == admin.port() && (any || address.ip() == admin.ip())
    };
    let Some(taken) = server
        .listen
        .iter()
        .chain(&server.redirect_http)
        .find(|address| meet(address))
    else {
        return;
    };
    if let Some(node) = root.section("admin").get("listen") {
        node.error(
            format_args!("meets {taken}, where clients come in"),
            "choose another port".to_owned(),
        );
    } else if let Some(node) = root.section("server").get("listen") {
        node.error(
            format_args!("holds {taken}, where the admin listener is"),
            "set `admin.listen` too".to_owned(),
        );
    }
}

fn certificate_files(config: &Config) -> Vec<PathBuf> {
    let mut files = Vec::new();
    match &config.proxy.tls {
        Tls::Off => {}
        Tls::SelfSigned { settings, .. } => files.extend(settings.client_ca.clone()),
        Tls::Files { certificates, settings } => {
            files.extend(
                certificates
                    .iter()
                    .flat_map(|pair| [pair.cert.clone(), pair.key.clone()]),
            );
            files.extend(settings.client_ca.clone());
        }
    }
    if let Some(tls) = &config.admin.tls {
        files.extend([tls.cert.clone(), tls.key.clone()]);
        files.extend(tls.client_ca.clone());
    }
    files
}
