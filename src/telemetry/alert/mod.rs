//! Alerts: told once when something breaks and once when it is well again, to a webhook that takes what Slack and
//! Mattermost take; and the dead man's ping, which somebody else misses when it does not come.
//!
//! Telling never waits: whoever raises a trouble writes it down (`troubles`), and a task tells it (`deliver`), again and
//! again until it is heard. The addresses are secrets (whoever knows them can write to the channel), so no error text
//! repeats them.

mod deliver;
mod troubles;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use tokio::sync::Notify;
use tokio::task::JoinSet;

pub use self::troubles::Raised;
use self::troubles::{Heard, Troubles};
use crate::clock::Clock;
use crate::secret::Secret;

const RESULTS: [&str; 3] = ["delivered", "failed", "dropped"];

/// `[alerts]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Gets every alert by POST.
    pub webhook: Option<Secret>,
    /// Asked by GET after each proven backup.
    pub ping: Option<Secret>,
}

/// Whether `address` can be used; the reason continues "`alerts.webhook` …".
///
/// # Errors
/// What is wrong with it.
pub fn check(address: &Secret) -> Result<(), &'static str> {
    let url = reqwest::Url::parse(address.reveal()).map_err(|_| "is not an address")?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("must be an http or https address");
    }
    Ok(())
}

/// The handle; clones share it.
#[derive(Debug, Clone)]
pub struct Alerts {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: ArcSwap<Config>,
    troubles: Mutex<Troubles>,
    /// There may be something to tell.
    changed: Notify,
    /// Pings that come while one is on its way are one.
    pinged: Notify,
    clock: Clock,
    host: String,
    pauses: &'static [Duration],
    delivered: IntCounterVec,
    in_force: IntGauge,
}

impl Alerts {
    /// Starts telling; it ends when the set is dropped. To be called within a runtime.
    ///
    /// # Errors
    /// A metric's name is taken.
    pub fn start(config: Config, clock: Clock, registry: &Registry) -> Result<(Self, JoinSet<()>), prometheus::Error> {
        Self::start_with(config, clock, registry, &deliver::PAUSES)
    }

    fn start_with(
        config: Config,
        clock: Clock,
        registry: &Registry,
        pauses: &'static [Duration],
    ) -> Result<(Self, JoinSet<()>), prometheus::Error> {
        let delivered = IntCounterVec::new(
            Opts::new(
                "foregate_alerts_total",
                "Attempts to deliver an alert or a ping, and alerts dropped, by result",
            ),
            &["result"],
        )?;
        for result in RESULTS {
            drop(delivered.with_label_values(&[result]));
        }
        let in_force = IntGauge::new("foregate_alerts_in_force", "Troubles that were raised and are not over")?;
        registry.register(Box::new(delivered.clone()))?;
        registry.register(Box::new(in_force.clone()))?;
        let shared = Arc::new(Shared {
            config: ArcSwap::from_pointee(config),
            troubles: Mutex::default(),
            changed: Notify::new(),
            pinged: Notify::new(),
            clock,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pauses,
            delivered,
            in_force,
        });
        let mut telling = JoinSet::new();
        drop(telling.spawn(deliver::tell(Arc::clone(&shared))));
        drop(telling.spawn(deliver::ping(Arc::clone(&shared))));
        Ok((Self { shared }, telling))
    }

    /// A new webhook is told of all that is wrong.
    pub fn reload(&self, config: Config) {
        let is_new = config.webhook != self.shared.config.load().webhook;
        self.shared.config.store(Arc::new(config));
        if is_new {
            self.shared.troubles().forget_who_knows();
            self.shared.changed.notify_one();
        }
    }

    /// Tells of a trouble named `key`, unless that was done already within a day.
    pub fn raise(&self, key: &str, text: &str) {
        let now = self.shared.clock.wall();
        let heard = self.shared.change(|troubles| troubles.raise(key, text, now));
        match heard {
            Heard::New | Heard::Again => tracing::error!(alert = key, "{text}"),
            Heard::NoRoom => {
                tracing::error!(alert = key, "{text}");
                self.shared.count("dropped");
            }
            Heard::Known => {}
        }
    }

