//! Promises of point-in-time recovery, kept on real PostgreSQL clusters.

#![expect(
    clippy::disallowed_methods,
    clippy::panic,
    reason = "black-box tests start processes, wait by the real clock, and fail by panicking"
)]

mod api;
mod failover;
mod get;
mod push;
mod routine;
mod stream;
mod support;
mod watch;
