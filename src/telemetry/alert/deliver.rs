//! Out of the process: alerts to the webhook until they are heard, pings to the other address.

use std::sync::Arc;
use std::time::Duration;

use super::super::cause::chain;
use super::Shared;
use super::troubles::News;

const TEXT_CHARS_MAX: usize = 2_000;
const TIMEOUT: Duration = Duration::from_secs(10);
/// After the first failure in a row, the second, …; the last one is the longest.
pub(super) const PAUSES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
];

/// Tells all that is to be told, for ever: a trouble that nobody heard of is not given up.
pub(super) async fn tell(shared: Arc<Shared>) {
    let Some(client) = client() else { return };
    let mut failures = 0;
    loop {
        let next = shared.troubles().next();
        let Some(news) = next else {
            shared.changed.notified().await;
            continue;
        };
        match post(&client, &shared, &news).await {
            Ok(()) => {
                shared.troubles().told(&news, shared.clock.wall());
                failures = 0;
            }
            Err(reason) => {
                shared.troubles().failed(&news);
                shared.count("failed");
                let pause = shared.pause(failures);
                tracing::warn!(reason, "an alert could not be delivered; trying again in {pause:?}");
                tokio::time::sleep(pause).await;
                failures += 1;
            }
        }
    }
}

/// Pings when asked to. One that fails to the end is given up: that it is missed is what it is for.
pub(super) async fn ping(shared: Arc<Shared>) {
    let Some(client) = client() else { return };
    loop {
        shared.pinged.notified().await;
        let mut failures = 0;
        while let Err(reason) = get(&client, &shared).await {
            shared.count("failed");
            if failures >= shared.pauses.len() {
                tracing::error!(reason, "a ping could not be delivered and is given up");
                break;
            }
            let pause = shared.pause(failures);
            tracing::warn!(reason, "a ping could not be delivered; trying again in {pause:?}");
            tokio::time::sleep(pause).await;
            failures += 1;
        }
    }
}

impl Shared {
    fn pause(&self, failures: usize) -> Duration {
        let longest = self.pauses.last().copied().unwrap_or_default();
        self.pauses.get(failures).copied().unwrap_or(longest)
    }
}

fn client() -> Option<reqwest::Client> {
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("foregate/", env!("CARGO_PKG_VERSION")))
        .build();
    client
        .inspect_err(|error| tracing::error!(%error, "alerts cannot be sent"))
        .ok()
}

/// Done as well where there is nobody to tell. The address is the one in force now: a wrong one may have been mended.
async fn post(client: &reqwest::Client, shared: &Shared, news: &News) -> Result<(), String> {
    let config = shared.config.load_full();
    let Some(webhook) = &config.webhook else { return Ok(()) };
    let mark = if news.is_end { '\u{1F7E2}' } else { '\u{1F534}' };
    let text = format!("{mark} Foregate on {}: {}", shared.host, news.text);
    let text: String = text.chars().take(TEXT_CHARS_MAX).collect();
    let body = serde_json::json!({ "text": text }).to_string();
    let request = client
        .post(webhook.reveal())
        .header("content-type", "application/json")
        .body(body);
    send(shared, request).await
}

async fn get(client: &reqwest::Client, shared: &Shared) -> Result<(), String> {
    let config = shared.config.load_full();
    let Some(ping) = &config.ping else { return Ok(()) };
    send(shared, client.get(ping.reveal())).await
}

async fn send(shared: &Shared, request: reqwest::RequestBuilder) -> Result<(), String> {
    match request.send().await {
        Ok(answer) if answer.status().is_success() => {
            shared.count("delivered");
            Ok(())
        }
        Ok(answer) => Err(format!("the answer was {}", answer.status())),
        // None of the causes holds the address.
        Err(error) => Err(chain(&error.without_url())),
    }
}
