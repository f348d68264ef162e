//! Every kind of mistake with its place, its message and its suggestion.

use super::errors;

/// What is written, and what is said about it.
const MISTAKES: &[(&str, &str)] = &[
    (
        "sever = 1",
        "config.toml:1:1: unknown key `sever` at the top (did you mean `server`?)",
    ),
    (
        "\n[server]\nlisten_on = 1",
        "config.toml:3:1: unknown key `listen_on` in `server` (did you mean `listen`?)",
    ),
    (
        "[limits]\nrequest_per_minute = 5",
        "config.toml:2:1: unknown key `request_per_minute` in `limits` (did you mean `requests_per_minute`?)",
    ),
    (
        "[webserver]\nurl = \"x\"",
        "config.toml:1:2: unknown key `webserver` at the top (known here: state_dir, server, tls, upstream, client, limits, blocklist, headers, store, admin, database, backup, pitr, alerts, log)",
    ),
    (
        "[pitr]\nslot = \"My-Slot\"",
        "config.toml:2:8: `pitr.slot` is not the name of a slot (write up to 63 of a-z, 0-9 and _)",
    ),
    (
        "[pitr]\nenabled = true",
        "config.toml:2:11: `pitr.enabled` needs `database.url` (as url = { env = \"DATABASE_URL\" })",
    ),
    (
        "[pitr]\ndrill = \"Sunday 5:00\"",
        "config.toml:2:9: `pitr.drill` is not a time (\"03:00\"), a weekday and a time (\"Sun 02:00\") or a day of the month and a time (\"1 01:00\")",
    ),
    (
        "[pitr]\nuser = \"nobody-of-that-name\"",
        "config.toml:2:8: `pitr.user` is no user in /etc/passwd (a user that a directory service knows is written by number, as \"106\")",
    ),
    (
        "[[pitr.checks]]\nsql = \"SELECT 1\"",
        "config.toml:1:1: `pitr.checks[0]` must have `sql` and `expect` (as { sql = \"SELECT 1\", expect = \"1\" })",
    ),
    (
        "server = 1",
        "config.toml:1:10: `server` must be a table, not an integer",
    ),
    (
        "[server]\nworkers = \"two\"",
        "config.toml:2:11: `server.workers` must be an integer, not a string",
    ),
    (
        "[server]\nworkers = 99999",
        "config.toml:2:11: `server.workers` must be between 0 and 1024",
    ),
    (
        "[server]\nmax_connections = -1",
        "config.toml:2:19: `server.max_connections` must be between 1 and 10000000",
    ),
    (
        "[server]\nproxy_protocol = 1",
        "config.toml:2:18: `server.proxy_protocol` must be true or false, not an integer",
    ),
    (
        "[server]\nlisten = []",
        "config.toml:2:10: `server.listen` must name at least one address (as [\"0.0.0.0:443\", \"[::]:443\"])",
    ),
    (
        "[server]\nlisten = [\"0.0.0.0\"]",
        "config.toml:2:11: `server.listen[0]` is not an address with a port (add a port, as \"0.0.0.0:443\")",
    ),
    (
        "[server]\nlisten = [\"[::]:443\", \":80\"]",
        "config.toml:2:23: `server.listen[1]` is not an address with a port (write the address too, as \"0.0.0.0:80\")",
    ),
    (
        "[server]\nlisten = [\"1.2.3.4:70000\"]",
        "config.toml:2:11: `server.listen[0]` is not an address with a port (write an IP address and a port, as \"0.0.0.0:443\" or \"[::]:443\")",
    ),
    (
        "[server]\nlisten = \"1.2.3.4:443\"",
        "config.toml:2:10: `server.listen` must be a list, not a string (write it in square brackets)",
    ),
    (
        "[server]\nlisten = [\"1.2.3.4:443\"]\nredirect_http = [\"1.2.3.4:443\"]",
        "config.toml:3:17: `server.redirect_http` holds 1.2.3.4:443, which is already listened on",
    ),
    (
        "[server.timeouts]\nkeep_alive = 75",
        "config.toml:2:14: `server.timeouts.keep_alive` must be a duration in quotes, not an integer (write a number and a unit, as \"500ms\", \"60s\", \"10m\" or \"24h\")",
    ),
    (
        "[server.timeouts]\nkeep_alive = \"75 parsecs\"",
        "config.toml:2:14: `server.timeouts.keep_alive` is not a duration (write a number and a unit, as \"500ms\", \"60s\", \"10m\" or \"24h\")",
    ),
    (
        "[server.timeouts]\nkeep_alive = \"60s ago\"",
        "config.toml:2:14: `server.timeouts.keep_alive` is not a duration (write a number and a unit, as \"500ms\", \"60s\", \"10m\" or \"24h\")",
    ),
    (
        "[server.timeouts]\ntls_handshake = \"0s\"",
        "config.toml:2:17: `server.timeouts.tls_handshake` must be between 1ms and 720h",
    ),
    (
        "[tls]\nmode = \"self-signed\"",
        "config.toml:2:8: `tls.mode` must be one of \"files\", \"self_signed\", \"acme\", \"off\" (did you mean `self_signed`?)",
    ),
    (
        "[tls]\nmode = \"acme\"",
        "config.toml:2:8: `tls.mode` cannot be \"acme\" yet: this version does not obtain certificates by itself (use \"files\" with an ACME client, or \"self_signed\" for development)",
    ),
    (
        "[tls]\ncertificates = []",
        "config.toml:2:16: `tls.certificates` must hold at least one certificate in mode \"files\" (as [{ cert = \"fullchain.pem\", key = \"privkey.pem\" }])",
    ),
    (
        "[tls]\ncertificates = [{ cert = \"a.pem\" }]",
        "config.toml:2:17: `tls.certificates[0]` has no `key` (add key = \"….pem\")",
    ),
    (
        "[[tls.certificates]]\ncert = \"a.pem\"\nkeys = \"b.pem\"\nkey = \"b.pem\"",
        "config.toml:3:1: unknown key `keys` in `tls.certificates[0]` (did you mean `key`?)",
    ),
    (
        "[tls]\nmin_version = \"1.1\"",
        "config.toml:2:15: `tls.min_version` must be one of \"1.2\", \"1.3\" (did you mean `1.2`?)",
    ),
    (
        "[upstream]\nservers = [\"https://app:443\"]",
        "config.toml:2:12: `upstream.servers[0]` is https, and TLS towards the app is not supported (Foregate speaks plain HTTP to an app on the same machine or a trusted network: write \"http://app:443\")",
    ),
    (
        "[upstream]\nservers = [\"localhost:3000\"]",
        "config.toml:2:12: `upstream.servers[0]` has no scheme (write \"http://localhost:3000\", \"h2c://host:port\" or \"unix:/path\")",
    ),
    (
        "[upstream]\nservers = [\"http://app:0\"]",
        "config.toml:2:12: `upstream.servers[0]` has a port that is not between 1 and 65535 (write \"http://host:port\" and nothing else)",
    ),
    (
        "[upstream]\nservers = [\"http://app/v1\"]",
        "config.toml:2:12: `upstream.servers[0]` holds a path, but requests keep the path that the client asked for (write \"http://host:port\" and nothing else)",
    ),
    (
        "[upstream]\nservers = [\"unix:run/app\"]",
        "config.toml:2:12: `upstream.servers[0]` needs an absolute path (as \"unix:/run/app.sock\")",
    ),
    (
        "[upstream]\nservers = []",
        "config.toml:2:11: `upstream.servers` must name at least one server (as [\"http://127.0.0.1:3000\"])",
    ),
    (
        "[upstream]\nservers = [\"http://a:1\", \"h2c://a:1\"]",
        "config.toml:2:11: `upstream.servers` holds http://a:1 twice",
    ),
    (
        "[upstream.health]\npath = \"health\"",
        "config.toml:2:8: `upstream.health.path` must start with \"/\" (write \"/health\")",
    ),
    (
        "[client]\ntrusted_proxies = [\"10.0.0.0/33\"]",
        "config.toml:2:20: `client.trusted_proxies[0]` is not a network (write it as \"10.0.0.0/8\", \"2001:db8::/32\" or \"192.0.2.7\")",
    ),
    (
        "[client]\nipv6_prefix = 129",
        "config.toml:2:15: `client.ipv6_prefix` must be between 16 and 128",
    ),
    (
        "[limits]\nmax_request_size = 10",
        "config.toml:2:20: `limits.max_request_size` must be a size in quotes, not an integer (write a number and a unit, as \"512B\", \"32KiB\" or \"10MiB\")",
    ),
    (
        "[limits]\nmax_request_size = \"10 apples\"",
        "config.toml:2:20: `limits.max_request_size` is not a size (write a number and a unit, as \"512B\", \"32KiB\" or \"10MiB\")",
    ),
    (
        "[limits]\nmax_header_size = \"1KiB\"",
        "config.toml:2:19: `limits.max_header_size` must be between 8KiB and 1MiB",
    ),
    (
        "[limits]\nrequests_per_hour = 5000000000",
        "config.toml:2:21: `limits.requests_per_hour` must be between 0 and 4294967295",
    ),
    (
        "[[limits.rules]]\nrequests_per_minute = 1",
        "config.toml:1:1: `limits.rules[0]` has no `path` (add path = \"/login\")",
    ),
    (
        "[[limits.rules]]\npath = \"/a\"",
        "config.toml:1:1: `limits.rules[0]` limits nothing (add requests_per_minute or requests_per_hour)",
    ),
    (
        "[[limits.rules]]\npath = \"/a\"\nmethods = [\"post\"]\nrequests_per_hour = 5",
        "config.toml:3:12: `limits.rules[0].methods[0]` is not in upper case, as HTTP methods are (write \"POST\")",
    ),
    (
        "[limits]\nrules = [{ path = \"/a\", requests_per_minute = 1 }, { path = \"/a\", methods = [\"GET\"], requests_per_minute = 1 }]",
        "config.toml:2:52: `limits.rules[1]` repeats a rule for \"/a\" (merge the two)",
    ),
    (
        "[blocklist]\nescalation = 0.5",
        "config.toml:2:14: `blocklist.escalation` must be between 1.0 and 1000.0",
    ),
    (
        "[blocklist]\nescalation = nan",
        "config.toml:2:14: `blocklist.escalation` must be between 1.0 and 1000.0",
    ),
    (
        "[blocklist]\nblock_duration = \"48h\"",
        "config.toml:2:18: `blocklist.block_duration` is longer than `blocklist.max_block_duration` (raise blocklist.max_block_duration as well)",
    ),
    (
        "[blocklist]\nprobe_paths = [\"/a?b\"]",
        "config.toml:2:16: `blocklist.probe_paths[0]` must not hold a query (paths are compared without their query)",
    ),
    (
        "[blocklist]\nprobe_paths = [\"/a\", \"/b c\", \"/d/../e\"]",
        "config.toml:2:22: `blocklist.probe_paths[1]` holds characters that no URL path has (write other characters percent-encoded, a space as %20)\nconfig.toml:2:30: `blocklist.probe_paths[2]` matches no request (paths are compared after \"//\", \"/./\" and \"/../\" have been resolved)",
    ),
    (
        "[headers]\nx_frame_options = \"a\\nb\"",
        "config.toml:2:19: `headers.x_frame_options` is not a header value (write visible ASCII characters on one line; \"\" leaves the header out)",
    ),
    (
        "[headers]\nx_powered_by = \"me\"",
        "config.toml:2:1: unknown key `x_powered_by` in `headers` (known here: strict_transport_security, x_content_type_options, x_frame_options, referrer_policy, content_security_policy, permissions_policy)",
    ),
    (
        "[store]\npostgres = \"postgres://u:hunter2@db/x\"",
        "config.toml:2:12: `store.postgres` is a secret, which must not stand in the configuration (write { env = \"DATABASE_URL\" } or { file = \"/run/secrets/database-url\" })",
    ),
    (
        "[store]\npostgres = { env = \"FOREGATE_NO_SUCH_VARIABLE\" }",
        "config.toml:2:20: `store.postgres.env` names an environment variable that is not set (set it for the service, e.g. in its EnvironmentFile)",
    ),
    (
        "[store]\npostgres = { file = \"/nonexistent/secret\" }",
        "config.toml:2:21: `store.postgres.file` names a file that cannot be read: No such file or directory (os error 2)",
    ),
    (
        "[store]\npostgres = { env = \"A\", file = \"b\" }",
        "config.toml:2:12: `store.postgres` must have either `env` or `file` (as { env = \"NAME\" } or { file = \"path\" })",
    ),
    (
        "[admin]\nlisten = \"0.0.0.0:8444\"",
        "config.toml:2:10: `admin.listen` is beyond loopback, where tokens must not travel in the clear (set admin.tls = { cert = \"admin.pem\", key = \"admin.key\" }, or listen on 127.0.0.1)",
    ),
    (
        "[admin]\nlisten = \"0.0.0.0:8444\"\ntls = {}",
        "config.toml:2:10: `admin.listen` is beyond loopback, but `admin.tls` names no certificate",
    ),
    (
        "[admin]\ntls = { cert = \"a.pem\" }",
        "config.toml:2:7: `admin.tls` has no `key` (add key = \"….pem\")",
    ),
    (
        "[admin]\ntokens = [{ name = \"ops\", role = \"admin\", sha256 = \"abc\" }]",
        "config.toml:2:52: `admin.tokens[0].sha256` must be a SHA-256: 64 hexadecimal digits (`foregate token` makes a token and prints this line)",
    ),
    (
        "[admin]\nmetrics_token = \"abc\"",
        "config.toml:2:17: `admin.metrics_token` must be a SHA-256: 64 hexadecimal digits (`foregate token` makes a token and prints this line)",
    ),
    (
        "[server]\nlisten = [\"0.0.0.0:8444\"]",
        "config.toml:2:10: `server.listen` holds 0.0.0.0:8444, where the admin listener is (set `admin.listen` too)",
    ),
    (
        "[server]\nlisten = [\"0.0.0.0:9000\"]\n[admin]\nlisten = \"127.0.0.1:9000\"",
        "config.toml:4:10: `admin.listen` meets 0.0.0.0:9000, where clients come in (choose another port)",
    ),
    (
        "[log]\nformat = \"jsn\"",
        "config.toml:2:10: `log.format` must be one of \"json\", \"text\" (did you mean `json`?)",
    ),
    (
        "[log]\naccess_log = \"off\"",
        "config.toml:2:14: `log.access_log` is not a file (write \"stdout\", a file, or \"\" for none)",
    ),
];

#[test]
fn each_mistake_has_its_place_and_a_suggestion() {
    let wrong: Vec<String> = MISTAKES
        .iter()
        .map(|(text, expected)| (errors(text).join("\n"), *expected))
        .filter(|(actual, expected)| actual != expected)
        .map(|(actual, expected)| format!("expected: {expected}\nactual:   {actual}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
