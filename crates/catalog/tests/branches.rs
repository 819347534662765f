//! Epochs that branch off others: as if what counts for both were stored under both.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::random::*;
use common::*;
use hindsight_catalog::{
    History, Holder, Loss, Need, Refusal, Removal, Target, Wish, chains, losses, plan, removal, timeline,
    to_build_upon, trails, without,
};
use hindsight_format::{DamagedRecord, Place, SnapshotManifest, StoredSlice};
use proptest::prelude::*;

/// A base and log up to 40; another server that has it up to somewhere behind 30, and has gone on by itself up to 60.
fn failover() -> History {
    let mut all = history(vec![base("a", 10)], vec![s(10, 20), s(20, 30), s(30, 40)]);
    all.slices.push(in_epoch(2, slice(p(30), point(45, 45, 2), 2)));
    all.slices.push(in_epoch(2, slice(point(45, 45, 2), point(60, 60, 2), 2)));
    all.epochs.push(branched(2, 1, p(30)));
    all
}

fn before(history: &History, second: i64) -> (String, Vec<(i64, i64)>, u64) {
    let plan = plan(history, &Target::Before(at(second)), None, at(1000)).unwrap();
    let (base, log) = read(&plan);
    (base, log, plan.epoch)
}

/// Ranges with their epochs.
fn ranges(history: &History) -> Vec<(u64, Seen)> {
    timeline(history).ranges.iter().map(|range| (range.epoch, seen(range))).collect()
}

#[test]
fn every_moment_after_a_failover_with_loss_is_restored_from_the_base_before_it() {
    let all = failover();
    let found = timeline(&all);
    let whole = (2, want(&["a"], 10, 60, Some((11, 60))));
    assert_eq!(ranges(&all), [(1, want(&["a"], 30, 40, Some((31, 40)))), whole]);
    assert_eq!(
        found.ranges.iter().map(|range| range.left_behind.as_deref()).collect::<Vec<_>>(),
        [Some("left 1"), None]
    );
    assert_eq!((found.gaps, found.unbacked), (vec![], vec![]));
    // Before it, between it and any other base, and after.
    assert_eq!(before(&all, 25), ("a".into(), vec![(10, 20), (20, 30)], 2));
    assert_eq!(before(&all, 38), ("a".into(), vec![(10, 20), (20, 30), (30, 45)], 2));
    assert_eq!(before(&all, 60), ("a".into(), vec![(10, 20), (20, 30), (30, 45), (45, 60)], 2));
    // What was lost is there where it is asked for.
    assert_eq!(before(&all.clone().until_epoch(1), 38), ("a".into(), vec![(10, 20), (20, 30), (30, 40)], 1));
    let latest = plan(&all.until_epoch(1), &Target::Latest, None, at(1000)).unwrap();
    assert_eq!((latest.epoch, latest.range), (1, Some((at(11), at(40)))));
}

#[test]
fn what_the_server_never_had_is_in_no_later_epoch() {
    let mut all = failover();
    // A base of what was lost leads nowhere else.
    all.snapshots.push(base("b", 35));
    assert_eq!(ranges(&all)[0], (1, want(&["a", "b"], 30, 40, Some((31, 40)))));
    assert_eq!(before(&all, 50).0, "a");
    assert!(plan(&all, &Target::Before(at(50)), Some("b"), at(1000)).is_err());
    // Nor does the log that ended there at a later time.
    let mut all = failover();
    all.slices.retain(|slice| slice.epoch == 1 && slice.name.end != p(40));
    all.slices.push(sign(p(30), 9));
    assert_eq!(ranges(&all), [(1, want(&["a"], 30, 30, Some((31, 39)))), (2, want(&["a"], 10, 30, Some((11, 30))))]);
}

#[test]
fn an_epoch_without_a_branch_has_no_other_past() {
    let mut all = failover();
    all.epochs[0].branch = None;
    assert_eq!(ranges(&all), [(1, want(&["a"], 10, 40, Some((11, 40))))]);
    assert_eq!(timeline(&all).unbacked.len(), 1);
    assert_eq!(timeline(&all).gaps.len(), 1);
}

