//! Tidying up: which small slices become one, and which are left over from that.

use std::collections::HashMap;

use hindsight_format::{Position, StoredSlice};
use jiff::Timestamp;

use crate::log::{Log, end, start};

/// Groups of slices to store as one slice each; `slices` are of one stream and epoch.
///
/// A group is a run of at least two meeting slices that start within the same window: the time line
/// cut into pieces of `span_minutes` since 1970. Only windows that end no later than `tail_limit`
/// (or else the newest slice) are merged, as nothing can be added to them any more, and no group
/// holds more than `max_bytes`, as stored now. The same slices give the same groups.
pub fn slices_to_merge(
    slices: &[StoredSlice],
    span_minutes: u32,
    tail_limit: Option<Timestamp>,
    max_bytes: u64,
) -> Vec<Vec<StoredSlice>> {
    let span = i64::from(span_minutes.max(1)) * 60;
    let Some(limit) = tail_limit.or_else(|| slices.iter().map(|slice| slice.name.end.time).max()) else {
        return Vec::new();
    };
    let window = |slice: &StoredSlice| slice.name.start.time.as_second().div_euclid(span);
    let is_complete = |window: i64| (window + 1).saturating_mul(span) <= limit.as_second();

    let log = Log::new(slices);
    let mut groups: Vec<Vec<StoredSlice>> = Vec::new();
    for run in log.runs() {
        let mut group: Vec<StoredSlice> = Vec::new();
        let mut bytes = 0_u64;
        for slice in log.path(run).map(|index| log.slices()[index]).filter(|slice| is_complete(window(slice))) {
            bytes = bytes.saturating_add(slice.stored_bytes);
            let goes_on = group.last().is_some_and(|last| window(last) == window(slice) && end(last) == start(slice));
            if !goes_on || bytes > max_bytes {
                groups.push(std::mem::take(&mut group));
                bytes = slice.stored_bytes;
            }
            group.push(slice.clone());
        }
        groups.push(group);
    }
    groups.retain(|group| group.len() > 1);
    groups
}

/// The slices that nothing needs, because a larger one (or one under a higher fence) holds all that
/// they hold: what is left when a merge was cut off before the parts were deleted. `slices` are of
/// one stream and epoch.
///
/// A slice is redundant beside another that spans it when every path that leads into it comes from
/// within the other, or from its very start, and no path leads further from its end than from the
/// other's. So whatever could be restored without deleting can be restored after it, also when
/// only some of the redundant slices are deleted. Slices of any [`chains`](crate::chains) path are
/// never among them.
pub fn redundant(slices: &[StoredSlice]) -> Vec<StoredSlice> {
    let log = Log::new(slices);
    let all = log.slices();
    let mut needed = vec![false; all.len()];
    for index in log.runs().into_iter().flat_map(|run| log.path(run)) {
        needed[index] = true;
    }
    let mut arrivals: HashMap<&Position, Vec<usize>> = HashMap::with_capacity(all.len());
    for (index, slice) in all.iter().enumerate() {
        arrivals.entry(end(slice)).or_default().push(index);
    }

    let mut covered = vec![false; all.len()];
    for (outer, whole) in all.iter().enumerate() {
        // What spans this one came before it, and spans all that this one does.
        if covered[outer] {
            continue;
        }
        // Positions within the whole, and whether every path into them comes from within it.
        let mut closed: HashMap<&Position, bool> = HashMap::new();
        for (index, part) in all.iter().enumerate().skip(outer + 1) {
            if start(part).order() >= end(whole).order() {
                break;
            }
            if start(part) != start(whole) && !closed.contains_key(start(part)) {
                // Slices are sorted by start, so that what arrives from within is known already.
                let mut origins = arrivals.get(start(part)).into_iter().flatten().map(|&index| start(all[index]));
                let is_closed = origins.all(|from| from == start(whole) || closed.get(from) == Some(&true));
                closed.insert(start(part), is_closed);
            }
            let is_entered_within = start(part) == start(whole) || closed.get(start(part)) == Some(&true);
            if is_entered_within && spans(whole, part) && leads_as_far(&log, outer, index) {
                covered[index] = true;
            }
        }
    }
    let leftover = all.iter().zip(covered.iter().zip(&needed)).filter(|(_, (covered, needed))| **covered && !**needed);
    leftover.map(|(slice, _)| (*slice).clone()).collect()
}

fn spans(whole: &StoredSlice, part: &StoredSlice) -> bool {
    (start(whole) == start(part) || start(whole).order() < start(part).order())
        && (end(whole) == end(part) || end(whole).order() > end(part).order())
}

fn leads_as_far(log: &Log<'_>, whole: usize, part: usize) -> bool {
    let (whole, part) = (&log.reach(whole).position, &log.reach(part).position);
    whole == part || whole.order() > part.order()
}
