//! `[limits]`: quotas for the guard, sizes for the proxy.

use std::num::NonZeroU32;

use http::Method;
use ipnet::IpNet;

use crate::config::raw::{Node, Section, Setting};
use crate::config::values::{excerpt, integer, list, network, path_prefix, size, text, word};
use crate::guard::limit::{Config, Mode, Quota, Rule};
use crate::proxy::config::Caps;

const MODES: &[(&str, Mode)] = &[("enforce", Mode::Enforce), ("observe", Mode::Observe)];
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// hyper refuses to read with a smaller buffer.
const HEADER_SIZE_MIN: u64 = 8 * KIB;
/// Each rule costs every request a comparison, and each has its own table of clients.
const RULES_MAX: usize = 64;

/// What `[limits]` says to the guard and to the proxy.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) guard: Config,
    pub(super) caps: Caps,
    pub(super) exempt: Vec<IpNet>,
}

pub(super) fn limits(mut section: Section<'_>) -> Limits {
    let mode = section.read("mode", Mode::Enforce, word(MODES)).value;
    let minute = section.read("requests_per_minute", 100, integer(0..=u32::MAX));
    let hour = section.read("requests_per_hour", 1000, integer(0..=u32::MAX));
    doubt(&minute, &hour);
    let default = quota(minute.value, hour.value);
    let rules = section.read(
        "rules",
        Vec::new(),
        list(|node| rule(node, default).map(|rule| (rule, node.clone()))),
    );
    check_rules(&rules, default);
    let limits = Limits {
        guard: Config {
            mode,
            default,
            rules: rules.value.into_iter().map(|(rule, _)| rule).collect(),
            max_tracked_clients: section
                .read("max_tracked_clients", 1_000_000, integer(100..=100_000_000))
                .value,
        },
        caps: Caps {
            max_request_size: section.read("max_request_size", 10 * MIB, size(1..=u64::MAX / 2)).value,
            max_header_size: usize::try_from(
                section
                    .read("max_header_size", 32 * KIB, size(HEADER_SIZE_MIN..=MIB))
                    .value,
            )
            .unwrap_or(usize::MAX),
            max_headers: section.read("max_headers", 128, integer(16..=4096)).value,
        },
        exempt: section.read("exempt", Vec::new(), list(network)).value,
    };
    section.finish();
    limits
}

fn quota(minute: u32, hour: u32) -> Quota {
    Quota {
        per_minute: NonZeroU32::new(minute),
        per_hour: NonZeroU32::new(hour),
    }
}

/// A burst fills the minute's quota at once and the hour's with it, so a smaller hour makes the minute meaningless.
fn doubt(minute: &Setting<'_, u32>, hour: &Setting<'_, u32>) {
    if minute.value > 0 && hour.value > 0 && hour.value < minute.value {
        let what = format_args!(
            "allows fewer requests than one minute does ({} < {})",
            hour.value, minute.value
        );
        let help = "the hour alone then decides: raise it, or lower the minute".to_owned();
        if hour.is_written() {
            hour.warn(what, help)
        } else {
            minute.warn("is more than `requests_per_hour`", help)
        }
    }
}

fn rule(node: &Node<'_>, default: Quota) -> Option<Rule> {
    let mut section = node.section()?;
    let path = match section.get("path") {
        Some(path) => path_prefix(&path),
        None => {
            node.error("has no `path`", "add path = \"/login\"".to_owned());
            None
        }
    };
    let methods = section.read("methods", Vec::new(), list(method)).value;
    // A limit that a rule leaves out is that of everybody: a rule makes stricter, never by omission looser.
    let or_zero = |limit: Option<NonZeroU32>| limit.map_or(0, NonZeroU32::get);
    let minute = section.read(
        "requests_per_minute",
        or_zero(default.per_minute),
        integer(0..=u32::MAX),
    );
    let hour = section.read("requests_per_hour", or_zero(default.per_hour), integer(0..=u32::MAX));
    if !section.was_written("requests_per_minute") && !section.was_written("requests_per_hour") {
        node.error(
            "limits nothing",
            "add requests_per_minute or requests_per_hour".to_owned(),
        );
    }
    doubt(&minute, &hour);
    section.finish();
    Some(Rule {
        path: path?,
        methods,
        quota: quota(minute.value, hour.value),
    })
}

fn method(node: &Node<'_>) -> Option<String> {
    let written = text(node)?;
    let upper = written.to_ascii_uppercase();
    if Method::from_bytes(written.as_bytes()).is_err() {
        node.error(
            "is not an HTTP method",
            "as \"POST\"; leave out `methods` to mean all".to_owned(),
        );
        return None;
    }
    if upper != written {
        node.error(
            "is not in upper case, as HTTP methods are",
            format!("write \"{}\"", excerpt(&upper)),
        );
        return None;
    }
    Some(upper)
}

fn check_rules(rules: &Setting<'_, Vec<(Rule, Node<'_>)>>, default: Quota) {
    if rules.value.len() > RULES_MAX {
        rules.error(
            format_args!("has {} rules; at most {RULES_MAX} are possible", rules.value.len()),
            None,
        );
        return;
    }
    for (index, (rule, node)) in rules.value.iter().enumerate() {
        let before = rules.value.iter().take(index);
        if before
            .clone()
            .any(|(other, _)| other.path == rule.path && overlap(&other.methods, &rule.methods))
        {
            node.error(
                format_args!("repeats a rule for \"{}\"", excerpt(&rule.path)),
                "merge the two".to_owned(),
            );
        }
        let looser = |of_rule: Option<NonZeroU32>, of_all: Option<NonZeroU32>| match (of_rule, of_all) {
            (Some(rule), Some(all)) => rule > all,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if looser(rule.quota.per_minute, default.per_minute) || looser(rule.quota.per_hour, default.per_hour) {
            node.warn(
                "allows more than the limit for everything else",
                "is that meant?".to_owned(),
            );
        }
    }
}

/// An empty list means every method.
fn overlap(one: &[String], other: &[String]) -> bool {
    one.is_empty() || other.is_empty() || one.iter().any(|method| other.contains(method))
}
