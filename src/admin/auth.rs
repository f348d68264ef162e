//! Who calls and what they may do. Tokens are compared by their hashes, in constant time, against all that are configured;
//! addresses that keep guessing are made to wait.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::ConstantTimeEq as _;

use super::problem::Error;
use super::token::hash;
use super::{Config, Role};
use crate::guard::client::Client;

/// Wrong tokens of one address within [`WINDOW`] before it must wait.
const ATTEMPTS_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// One IPv6 client is one network of this many bits.
pub(super) const IPV6_PREFIX: u8 = 64;
/// Clients whose attempts are counted; beyond it the oldest windows are forgotten first.
const ADDRESSES_MAX: usize = 4096;

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Anybody.
    Open,
    /// Anybody on this machine; else any token, or the metrics token.
    Metrics,
    /// A token with at least this role.
    AtLeast(Role),
}

/// Who made a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) address: IpAddr,
}

/// Wrong tokens by client.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    windows: Mutex<HashMap<Client, Window>>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    started: Duration,
    wrong: u32,
}

/// Lets a request through, with its caller if it showed a token.
pub(super) fn authorize(
    access: Access,
    config: &Config,
    attempts: &Attempts,
    headers: &HeaderMap,
    address: IpAddr,
    now: Duration,
) -> Result<Option<Caller>, Error> {
    let needed = match access {
        Access::Open => return Ok(None),
        Access::Metrics if address.to_canonical().is_loopback() => return Ok(None),
        Access::Metrics => None,
        Access::AtLeast(role) => Some(role),
    };
    let token = bearer(headers).ok_or(Error::NoToken)?;
    let presented = hash(token);
    if needed.is_none()
        && config
            .metrics_token
            .is_some_and(|known| bool::from(known.ct_eq(&presented)))
    {
        return Ok(None);
    }
    // A right token passes whatever others did from the same address: with 256 bits there is nothing to guess.
    let Some((name, role)) = find(config, &presented) else {
        attempts.failed(address, now)?;
        tracing::warn!(%address, "an admin request with a wrong token");
        return Err(Error::WrongToken);
    };
    let caller = Caller {
        name: name.to_owned(),
        role,
        address,
    };
    match needed {
        Some(needed) if role < needed => Err(Error::Forbidden { needed, caller }),
        _ => Ok(Some(caller)),
    }
}

/// Looks at every token, so that the time taken tells nothing about which one was close.
fn find<'a>(config: &'a Config, presented: &[u8; 32]) -> Option<(&'a str, Role)> {
    config.tokens.iter().fold(None, |found, token| {
        let is_it = bool::from(token.sha256.ct_eq(presented));
        if is_it {
            Some((token.name.as_str(), token.role))
        } else {
            found
        }
    })
}

/// The token of `Authorization: Bearer …` (RFC 6750 section 2.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then(|| token.trim_ascii())
}

impl Attempts {
    /// Counts a wrong token; an error once there were too many.
    fn failed(&self, address: IpAddr, now: Duration) -> Result<(), Error> {
        let client = Client::of(address, IPV6_PREFIX);
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= ADDRESSES_MAX && !windows.contains_key(&client) {
            windows.retain(|_, window| now < window.started + WINDOW);
            let oldest = windows
                .iter()
                .min_by_key(|(_, window)| window.started)
                .map(|(client, _)| *client);
            if windows.len() >= ADDRESSES_MAX
                && let Some(oldest) = oldest
            {
                windows.remove(&oldest);
            }
        }
        let window = windows.entry(client).or_insert(Window { started: now, wrong: 0 });
        if now >= window.started + WINDOW {
            *window = Window { started: now, wrong: 0 };
        }
        if window.wrong >= ATTEMPTS_MAX {
            let wait = (window.started + WINDOW).saturating_sub(now);
            return Err(Error::TooManyAttempts {
                retry_after_s: wait.as_secs() + 1,
            });
        }
        window.wrong += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Token;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const AWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn config() -> Config {
        let token = |name: &str, role| Token {
            name: name.to_owned(),
            role,
            sha256: hash(name.as_bytes()),
        };
        Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            tls: None,
            tokens: vec![
                token("v", Role::Viewer),
                token("o", Role::Operator),
                token("a", Role::Admin),
            ],
            metrics_token: Some(hash(b"m")),
        }
    }

    fn ask(access: Access, token: Option<&str>, address: IpAddr) -> Result<Option<Caller>, Error> {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        }
        authorize(
            access,
            &config(),
            &Attempts::default(),
            &headers,
            address,
            Duration::ZERO,
        )
    }

    #[test]
    fn each_role_may_do_what_those_before_it_may() {
        let roles = [("v", Role::Viewer), ("o", Role::Operator), ("a", Role::Admin)];
        for (token, has) in roles {
            for (_, needed) in roles {
                let asked = ask(Access::AtLeast(needed), Some(token), AWAY);
                assert_eq!(asked.is_ok(), has >= needed, "{token} for {needed:?}");
            }
        }
        assert!(matches!(
            ask(Access::AtLeast(Role::Viewer), None, HERE),
            Err(Error::NoToken)
        ));
        assert!(matches!(
            ask(Access::AtLeast(Role::Viewer), Some("x"), HERE),
            Err(Error::WrongToken)
        ));
        assert!(matches!(
            ask(Access::AtLeast(Role::Viewer), Some("m"), HERE),
            Err(Error::WrongToken)
        ));
    }

    #[test]
    fn metrics_are_open_on_this_machine_only() {
        assert!(ask(Access::Metrics, None, HERE).is_ok());
        assert!(ask(Access::Metrics, None, AWAY).is_err());
        assert!(ask(Access::Metrics, Some("m"), AWAY).is_ok());
        assert!(ask(Access::Metrics, Some("v"), AWAY).is_ok());
        assert!(ask(Access::Metrics, Some("x"), AWAY).is_err());
    }

    #[test]
    fn an_address_that_guesses_must_wait_and_right_tokens_need_not() {
        let (config, attempts) = (config(), Attempts::default());
        let access = Access::AtLeast(Role::Viewer);
        let mut wrong = HeaderMap::new();
        wrong.insert(AUTHORIZATION, "Bearer x".parse().unwrap());
        let mut right = HeaderMap::new();
        right.insert(AUTHORIZATION, "bearer v".parse().unwrap());
        let ask = |headers: &HeaderMap, from, at| authorize(access, &config, &attempts, headers, from, at);
        for _ in 0..ATTEMPTS_MAX {
            assert!(matches!(ask(&wrong, AWAY, Duration::ZERO), Err(Error::WrongToken)));
        }
        assert!(matches!(
            ask(&wrong, AWAY, Duration::ZERO),
            Err(Error::TooManyAttempts { retry_after_s: 61 })
        ));
        assert!(matches!(ask(&wrong, HERE, Duration::ZERO), Err(Error::WrongToken)));
        assert!(ask(&right, AWAY, Duration::ZERO).is_ok());
        assert!(matches!(ask(&wrong, AWAY, WINDOW), Err(Error::WrongToken)));
    }

    #[test]
    fn counting_attempts_stays_bounded() {
        let attempts = Attempts::default();
        for number in 0..2 * u32::try_from(ADDRESSES_MAX).unwrap() {
            let at = Duration::from_millis(number.into());
            drop(attempts.failed(IpAddr::V4(std::net::Ipv4Addr::from(number)), at));
        }
        assert!(attempts.windows.lock().unwrap().len() <= ADDRESSES_MAX);
    }
}
