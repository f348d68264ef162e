//! The meaning of a configuration, written down again: what `foregate check` prints, and what `diff` compares.
//!
//! It parses to the same meaning, with one exception: a secret is masked. A token's hash is none, since it is the
//! hash of 256 random bits.

use std::path::Path;

use http::HeaderValue;
use toml::{Table, Value};

use super::Config;
use super::resolve::blocklist::{FORWARDED_HEADERS, never_block};
use super::resolve::headers::HEADERS;
use super::resolve::pitr::WAYS;
use super::values::{show_duration, show_size};
use crate::admin::{self, Role};
use crate::backup::Settings;
use crate::guard::limit::{self, Mode, Quota};
use crate::pitr;
use crate::proxy::config::{
    Caps, Server, Tls, TlsVersion, Upstream, UpstreamAddress, UpstreamProtocol, UpstreamServer,
};
use crate::secret::Secret;
use crate::tasks::calendar::Schedule;
use crate::telemetry::{AccessLog, Format};

/// One key with its value, in the order of the example.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// `""` for the top.
    pub(super) section: &'static str,
    pub(super) key: &'static str,
    pub(super) value: Value,
}

impl Entry {
    pub(super) fn path(&self) -> String {
        if self.section.is_empty() {
            self.key.to_owned()
        } else {
            format!("{}.{}", self.section, self.key)
        }
    }
}

/// The effective configuration as TOML, secrets masked.
#[must_use]
pub fn render(config: &Config) -> String {
    let mut text = String::new();
    let mut section = "";
    for entry in entries(config) {
        if entry.section != section {
            section = entry.section;
            text.push_str(&format!("\n[{section}]\n"));
        }
        text.push_str(&format!("{} = {}\n", entry.key, entry.value));
    }
    text
}

pub(super) fn entries(config: &Config) -> Vec<Entry> {
    let proxy = &config.proxy;
    let guard = &config.guard;
    let mut out = Writer {
        section: "",
        entries: Vec::new(),
    };
    out.put("state_dir", path(&config.state_dir));
    server(&mut out, &proxy.server);
    tls(&mut out, &proxy.tls);
    upstream(&mut out, &proxy.upstream);
    out.section = "client";
    out.put("trusted_proxies", strings(&proxy.trusted_proxies));
    let told_by = FORWARDED_HEADERS
        .iter()
        .find(|(_, header)| *header == proxy.forwarded_header);
    out.put("forwarded_header", told_by.map_or("", |(word, _)| word));
    out.put("ipv6_prefix", i64::from(guard.ipv6_prefix));
    limits(&mut out, &guard.limits, &proxy.caps);
    out.put("exempt", strings(&guard.exempt));
    blocklist(&mut out, config);
    out.section = "headers";
    for (key, name, _) in HEADERS {
        let value = proxy
            .security_headers
            .iter()
            .find(|(header, _)| *header == name)
            .map(|(_, value)| value);
        out.put(
            key,
            value
                .and_then(|value: &HeaderValue| value.to_str().ok())
                .unwrap_or_default(),
        );
    }
    out.section = "store";
    out.put("postgres", secret(config.store.postgres.as_ref()));
    out.put("pool_size", count(config.store.pool_size));
    admin(&mut out, &config.admin);
    backup(&mut out, &config.backup);
    pitr(&mut out, &config.pitr);
    out.section = "alerts";
    out.put("webhook", secret(config.alerts.webhook.as_ref()));
    out.put("ping", secret(config.alerts.ping.as_ref()));
    out.section = "log";
    out.put(
        "format",
        match config.log.format {
            Format::Json => "json",
            Format::Text => "text",
        },
    );
    out.put(
        "access_log",
        match &config.log.access_log {
            AccessLog::Off => Value::from(""),
            AccessLog::Stdout => Value::from("stdout"),
            AccessLog::File(file) => path(file),
        },
    );
    out.entries
}

struct Writer {
    section: &'static str,
    entries: Vec<Entry>,
}

impl Writer {
    fn put(&mut self, key: &'static str, value: impl Into<Value>) {
        self.entries.push(Entry {
            section: self.section,
            key,
            value: value.into(),
        });
    }
}

