//! Black-box tests: the real binary, real sockets, a real PostgreSQL; a file per promise.
#![expect(
    clippy::disallowed_methods,
    reason = "tests start processes and tasks and read the clock themselves"
)]
#![expect(clippy::panic, reason = "a panic is how a test fails")]
#![expect(clippy::indexing_slicing, reason = "a missing key fails the test that reads it")]

mod admin;
mod answers;
mod blocklist;
mod cli;
mod clients;
mod corpus;
mod deaf;
mod early;
mod families;
mod grpc;
mod h2_attacks;
mod h2c;
mod handover;
mod limits;
mod limits_scope;
mod lingering;
mod load;
mod memory;
mod observe;
mod page;
mod priority;
mod proxy_h1;
mod proxy_h2;
mod proxy_protocol;
mod redirect;
mod reload;
mod servers;
mod shutdown;
mod slow;
mod slow_attacks;
mod smoke;
mod soak;
mod store;
mod support;
mod tails;
mod tls;
mod tunnels;
mod uploads;
mod upstream;
mod vault_cli;
mod websocket;
