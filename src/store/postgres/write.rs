//! One batch of changes as one transaction of few statements: a slow link pays by the batch, not by the row.

use std::time::SystemTime;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Transaction};

use super::{Error, block, changed, failed};
use crate::store::{Block, Change};

const DELETE: &str = "DELETE FROM foregate.blocks AS blocks
    USING unnest($1::text[], $2::timestamptz[]) AS lifted (network, at)
    WHERE blocks.network = lifted.network::cidr AND blocks.created_at <= lifted.at";

/// In the order of the networks, so that two instances do not wait for each other in a circle.
const UPSERT: &str = "INSERT INTO foregate.blocks AS blocks
        (network, reference, reason, source, created_by, created_at, expires_at)
    SELECT network::cidr, reference, reason, source, created_by, created_at, expires_at
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[])
        AS asked (network, reference, reason, source, created_by, created_at, expires_at)
    ORDER BY network::cidr
    ON CONFLICT (network) DO UPDATE SET reference = excluded.reference, reason = excluded.reason,
        source = excluded.source, created_by = excluded.created_by,
        created_at = excluded.created_at, expires_at = excluded.expires_at
    WHERE excluded.source = 'manual' AND excluded.created_at >= blocks.created_at
        OR blocks.expires_at <= excluded.created_at
        OR excluded.source = 'automatic' AND blocks.expires_at IS NOT NULL
            AND (excluded.expires_at IS NULL OR excluded.expires_at > blocks.expires_at)
    RETURNING network::text";

/// Answers with the blocks that stay where the store had a newer or a longer one. At most one change for a network.
pub(super) async fn write(client: &mut Client, changes: &[Change]) -> Result<Vec<Block>, Error> {
    let transaction = client.transaction().await.map_err(failed)?;
    lift(&transaction, changes).await?;
    let stay = upsert(&transaction, changes).await?;
    let payload = changed::encode(changes.iter().map(Change::network));
    transaction
        .query_typed("SELECT pg_notify('foregate_blocks', $1)", &[(&payload, Type::TEXT)])
        .await
        .map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok(stay)
}

async fn lift(transaction: &Transaction<'_>, changes: &[Change]) -> Result<(), Error> {
    let (networks, times): (Vec<String>, Vec<SystemTime>) = changes
        .iter()
        .filter_map(|change| Some((change.network().to_string(), SystemTime::from(change.lifts_until()?))))
        .unzip();
    if !networks.is_empty() {
        transaction
            .query_typed(
                DELETE,
                &[(&networks, Type::TEXT_ARRAY), (&times, Type::TIMESTAMPTZ_ARRAY)],
            )
            .await
            .map_err(failed)?;
    }
    Ok(())
}

async fn upsert(transaction: &Transaction<'_>, changes: &[Change]) -> Result<Vec<Block>, Error> {
    let blocks: Vec<&Block> = changes.iter().filter_map(Change::block).collect();
    if blocks.is_empty() {
        return Ok(Vec::new());
    }
    let column = |value: fn(&Block) -> String| blocks.iter().map(|block| value(block)).collect::<Vec<String>>();
    let created: Vec<SystemTime> = blocks.iter().map(|block| block.created_at.into()).collect();
    let expires: Vec<Option<SystemTime>> = blocks.iter().map(|block| block.expires_at.map(Into::into)).collect();
    let mut networks = column(|block| block.network.to_string());
    let written = transaction
        .query_typed(
            UPSERT,
            &[
                (&networks, Type::TEXT_ARRAY),
                (&column(|block| block.reference.to_string()), Type::TEXT_ARRAY),
                (&column(|block| block.reason.clone()), Type::TEXT_ARRAY),
                (&column(|block| block.source.as_str().to_owned()), Type::TEXT_ARRAY),
                (&column(|block| block.created_by.clone()), Type::TEXT_ARRAY),
                (&created, Type::TIMESTAMPTZ_ARRAY),
                (&expires, Type::TIMESTAMPTZ_ARRAY),
            ],
        )
        .await
        .map_err(failed)?;
    let written: std::collections::HashSet<String> = written.iter().filter_map(|row| row.try_get(0).ok()).collect();
    networks.retain(|network| !written.contains(network));
    if networks.is_empty() {
        return Ok(Vec::new());
    }
    let rows = transaction
        .query_typed(super::BLOCKS_OF, &[(&networks, Type::TEXT_ARRAY)])
        .await
        .map_err(failed)?;
    Ok(rows.iter().filter_map(block).collect())
}