fn server(out: &mut Writer, server: &Server) {
    out.section = "server";
    out.put("listen", strings(&server.listen));
    out.put("redirect_http", strings(&server.redirect_http));
    out.put("workers", count(server.workers));
    out.put("proxy_protocol", server.proxy_protocol);
    out.put("max_connections", count(server.max_connections));
    out.put("max_connections_per_client", count(server.max_connections_per_client));
    out.put("memory_limit", server.memory_limit.map_or_else(String::new, show_size));
    out.put("drain_timeout", show_duration(server.drain_timeout));
    out.section = "server.timeouts";
    let timeouts = &server.timeouts;
    out.put("tls_handshake", show_duration(timeouts.tls_handshake));
    out.put("request_header", show_duration(timeouts.request_header));
    out.put("request_body_idle", show_duration(timeouts.request_body_idle));
    out.put("response_idle", show_duration(timeouts.response_idle));
    out.put("keep_alive", show_duration(timeouts.keep_alive));
    out.put("tunnel_idle", show_duration(timeouts.tunnel_idle));
}

fn tls(out: &mut Writer, tls: &Tls) {
    out.section = "tls";
    let settings = match tls {
        Tls::Off => {
            out.put("mode", "off");
            return;
        }
        Tls::SelfSigned { settings, .. } => {
            out.put("mode", "self_signed");
            settings
        }
        Tls::Files { certificates, settings } => {
            out.put("mode", "files");
            let pairs = certificates
                .iter()
                .map(|pair| table([("cert", path(&pair.cert)), ("key", path(&pair.key))]));
            out.put("certificates", Value::Array(pairs.collect()));
            settings
        }
    };
    out.put(
        "min_version",
        match settings.min_version {
            TlsVersion::V1_2 => "1.2",
            TlsVersion::V1_3 => "1.3",
        },
    );
    out.put("client_ca", optional_path(settings.client_ca.as_deref()));
}

fn upstream(out: &mut Writer, upstream: &Upstream) {
    out.section = "upstream";
    out.put(
        "servers",
        Value::Array(
            upstream
                .servers
                .iter()
                .map(|server| server_url(server).into())
                .collect(),
        ),
    );
    out.put("connect_timeout", show_duration(upstream.connect_timeout));
    out.put("response_timeout", show_duration(upstream.response_timeout));
    let name_servers = upstream.name_servers.iter().map(|address| address.to_string().into());
    out.put("name_servers", Value::Array(name_servers.collect()));
    out.section = "upstream.health";
    out.put(
        "path",
        upstream
            .health
            .as_ref()
            .map(|probe| probe.path.clone())
            .unwrap_or_default(),
    );
    if let Some(probe) = &upstream.health {
        out.put("interval", show_duration(probe.interval));
    }
}

/// A server as `upstream.servers` names it.
pub(super) fn server_url(server: &UpstreamServer) -> String {
    let scheme = match server.protocol {
        UpstreamProtocol::Http1 => "http",
        UpstreamProtocol::H2c => "h2c",
    };
    match &server.address {
        UpstreamAddress::Host { host, port } if host.contains(':') => format!("{scheme}://[{host}]:{port}"),
        UpstreamAddress::Host { host, port } => format!("{scheme}://{host}:{port}"),
        UpstreamAddress::Unix(file) => format!("unix:{}", file.display()),
    }
}

fn limits(out: &mut Writer, limits: &limit::Config, caps: &Caps) {
    out.section = "limits";
    out.put(
        "mode",
        match limits.mode {
            Mode::Enforce => "enforce",
            Mode::Observe => "observe",
        },
    );
    let Quota { per_minute, per_hour } = limits.default;
    out.put("requests_per_minute", quota(per_minute));
    out.put("requests_per_hour", quota(per_hour));
    let rules = limits.rules.iter().map(|rule| {
        table([
            ("path", rule.path.clone().into()),
            ("methods", strings(&rule.methods)),
            ("requests_per_minute", quota(rule.quota.per_minute)),
            ("requests_per_hour", quota(rule.quota.per_hour)),
        ])
    });
    out.put("rules", Value::Array(rules.collect()));
    out.put("max_request_size", show_size(caps.max_request_size));
    out.put(
        "max_header_size",
        show_size(u64::try_from(caps.max_header_size).unwrap_or(u64::MAX)),
    );
    out.put("max_headers", count(caps.max_headers));
    out.put("max_tracked_clients", count(limits.max_tracked_clients));
}

fn blocklist(out: &mut Writer, config: &Config) {
    let suspicion = &config.guard.suspicion;
    out.section = "blocklist";
    out.put("suspicious_threshold", i64::from(suspicion.threshold));
    out.put("suspicious_window", show_duration(suspicion.window));
    out.put("block_duration", show_duration(suspicion.block_duration));
    out.put("escalation", suspicion.escalation);
    out.put("max_block_duration", show_duration(suspicion.max_block_duration));
    out.put("probe_paths", strings(&suspicion.probe_paths));
    out.put(
        "failed_logins_per_minute",
        i64::from(suspicion.failed_logins_per_minute),
    );
    out.put(
        "block_loopback",
        config.guard.never_block == never_block(&config.proxy.trusted_proxies, true),
    );
}

