//! Alerts: told once when something breaks and once when it is well again, to a webhook that takes what Slack and
//! Mattermost take; and the dead man's ping, which somebody else misses when it does not come.
//!
//! Telling never waits: messages go through a bounded queue to one task that tries again with growing pauses. The
//! addresses are secrets (whoever knows them can write to the channel), so no error text repeats them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::cause::chain;
use crate::clock::Clock;
use crate::secret::Secret;

/// Messages that wait; beyond, they are dropped and counted.
const QUEUE_MAX: usize = 256;
/// Troubles at a time; beyond, further ones are told but not remembered.
const RAISED_MAX: usize = 1_024;
/// A trouble that lasts is told again this often.
const REMIND_AFTER: Duration = Duration::from_hours(24);
const TEXT_CHARS_MAX: usize = 2_000;
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between the attempts to deliver one message.
const PAUSES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
];

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

/// A trouble that was told and is not over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    pub text: String,
    pub since: Timestamp,
    told: Timestamp,
}

#[derive(Debug)]
enum Message {
    Text(String),
    Ping,
}

/// The handle; clones share it.
#[derive(Debug, Clone)]
pub struct Alerts {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Message>,
}

#[derive(Debug)]
struct Shared {
    config: ArcSwap<Config>,
    raised: Mutex<BTreeMap<String, Raised>>,
    clock: Clock,
    host: String,
    delivered: IntCounterVec,
    in_force: IntGauge,
}

impl Alerts {
    /// Starts the sender; it ends when the set is dropped. To be called within a runtime.
    ///
    /// # Errors
    /// A metric's name is taken.
    pub fn start(config: Config, clock: Clock, registry: &Registry) -> Result<(Self, JoinSet<()>), prometheus::Error> {
        let delivered = IntCounterVec::new(
            Opts::new("foregate_alerts_total", "Alerts and pings by what became of them"),
            &["result"],
        )?;
        let in_force = IntGauge::new("foregate_alerts_in_force", "Troubles that were told and are not over")?;
        registry.register(Box::new(delivered.clone()))?;
        registry.register(Box::new(in_force.clone()))?;
        let shared = Arc::new(Shared {
            config: ArcSwap::from_pointee(config),
            raised: Mutex::default(),
            clock,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            delivered,
            in_force,
        });
        let (queue, messages) = mpsc::channel(QUEUE_MAX);
        let mut sender = JoinSet::new();
        drop(sender.spawn(deliver_all(Arc::clone(&shared), messages)));
        Ok((Self { shared, queue }, sender))
    }

    pub fn reload(&self, config: Config) {
        self.shared.config.store(Arc::new(config));
    }

    /// Tells of a trouble named `key`, unless that was done already within a day.
    pub fn raise(&self, key: &str, text: &str) {
        let now = self.shared.clock.wall();
        let mut raised = self.shared.raised();
        if let Some(known) = raised.get_mut(key) {
            text.clone_into(&mut known.text);
            if now.duration_since(known.told).unsigned_abs() < REMIND_AFTER {
                return;
            }
            known.told = now;
        } else if raised.len() < RAISED_MAX {
            let trouble = Raised {
                text: text.to_owned(),
                since: now,
                told: now,
            };
            drop(raised.insert(key.to_owned(), trouble));
        }
        self.shared.show(&raised);
        drop(raised);
        tracing::error!(alert = key, "{text}");
        self.send(Message::Text(format!(
            "\u{1F534} Foregate on {}: {text}",
            self.shared.host
        )));
    }

    /// Tells that the trouble named `key` is over, if it was told.
    pub fn resolve(&self, key: &str, text: &str) {
        let mut raised = self.shared.raised();
        if raised.remove(key).is_none() {
            return;
        }
        self.shared.show(&raised);
        drop(raised);
        tracing::info!(alert = key, "{text}");
        self.send(Message::Text(format!(
            "\u{1F7E2} Foregate on {}: {text}",
            self.shared.host
        )));
    }

    /// Tells whoever watches that all is well.
    pub fn ping(&self) {
        if self.shared.config.load().ping.is_some() {
            self.send(Message::Ping);
        }
    }

