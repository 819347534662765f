//! Random histories against a reading that only knows the rules and tries everything.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;

use common::random::*;
use common::*;
use hindsight_catalog::{Cut, History, RestorePlan, Target, plan, redundant, slices_to_merge, timeline};
use hindsight_format::{Point, SnapshotManifest, StoredSlice, StreamPart};
use jiff::Timestamp;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Checks that a plan reads all that it must: an unbroken path from the base to the cut.
fn check(history: &History, plan: &RestorePlan, target: &Target) {
    for part in &plan.streams {
        let start = &plan.base.streams[&part.stream].last;
        assert_eq!(part.own, plan.base.streams[&part.stream].slices);
        let mut at = start.clone();
        for (index, slice) in part.log.iter().enumerate() {
            let name = &slice.name;
            assert_eq!((slice.epoch, &slice.stream), (plan.base.epoch, &part.stream));
            let amid = index == 0 && n(&name.start) < n(&at) && n(&at) < n(&name.end);
            assert!(name.start.position == at.position || amid, "{at} -> {name}");
            // Needed: what is wanted goes on after its start.
            match target {
                Target::Before(time) => assert!(at.time < *time),
                Target::Through { order, .. } => assert!(at.position.order() < order.as_str()),
                _ => {}
            }
            at = name.end.clone();
        }
        // It may be told that the log still ended there later.
        let signs = history.slices.iter().filter(|s| (s.epoch, &s.stream) == (plan.epoch, &part.stream));
        let signs = signs.filter(|s| s.name.start.position == at.position && s.name.end.position == at.position);
        let last = signs.map(|sign| sign.name.end.time).max().max(Some(at.time)).unwrap();
        match &plan.cut {
            Cut::AtSnapshotEnd => assert!(part.log.is_empty()),
            Cut::Before(time) => assert!(start.time < *time && last >= *time),
            Cut::Through { order } => {
                assert!(start.position.order() <= order.as_str() && at.position.order() >= order.as_str())
            }
        }
    }
    assert_eq!(plan.log_bytes, plan.streams.iter().map(|part| 10 * part.log.len() as u64).sum::<u64>());
    assert_eq!(plan.epoch, plan.base.epoch);
    if let Target::Before(time) = target {
        let (from, to) = plan.range.expect("it lies in a range");
        assert!(from <= *time && *time <= to);
    }
}

fn newest<'a>(fits: impl Iterator<Item = &'a SnapshotManifest>) -> Option<(u64, i64)> {
    fits.map(|base| (base.epoch, n(&base.streams["rs0"].last))).max()
}

/// Per base, how far the log leads, and until when.
fn reaches(history: &History) -> Vec<(i64, Timestamp)> {
    history.snapshots.iter().map(|base| furthest(history, base, "rs0")).map(|end| (n(&end), end.time)).collect()
}