    /// Tells that the trouble named `key` is over, if it was raised.
    pub fn resolve(&self, key: &str, text: &str) {
        if self.shared.change(|troubles| troubles.resolve(key, text)) {
            tracing::info!(alert = key, "{text}");
        }
    }

    /// Tells that those troubles are over whose name is `prefix` and a subject that is gone, in the words of `text`: nobody
    /// else would end them.
    pub fn forget(&self, prefix: &str, is_gone: impl Fn(&str) -> bool, text: impl Fn(&str) -> String) {
        for key in self.raised().keys() {
            if let Some(subject) = key.strip_prefix(prefix).filter(|subject| is_gone(subject)) {
                self.resolve(key, &text(subject));
            }
        }
    }

    /// Tells whoever watches that all is well.
    pub fn ping(&self) {
        self.shared.pinged.notify_one();
    }

    /// What is wrong now, by key.
    #[must_use]
    pub fn raised(&self) -> BTreeMap<String, Raised> {
        self.shared.troubles().raised()
    }
}

impl Shared {
    fn troubles(&self) -> std::sync::MutexGuard<'_, Troubles> {
        // A panic while holding the lock cannot leave a map half written.
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is wrong, shows it and has it told.
    fn change<T>(&self, change: impl FnOnce(&mut Troubles) -> T) -> T {
        let mut troubles = self.troubles();
        let changed = change(&mut troubles);
        self.in_force
            .set(i64::try_from(troubles.in_force()).unwrap_or(i64::MAX));
        drop(troubles);
        self.changed.notify_one();
        changed
    }

    fn count(&self, result: &str) {
        self.delivered.with_label_values(&[result]).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::*;

    const BRIEF: [Duration; 1] = [Duration::from_millis(1)];
    /// More than a message was once tried.
    const REFUSED: usize = 12;

    /// A webhook that is broken for a while: refuses the first requests, and hands out the others as they came.
    fn webhook() -> (Secret, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("an address");
        let (taken, heard) = mpsc::channel();
        drop(std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.expect("a connection");
                let request = read(&mut stream);
                let status = if number < REFUSED { "503 Not now" } else { "200 OK" };
                let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
                drop(stream.write_all(head.as_bytes()));
                if number >= REFUSED && taken.send(request).is_err() {
                    return;
                }
            }
        }));
        (Secret::new(format!("http://{address}/hook")), heard)
    }

    /// To the end of the body, which is JSON.
    fn read(stream: &mut std::net::TcpStream) -> String {
        let (mut text, mut piece) = (String::new(), [0; 1024]);
        while !text.ends_with('}') {
            match stream.read(&mut piece) {
                Ok(length @ 1..) => text.push_str(&String::from_utf8_lossy(&piece[..length])),
                _ => break,
            }
        }
        text
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn alert_that_is_refused_many_times_is_told_as_soon_as_it_can_be() {
        let (address, heard) = webhook();
        let config = Config {
            webhook: Some(address),
            ping: None,
        };
        let (alerts, _telling) =
            Alerts::start_with(config, Clock::system(), &Registry::new(), &BRIEF).expect("alerts start");
        alerts.raise("store", "store: down");
        let wait = Duration::from_secs(60);
        let told = tokio::task::block_in_place(|| heard.recv_timeout(wait)).expect("told in the end");
        assert!(told.contains("store: down"), "{told}");
        alerts.resolve("store", "store is well again");
        let told = tokio::task::block_in_place(|| heard.recv_timeout(wait)).expect("its end is told");
        assert!(told.contains("\"text\"") && told.contains("well again"), "{told}");
        assert!(!told.contains("down"), "{told}");
        let failed = alerts.shared.delivered.with_label_values(&["failed"]).get();
        assert_eq!(failed, REFUSED as u64);
    }

    #[test]
    fn only_web_addresses_are_taken() {
        for (address, is_good) in [
            ("https://h.example/x?y", true),
            ("http://127.0.0.1:1/", true),
            ("ftp://x/", false),
            ("x", false),
        ] {
            assert_eq!(check(&Secret::new(address)).is_ok(), is_good, "{address}");
        }
    }
}
