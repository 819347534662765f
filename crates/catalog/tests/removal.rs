//! Removal plans: random histories against the rules, and stories.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::random::*;
use common::*;
use hindsight_catalog::{
    History, Holder, Loss, Need, Refusal, Removal, SnapshotSort, Target, Wish, losses, removal, timeline, without,
};
use hindsight_format::{DamagedRecord, Place, SnapshotKind, UnfinishedSnapshot};
use proptest::prelude::*;
use proptest::sample::select;

fn any_wish() -> impl Strategy<Value = Wish> {
    let second = || (-1_i64..80).prop_map(at);
    let sort = select(vec![None, Some(SnapshotSort::Full(SnapshotKind::Logical)), Some(SnapshotSort::Selective)]);
    prop_oneof![
        (0..5_u32, 1..3_u32).prop_map(|(n, epoch)| Wish::Snapshot(format!("b{n}e{epoch}"))),
        (second(), sort).prop_map(|(before, sort)| Wish::Snapshots { before, sort }),
        prop::option::of(second()).prop_map(|before| Wish::Log { before }),
        second().prop_map(|before| Wish::Everything { before }),
        (prop::option::of(second()), 0..4_u32).prop_map(|(before, count)| Wish::Retention { before, count }),
    ]
}

fn tells(loss: &Loss, target: &Target) -> bool {
    match target {
        Target::Before(time) => loss.seconds.is_some_and(|(from, to)| from <= *time && *time <= to),
        Target::Through { order, .. } => {
            loss.from.position.order() <= order.as_str() && order.as_str() <= loss.to.position.order()
        }
        _ => unreachable!("not asked"),
    }
}