#[test]
fn branches_of_branches_go_back_to_the_first() {
    let mut all = failover();
    // Off the second, behind where that began, and before.
    for (left, expected) in [(45, vec![(10, 20), (20, 30), (30, 45), (45, 70)]), (20, vec![(10, 20), (20, 70)])] {
        let from = if left == 45 { point(45, 45, 2) } else { p(20) };
        let mut third = all.clone();
        third.slices.push(in_epoch(3, slice(from.clone(), point(70, 70, 3), 3)));
        third.epochs.push(branched(3, 2, from));
        assert_eq!(before(&third, 70), ("a".into(), expected, 3));
        assert_eq!(before(&third.clone().until_epoch(2), 60).2, 2);
        assert_eq!((timeline(&third).gaps, timeline(&third).unbacked), (vec![], vec![]));
        let told: Vec<_> = ranges(&third).into_iter().map(|(epoch, range)| (epoch, range.1, range.2)).collect();
        let second = if left == 45 { (2, 45, 60) } else { (2, 20, 60) };
        assert_eq!(told, [(1, 30, 40), second, (3, 10, 70)]);
    }
    // A restore breaks off all of it.
    all.epochs.push(restored(3, "r", 61));
    all.slices.push(in_epoch(3, s(60, 70)));
    assert_eq!(timeline(&all).gaps.len(), 1);
    assert_eq!(before(&all, 60).2, 2);
}

#[test]
fn a_gap_is_told_once_where_it_is_recorded() {
    let mut all = failover();
    all.slices.retain(|slice| slice.name.start != p(10));
    all.snapshots.push(base("b", 25));
    all.gaps = vec![gap(10, 20, "the server was away")];
    let told: Vec<_> = timeline(&all).gaps.iter().map(|gap| (gap.epoch, hole(gap).0, hole(gap).1)).collect();
    assert_eq!(told, [(1, 10, 20)]);
    // Log that no base leads into, too.
    all.snapshots.retain(|snapshot| snapshot.id == "a");
    let unbacked = timeline(&all).unbacked;
    let unbacked: Vec<_> = unbacked.iter().map(|log| (log.epoch, n(&log.start), n(&log.end))).collect();
    assert_eq!(unbacked, [(1, 20, 40), (2, 30, 60)]);
    // What is missing right before the branch is missing to both.
    let mut all = failover();
    all.slices.retain(|slice| slice.name.end != p(30));
    assert!(timeline(&all).gaps.iter().any(|gap| gap.epoch == 2 && !gap.explained));
    assert_eq!(before(&all, 20).1, [(10, 20)]);
}

#[test]
fn chains_trails_and_parents_go_back_over_the_branch() {
    let all = failover();
    let second: Vec<_> = chains(&all).into_iter().filter(|chain| chain.epoch == 2).collect();
    assert_eq!(second.iter().map(links).collect::<Vec<_>>(), [[(10, 20), (20, 30), (30, 45), (45, 60)]]);
    assert_eq!(trails(&all, 2)[0].iter().map(n).collect::<Vec<_>>(), [30, 60]);
    assert_eq!(to_build_upon(&all, 2, None).unwrap().id, "a");
    assert_eq!(all.snapshots_of(2).count(), 1);
    assert_eq!(all.slices_of(2).count(), 4);
}

fn told(removal: &Removal) -> Vec<(u64, i64, i64)> {
    let seconds = |loss: &Loss| loss.seconds.map(|(from, to)| (loss.epoch, number(from), number(to)));
    removal.losses.iter().filter_map(seconds).collect()
}

#[test]
fn what_a_later_epoch_rests_on_stays() {
    let all = failover();
    for wish in [
        Wish::Everything { before: at(50) },
        Wish::Snapshots { before: at(50), sort: None },
        Wish::Log { before: Some(at(50)) },
        Wish::Retention { before: Some(at(50)), count: 0 },
        Wish::Retention { before: None, count: 1 },
    ] {
        for capturing in [None, Some(2)] {
            let plan = removal(&all, &[], &wish, capturing).unwrap();
            assert!(plan.snapshots.is_empty() && plan.slices.is_empty(), "{wish:?}: {plan:?}");
        }
    }
    let refused = removal(&all, &[], &Wish::Snapshot("a".into()), Some(2)).unwrap_err();
    assert_eq!(refused, Refusal::LastPitrBase { name: "a".into() });
    // Where nothing is captured it may go, and it is said what that costs: each moment once.
    let plan = removal(&all, &[], &Wish::Snapshot("a".into()), None).unwrap();
    assert_eq!(told(&plan), [(1, 31, 40), (2, 11, 60)]);
    assert!(plan.left.is_empty());
}