/// Every possible base: one at each position of a log, and none else.
fn everywhere(truth: &Truth, slices: Vec<StoredSlice>) -> History {
    history((0..=LAST).map(|n| snapshot(&format!("b{n}"), truth.point(n))).collect(), slices)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn ranges_are_exactly_what_can_be_restored((truths, history) in any_history()) {
        let timeline = timeline(&history);
        for target in targets(&truths) {
            let by_hand = full(&history).any(|base| leads_to(&history, base, &target));
            let shown = timeline.ranges.iter().any(|range| match &target {
                Target::Before(time) => range.from.zip(range.to).is_some_and(|(from, to)| from <= *time && *time <= to),
                Target::Through { order, .. } => {
                    range.start.position.order() <= order.as_str() && order.as_str() <= range.end.position.order()
                }
                _ => false,
            });
            prop_assert_eq!(shown, by_hand, "{:?} in {:?}", target, timeline);
        }
        // Each full snapshot is in exactly one range, that of its epoch.
        let listed: Vec<_> = timeline.ranges.iter().flat_map(|range| &range.bases).collect();
        prop_assert_eq!(listed.len(), full(&history).count());
        for base in full(&history) {
            prop_assert_eq!(timeline.ranges.iter().filter(|r| r.bases.contains(&base.id) && r.epoch == base.epoch).count(), 1);
        }
        // Ranges of an epoch do not touch; bases are listed oldest first.
        for pair in timeline.ranges.windows(2).filter(|pair| pair[0].epoch == pair[1].epoch) {
            prop_assert!(n(&pair[0].end) < n(&pair[1].start));
        }
        for range in &timeline.ranges {
            let at: Vec<_> = range.bases.iter().map(|id| n(&history.snapshot(id).unwrap().streams["rs0"].last)).collect();
            prop_assert!(at.is_sorted());
            prop_assert_eq!(Some(&n(&range.start)), at.first());
        }
    }

    #[test]
    fn a_plan_reads_all_it_must_and_what_has_none_is_refused((truths, history) in any_history()) {
        for target in targets(&truths) {
            let fits = full(&history).filter(|base| leads_to(&history, base, &target));
            match (plan(&history, &target, None, at(NOW)), newest(fits)) {
                (Ok(plan), Some(best)) => {
                    check(&history, &plan, &target);
                    prop_assert_eq!((plan.base.epoch, n(&plan.base.streams["rs0"].last)), best);
                    prop_assert!(plan.base.namespaces.is_empty());
                }
                (Err(refusal), None) => {
                    prop_assert!(!refusal.to_string().contains('\n') && !refusal.hint().contains('\n'));
                    prop_assert!(!refusal.hint().is_empty());
                }
                (got, best) => prop_assert!(false, "{:?}: {:?} but {:?}", target, got, best),
            }
            for base in &history.snapshots {
                match plan(&history, &target, Some(&base.id), at(NOW)) {
                    Ok(plan) => {
                        prop_assert_eq!(&plan.base, base);
                        check(&history, &plan, &target);
                        prop_assert!(leads_to(&history, base, &target));
                    }
                    Err(refusal) => prop_assert!(!leads_to(&history, base, &target), "{}", refusal),
                }
            }
        }
    }

    #[test]
    fn what_a_refusal_offers_can_be_restored((truths, history) in any_history()) {
        use hindsight_catalog::{Nearest, Refusal::*};
        for target in targets(&truths) {
            let Err(refusal) = plan(&history, &target, None, at(NOW)) else { continue };
            let offered = match refusal {
                InFuture { end, .. } => vec![end],
                AfterEnd { end, .. } => vec![Some(end)],
                BeforeFirst { earliest, .. } => vec![Some(earliest)],
                InGap { before, after, .. } => vec![before, after],
                SelectiveBase { name, .. } => {
                    prop_assert!(plan(&history, &target, Some(&name), at(NOW)).is_ok());
                    vec![]
                }
                NoSnapshots => { prop_assert_eq!(full(&history).count(), 0); vec![] }
                other => { prop_assert!(false, "{}", other); vec![] }
            };
            for nearest in offered.into_iter().flatten() {
                let near = match nearest {
                    Nearest::Time(time) => Target::Before(time),
                    Nearest::Snapshot { id, .. } => Target::Snapshot(id),
                };
                prop_assert!(plan(&history, &near, None, at(NOW)).is_ok(), "{:?}", near);
            }
        }
    }

    #[test]
    fn the_latest_is_the_end_of_the_newest_history((_, history) in any_history()) {
        let last = full(&history).map(|base| (base.epoch, n(&furthest(&history, base, "rs0")))).max();
        match plan(&history, &Target::Latest, None, at(NOW)) {
            Ok(plan) => {
                let end = plan.streams[0].log.last().map_or(&plan.base.streams["rs0"].last, |slice| &slice.name.end);
                prop_assert_eq!(Some((plan.epoch, n(end))), last);
                check(&history, &plan, &Target::Latest);
            }
            Err(_) => prop_assert_eq!(last, None),
        }
    }

    #[test]
    fn gaps_and_unbacked_log_lie_outside_the_ranges((_, history) in any_history()) {
        let timeline = timeline(&history);
        for gap in &timeline.gaps {
            prop_assert!(gap.start.is_some() && !gap.cause.is_empty());
            prop_assert!(gap.end.position.order() >= gap.start.as_ref().unwrap().position.order() || gap.epoch == 2);
        }
        for range in &timeline.ranges {
            for log in timeline.unbacked.iter().filter(|log| log.epoch == range.epoch) {
                prop_assert!(n(&log.end) <= n(&range.start) || n(&range.end) <= n(&log.start), "{:?} {:?}", log, range);
            }
        }
        for log in &timeline.unbacked {
            let held = |at| history.slices.iter().any(|s| s.epoch == log.epoch && n(&s.name.start) < at && at <= n(&s.name.end));
            prop_assert!((n(&log.start) + 1..=n(&log.end)).all(held), "{:?}", log);
        }
        // All that is stored is either in a range or listed as unbacked.
        for slice in &history.slices {
            for at in n(&slice.name.start) + 1..=n(&slice.name.end) {
                let ranges = timeline.ranges.iter().map(|r| (r.epoch, &r.start, &r.end));
                let mut all = ranges.chain(timeline.unbacked.iter().map(|u| (u.epoch, &u.start, &u.end)));
                let known = all.any(|(epoch, start, end)| epoch == slice.epoch && n(start) < at && at <= n(end));
                let lost = slice_is_dead_end(&history, slice);
                prop_assert!(known || lost, "{} of {:?}", at, bounds(slice));
            }
        }
    }

    #[test]
    fn merging_and_deleting_leave_all_that_can_be_restored(
        (truth, slices) in truth().prop_flat_map(|truth| (Just(truth.clone()), log(truth))),
        span in 1_u32..3,
        stretch in select(vec![1_i64, 20, 60]),
        max_bytes in select(vec![0_u64, 20, 30, 1000]),
        deleted in prop::collection::vec(any::<bool>(), 64),
    ) {
        // Windows are minutes.
        let truth = Truth { seconds: truth.seconds.iter().map(|s| s * stretch).collect(), ..truth };
        let restamp = |p: &Point| point(n(p), truth.seconds[n(p) as usize], p.position.tag().parse().unwrap());
        let mut slices = slices;
        for slice in &mut slices {
            let later = if slice.name.is_sign_of_life() { number(slice.name.end.time) - number(slice.name.start.time) } else { 0 };
            (slice.name.start, slice.name.end) = (restamp(&slice.name.start), restamp(&slice.name.end));
            slice.name.end.time = at(number(slice.name.end.time) + later);
        }
        let before = reaches(&everywhere(&truth, slices.clone()));

        let groups = slices_to_merge(&slices, span, None, max_bytes);
        let again = slices_to_merge(&slices.iter().rev().cloned().collect::<Vec<_>>(), span, None, max_bytes);
        prop_assert_eq!(&groups, &again);
        let newest = slices.iter().map(|slice| slice.name.end.time).max();
        let window = |time: Timestamp| time.as_second().div_euclid(60 * i64::from(span));
        let mut parts = BTreeSet::new();
        for group in &groups {
            prop_assert!(group.len() > 1);
            prop_assert!(group.iter().map(|s| s.stored_bytes).sum::<u64>() <= max_bytes);
            prop_assert!(group.windows(2).all(|g| g[0].name.end.position == g[1].name.start.position));
            prop_assert!(group.iter().all(|s| window(s.name.start.time) == window(group[0].name.start.time)));
            prop_assert!(window(group[0].name.start.time) < window(newest.unwrap()));
            for part in group {
                prop_assert!(parts.insert(part.name.to_string()), "a slice is in two groups");
            }
            let (first, last) = (&group[0].name.start, &group[group.len() - 1].name.end);
            slices.push(slice(first.clone(), last.clone(), 50));
        }
        let merged = everywhere(&truth, slices.clone());
        prop_assert_eq!(&reaches(&merged), &before);

        // The deletion is cut off: any of the redundant ones are gone.
        let leftover = redundant(&slices);
        for (group, whole) in groups.iter().zip(&slices[slices.len() - groups.len()..]) {
            prop_assert!(!leftover.contains(whole), "the merged slice itself");
            for part in group {
                let elsewhere = slices.iter().any(|s| s.name.start != part.name.start && s.name.end.position == part.name.start.position);
                let onward = slices.iter().any(|s| s.name.start.position == part.name.end.position);
                prop_assert!(leftover.contains(part) || elsewhere || onward, "{:?}", bounds(part));
            }
        }
        let mut kept = slices.clone();
        let mut fates = deleted.into_iter().chain(std::iter::repeat(true));
        kept.retain(|slice| !(leftover.contains(slice) && fates.next() == Some(true)));
        prop_assert_eq!(&reaches(&everywhere(&truth, kept.clone())), &before);

        // Tidied up later: as good, and it comes to an end.
        loop {
            let rest = redundant(&kept);
            if rest.is_empty() {
                break;
            }
            kept.retain(|slice| !rest.contains(slice));
            prop_assert_eq!(&reaches(&everywhere(&truth, kept.clone())), &before);
        }
    }

    #[test]
    fn with_several_streams_all_of_them_count(
        (a, b) in (truth(), truth()),
        seed in (any::<Index>(), any::<Index>()),
        (one, two) in truth().prop_flat_map(|t| (log(t.clone()), log(t))),
        starts in prop::collection::vec((0..=LAST, 0..=LAST), 1..4),
    ) {
        let _ = seed;
        let restamp = |truth: &Truth, s: &StoredSlice, stream: &str| {
            let mut s = StoredSlice { stream: stream.into(), ..s.clone() };
            (s.name.start, s.name.end) = (truth.point(n(&s.name.start)), truth.point(n(&s.name.end)));
            s
        };
        let slices = one.iter().map(|s| restamp(&a, s, "rs0")).chain(two.iter().map(|s| restamp(&b, s, "rs1"))).collect();
        let snapshots = starts.iter().enumerate().map(|(index, &(x, y))| {
            let mut base = snapshot(&format!("b{index}"), a.point(x));
            let last = b.point(y);
            base.streams.insert("rs1".into(), StreamPart { first: last.clone(), last, slices: vec![] });
            base
        });
        let history = history(snapshots.collect(), slices);
        let timeline = timeline(&history);
        let end = a.seconds.last().max(b.seconds.last()).unwrap() + 3;
        for target in (-1..end).map(|second| Target::Before(at(second))) {
            let Target::Before(time) = target else { unreachable!() };
            let by_hand = full(&history).any(|base| leads_to(&history, base, &target));
            let shown = timeline.ranges.iter().any(|r| r.from.zip(r.to).is_some_and(|(from, to)| from <= time && time <= to));
            prop_assert_eq!(shown, by_hand, "{:?} in {:?}", target, timeline);
            match plan(&history, &target, None, at(NOW)) {
                Ok(plan) => {
                    prop_assert!(by_hand);
                    prop_assert_eq!(plan.streams.len(), 2);
                    check(&history, &plan, &target);
                }
                Err(_) => prop_assert!(!by_hand),
            }
        }
        if let Ok(plan) = plan(&history, &Target::Latest, None, at(NOW)) {
            check(&history, &plan, &Target::Latest);
            let last = timeline.ranges.iter().filter_map(|range| range.to).max();
            prop_assert!(last <= Some(plan.range.map_or(plan.base.restore_time(), |(_, to)| to)));
        }
    }
}

/// Whether a slice is on no run at all: from where it starts, another way leads further, and it
/// ends where nothing goes on.
fn slice_is_dead_end(history: &History, slice: &StoredSlice) -> bool {
    let base = in_epoch(slice.epoch, snapshot("x", slice.name.start.clone()));
    n(&furthest(history, &base, "rs0")) > n(&slice.name.end)
}