/// What was asked to stay restorable.
fn demand(history: &History, wish: &Wish) -> Option<i64> {
    match wish {
        Wish::Snapshot(_) | Wish::Log { before: None } => None,
        Wish::Snapshots { before, .. } | Wish::Log { before: Some(before) } | Wish::Everything { before } => {
            Some(number(*before))
        }
        Wish::Retention { before, count } => {
            let mut newest: Vec<_> =
                full(history).map(|base| (base.epoch, n(&base.streams["rs0"].last), base.restore_time())).collect();
            newest.sort_unstable_by(|a, b| b.cmp(a));
            newest.truncate(*count as usize);
            let first = newest.iter().map(|base| number(base.2) + 1).min();
            first.into_iter().chain(before.map(number)).min()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_left_is_what_was_but_for_the_losses_told(
        (truths, history) in any_history(), wish in any_wish(), capturing in prop::option::of(1..3_u64),
    ) {
        let Ok(plan) = removal(&history, &[], &wish, capturing) else { return Ok(()) };
        let left = without(&history, &plan);
        prop_assert_eq!(&timeline(&left).ranges, &plan.left);
        let targets = targets(&truths);
        for epoch in 1..3 {
            let (before, after) = (restorable(&history, epoch, &targets), restorable(&left, epoch, &targets));
            prop_assert!(after.is_subset(&before), "removing made something restorable");
            for (index, target) in targets.iter().enumerate() {
                let told = plan.losses.iter().any(|l| l.epoch == epoch && l.snapshot.is_none() && tells(l, target));
                let lost = before.contains(&index) && !after.contains(&index);
                prop_assert!(!lost || told, "{:?} of epoch {} is lost and not told: {:?}", target, epoch, plan.losses);
                if matches!(target, Target::Before(_)) {
                    prop_assert_eq!(lost, told, "{:?} of epoch {}: {:?}", target, epoch, plan.losses);
                }
                // What was to stay restorable does.
                let time = match target { Target::Before(time) | Target::Through { time, .. } => number(*time), _ => 0 };
                let real = truths.get(&epoch).is_some_and(|truth| match target {
                    Target::Through { order, .. } => truth.point(order.parse().unwrap()).time == at(time),
                    _ => true,
                });
                if real && demand(&history, &wish).is_some_and(|demand| time >= demand) {
                    prop_assert!(!lost, "{:?} of epoch {} was to stay: {:?}", target, epoch, wish);
                }
            }
        }
        // Selective snapshots as well.
        for base in history.snapshots.iter().filter(|base| !base.namespaces.is_empty()) {
            let stays = left.snapshot(&base.id).is_some();
            for target in targets.iter().filter(|target| leads_to(&history, base, target)) {
                let lost = !stays || !leads_to(&left, base, target);
                let told = plan.losses.iter().any(|l| l.snapshot.as_ref() == Some(&base.id) && tells(l, target));
                prop_assert!(!lost || told || (!stays && plan.snapshots.contains(base)), "{:?} from {}", target, base.id);
            }
        }
    }

    #[test]
    fn while_capture_is_on_something_leads_to_its_end((_, history) in any_history(), wish in any_wish(), epoch in 1..3_u64) {
        match removal(&history, &[], &wish, Some(epoch)) {
            Ok(plan) => prop_assert_eq!(end(&without(&history, &plan), epoch), end(&history, epoch)),
            Err(Refusal::LastPitrBase { name }) => {
                let plan = removal(&history, &[], &wish, None).unwrap();
                prop_assert!(plan.snapshots.iter().any(|snapshot| snapshot.id == name));
                prop_assert!(end(&without(&history, &plan), epoch) < end(&history, epoch));
            }
            Err(Refusal::UnknownSnapshot { .. }) => {}
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn nothing_stays_without_need_and_once_is_enough(
        (_, history) in any_history(), wish in any_wish(), capturing in prop::option::of(1..3_u64),
    ) {
        if let Wish::Snapshot(_) = wish { return Ok(()); }
        let plan = removal(&history, &[], &wish, capturing).unwrap();
        let left = without(&history, &plan);
        prop_assert_eq!(plan.stored_bytes(), plan.snapshots.len() as u64 * 1000 + plan.slices.len() as u64 * 10);

        // Each snapshot that stays though it was asked for would cost what was to stay.
        for (id, need) in &plan.kept_snapshots {
            let mut fewer = left.clone();
            fewer.snapshots.retain(|snapshot| snapshot.id != *id);
            match need {
                Need::Unreadable | Need::UnreadEpoch(_) | Need::Children(_) => prop_assert!(false, "all of these can be read, and stand alone"),
                Need::Capture => prop_assert!(end(&fewer, capturing.unwrap()) < end(&left, capturing.unwrap())),
                Need::Restores { from, to } => {
                    prop_assert!(Some(number(*from)) >= demand(&history, &wish) && from <= to);
                    prop_assert_ne!(timeline(&fewer).ranges, timeline(&left).ranges);
                }
            }
        }
        let bound = demand(&history, &wish).unwrap_or(if matches!(wish, Wish::Log { .. }) { i64::MAX } else { i64::MIN });
        for slice in &plan.slices {
            prop_assert!(number(slice.name.end.time) < bound, "a young slice goes");
        }
        // Old log that stays lies on the way from some snapshot.
        if matches!(wish, Wish::Everything { .. } | Wish::Retention { .. }) {
            for slice in left.slices.iter().filter(|slice| number(slice.name.end.time) < bound) {
                let led_through = left.snapshots.iter().filter(|base| base.epoch == slice.epoch).any(|base| {
                    let (start, end) = (n(&base.streams["rs0"].last), n(&furthest(&left, base, "rs0")));
                    let at = n(&slice.name.end);
                    n(&slice.name.start) < end && start < at || slice.name.is_sign_of_life() && (start..=end).contains(&at)
                });
                prop_assert!(led_through, "{:?} stays for nothing", bounds(slice));
            }
        }
        let again = removal(&left, &[], &wish, capturing).unwrap();
        prop_assert!(again.snapshots.is_empty() && again.losses.is_empty(), "{:?}", again);
        prop_assert!(again.slices.len() as u64 == again.redundant, "{:?}", again);
    }

    #[test]
    fn a_removal_that_is_cut_off_leaves_no_range_that_is_not_true(
        (truths, history) in any_history(), wish in any_wish(), done in prop::collection::vec(any::<bool>(), 64),
    ) {
        let Ok(plan) = removal(&history, &[], &wish, None) else { return Ok(()) };
        let mut fates = done.into_iter().chain(std::iter::repeat(true));
        let mut part = plan.clone();
        part.snapshots.retain(|_| fates.next().unwrap());
        part.slices.retain(|_| fates.next().unwrap());
        let targets = targets(&truths);
        for epoch in 1..3 {
            let after = restorable(&without(&history, &plan), epoch, &targets);
            let midway = restorable(&without(&history, &part), epoch, &targets);
            prop_assert!(after.is_subset(&midway) && midway.is_subset(&restorable(&history, epoch, &targets)));
        }
    }
}

fn plan(history: &History, wish: Wish, capturing: bool) -> Removal {
    removal(history, &[], &wish, capturing.then_some(1)).unwrap()
}

/// What goes: snapshots and slices.
fn gone(plan: &Removal) -> (Vec<&str>, Vec<(i64, i64)>) {
    (plan.snapshots.iter().map(|s| s.id.as_str()).collect(), plan.slices.iter().map(bounds).collect())
}

/// Losses as seconds.
fn lost(plan: &Removal) -> Vec<Option<(i64, i64)>> {
    plan.losses.iter().map(|loss| loss.seconds.map(|(from, to)| (number(from), number(to)))).collect()
}

/// Bases at 10, 30 and 50, and log from 0 to 60.
fn three() -> History {
    history(vec![base("a", 10), base("b", 30), base("c", 50)], (0..6).map(|n| s(n * 10, n * 10 + 10)).collect())
}

#[test]
fn cleanup_keeps_what_restoring_to_its_time_needs() {
    let plan = plan(&three(), Wish::Everything { before: at(45) }, true);
    assert_eq!(gone(&plan), (vec!["a"], vec![(0, 10), (10, 20), (20, 30)]));
    assert_eq!(plan.kept_snapshots, [("b".into(), Need::Restores { from: at(45), to: at(50) })]);
    assert_eq!(lost(&plan), [Some((11, 30))]);
    assert_eq!(
        (plan.kept_log.len(), plan.kept_log[0].slices, &plan.kept_log[0].holder),
        (1, 1, &Holder::Snapshot("b".into()))
    );
    assert_eq!(plan.left.iter().map(seen).collect::<Vec<_>>(), [want(&["b", "c"], 30, 60, Some((31, 60)))]);
}

#[test]
fn a_base_at_the_very_second_does_not_lead_to_the_state_before_it() {
    assert_eq!(gone(&plan(&three(), Wish::Everything { before: at(50) }, false)).0, ["a"]);
    assert_eq!(gone(&plan(&three(), Wish::Everything { before: at(51) }, false)).0, ["a", "b"]);
}

#[test]
fn the_last_base_that_pitr_rests_on_is_refused() {
    let history = history(vec![base("a", 10)], vec![s(10, 20)]);
    let refused = removal(&history, &[], &Wish::Snapshot("a".into()), Some(1)).unwrap_err();
    assert_eq!(refused, Refusal::LastPitrBase { name: "a".into() });
    assert!(refused.to_string().starts_with("cannot delete the last PITR base snapshot while PITR is enabled"));
    // With an older one that leads there too, or with PITR off, it is not the last.
    assert_eq!(gone(&plan(&three(), Wish::Snapshot("c".into()), true)).0, ["c"]);
    let plan = plan(&history, Wish::Snapshot("a".into()), false);
    assert_eq!((gone(&plan), lost(&plan)), ((vec!["a"], vec![]), vec![Some((11, 20))]));
    assert!(plan.left.is_empty());
}

#[test]
fn a_snapshot_in_the_midst_costs_nothing_while_another_leads_on() {
    let plan = plan(&three(), Wish::Snapshot("b".into()), true);
    assert_eq!((gone(&plan), lost(&plan)), ((vec!["b"], vec![]), vec![]));
}

#[test]
fn all_the_log_goes_but_what_pitr_rests_on() {
    let all = Wish::Log { before: None };
    let on = plan(&three(), all.clone(), true);
    assert_eq!(gone(&on), (vec![], vec![(0, 10), (10, 20), (20, 30), (30, 40), (40, 50)]));
    assert_eq!((lost(&on), on.kept_log.len()), (vec![Some((11, 30)), Some((31, 50))], 1));
    let off = plan(&three(), all, false);
    assert_eq!(off.slices.len(), 6);
    assert_eq!(lost(&off), [Some((11, 30)), Some((31, 50)), Some((51, 60))]);
    // The snapshots can be restored as they are.
    assert_eq!(off.left.len(), 3);
}

#[test]
fn retention_keeps_what_either_rule_keeps_and_always_one() {
    let kept = |before: Option<i64>, count| {
        let plan = plan(&three(), Wish::Retention { before: before.map(at), count }, false);
        let gone = gone(&plan).0;
        ["a", "b", "c"].into_iter().filter(|id| !gone.contains(id)).collect::<String>()
    };
    assert_eq!([kept(None, 0), kept(None, 1), kept(None, 2), kept(None, 7)], ["abc", "c", "bc", "abc"]);
    assert_eq!([kept(Some(45), 0), kept(Some(45), 1), kept(Some(55), 2), kept(Some(1000), 0)], ["bc", "bc", "bc", "c"]);
    let lone = history(vec![base("a", 10)], vec![]);
    assert!(plan(&lone, Wish::Retention { before: Some(at(500)), count: 0 }, false).is_empty());
}

#[test]
fn cleanup_takes_what_belongs_to_nothing() {
    let mut all = history(vec![base("a", 40)], vec![s(10, 20), s(20, 25), s(40, 45), s(45, 50), s(50, 90)]);
    all.slices.push(slice(p(40), p(50), 2));
    all.gaps = vec![gap(25, 40, "x")];
    let dead = UnfinishedSnapshot { id: "u".into(), objects: 3, stored_bytes: 7, resumable: false };
    let plan = removal(&all, std::slice::from_ref(&dead), &Wish::Everything { before: at(60) }, Some(1)).unwrap();
    assert_eq!(gone(&plan), (vec![], vec![(10, 20), (20, 25), (40, 45), (45, 50)]));
    assert_eq!((plan.redundant, plan.gaps.len(), &plan.unfinished, lost(&plan)), (2, 1, &vec![dead.clone()], vec![]));
    assert_eq!(plan.stored_bytes(), 47);
    // An unfinished one can be named.
    let named = removal(&all, std::slice::from_ref(&dead), &Wish::Snapshot("u".into()), Some(1)).unwrap();
    assert_eq!((named.unfinished.len(), named.snapshots.len()), (1, 0));
    let unknown = removal(&all, &[], &Wish::Snapshot("u".into()), None).unwrap_err();
    assert!(matches!(unknown, Refusal::UnknownSnapshot { .. }));
}

#[test]
fn a_plan_covers_one_that_takes_less() {
    let more = plan(&three(), Wish::Everything { before: at(55) }, false);
    let less = plan(&three(), Wish::Everything { before: at(45) }, false);
    assert!(less.is_covered_by(&more) && !more.is_covered_by(&less) && more.is_covered_by(&more));
}

#[test]
fn a_loss_is_told_in_the_same_words_whatever_the_reason() {
    let told = |plan: &Removal| plan.losses.iter().map(ToString::to_string).collect::<Vec<_>>();
    let removed = plan(&three(), Wish::Log { before: None }, false);
    let mut damaged = three();
    damaged.slices.clear();
    let lost: Vec<_> = losses(&three(), &damaged).iter().map(ToString::to_string).collect();
    assert_eq!(told(&removed), lost);
    let (first, last) = (hindsight_format::format_time(at(11)), hindsight_format::format_time(at(30)));
    assert_eq!(lost[0], format!("{first} - {last}"));
    // A snapshot that no log follows.
    let lone = losses(&history(vec![base("a", 10)], vec![]), &History::default());
    assert_eq!(lone[0].to_string(), format!("the state at {}", hindsight_format::format_time(at(10))));
}

/// The manifest of a snapshot that cannot be read.
fn damaged(id: &str) -> DamagedRecord {
    let place = Place::Manifest(id.to_owned());
    let key = format!("clusters/rs0/snapshots/{id}/manifest.json");
    DamagedRecord { why: format!("{key} is damaged: odd"), key, place }
}

#[test]
fn what_a_snapshot_that_cannot_be_read_may_need_stays_until_that_is_deleted_by_name() {
    let mut history = three();
    history.snapshots.retain(|snapshot| snapshot.id != "a");
    history.damaged = vec![damaged("a")];
    let cleanup = Wish::Everything { before: at(45) };
    let held = plan(&history, cleanup.clone(), true);
    assert!(held.is_empty(), "{held:?}");
    assert_eq!(held.kept_snapshots.last(), Some(&("a".to_owned(), Need::Unreadable)));
    let log = held.kept_log.last().unwrap();
    assert_eq!((&log.holder, log.slices), (&Holder::UnreadSnapshot("a".into()), 3));

    // Nothing else is deleted with it; then nothing holds the log any more.
    let named = plan(&history, Wish::Snapshot("a".into()), true);
    assert_eq!((named.damaged.as_slice(), gone(&named)), (["a".to_owned()].as_slice(), (vec![], vec![])));
    assert!(!named.is_covered_by(&held) && named.is_covered_by(&named));
    let left = without(&history, &named);
    assert!(left.damaged.is_empty());
    assert_eq!(gone(&plan(&left, cleanup, true)).1, [(0, 10), (10, 20), (20, 30)]);
}

#[test]
fn a_snapshot_that_cannot_be_read_is_refused_and_the_others_are_restored_from() {
    let mut history = three();
    history.snapshots.retain(|snapshot| snapshot.id != "b");
    history.damaged = vec![damaged("b")];
    let plan = |target| hindsight_catalog::plan(&history, &target, None, at(100));
    let refused = plan(Target::Snapshot("b".into())).unwrap_err();
    assert!(matches!(refused, Refusal::Damaged { .. }) && refused.to_string().contains("snapshots/b/manifest.json"));
    assert_eq!(plan(Target::Before(at(35))).unwrap().base.id, "a");
    // One that may have led there is named.
    history.snapshots.clear();
    let refused = hindsight_catalog::plan(&history, &Target::Before(at(35)), None, at(100)).unwrap_err();
    assert!(refused.to_string().contains("no base snapshot found"), "{refused}");
    assert!(refused.to_string().contains("snapshots/b/manifest.json is damaged"), "{refused}");
}