#[test]
fn with_a_base_of_its_own_the_old_one_goes_and_what_that_costs_is_told() {
    let mut all = failover();
    all.snapshots.push(in_epoch(2, snapshot("b", point(50, 50, 2))));
    let plan = removal(&all, &[], &Wish::Everything { before: at(55) }, Some(2)).unwrap();
    assert_eq!(plan.kept_snapshots, [("b".into(), Need::Capture)]);
    assert_eq!(plan.snapshots.len(), 1);
    assert_eq!(
        plan.slices.iter().map(|slice| (slice.epoch, bounds(slice))).collect::<Vec<_>>(),
        [(1, (10, 20)), (1, (20, 30)), (1, (30, 40)), (2, (30, 45))]
    );
    assert_eq!(told(&plan), [(1, 31, 40), (2, 11, 50)]);
    // Both are kept where two are to be.
    let kept = removal(&all, &[], &Wish::Retention { before: None, count: 2 }, Some(2)).unwrap();
    assert!(kept.is_empty(), "{kept:?}");
    // A slice that both need costs both.
    let mut damaged = all.clone();
    damaged.slices.retain(|slice| slice.name.end != p(20));
    let lost: Vec<_> = losses(&all, &damaged).iter().map(|loss| (loss.epoch, n(&loss.from), n(&loss.to))).collect();
    assert_eq!(lost, [(1, 30, 40), (2, 10, 50)]);
}

#[test]
fn parts_that_were_merged_across_the_branch_stay_for_the_later_epoch() {
    let mut all = failover();
    all.slices.push(slice(p(20), p(40), 5));
    assert_eq!(before(&all, 60).1, [(10, 20), (20, 30), (30, 45), (45, 60)]);
    let plan = removal(&all, &[], &Wish::Everything { before: at(50) }, Some(2)).unwrap();
    assert_eq!(plan.slices.iter().map(bounds).collect::<Vec<_>>(), [(30, 40)]);
    assert_eq!((plan.redundant, told(&plan)), (1, vec![]));
}

#[test]
fn nothing_older_goes_by_age_while_it_cannot_be_read_what_an_epoch_has_of_it() {
    let mut all = failover();
    all.epochs.clear();
    let key = "clusters/rs0/epochs/000002.json".to_owned();
    all.damaged = vec![DamagedRecord { why: format!("{key} is damaged: odd"), key, place: Place::Epoch(2) }];
    all.snapshots.push(in_epoch(2, snapshot("b", point(50, 50, 2))));
    for wish in [
        Wish::Everything { before: at(55) },
        Wish::Snapshots { before: at(55), sort: None },
        Wish::Log { before: Some(at(55)) },
        Wish::Retention { before: Some(at(55)), count: 1 },
    ] {
        let plan = removal(&all, &[], &wish, Some(2)).unwrap();
        assert!(plan.snapshots.is_empty() && plan.slices.iter().all(|slice| slice.epoch == 2), "{wish:?}: {plan:?}");
    }
    let plan = removal(&all, &[], &Wish::Everything { before: at(55) }, Some(2)).unwrap();
    assert_eq!(plan.kept_snapshots[0], ("a".into(), Need::UnreadEpoch(2)));
    let mut log = all.clone();
    log.snapshots.retain(|snapshot| snapshot.id == "b");
    let plan = removal(&log, &[], &Wish::Everything { before: at(55) }, Some(2)).unwrap();
    assert_eq!((&plan.kept_log[0].holder, plan.kept_log[0].slices), (&Holder::UnreadEpoch(2), 3));
    // By its name it goes.
    assert_eq!(removal(&all, &[], &Wish::Snapshot("a".into()), Some(2)).unwrap().snapshots.len(), 1);
}

