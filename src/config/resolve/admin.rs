//! `[admin]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use super::tls::pair;
use crate::admin::{Config, Role, Tls, Token};
use crate::config::raw::{Node, Section};
use crate::config::values::{filled_text, list, optional_file, sha256, socket_address, word};

const ROLES: &[(&str, Role)] = &[
    ("viewer", Role::Viewer),
    ("operator", Role::Operator),
    ("admin", Role::Admin),
];
const TOKENS_MAX: usize = 1000;
const NAME_CHARS_MAX: usize = 64;

pub(super) fn admin(mut section: Section<'_>, base: &Path) -> Config {
    let listen = section.read("listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 8444)), socket_address);
    let tls_written = section.was_written("tls");
    let tls = tls(section.section("tls"), base);
    if !listen.value.ip().to_canonical().is_loopback() && !tls_written {
        listen.error(
            "is beyond loopback, where tokens must not travel in the clear",
            "set admin.tls = { cert = \"admin.pem\", key = \"admin.key\" }, or listen on 127.0.0.1".to_owned(),
        );
    } else if !listen.value.ip().to_canonical().is_loopback() && tls.is_none() {
        listen.error("is beyond loopback, but `admin.tls` names no certificate", None);
    }
    let tokens = section.read(
        "tokens",
        Vec::new(),
        list(|node| token(node).map(|token| (token, node.clone()))),
    );
    if tokens.value.len() > TOKENS_MAX {
        tokens.error(
            format_args!("holds {} tokens; at most {TOKENS_MAX} are possible", tokens.value.len()),
            None,
        );
    } else {
        check_tokens(&tokens.value);
    }
    let metrics_token = section.read("metrics_token", None, |node| {
        if node.is_empty_string() {
            Some(None)
        } else {
            sha256(node).map(Some)
        }
    });
    section.finish();
    Config {
        listen: listen.value,
        tls,
        tokens: tokens.value.into_iter().map(|(token, _)| token).collect(),
        metrics_token: metrics_token.value,
    }
}

/// `{}` means none.
fn tls(mut section: Section<'_>, base: &Path) -> Option<Tls> {
    let any = ["cert", "key", "client_ca"].iter().any(|key| section.was_written(key));
    let client_ca = section.read("client_ca", None, optional_file(base)).value;
    // Asked for in any case, so that both keys are known.
    let files = if any {
        pair(&mut section, base)
    } else {
        section.get("cert").zip(section.get("key")).and(None)
    };
    section.finish();
    files.map(|(cert, key)| Tls { cert, key, client_ca })
}

fn token(node: &Node<'_>) -> Option<Token> {
    let mut section = node.section()?;
    let mut need = |key| {
        let value = section.get(key);
        if value.is_none() {
            let help = "`foregate token --name ops --role admin` prints the whole line".to_owned();
            node.error(format_args!("has no `{key}`"), help);
        }
        value
    };
    let (name, role, digest) = (need("name"), need("role"), need("sha256"));
    section.finish();
    let name = name.and_then(|node| token_name(&node));
    let role = role.and_then(|node| word(ROLES)(&node));
    let digest = digest.and_then(|node| sha256(&node));
    Some(Token {
        name: name?,
        role: role?,
        sha256: digest?,
    })
}

/// The name stands in the audit trail and in logs.
fn token_name(node: &Node<'_>) -> Option<String> {
    let name = filled_text(node)?;
    if name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) || name.trim() != name {
        let what = format_args!("must be at most {NAME_CHARS_MAX} printable characters without spaces around them");
        node.error(what, None);
        return None;
    }
    if name == "foregate" {
        node.error(
            "is \"foregate\", which is how the audit trail names what Foregate does by itself",
            None,
        );
        return None;
    }
    Some(name.to_owned())
}

fn check_tokens(tokens: &[(Token, Node<'_>)]) {
    for (index, (token, node)) in tokens.iter().enumerate() {
        for (other, _) in tokens.iter().take(index) {
            if other.name == token.name {
                let help = "the audit trail must tell them apart".to_owned();
                node.error(
                    format_args!("has the name \"{}\" of a token before it", token.name.escape_debug()),
                    help,
                );
            } else if other.sha256 == token.sha256 {
                let help = "make one for each with `foregate token`".to_owned();
                node.error(
                    format_args!("is the same token as \"{}\"", other.name.escape_debug()),
                    help,
                );
            }
        }
    }
}
