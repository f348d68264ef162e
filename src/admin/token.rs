//! Making admin tokens. Foregate keeps only their hashes.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::secret::Secret;

/// Easy to find for secret scanners, and for people who wonder what a string is.
const PREFIX: &str = "fgt_";

/// A new token and what the configuration keeps of it.
#[derive(Debug)]
pub struct Generated {
    pub secret: Secret,
    pub sha256: [u8; 32],
}

/// 256 random bits.
pub fn generate() -> Result<Generated, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    let secret = Secret::new(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)));
    let sha256 = hash(secret.reveal().as_bytes());
    Ok(Generated { secret, sha256 })
}

/// SHA-256 of the token string. Unsalted and fast on purpose: a token has 256 bits, there is nothing to guess.
pub(super) fn hash(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}