    /// What is wrong now, by key.
    #[must_use]
    pub fn raised(&self) -> BTreeMap<String, Raised> {
        self.shared.raised().clone()
    }

    fn send(&self, message: Message) {
        if self.queue.try_send(message).is_err() {
            self.shared.count("dropped");
        }
    }
}

impl Shared {
    fn raised(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Raised>> {
        // A panic while holding the lock cannot leave a map half written.
        self.raised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, raised: &BTreeMap<String, Raised>) {
        self.in_force.set(i64::try_from(raised.len()).unwrap_or(i64::MAX));
    }

    fn count(&self, result: &str) {
        self.delivered.with_label_values(&[result]).inc();
    }
}

async fn deliver_all(shared: Arc<Shared>, mut messages: mpsc::Receiver<Message>) {
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("foregate/", env!("CARGO_PKG_VERSION")))
        .build();
    let client = match client {
        Ok(client) => client,
        Err(error) => return tracing::error!(%error, "alerts cannot be sent"),
    };
    while let Some(message) = messages.recv().await {
        let mut pauses = PAUSES.iter();
        loop {
            // The address in force now: a wrong one may have been mended meanwhile.
            let config = shared.config.load_full();
            match deliver(&client, &config, &message).await {
                None => break,
                Some(Ok(())) => {
                    shared.count("delivered");
                    break;
                }
                Some(Err(reason)) => {
                    let Some(pause) = pauses.next() else {
                        tracing::error!(reason, "an alert could not be delivered and is given up");
                        shared.count("failed");
                        break;
                    };
                    tracing::warn!(reason, "an alert could not be delivered; trying again in {pause:?}");
                    tokio::time::sleep(*pause).await;
                }
            }
        }
    }
}

/// `None`: there is nobody to tell.
async fn deliver(client: &reqwest::Client, config: &Config, message: &Message) -> Option<Result<(), String>> {
    let request = match message {
        Message::Text(text) => {
            let text: String = text.chars().take(TEXT_CHARS_MAX).collect();
            let body = serde_json::json!({ "text": text }).to_string();
            client
                .post(config.webhook.as_ref()?.reveal())
                .header("content-type", "application/json")
                .body(body)
        }
        Message::Ping => client.get(config.ping.as_ref()?.reveal()),
    };
    let answered = match request.send().await {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(format!("the answer was {}", answer.status())),
        // None of the causes holds the address.
        Err(error) => Err(chain(&error.without_url())),
    };
    Some(answered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle() -> (Alerts, mpsc::Receiver<Message>) {
        let (queue, messages) = mpsc::channel(QUEUE_MAX);
        let shared = Arc::new(Shared {
            config: ArcSwap::default(),
            raised: Mutex::default(),
            clock: Clock::system(),
            host: "here".to_owned(),
            delivered: IntCounterVec::new(Opts::new("a", "a"), &["result"]).expect("a counter"),
            in_force: IntGauge::new("b", "b").expect("a gauge"),
        });
        (Alerts { shared, queue }, messages)
    }

    #[test]
    fn trouble_is_told_once_and_its_end_once() {
        let (alerts, mut messages) = idle();
        alerts.resolve("backup", "never was broken");
        alerts.raise("backup", "broken");
        alerts.raise("backup", "still broken");
        alerts.resolve("backup", "mended");
        alerts.resolve("backup", "mended again");
        let mut texts = Vec::new();
        while let Ok(Message::Text(text)) = messages.try_recv() {
            texts.push(text);
        }
        assert_eq!(
            texts,
            [
                "\u{1F534} Foregate on here: broken",
                "\u{1F7E2} Foregate on here: mended"
            ]
        );
        assert!(alerts.raised().is_empty());
    }

    #[test]
    fn more_alerts_than_fit_are_counted_and_nobody_waits() {
        let (alerts, _messages) = idle();
        for number in 0..QUEUE_MAX + 3 {
            alerts.raise(&number.to_string(), "x");
        }
        assert_eq!(alerts.shared.delivered.with_label_values(&["dropped"]).get(), 3);
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
