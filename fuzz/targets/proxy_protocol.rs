//! The check is shared with `tests/fuzz_replay.rs`.
#![no_main]

#[path = "../checks/proxy_protocol.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
