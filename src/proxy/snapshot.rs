//! Everything that requests read and a reload replaces, as one value. Workers hold it in an `Rc`, so that reading it
//! touches no memory that another worker writes.

use std::sync::Arc;

use http::HeaderValue;

use super::config::Config;
use super::tls;
use super::upstream::Known;

#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) config: Config,
    /// `None`: plain HTTP.
    pub(super) tls: Option<tls::Ready>,
    /// The servers of `config.upstream`; those that a reload keeps are the same ones as before.
    pub(super) servers: Vec<Arc<Known>>,
    /// `1.1 <pseudonym>`: how we sign in `Via`, and recognise our own requests when they come back.
    pub(super) via: HeaderValue,
}

/// One worker's hold on the snapshot. In an `Rc` it is cloned for each request without touching the shared count.
#[derive(Debug)]
pub(super) struct Held(pub(super) Arc<Snapshot>);

impl std::ops::Deref for Held {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.0
    }
}