fn admin(out: &mut Writer, admin: &admin::Config) {
    out.section = "admin";
    out.put("listen", admin.listen.to_string());
    out.put(
        "tls",
        match &admin.tls {
            None => table([]),
            Some(tls) => table([
                ("cert", path(&tls.cert)),
                ("key", path(&tls.key)),
                ("client_ca", optional_path(tls.client_ca.as_deref())),
            ]),
        },
    );
    let tokens = admin.tokens.iter().map(|token| {
        let role = match token.role {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        };
        table([
            ("name", token.name.clone().into()),
            ("role", role.into()),
            ("sha256", hex::encode(token.sha256).into()),
        ])
    });
    out.put("tokens", Value::Array(tokens.collect()));
    out.put(
        "metrics_token",
        admin.metrics_token.map(hex::encode).unwrap_or_default(),
    );
}

fn backup(out: &mut Writer, settings: &Settings) {
    out.section = "database";
    out.put("url", secret(settings.database.as_ref().map(|database| &database.url)));
    out.section = "backup";
    out.put("repository", settings.repository.url.clone());
    out.put("recipients", strings(&settings.repository.recipients));
    out.put("identity", secret(settings.repository.identity.as_ref()));
    let plan = &settings.plan;
    for label in ["daily", "weekly", "monthly"] {
        let kind = plan.kinds.iter().find(|kind| kind.label == label);
        out.put(label, schedule(kind.map(|kind| &kind.schedule)));
    }
    out.put("cleanup", schedule(plan.cleanup.as_ref()));
    out.put("verify", schedule(plan.verify.as_ref()));
    out.put("time_zone", plan.zone.iana_name().unwrap_or("UTC"));
    out.put("keep_daily", count(settings.retention.daily));
    out.put("keep_weekly", count(settings.retention.weekly));
    out.put("keep_monthly", count(settings.retention.monthly));
    out.put("keep_replaced", show_duration(settings.keep_replaced));
    let scratch = settings.scratch.as_deref().unwrap_or(Path::new(""));
    out.put("scratch", scratch.display().to_string());
    let files = plan.files.iter().map(|file| {
        table([
            ("name", file.set.name.clone().into()),
            (
                "paths",
                Value::Array(file.set.paths.iter().map(|file| path(file)).collect()),
            ),
            ("schedule", file.schedule.to_string().into()),
            ("keep_days", i64::from(file.set.keep_days).into()),
        ])
    });
    out.put("files", Value::Array(files.collect()));
}

fn schedule(schedule: Option<&Schedule>) -> String {
    schedule.map(Schedule::to_string).unwrap_or_default()
}

fn secret(secret: Option<&Secret>) -> String {
    secret.map(Secret::to_string).unwrap_or_default()
}

fn pitr(out: &mut Writer, pitr: &pitr::config::Config) {
    out.section = "pitr";
    out.put("enabled", pitr.enabled);
    let way = WAYS.iter().find(|(_, way)| *way == pitr.wal);
    out.put("wal", way.map_or("", |(name, _)| name));
    out.put("socket", path(&pitr.socket));
    out.put("user", pitr.user.map(|user| user.to_string()).unwrap_or_default());
    out.put("slot", pitr.slot.clone());
    out.put("spool_max", show_size(pitr.spool_max_bytes));
    out.put("base_backup", schedule(pitr.base_backup.as_ref()));
    out.put("window", show_duration(pitr.window));
    out.put("heartbeat", show_duration(pitr.heartbeat));
    out.put("patience", show_duration(pitr.patience));
    out.put("drill", schedule(pitr.drill.as_ref()));
    out.put("scratch", path(&pitr.scratch));
    let checks = pitr.checks.iter().map(|check| {
        table([
            ("sql", check.sql.clone().into()),
            ("expect", check.expect.clone().into()),
        ])
    });
    out.put("checks", Value::Array(checks.collect()));
}

fn table<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Table(
        pairs
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect::<Table>(),
    )
}

fn strings<T: ToString>(values: &[T]) -> Value {
    Value::Array(values.iter().map(|value| value.to_string().into()).collect())
}

fn path(path: &Path) -> Value {
    path.display().to_string().into()
}

fn optional_path(file: Option<&Path>) -> Value {
    file.map_or_else(|| "".into(), path)
}

fn quota(limit: Option<std::num::NonZeroU32>) -> Value {
    limit.map_or(0, |limit| i64::from(limit.get())).into()
}

fn count(number: usize) -> Value {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}