/// A log that is another one up to a position.
fn after(old: &Truth, new: &Truth, left: i64) -> Truth {
    let left = left as usize;
    let mut truth = old.clone();
    for n in left + 1..truth.seconds.len() {
        truth.seconds[n] = old.seconds[left] + new.seconds[n] - new.seconds[left];
        truth.tags[n] = old.tags[left] + 100 + new.tags[n];
    }
    truth
}

/// Epochs of which each branches off the one before, or does not.
fn any_branches() -> impl Strategy<Value = (BTreeMap<u64, Truth>, History)> {
    let more = prop::collection::vec((truth(), 0..=LAST, prop::bool::weighted(0.9)), 1..3);
    (truth(), more)
        .prop_flat_map(|(first, more)| {
            let mut truths = vec![(first, None)];
            for (new, left, branches) in more {
                let old = truths.last().expect("the first").0.clone();
                truths.push(if branches { (after(&old, &new, left), Some(left)) } else { (new, None) });
            }
            let stored: Vec<_> = truths.iter().map(|(truth, _)| (log(truth.clone()), bases(truth.clone()))).collect();
            (Just(truths), stored)
        })
        .prop_map(|(truths, stored)| {
            let mut all = history(vec![], vec![]);
            for (number, ((_, left), (slices, bases))) in (1..).zip(truths.iter().zip(stored)) {
                // It is captured from there on.
                let begins = left.unwrap_or(0);
                let slices = slices.into_iter().filter(|slice| n(&slice.name.start) >= begins);
                all.slices.extend(slices.map(|slice| in_epoch(number, slice)));
                let bases = bases.into_iter().filter(|base| n(&base.streams["rs0"].last) >= begins);
                let rename = |base: SnapshotManifest| SnapshotManifest { id: format!("{}e{number}", base.id), ..base };
                all.snapshots.extend(bases.map(|base| in_epoch(number, rename(base))));
                match left {
                    _ if number == 1 => {}
                    Some(left) => {
                        all.epochs.push(branched(number, number - 1, truths[number as usize - 1].0.point(*left)))
                    }
                    None => all.epochs.push(restored(number, "r", 5)),
                }
            }
            let truths = truths.into_iter().map(|(truth, _)| truth);
            ((1..).zip(truths).collect(), all)
        })
}

/// Up to where an epoch has what `older` has: itself all of it.
fn common(history: &History, epoch: u64, older: u64) -> Option<i64> {
    let (mut at, mut until) = (epoch, i64::MAX);
    while at > older {
        let record = history.epochs.iter().find(|record| record.number == at)?;
        let branch = record.branch.as_ref()?;
        (at, until) = (branch.epoch, until.min(n(&branch.at)));
    }
    (at == older).then_some(until)
}

/// The same history, where everything is stored under each epoch that it counts for, and none branches off another. Names of
/// copies end with `@` and the epoch.
fn copied(history: &History) -> History {
    let mut all = History { snapshots: vec![], slices: vec![], ..history.clone() };
    for epoch in 1..=3 {
        for slice in &history.slices {
            let Some(until) = common(history, epoch, slice.epoch) else { continue };
            let end = n(&slice.name.end);
            if end < until || end == until && !slice.name.is_sign_of_life() {
                all.slices.push(in_epoch(epoch, slice.clone()));
            }
        }
        for base in &history.snapshots {
            let Some(until) = common(history, epoch, base.epoch) else { continue };
            let is_own = base.epoch == epoch;
            if is_own || base.namespaces.is_empty() && n(&base.streams["rs0"].last) <= until {
                let id = if is_own { base.id.clone() } else { format!("{}@{epoch}", base.id) };
                all.snapshots.push(in_epoch(epoch, SnapshotManifest { id, ..base.clone() }));
            }
        }
    }
    all.epochs.iter_mut().for_each(|record| record.branch = None);
    all
}

fn original(id: &str) -> &str {
    id.split('@').next().unwrap_or(id)
}

/// Whether a moment lies before a position.
fn is_by(target: &Target, truth: &Truth, until: i64) -> bool {
    match target {
        Target::Before(time) => until == i64::MAX || number(*time) <= truth.seconds[until.min(LAST) as usize],
        Target::Through { order: at, .. } => until == i64::MAX || *at <= order(until),
        _ => unreachable!("not asked"),
    }
}

