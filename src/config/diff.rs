//! What a reload changes, and what of it has to wait for a restart. Pure.

use super::Config;
use super::effective::{Entry, entries};
use crate::backup::Settings;
use crate::proxy::config::Tls;

/// Keys that take effect at the next start alone: they belong to sockets, threads and stores that live on.
pub const RESTART_ONLY: [&str; 21] = [
    "state_dir",
    "server.listen",
    "server.redirect_http",
    "server.workers",
    "limits.max_tracked_clients",
    "store.postgres",
    "store.pool_size",
    "admin.listen",
    "pitr.enabled",
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

/// These as well while point-in-time recovery is on: its tasks live on with the old ones.
pub const RESTART_ONLY_WITH_PITR: [&str; 5] = [
    "database.url",
    "backup.repository",
    "backup.recipients",
    "backup.identity",
    "backup.time_zone",
];

/// This one when it switches TLS on or off: a listener is made for one or the other. The rest of `[tls]` goes with it.
const TLS_SWITCH: &str = "tls.mode";
const TLS_REST: [&str; 3] = ["tls.certificates", "tls.min_version", "tls.client_ca"];

/// One key whose meaning differs between two configurations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// As in the file: `limits.requests_per_minute`.
    pub key: String,
    /// As TOML, secrets masked; `None`: not there.
    pub old: Option<String>,
    pub new: Option<String>,
    pub needs_restart: bool,
}

/// Every key that differs, in the order of the example.
#[must_use]
pub fn changes(old: &Config, new: &Config) -> Vec<Change> {
    let (before, after) = (entries(old), entries(new));
    let find = |list: &[Entry], key: &str| {
        list.iter()
            .find(|entry| entry.path() == key)
            .map(|entry| entry.value.to_string())
    };
    let mut keys: Vec<String> = after.iter().map(Entry::path).collect();
    keys.extend(
        before
            .iter()
            .map(Entry::path)
            .filter(|key| !after.iter().any(|entry| entry.path() == *key)),
    );
    keys.into_iter()
        .filter_map(|key| {
            let (old_value, new_value) = (find(&before, &key), find(&after, &key));
            // Two different secrets look the same behind their masks.
            let secret_changed = match key.as_str() {
                "store.postgres" => old.store.postgres != new.store.postgres,
                "database.url" => old.backup.database != new.backup.database,
                "backup.identity" => old.backup.repository.identity != new.backup.repository.identity,
                "alerts.webhook" => old.alerts.webhook != new.alerts.webhook,
                "alerts.ping" => old.alerts.ping != new.alerts.ping,
                _ => false,
            };
            let with_listen = key == "admin.tls" && old.admin.listen != new.admin.listen;
            let with_pitr = old.pitr.enabled && RESTART_ONLY_WITH_PITR.contains(&key.as_str());
            let with_tls = switches_tls(old, new) && (key == TLS_SWITCH || TLS_REST.contains(&key.as_str()));
            let needs_restart = with_listen || with_pitr || with_tls || RESTART_ONLY.contains(&key.as_str());
            let changed = old_value != new_value || secret_changed;
            changed.then_some(Change {
                key,
                old: old_value,
                new: new_value,
                needs_restart,
            })
        })
        .collect()
}

fn switches_tls(old: &Config, new: &Config) -> bool {
    (old.proxy.tls == Tls::Off) != (new.proxy.tls == Tls::Off)
}

/// The new configuration with the old values of the keys that need a restart, and the names of those that differ.
/// `state_dir` stands in several parts: each keeps the old one, so that no part moves alone.
#[must_use]
pub fn keep_restart_only(old: &Config, mut new: Config) -> (Config, Vec<&'static str>) {
    let mut kept = Vec::new();
    let mut keep = |key: &'static str, changed: bool| {
        if changed {
            kept.push(key);
        }
    };
    keep("state_dir", old.state_dir != new.state_dir);
    // The default lies in it: backups that moved alone would begin anew in an empty place.
    if new.backup.repository.url == Settings::default_repository(&new.state_dir) {
        new.backup.repository.url = Settings::default_repository(&old.state_dir);
    }
    new.state_dir.clone_from(&old.state_dir);
    new.store.state_dir.clone_from(&old.store.state_dir);
    new.backup.state_dir.clone_from(&old.backup.state_dir);
    if let Tls::SelfSigned { state_dir, .. } = &mut new.proxy.tls {
        state_dir.clone_from(&old.state_dir);
    }
    let (was, is) = (&old.proxy.server, &mut new.proxy.server);
    keep("server.listen", was.listen != is.listen);
    is.listen.clone_from(&was.listen);
    keep("server.redirect_http", was.redirect_http != is.redirect_http);
    is.redirect_http.clone_from(&was.redirect_http);
    keep("server.workers", was.workers != is.workers);
    is.workers = was.workers;
    let tracked = old.guard.limits.max_tracked_clients;
    keep(
        "limits.max_tracked_clients",
        tracked != new.guard.limits.max_tracked_clients,
    );
    new.guard.limits.max_tracked_clients = tracked;
    keep("store.postgres", old.store.postgres != new.store.postgres);
    new.store.postgres.clone_from(&old.store.postgres);
    keep("store.pool_size", old.store.pool_size != new.store.pool_size);
    new.store.pool_size = old.store.pool_size;
    if old.admin.listen != new.admin.listen {
        keep("admin.listen", true);
        new.admin.listen = old.admin.listen;
        // Checked together: the new file may leave TLS out because its new address is on loopback.
        keep("admin.tls", old.admin.tls != new.admin.tls);
        new.admin.tls.clone_from(&old.admin.tls);
    }
    keep_tls(old, &mut new, &mut kept);
    keep_vault(old, &mut new, &mut kept);
    (new, kept)
}

fn keep_tls(old: &Config, new: &mut Config, kept: &mut Vec<&'static str>) {
    if !switches_tls(old, new) {
        return;
    }
    let changed = changes(old, new);
    let keys = std::iter::once(TLS_SWITCH).chain(TLS_REST);
    kept.extend(keys.filter(|key| changed.iter().any(|change| change.key == *key)));
    new.proxy.tls.clone_from(&old.proxy.tls);
}

/// The log is archived by tasks that live on: a new way, slot or repository begins with the next start.
fn keep_vault(old: &Config, new: &mut Config, kept: &mut Vec<&'static str>) {
    let changed = changes(old, new);
    let of_vault = |key: &&str| key.starts_with("pitr.") || RESTART_ONLY_WITH_PITR.contains(key);
    let all = RESTART_ONLY.into_iter().chain(RESTART_ONLY_WITH_PITR);
    kept.extend(
        all.filter(of_vault)
            .filter(|key| changed.iter().any(|change| change.key == *key && change.needs_restart)),
    );
    new.pitr.clone_from(&old.pitr);
    if old.pitr.enabled {
        new.backup.database.clone_from(&old.backup.database);
        new.backup.repository.clone_from(&old.backup.repository);
        new.backup.plan.zone.clone_from(&old.backup.plan.zone);
    }
}
