//! The only reader of `config.toml`.
