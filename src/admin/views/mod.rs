//! Wire types: what the API reads and writes. camelCase, times RFC 3339 UTC, sizes in bytes, durations in seconds.

pub(super) mod backups;
pub(super) mod pitr;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::guard::blocklist::{self, Durability, Source};
use crate::guard::verdict::{ClientReport, Stats};
use crate::store::AuditEntry;

/// RFC 9457.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) title: &'static str,
    pub(super) status: u16,
    pub(super) detail: String,
    /// The run that is in the way.
    #[serde(rename = "runningId", skip_serializing_if = "Option::is_none")]
    pub(super) running_id: Option<String>,
    /// The nearest instants that can be recovered, where the one that was asked for cannot.
    #[serde(rename = "nearestBefore", skip_serializing_if = "Option::is_none")]
    pub(super) nearest_before: Option<String>,
    #[serde(rename = "nearestAfter", skip_serializing_if = "Option::is_none")]
    pub(super) nearest_after: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Block {
    network: String,
    reason: String,
    source: &'static str,
    created_by: String,
    created_at: String,
    /// `null`: permanent.
    expires_at: Option<String>,
    reference: String,
}

impl From<&blocklist::Block> for Block {
    fn from(block: &blocklist::Block) -> Self {
        Self {
            network: short(block.network),
            reason: block.reason.clone(),
            source: match block.source {
                Source::Manual => "manual",
                Source::Automatic => "automatic",
            },
            created_by: block.created_by.clone(),
            created_at: block.created_at.to_string(),
            expires_at: block.expires_at.map(|at| at.to_string()),
            reference: block.reference.to_string(),
        }
    }
}

/// A single address without its prefix length.
pub(super) fn short(network: ipnet::IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() {
        network.addr().to_string()
    } else {
        network.to_string()
    }
}

/// How far a change got: `stored`, or `queued` while the store is away.
fn durability(durability: Durability) -> &'static str {
    match durability {
        Durability::Stored => "stored",
        Durability::Queued => "queued",
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Changed {
    block: Block,
    durability: &'static str,
}

impl Changed {
    /// For the audit trail: which network, how far it got.
    pub(super) fn summary(&self) -> String {
        format!("{} {}", self.block.network, self.durability)
    }

    pub(super) fn new(block: &blocklist::Block, reached: Durability) -> Self {
        Self {
            block: block.into(),
            durability: durability(reached),
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Blocks {
    pub(super) blocks: Vec<Block>,
    pub(super) total: usize,
    pub(super) offset: usize,
    pub(super) limit: usize,
}

/// The body of a block order; every field may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct BlockOrder {
    pub(super) reason: Option<String>,
    /// Absent: permanent.
    pub(super) duration_seconds: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Client {
    /// What was asked for.
    pub(super) address: String,
    /// The client it belongs to: the address, or its IPv6 network.
    client: String,
    exempt: bool,
    /// Whether the block that covers the address holds against it.
    blocked: bool,
    /// The block that covers the address. It does not hold where the address is never blocked.
    block: Option<Block>,
    strikes: u32,
    /// `null`: not limited over that time.
    remaining_minute: Option<u32>,
    remaining_hour: Option<u32>,
}

impl Client {
    pub(super) fn new(address: std::net::IpAddr, report: &ClientReport) -> Self {
        Self {
            address: address.to_string(),
            client: short(report.client.network()),
            exempt: report.exempt,
            blocked: report.blocked,
            block: report.block.as_ref().map(Block::from),
            strikes: report.strikes,
            remaining_minute: report.remaining_minute,
            remaining_hour: report.remaining_hour,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GuardStats {
    admitted_requests: u64,
    limited_requests: u64,
    blocked_requests: u64,
    refused_connections: u64,
    strikes: u64,
    automatic_blocks: u64,
    blocks_in_force: u64,
    tracked_clients: u64,
}

impl GuardStats {
    pub(super) fn new(stats: &Stats) -> Self {
        Self {
            admitted_requests: stats.admitted,
            limited_requests: stats.limited,
            blocked_requests: stats.refused_blocked,
            refused_connections: stats.refused_connections,
            strikes: stats.strikes,
            automatic_blocks: stats.automatic_blocks,
            blocks_in_force: stats.blocks_in_force,
            tracked_clients: stats.tracked_clients,
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Audit {
    pub(super) entries: Vec<AuditLine>,
    pub(super) total: u64,
    pub(super) offset: usize,
    pub(super) limit: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct AuditLine {
    at: String,
    actor: String,
    from: String,
    action: String,
    subject: String,
    result: String,
}

impl From<AuditEntry> for AuditLine {
    fn from(entry: AuditEntry) -> Self {
        Self {
            at: entry.at.to_string(),
            actor: entry.actor,
            from: entry.from.to_string(),
            action: entry.action,
            subject: entry.subject,
            result: entry.result,
        }
    }
}

/// A page of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Paging {
    #[serde(default)]
    pub(super) offset: usize,
    pub(super) limit: Option<usize>,
}

#[derive(Debug, Serialize)]
pub(super) struct Health {
    pub(super) status: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DatabaseHealth {
    pub(super) status: &'static str,
    pub(super) kind: &'static str,
    pub(super) round_trip_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct FullHealth {
    pub(super) status: &'static str,
    pub(super) version: &'static str,
    pub(super) parts: BTreeMap<&'static str, PartHealth>,
    pub(super) database: DatabaseHealth,
}

#[derive(Debug, Serialize)]
pub(super) struct PartHealth {
    pub(super) status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Me {
    pub(super) name: String,
    pub(super) role: &'static str,
    /// That of the schedules: in which people are shown times.
    pub(super) time_zone: String,
}
