//! Tidying up: which small slices become one, and which are left over from that.

use hindsight_format::StoredSlice;
use jiff::Timestamp;

/// Groups of small slices to store as one slice each.
pub fn slices_to_merge(
    slices: &[StoredSlice],
    span_minutes: u32,
    tail_limit: Option<Timestamp>,
    max_bytes: u64,
) -> Vec<Vec<StoredSlice>> {
    let _ = (slices, span_minutes, tail_limit, max_bytes);
    Vec::new()
}

/// The slices that nothing needs any more because a larger one holds the same.
pub fn redundant(slices: &[StoredSlice]) -> Vec<StoredSlice> {
    let _ = slices;
    Vec::new()
}
