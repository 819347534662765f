//! What damage costs: the moments that could be restored with something, and cannot without it.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::timeline::Timeline;

/// Whole seconds that cannot be restored any more, both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The epoch of the cluster's history.
    pub epoch: u64,
    /// The first.
    pub from: Timestamp,
    /// The last.
    pub to: Timestamp,
}

/// What can be restored by `before` and not by `after`: by epoch and time.
pub fn lost(before: &Timeline, after: &Timeline) -> Vec<Lost> {
    let second = SignedDuration::from_secs(1);
    let mut left = seconds(after);
    let mut lost = Vec::new();
    for (epoch, had) in seconds(before) {
        let has = left.remove(&epoch).unwrap_or_default();
        for (from, to) in had {
            let mut at = from;
            for &(start, end) in has.iter().filter(|(start, end)| *end >= from && *start <= to) {
                if start > at {
                    lost.push(Lost { epoch, from: at, to: start - second });
                }
                at = at.max(end + second);
            }
            if at <= to {
                lost.push(Lost { epoch, from: at, to });
            }
        }
    }
    lost
}

/// First and last second of each range, by epoch, in order.
fn seconds(timeline: &Timeline) -> BTreeMap<u64, Vec<(Timestamp, Timestamp)>> {
    let mut seconds: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for range in &timeline.ranges {
        if let Some(both) = range.from.zip(range.to) {
            seconds.entry(range.epoch).or_default().push(both);
        }
    }
    for ranges in seconds.values_mut() {
        ranges.sort_unstable();
    }
    seconds
}
