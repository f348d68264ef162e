//! The effective configuration, and what differs between two of them.

use super::*;

/// Everything set to something other than its default.
const UNUSUAL: &str = r#"
state_dir = "/srv/state"
[server]
listen = ["127.0.0.1:8443"]
redirect_http = ["127.0.0.1:8080"]
workers = 3
proxy_protocol = true
max_connections = 500
max_connections_per_client = 50
memory_limit = "512MiB"
drain_timeout = "1500ms"
timeouts = { tls_handshake = "1s", request_header = "2s", request_body_idle = "3s", response_idle = "5s", keep_alive = "4s", tunnel_idle = "1h 30m" }
[tls]
mode = "files"
min_version = "1.3"
certificates = [{ cert = "/a \"b\".pem", key = "/b.pem" }, { cert = "/c.pem", key = "/d.pem" }]
client_ca = "/ca.pem"
[upstream]
servers = ["h2c://[::1]:50051", "unix:/run/app.sock", "http://app:3000"]
connect_timeout = "1s"
response_timeout = "2m"
name_servers = ["10.0.0.2:53"]
health = { path = "/health", interval = "7s" }
[client]
trusted_proxies = ["10.0.0.0/8", "2001:db8::/32"]
forwarded_header = "forwarded"
ipv6_prefix = 56
[limits]
mode = "observe"
requests_per_minute = 0
requests_per_hour = 77
max_request_size = "1234567B"
max_header_size = "16KiB"
max_headers = 64
exempt = ["192.0.2.7"]
max_tracked_clients = 5000
rules = [{ path = "/login", methods = ["POST", "PUT"], requests_per_minute = 5 }]
[blocklist]
suspicious_threshold = 3
suspicious_window = "5m"
block_duration = "2h"
escalation = 1.5
max_block_duration = "7d"
probe_paths = ["/x"]
failed_logins_per_minute = 0
block_loopback = true
[headers]
strict_transport_security = ""
content_security_policy = "default-src 'self'; script-src \"x\""
[store]
pool_size = 5
[admin]
listen = "0.0.0.0:9000"
tls = { cert = "/a.pem", key = "/b.pem", client_ca = "/c.pem" }
tokens = [{ name = "ops", role = "operator", sha256 = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff" }]
metrics_token = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100"
[backup]
repository = "file:///srv/backups"
recipients = ["age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"]
daily = "04:30"
weekly = ""
monthly = "31 00:05"
cleanup = "Mon 01:00"
verify = ""
time_zone = "Europe/Berlin"
keep_daily = 2
keep_weekly = 3
keep_monthly = 5
keep_replaced = "1h"
scratch = "/srv/scratch"
files = [{ name = "app", paths = ["/srv/app", "/etc/app"], schedule = "3 04:00", keep_days = 9 }]
[pitr]
wal = "stream"
socket = "/run/wal.sock"
user = "106"
slot = "other"
spool_max = "1GiB"
base_backup = "03:00"
window = "14d"
heartbeat = "30s"
patience = "10m"
drill = ""
scratch = "/srv/drill"
checks = [{ sql = "SELECT 'a'", expect = "a" }]
[log]
format = "text"
access_log = "/var/log/access.log"
"#;

#[test]
fn effective_configuration_parses_to_the_same_meaning() {
    for text in [
        "",
        UNUSUAL,
        "[tls]\nmode = \"off\"",
        "[client]\ntrusted_proxies = [\"127.0.0.0/8\", \"::1\"]",
    ] {
        let config = good(text).config;
        let rendered = effective::render(&config);
        assert_eq!(good(&rendered).config, config, "{rendered}");
    }
}

#[test]
fn change_of_any_key_is_seen_and_named() {
    let (old, new) = (good("").config, good(UNUSUAL).config);
    let changes = diff::changes(&old, &new);
    // All but the defaults that `UNUSUAL` leaves alone: four headers, five secrets, and `pitr.enabled`, which needs one.
    assert_eq!(changes.len(), effective::entries(&new).len() - 10, "{changes:#?}");
    assert_eq!(diff::changes(&new, &new), []);
}

#[test]
fn keys_that_need_a_restart_keep_their_old_value_and_are_named() {
    let (old, new) = (good("").config, good(UNUSUAL).config);
    let (merged, kept) = diff::keep_restart_only(&old, new.clone());
    let expected = [
        "state_dir",
        "server.listen",
        "server.redirect_http",
        "server.workers",
        "limits.max_tracked_clients",
        "store.pool_size",
        "admin.listen",
        "admin.tls",
        "pitr.wal",
        "pitr.socket",
        "pitr.user",
        "pitr.slot",
        "pitr.spool_max",
        "pitr.base_backup",
        "pitr.window",
        "pitr.heartbeat",
        "pitr.patience",
        "pitr.drill",
        "pitr.scratch",
        "pitr.checks",
    ];
    assert_eq!(kept, expected);
    let remaining = diff::changes(&merged, &new);
    let keys: Vec<&str> = remaining.iter().map(|change| change.key.as_str()).collect();
    assert_eq!(keys, expected);
    assert!(
        diff::changes(&old, &new)
            .iter()
            .all(|change| change.needs_restart == kept.contains(&change.key.as_str()))
    );
    let mut guard = new.guard;
    guard.limits.max_tracked_clients = old.guard.limits.max_tracked_clients;
    assert_eq!(merged.guard, guard, "the rest of a part is applied");
}

#[test]
fn default_repository_moves_with_its_state_dir_and_not_before() {
    let (old, new) = (
        good("state_dir = \"/srv/old\"").config,
        good("state_dir = \"/srv/new\"").config,
    );
    let (merged, kept) = diff::keep_restart_only(&old, new.clone());
    assert_eq!(merged, old);
    assert_eq!(kept, ["state_dir", "pitr.socket", "pitr.scratch"]);
    let named = good("state_dir = \"/srv/new\"\n[backup]\nrepository = \"file:///srv/backups\"").config;
    let (merged, _) = diff::keep_restart_only(&old, named);
    assert_eq!(merged.backup.repository.url, "file:///srv/backups");
    let (merged, _) = diff::keep_restart_only(&merged, new);
    assert_eq!(merged.backup.repository, old.backup.repository);
}

#[test]
fn changed_secret_is_seen_behind_its_mask() {
    let mut old = good("").config;
    old.store.postgres = Some(crate::secret::Secret::new("one"));
    let mut new = old.clone();
    new.store.postgres = Some(crate::secret::Secret::new("two"));
    let changes = diff::changes(&old, &new);
    assert_eq!(
        changes.iter().map(|change| change.key.as_str()).collect::<Vec<_>>(),
        ["store.postgres"]
    );
    assert!(!format!("{changes:?}").contains("two"));
}

/// The keys that a reload puts into force, each with the place that reads it anew. A new key must be added here or to
/// [`diff::RESTART_ONLY`]; what stands here and is held on to by something that lives on is a lie to the operator.
const APPLIED: [&str; 69] = [
    // The gate's snapshot, read for every connection and request; the drain reads it too.
    "server.proxy_protocol",
    "server.max_connections",
    "server.max_connections_per_client",
    "server.memory_limit",
    "server.drain_timeout",
    "server.timeouts.tls_handshake",
    "server.timeouts.request_header",
    "server.timeouts.request_body_idle",
    "server.timeouts.response_idle",
    "server.timeouts.keep_alive",
    "server.timeouts.tunnel_idle",
    "tls.mode",
    "tls.certificates",
    "tls.min_version",
    "tls.client_ca",
    "upstream.servers",
    "upstream.connect_timeout",
    "upstream.response_timeout",
    "upstream.name_servers",
    "upstream.health.path",
    "upstream.health.interval",
    "client.trusted_proxies",
    "client.forwarded_header",
    "limits.max_request_size",
    "limits.max_header_size",
    "limits.max_headers",
    "headers.strict_transport_security",
    "headers.x_content_type_options",
    "headers.x_frame_options",
    "headers.referrer_policy",
    "headers.content_security_policy",
    "headers.permissions_policy",
    // The guard's policy, swapped whole.
    "client.ipv6_prefix",
    "limits.mode",
    "limits.requests_per_minute",
    "limits.requests_per_hour",
    "limits.rules",
    "limits.exempt",
    "blocklist.suspicious_threshold",
    "blocklist.suspicious_window",
    "blocklist.block_duration",
    "blocklist.escalation",
    "blocklist.max_block_duration",
    "blocklist.probe_paths",
    "blocklist.failed_logins_per_minute",
    "blocklist.block_loopback",
    // The admin listener's tokens and certificates.
    "admin.tls",
    "admin.tokens",
    "admin.metrics_token",
    // The vault opens anew with these; some wait for a restart while point-in-time recovery is on.
    "database.url",
    "backup.repository",
    "backup.recipients",
    "backup.identity",
    "backup.daily",
    "backup.weekly",
    "backup.monthly",
    "backup.cleanup",
    "backup.verify",
    "backup.time_zone",
    "backup.keep_daily",
    "backup.keep_weekly",
    "backup.keep_monthly",
    "backup.keep_replaced",
    "backup.files",
    "backup.scratch",
    // Read at each message, and at the swap.
    "alerts.webhook",
    "alerts.ping",
    "log.format",
    "log.access_log",
];

#[test]
fn every_key_is_either_applied_by_a_reload_or_named_as_waiting_for_a_restart() {
    let all = effective::entries(&good(UNUSUAL).config);
    let all: Vec<String> = all.iter().map(effective::Entry::path).collect();
    let restart: Vec<&str> = diff::RESTART_ONLY.to_vec();
    for key in &all {
        let (applied, waits) = (APPLIED.contains(&key.as_str()), restart.contains(&key.as_str()));
        assert!(
            applied != waits,
            "{key}: applied {applied}, waits for a restart {waits}"
        );
    }
    for key in APPLIED.iter().chain(&restart) {
        assert!(all.iter().any(|known| known == key), "{key} is no key");
    }
}

#[test]
fn example_marks_what_waits_for_a_restart() {
    let with_pitr = diff::RESTART_ONLY_WITH_PITR;
    for (mark, keys) in [
        ("# (restart)", &diff::RESTART_ONLY[..]),
        ("# (restart with pitr)", &with_pitr),
    ] {
        let marked = EXAMPLE.lines().filter(|line| line.contains(mark));
        let marked: Vec<&str> = marked.filter_map(|line| line.split([' ', '=']).next()).collect();
        // Of [pitr] the line of the section says it.
        let names = keys.iter().filter(|key| !key.starts_with("pitr."));
        let names: Vec<&str> = names.filter_map(|key| key.rsplit('.').next()).collect();
        assert_eq!(marked, names, "{mark}");
    }
}

#[test]
fn tls_is_not_switched_on_or_off_by_a_reload() {
    let off = good("[tls]\nmode = \"off\"").config;
    let on = good(UNUSUAL).config;
    for (old, new) in [(&off, &on), (&on, &off)] {
        let (merged, kept) = diff::keep_restart_only(old, new.clone());
        assert_eq!(merged.proxy.tls, old.proxy.tls);
        for key in ["tls.mode", "tls.certificates", "tls.client_ca"] {
            assert!(kept.contains(&key), "{key} in {kept:?}");
        }
        let changes = diff::changes(old, new);
        assert!(
            changes
                .iter()
                .all(|change| change.needs_restart == kept.contains(&change.key.as_str()))
        );
    }
    let (_, kept) = diff::keep_restart_only(&good("").config, on.clone());
    assert!(!kept.iter().any(|key| key.starts_with("tls.")), "{kept:?}");
}
