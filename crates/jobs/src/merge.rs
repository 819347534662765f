//! Merging small slices into large ones, so that a recovery point of seconds does not cost an
//! object every few seconds for ever.

use hindsight_catalog::{redundant, slices_to_merge};
use hindsight_format::StoredSlice;
use hindsight_repository::{ClusterRepository, Lease, merge_slices};
use jiff::Timestamp;

use crate::Result;

/// Stored bytes of a merged slice at most.
const MAX_BYTES: u64 = 256 << 20;

/// Merges what is complete among `slices` (one stream and epoch), and removes what merging has left
/// behind. Returns the slices as they are afterwards. The agent does this beside the capture.
///
/// `lease` is that of the capture. What ends after `tail_limit` (the newest slice, where there is none) may
/// still be added to.
pub async fn merge(
    cluster: &ClusterRepository,
    lease: &Lease,
    mut slices: Vec<StoredSlice>,
    span_min: u32,
    level: i32,
    tail_limit: Option<Timestamp>,
) -> Result<Vec<StoredSlice>> {
    for leftover in redundant(&slices) {
        if lease.lost().is_cancelled() {
            return Ok(slices);
        }
        cluster.delete_slice(&leftover).await?;
        slices.retain(|slice| *slice != leftover);
    }
    // In a sealed repository the agent reads only what it has captured itself.
    let readable: Vec<_> = slices.iter().filter(|slice| cluster.can_read(slice)).cloned().collect();
    for group in slices_to_merge(&readable, span_min, tail_limit, MAX_BYTES) {
        if lease.lost().is_cancelled() {
            return Ok(slices);
        }
        let Some(first) = group.first() else { continue };
        let merged = merge_slices(cluster, &first.stream, first.epoch, &group, lease.fence(), level).await?;
        tracing::debug!(slices = group.len(), into = %merged.name, "merged");
        slices.retain(|slice| !group.contains(slice));
        slices.push(merged);
    }
    Ok(slices)
}
