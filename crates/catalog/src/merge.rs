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
/// only some of the redundant slices are deleted. A sign of life is redundant where the log has gone on, or a later one repeats it.
/// Slices of any [`chains`](crate::chains) path are
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
    let signs = slices.iter().filter(|slice| slice.name.is_sign_of_life() && !log.needs(slice));
    leftover.map(|(slice, _)| *slice).chain(signs).cloned().collect()
}

fn spans(whole: &StoredSlice, part: &StoredSlice) -> bool {
    (start(whole) == start(part) || start(whole).order() < start(part).order())
        && (end(whole) == end(part) || end(whole).order() > end(part).order())
}

fn leads_as_far(log: &Log<'_>, whole: usize, part: usize) -> bool {
    let (whole, part) = (&log.reach(whole).position, &log.reach(part).position);
    whole == part || whole.order() > part.order()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hindsight_format::{Point, SliceName};

    use super::*;

    /// `(start, end]` of `bytes`: position n is at second n.
    fn slice(from: i64, to: i64, fence: u64, bytes: u64) -> StoredSlice {
        let point = |n: i64| Point {
            time: Timestamp::from_second(n).unwrap(),
            position: Position::new(format!("{n:06}"), "1").unwrap(),
        };
        let name = SliceName { start: point(from), end: point(to), fence };
        StoredSlice { stream: "rs0".into(), epoch: 1, name, stored_bytes: bytes }
    }

    /// A slice every 20 seconds up to `end`.
    fn every_20(end: i64) -> Vec<StoredSlice> {
        (0..end / 20).map(|n| slice(n * 20, n * 20 + 20, 1, 10)).collect()
    }

    fn bounds(slices: &[StoredSlice]) -> Vec<(i64, i64)> {
        slices.iter().map(|s| (s.name.start.time.as_second(), s.name.end.time.as_second())).collect()
    }

    fn groups(slices: &[StoredSlice], limit: Option<i64>, max_bytes: u64) -> Vec<Vec<(i64, i64)>> {
        let limit = limit.map(|second| Timestamp::from_second(second).unwrap());
        slices_to_merge(slices, 1, limit, max_bytes).iter().map(|group| bounds(group)).collect()
    }

    #[test]
    fn complete_windows_are_merged_and_the_newest_is_left_alone() {
        let minute = vec![(0, 20), (20, 40), (40, 60)];
        assert_eq!(groups(&every_20(100), None, 1000), vec![minute.clone()]);
        // A limit holds back what the newest slice would allow.
        assert_eq!(groups(&every_20(180), Some(119), 1000), vec![minute.clone()]);
        assert_eq!(groups(&every_20(40), None, 1000), Vec::<Vec<_>>::new());
        assert_eq!(groups(&[], None, 1000), Vec::<Vec<_>>::new());
    }

    #[test]
    fn no_group_outgrows_its_limit() {
        assert_eq!(groups(&every_20(60), None, 20), vec![vec![(0, 20), (20, 40)]]);
        assert_eq!(groups(&every_20(60), None, 10), Vec::<Vec<_>>::new());
        let mut slices = every_20(60);
        slices[1].stored_bytes = 5000;
        assert_eq!(groups(&slices, None, 100), Vec::<Vec<_>>::new());
    }

    #[test]
    fn what_does_not_meet_is_not_merged() {
        let mut slices = every_20(120);
        slices.remove(1);
        assert_eq!(groups(&slices, None, 1000), vec![vec![(60, 80), (80, 100), (100, 120)]]);
    }

    #[test]
    fn what_is_merged_is_not_merged_again() {
        let mut slices = every_20(100);
        slices.push(slice(0, 60, 2, 25));
        assert_eq!(groups(&slices, None, 1000), Vec::<Vec<_>>::new());
        assert_eq!(bounds(&redundant(&slices)), [(0, 20), (20, 40), (40, 60)]);
        slices.retain(|s| s.name.fence == 2 || s.name.start.time.as_second() >= 60);
        assert_eq!(redundant(&slices), vec![]);
    }

    #[test]
    fn whatever_a_cut_off_deletion_left_is_found_again() {
        let parts = every_20(60);
        for left in 0..8_usize {
            let left: Vec<_> =
                parts.iter().enumerate().filter(|(n, _)| left & (1 << n) != 0).map(|(_, s)| s.clone()).collect();
            let slices = [left.clone(), vec![slice(0, 60, 2, 25), slice(60, 90, 1, 10)]].concat();
            assert_eq!(redundant(&slices), left);
        }
    }

    #[test]
    fn a_slice_by_which_others_come_in_is_kept() {
        // (10,30] spans (20,30], but what came by (0,20] goes on only there.
        let slices = vec![slice(0, 20, 1, 1), slice(20, 30, 1, 1), slice(10, 30, 2, 1)];
        assert_eq!(redundant(&slices), vec![]);
    }

    #[test]
    fn a_slice_that_leads_further_is_kept() {
        // From 20 the log goes on, from 30 it does not.
        let slices = vec![slice(0, 20, 1, 1), slice(20, 50, 1, 1), slice(0, 30, 2, 1)];
        assert_eq!(redundant(&slices), vec![]);
    }

    #[test]
    fn a_slice_with_which_the_log_may_yet_go_on_is_kept() {
        // No run needs (10,20], as (0,15],(15,60] lead further; but (5,30] does not lead to 50.
        let slices = [(0, 15), (15, 60), (5, 30), (10, 20), (20, 50)].map(|(from, to)| slice(from, to, 1, 1));
        assert_eq!(redundant(&slices), vec![]);
    }

    #[test]
    fn a_false_clock_does_not_make_a_hole_in_a_merged_slice() {
        let mut slices = every_20(100);
        slices[1].name.start.time = Timestamp::from_second(99).unwrap();
        assert_eq!(groups(&slices, None, 1000), Vec::<Vec<_>>::new());
    }

    #[test]
    fn of_the_same_bounds_the_higher_fence_is_kept() {
        let slices = vec![slice(0, 20, 1, 1), slice(0, 20, 2, 1)];
        assert_eq!(redundant(&slices), vec![slice(0, 20, 1, 1)]);
    }
}
