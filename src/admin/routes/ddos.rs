//! Limits and blocks: what is known of a client, who is shut out, and changing it.

use std::net::IpAddr;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use ipnet::IpNet;

use super::super::State;
use super::super::auth::Caller;
use super::super::problem::Error;
use super::super::views::{BlockOrder, Blocks, Changed, Client, GuardStats, Paging, short};
use super::trail::{paging, record};
use super::{Shared, order};
use crate::guard::blocklist::{Order, Source};

/// What is quoted of a wrong address.
const QUOTED_CHARS_MAX: usize = 80;
const REASON_CHARS_MAX: usize = 500;
/// A hundred years: beyond it a block is meant to be permanent.
const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Wider networks are typing mistakes that shut out the world.
const SHORTEST_IPV4: u8 = 8;
const SHORTEST_IPV6: u8 = 16;

type Ip = Result<Path<String>, PathRejection>;

pub(super) async fn stats(state: Shared) -> Json<GuardStats> {
    Json(GuardStats::new(&state.parts.guard.stats()))
}

pub(super) async fn client(state: Shared, ip: Ip) -> Result<Json<Client>, Error> {
    let text = text(ip)?;
    let address: IpAddr = text.parse().map_err(|_| not_an_address(&text))?;
    let report = state.parts.guard.report(address, state.parts.clock.now());
    Ok(Json(Client::new(address.to_canonical(), &report)))
}

pub(super) async fn blocks(state: Shared, query: Result<Query<Paging>, QueryRejection>) -> Result<Json<Blocks>, Error> {
    let (offset, limit) = paging(query)?;
    let page = state.parts.guard.blocklist().page(offset, limit);
    let blocks = page.blocks.iter().map(Into::into).collect();
    Ok(Json(Blocks {
        blocks,
        total: page.total,
        offset,
        limit,
    }))
}

pub(super) async fn block(
    axum::extract::State(state): Shared,
    caller: Caller,
    ip: Ip,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Error> {
    let text = text(ip)?;
    let done = try_block(&state, &caller, &text, body).await;
    record(&state, &caller, "block", &quoted(&text), &outcome(&done)).await;
    Ok((StatusCode::CREATED, Json(done?)).into_response())
}

/// What the audit trail says of a change.
fn outcome(done: &Result<Changed, Error>) -> String {
    done.as_ref()
        .map_or_else(ToString::to_string, |changed| format!("ok: {}", changed.summary()))
}

async fn try_block(
    state: &State,
    caller: &Caller,
    text: &str,
    body: Result<Bytes, BytesRejection>,
) -> Result<Changed, Error> {
    let network = network(text)?;
    let order: BlockOrder = order(body)?;
    if network.contains(&caller.address.to_canonical()) {
        return Err(Error::Invalid(format!(
            "{} contains your own address {}",
            short(network),
            caller.address
        )));
    }
    let duration = order.duration_seconds.map(Duration::from_secs);
    if duration.is_some_and(|duration| duration.is_zero() || duration > DURATION_MAX) {
        return Err(Error::Invalid(
            "durationSeconds must be between 1 and 3153600000; leave it out for ever".to_owned(),
        ));
    }
    let reason = order.reason.unwrap_or_else(|| "blocked by an admin".to_owned());
    if reason.chars().count() > REASON_CHARS_MAX {
        return Err(Error::Invalid(format!(
            "the reason is longer than {REASON_CHARS_MAX} characters"
        )));
    }
    let order = Order {
        network,
        reason,
        source: Source::Manual,
        created_by: caller.name.clone(),
        duration,
    };
    let (block, reached) = state.parts.guard.blocklist().block(order).await?;
    Ok(Changed::new(&block, reached))
}

pub(super) async fn unblock(
    axum::extract::State(state): Shared,
    caller: Caller,
    ip: Ip,
) -> Result<Json<Changed>, Error> {
    let text = text(ip)?;
    let done = try_unblock(&state, &caller, &text).await;
    record(&state, &caller, "unblock", &quoted(&text), &outcome(&done)).await;
    Ok(Json(done?))
}

async fn try_unblock(state: &State, caller: &Caller, text: &str) -> Result<Changed, Error> {
    let network = network(text)?;
    let blocklist = state.parts.guard.blocklist();
    // An IPv6 address was blocked with its whole client network; whoever lifts it names what the log showed.
    let client = state.parts.guard.client_of(network.addr()).network();
    let mut lifted = blocklist.unblock(network, &caller.name).await?;
    if lifted.is_none() && network.prefix_len() == network.max_prefix_len() && client != network {
        lifted = blocklist.unblock(client, &caller.name).await?;
    }
    let (block, reached) = lifted.ok_or_else(|| Error::NotBlocked(short(network)))?;
    Ok(Changed::new(&block, reached))
}

fn text(ip: Ip) -> Result<String, Error> {
    ip.map(|Path(text)| text)
        .map_err(|error| Error::Invalid(quoted(&error.body_text())))
}

/// An address or a network in CIDR notation; IPv4-mapped ones are unwrapped, host bits cleared.
fn network(text: &str) -> Result<IpNet, Error> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    let network: IpNet = text.parse().map_err(|_| not_an_address(text))?;
    let network = unmapped(network).trunc();
    let shortest = if network.addr().is_ipv4() {
        SHORTEST_IPV4
    } else {
        SHORTEST_IPV6
    };
    if network.prefix_len() < shortest {
        return Err(Error::Invalid(format!(
            "{network} is too wide; /{shortest} is the widest that can be blocked"
        )));
    }
    Ok(network)
}

fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let mapped = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    mapped
        .and_then(|(v4, length)| IpNet::new(v4.into(), length).ok())
        .unwrap_or(network)
}

fn not_an_address(text: &str) -> Error {
    Error::Invalid(format!(
        "\"{}\" is neither an IP address nor a network such as 192.0.2.0/24",
        quoted(text)
    ))
}

/// Foreign text, bounded and without control characters.
pub(super) fn quoted(text: &str) -> String {
    text.chars()
        .take(QUOTED_CHARS_MAX)
        .flat_map(char::escape_debug)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks_are_understood_as_meant() {
        let cases = [
            ("192.0.2.7", "192.0.2.7/32"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("192.0.2.7/24", "192.0.2.0/24"),
            ("2001:db8::7/32", "2001:db8::/32"),
            ("::ffff:192.0.2.7/120", "192.0.2.0/24"),
        ];
        for (given, wanted) in cases {
            assert_eq!(network(given).unwrap().to_string(), wanted, "{given}");
        }
    }

    #[test]
    fn networks_that_shut_out_the_world_are_refused() {
        for wide in ["0.0.0.0/0", "10.0.0.0/7", "::/0", "2000::/3", "::ffff:0.0.0.0/96"] {
            assert!(matches!(network(wide), Err(Error::Invalid(_))), "{wide}");
        }
    }

    #[test]
    fn what_is_no_address_is_quoted_without_tricks() {
        let error = network(&format!("x\n\u{7}{}", "y".repeat(1000)))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("\"x\\n\\u{7}yyy"), "{error}");
        assert!(error.len() < 250, "{error}");
    }

    #[test]
    fn a_body_may_be_missing_and_must_be_understood() {
        let order = |bytes| order::<BlockOrder>(bytes);
        assert!(order(Ok(Bytes::new())).unwrap().reason.is_none());
        let full = order(Ok(Bytes::from_static(b"{\"reason\":\"r\",\"durationSeconds\":5}"))).unwrap();
        assert_eq!((full.reason.as_deref(), full.duration_seconds), (Some("r"), Some(5)));
        assert!(matches!(order(Ok(Bytes::from_static(b"{"))), Err(Error::NotJson)));
        assert!(matches!(
            order(Ok(Bytes::from_static(b"{\"until\":1}"))),
            Err(Error::Invalid(_))
        ));
    }
}