fn any_wish() -> impl Strategy<Value = Wish> {
    let second = || (-1_i64..80).prop_map(at);
    prop_oneof![
        (0..5_u32, 1..4_u32).prop_map(|(n, epoch)| Wish::Snapshot(format!("b{n}e{epoch}"))),
        second().prop_map(|before| Wish::Snapshots { before, sort: None }),
        prop::option::of(second()).prop_map(|before| Wish::Log { before }),
        second().prop_map(|before| Wish::Everything { before }),
        (prop::option::of(second()), 0..4_u32).prop_map(|(before, count)| Wish::Retention { before, count }),
    ]
}

/// From when on everything is to stay.
fn demand(copied: &History, wish: &Wish) -> Option<i64> {
    match wish {
        Wish::Snapshot(_) | Wish::Log { before: None } => None,
        Wish::Snapshots { before, .. } | Wish::Log { before: Some(before) } | Wish::Everything { before } => {
            Some(number(*before))
        }
        Wish::Retention { before, count } => {
            let mut newest: Vec<_> =
                full(copied).map(|base| (base.epoch, n(&base.streams["rs0"].last), base)).collect();
            newest.sort_by_key(|(epoch, n, _)| std::cmp::Reverse((*epoch, *n)));
            let mut known = BTreeSet::new();
            newest.retain(|(.., base)| known.insert(original(&base.id)));
            newest.truncate(*count as usize);
            let first = newest.iter().map(|(.., base)| number(base.restore_time()) + 1).min();
            first.into_iter().chain(before.map(number)).min()
        }
    }
}

fn tells(from: &hindsight_format::Point, to: &hindsight_format::Point, target: &Target) -> bool {
    match target {
        Target::Before(time) => from.time < *time && *time <= to.time,
        Target::Through { order, .. } => {
            from.position.order() <= order.as_str() && order.as_str() <= to.position.order()
        }
        _ => unreachable!("not asked"),
    }
}

