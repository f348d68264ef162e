//! What the promises stand on: the gate as a process, an upstream, clients, certificates, a database.

pub(crate) mod browser;
pub(crate) mod certificates;
pub(crate) mod client;
pub(crate) mod dns;
pub(crate) mod frames;
pub(crate) mod grpc;
pub(crate) mod h2c;
pub(crate) mod load;
pub(crate) mod metrics;
pub(crate) mod namespace;
pub(crate) mod notify;
pub(crate) mod origin;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod sink;
pub(crate) mod wait;
pub(crate) mod witness;
