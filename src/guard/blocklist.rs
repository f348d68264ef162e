//! Blocks: who is shut out, until when, why. Lookups read an immutable snapshot; changes go through [`Blocklist`].

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;

pub use crate::store::{Block, Source};

/// A block in force, with what is known only to this process.
#[derive(Debug)]
pub struct Entry {
    pub block: Block,
    /// Requests that were told why they are refused; after ten, connections are closed at accept.
    pub told: AtomicU32,
}

/// What somebody asks for; the blocklist adds reference and times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub network: IpNet,
    pub reason: String,
    pub source: Source,
    pub created_by: String,
    /// `None`: permanent.
    pub duration: Option<Duration>,
}

/// How far a change got before it was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// In the store: survives this machine's crash.
    Stored,
    /// The store cannot be reached: in force here and in the local snapshot, written to the store when it is back.
    Queued,
}

/// The blocks in force. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Blocklist {
    inner: Arc<()>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{network} is never blocked: it overlaps {protected}, which is {why}")]
    Protected {
        network: IpNet,
        protected: IpNet,
        why: &'static str,
    },
    #[error("the store is unreachable and {waiting} changes already wait for it; try again when it is back")]
    QueueFull { waiting: usize },
}

/// One page of blocks, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub blocks: Vec<Block>,
    /// All blocks in force.
    pub total: usize,
}

impl Blocklist {
    /// The block that shuts `address` out: the longest matching prefix that has not expired. Hot path: no lock, no
    /// allocation.
    #[must_use]
    pub fn find(&self, address: IpAddr, now: Timestamp) -> Option<Arc<Entry>> {
        let _ = (&self.inner, address, now);
        None
    }

    /// Adds or replaces the block of exactly this network; answers once it is in force and stored (or queued).
    pub async fn block(&self, order: Order) -> Result<(Block, Durability), Error> {
        Err(Error::Protected {
            network: order.network,
            protected: order.network,
            why: "stub",
        })
    }

    /// Lifts the block of exactly this network; `None`: there was none.
    pub async fn unblock(&self, network: IpNet, by: &str) -> Result<Option<(Block, Durability)>, Error> {
        let _ = (network, by);
        Ok(None)
    }

    /// For the guard: orders an automatic block without ever waiting. `false`: the queue was full.
    #[must_use]
    pub fn block_soon(&self, order: Order) -> bool {
        let _ = order;
        false
    }

    /// The generation of the snapshot; changes with every block that comes into force.
    #[must_use]
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        tokio::sync::watch::channel(0).1
    }

    #[must_use]
    pub fn page(&self, offset: usize, limit: usize) -> Page {
        let _ = (offset, limit);
        Page {
            blocks: Vec::new(),
            total: 0,
        }
    }
}