proptest! {
    // Each of them compares three epochs, target by target.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn plans_are_those_of_copies_under_each_epoch((truths, history) in any_branches()) {
        let copied = copied(&history);
        let read = |plan: &hindsight_catalog::RestorePlan| {
            let log: Vec<_> = plan.streams[0].log.iter().map(|slice| slice.name.clone()).collect();
            (original(&plan.base.id).to_owned(), plan.epoch, plan.cut.clone(), log)
        };
        let targets = targets(&truths).into_iter().chain([Target::Latest]);
        for target in targets {
            for epoch in 1..4 {
                let (of, by_copies) = (history.clone().until_epoch(epoch), copied.clone().until_epoch(epoch));
                let (found, expected) = (plan(&of, &target, None, at(NOW)), plan(&by_copies, &target, None, at(NOW)));
                match (&found, &expected) {
                    (Ok(found), Ok(expected)) => prop_assert_eq!(read(found), read(expected), "{:?}", target),
                    (Err(_), Err(_)) => {}
                    _ => prop_assert!(false, "{:?}: {:?}, {:?}", target, found, expected),
                }
                if let (Ok(plan), Target::Before(time)) = (found, &target) {
                    prop_assert!(plan.range.is_some_and(|(from, to)| from <= *time && *time <= to), "{:?}", plan.range);
                }
            }
        }
    }

    #[test]
    fn each_moment_is_told_once((truths, history) in any_branches()) {
        let (copied, found) = (copied(&history), timeline(&history));
        let targets = targets(&truths);
        for epoch in 1..=truths.len() as u64 {
            let can = restorable(&copied, epoch, &targets);
            let told = |epoch: u64, target: &Target| {
                found.ranges.iter().any(|range| range.epoch == epoch && tells(&range.start, &range.end, target))
            };
            for (index, target) in targets.iter().enumerate() {
                if matches!(target, Target::Before(_)) && told(epoch, target) {
                    prop_assert!(can.contains(&index), "{:?} of {} is told", target, epoch);
                }
                let later = (epoch + 1..=truths.len() as u64).any(|later| {
                    let until = common(&history, later, epoch);
                    told(later, target) && until.is_some_and(|until| is_by(target, &truths[&epoch], until))
                });
                // A part that lies within a second is not told.
                if matches!(target, Target::Before(_)) && can.contains(&index) {
                    prop_assert!(told(epoch, target) || later, "{:?} of {} is not told: {:?}", target, epoch, found.ranges);
                }
            }
        }
        for gap in &found.gaps {
            prop_assert_eq!(found.gaps.iter().filter(|other| other == &gap).count(), 1);
        }
    }

    #[test]
    fn what_a_removal_takes_is_told_and_what_was_to_stay_does(
        (truths, history) in any_branches(), wish in any_wish(), capturing in prop::option::of(1..4_u64),
    ) {
        let Ok(plan) = removal(&history, &[], &wish, capturing) else { return Ok(()) };
        let left = without(&history, &plan);
        prop_assert_eq!(&timeline(&left).ranges, &plan.left);
        let (before, after) = (copied(&history), copied(&left));
        let targets = targets(&truths);
        let epochs: Vec<_> = (1..=truths.len() as u64).collect();
        let can = |history: &History| -> BTreeMap<u64, BTreeSet<usize>> {
            epochs.iter().map(|epoch| (*epoch, restorable(history, *epoch, &targets))).collect()
        };
        let (was, is) = (can(&before), can(&after));
        let demand = demand(&before, &wish);
        for &epoch in &epochs {
            prop_assert!(is[&epoch].is_subset(&was[&epoch]), "removing made something restorable");
            for &index in was[&epoch].difference(&is[&epoch]) {
                let target = &targets[index];
                let told = |epoch: u64| plan.losses.iter().any(|loss| loss.epoch == epoch && tells(&loss.from, &loss.to, target));
                // Told of a later epoch that has it, too; or it is still there in that.
                let later = epochs.iter().filter(|later| **later > epoch).any(|later| {
                    let until = common(&history, *later, epoch);
                    until.is_some_and(|until| is_by(target, &truths[&epoch], until))
                        && (told(*later) || is[later].contains(&index))
                });
                prop_assert!(told(epoch) || later, "{:?} of epoch {} is lost: {:?}", target, epoch, plan.losses);
                let time = match target { Target::Before(time) => number(*time), _ => continue };
                prop_assert!(demand.is_none_or(|demand| time < demand), "{:?} of epoch {} was to stay: {:?}", target, epoch, wish);
            }
            if capturing == Some(epoch) {
                prop_assert_eq!(end(&before, epoch), end(&after, epoch));
            }
        }
        // Nothing is told that is not lost.
        for loss in plan.losses.iter().filter(|loss| loss.snapshot.is_none()) {
            for (index, target) in targets.iter().enumerate().filter(|(_, target)| matches!(target, Target::Before(_))) {
                let lost = was[&loss.epoch].contains(&index) && !is[&loss.epoch].contains(&index);
                prop_assert!(lost || !tells(&loss.from, &loss.to, target), "{:?} is told", target);
            }
        }
        // Once is enough.
        if !matches!(wish, Wish::Snapshot(_)) {
            let again = removal(&left, &[], &wish, capturing).unwrap();
            prop_assert!(again.snapshots.is_empty() && again.losses.is_empty(), "{:?}", again);
        }
    }

    #[test]
    fn a_removal_that_is_cut_off_costs_no_more(
        (truths, history) in any_branches(), wish in any_wish(), done in prop::collection::vec(any::<bool>(), 64),
    ) {
        let Ok(plan) = removal(&history, &[], &wish, None) else { return Ok(()) };
        let mut fates = done.into_iter().chain(std::iter::repeat(true));
        let mut part = plan.clone();
        part.snapshots.retain(|_| fates.next().unwrap());
        part.slices.retain(|_: &StoredSlice| fates.next().unwrap());
        let targets = targets(&truths);
        for epoch in 1..=truths.len() as u64 {
            let after = restorable(&copied(&without(&history, &plan)), epoch, &targets);
            let midway = restorable(&copied(&without(&history, &part)), epoch, &targets);
            prop_assert!(after.is_subset(&midway));
        }
    }
}
