//! What happens to a cluster, and what its timeline, plans and refusals then say.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use hindsight_catalog::{
    Cut, History, Nearest, Refusal, RestorePlan, Target, Timeline, chains, losses, plan, timeline,
};
use hindsight_format::{SnapshotKind, SnapshotManifest, StoredSlice};

const NOW: i64 = 1_000;

fn before(history: &History, second: i64) -> Result<RestorePlan, Refusal> {
    plan(history, &Target::Before(at(second)), None, at(NOW))
}

fn refused(history: &History, second: i64) -> Refusal {
    before(history, second).unwrap_err()
}

fn all_seen(timeline: &Timeline) -> Vec<Seen> {
    timeline.ranges.iter().map(seen).collect()
}

fn holes(timeline: &Timeline) -> Vec<(i64, i64, &str)> {
    timeline.gaps.iter().map(hole).collect()
}

/// A snapshot at 10 and log from there to 40.
fn plain() -> History {
    history(vec![base("a", 10)], vec![s(10, 20), s(20, 30), s(30, 40)])
}

#[test]
fn a_snapshot_and_the_log_after_it_make_a_range() {
    let timeline = timeline(&plain());
    assert_eq!(all_seen(&timeline), [want(&["a"], 10, 40, Some((11, 40)))]);
    assert_eq!((timeline.gaps, timeline.unbacked), (vec![], vec![]));
    assert_eq!(chains(&plain()).iter().map(links).collect::<Vec<_>>(), [[(10, 20), (20, 30), (30, 40)]]);
}

#[test]
fn a_plan_reads_no_more_than_it_must() {
    let plan = before(&plain(), 20).unwrap();
    assert_eq!(read(&plan), ("a".into(), vec![(10, 20)]));
    assert_eq!((plan.log_bytes, plan.data_bytes, plan.cut), (10, 1000, Cut::Before(at(20))));
    assert_eq!(plan.range, Some((at(11), at(40))));
    assert_eq!(plan.streams[0].own.len(), 1);
    assert_eq!(read(&before(&plain(), 21).unwrap()).1, [(10, 20), (20, 30)]);
    assert_eq!(read(&before(&plain(), 40).unwrap()).1, [(10, 20), (20, 30), (30, 40)]);
}

#[test]
fn the_first_second_is_the_one_after_the_base_and_the_last_that_of_the_end() {
    // Writes of second 10 may be in the base, and of second 40 more may follow the last slice.
    assert!(before(&plain(), 11).is_ok() && before(&plain(), 40).is_ok());
    let earliest = Nearest::Time(at(11));
    assert_eq!(refused(&plain(), 10), Refusal::BeforeFirst { target: at(10), earliest });
    let end = Nearest::Time(at(40));
    assert_eq!(refused(&plain(), 41), Refusal::AfterEnd { target: at(41), end, captured: None });
}

#[test]
fn slices_that_begin_in_the_second_of_the_target_are_not_read() {
    // Three slices end and begin within second 20.
    let slices = vec![
        slice(point(10, 10, 1), point(20, 20, 1), 1),
        slice(point(20, 20, 1), point(21, 20, 1), 1),
        slice(point(21, 20, 1), point(30, 30, 1), 1),
    ];
    let history = history(vec![base("a", 10)], slices);
    assert_eq!(read(&before(&history, 20).unwrap()).1, [(10, 20)]);
    assert_eq!(read(&before(&history, 21).unwrap()).1, [(10, 20), (20, 21), (21, 30)]);
}

#[test]
fn of_a_log_that_is_not_in_the_order_of_its_times_a_minute_more_is_read() {
    let log = [(10, 20), (20, 30), (30, 79), (79, 80), (80, 90), (90, 300)].map(|(start, end)| s(start, end));
    let physical = SnapshotManifest { kind: SnapshotKind::Physical, ..base("a", 10) };
    let history = history(vec![physical], log.to_vec());
    // A commit from before second 20 may come after one that is later.
    let plan_of = |second| before(&history, second).unwrap();
    assert_eq!(read(&plan_of(20)).1, [(10, 20), (20, 30), (30, 79), (79, 80)]);
    assert_eq!(plan_of(20).cut, Cut::Before(at(20)));
    // What is not captured yet is no reason to refuse.
    assert_eq!(read(&plan_of(300)).1.len(), 6);
    assert!(before(&history, 301).is_err());
    // The place of a position is known.
    let through = Target::Through { time: at(15), order: order(15) };
    assert_eq!(read(&plan(&history, &through, None, at(NOW)).unwrap()).1, [(10, 20)]);
}

#[test]
fn a_physical_snapshot_of_a_branch_does_not_go_on_with_the_log_that_was_left() {
    // Timeline 1 was left at 20, and had been captured up to 40; the new server's first base is at 30.
    let physical = |id: &str, last| SnapshotManifest { kind: SnapshotKind::Physical, ..snapshot(id, last) };
    let old = physical("old", point(10, 10, 1));
    let new = physical("new", point(30, 50, 2));
    let left = [slice(p(10), p(25), 1), slice(p(25), p(40), 1)];
    let all = history(vec![old.clone(), new.clone()], left.to_vec());
    let latest = plan(&all, &Target::Latest, None, at(NOW)).unwrap();
    assert_eq!((read(&latest), latest.cut), (("new".into(), vec![]), Cut::AtSnapshotEnd));
    assert_eq!(all_seen(&timeline(&all)), [want(&["old"], 10, 40, Some((11, 40))), want(&["new"], 30, 30, None)]);
    // One that crosses to its timeline holds it, a shorter one on it too.
    let crossing = slice(p(20), point(35, 55, 2), 1);
    let onward = slice(point(28, 48, 2), point(33, 53, 2), 1);
    for (good, end) in [(crossing, 35), (onward, 33)] {
        let all = history(vec![old.clone(), new.clone()], [&left[..], std::slice::from_ref(&good)].concat());
        let latest = plan(&all, &Target::Latest, None, at(NOW)).unwrap();
        assert_eq!(read(&latest), ("new".into(), vec![bounds(&good)]));
        assert_eq!(n(&latest.streams[0].log[0].name.end), end);
    }
}

#[test]
fn a_position_is_restored_inclusively() {
    let through = |n: i64| plan(&plain(), &Target::Through { time: at(n), order: order(n) }, None, at(NOW));
    assert_eq!(read(&through(20).unwrap()).1, [(10, 20)]);
    assert_eq!(read(&through(21).unwrap()).1, [(10, 20), (20, 30)]);
    // The base's own end needs no log, and is a position that can be restored.
    assert_eq!(read(&through(10).unwrap()).1, []);
    assert_eq!(through(10).unwrap().cut, Cut::Through { order: order(10) });
    assert_eq!(through(9).unwrap_err().code(), "before-first");
    assert_eq!(through(41).unwrap_err().code(), "after-end");
}

#[test]
fn the_newest_base_before_the_target_is_taken_unless_another_is_named() {
    let history = History { snapshots: vec![base("c", 35), base("a", 10), base("b", 25)], ..plain() };
    assert_eq!(all_seen(&timeline(&history)), [want(&["a", "b", "c"], 10, 40, Some((11, 40)))]);
    assert_eq!(read(&before(&history, 25).unwrap()), ("a".into(), vec![(10, 20), (20, 30)]));
    // b lies in the midst of a slice, and that slice is read for what follows b.
    assert_eq!(read(&before(&history, 26).unwrap()), ("b".into(), vec![(20, 30)]));
    assert_eq!(read(&before(&history, 40).unwrap()), ("c".into(), vec![(30, 40)]));

    let named = plan(&history, &Target::Before(at(40)), Some("a"), at(NOW)).unwrap();
    assert_eq!(read(&named), ("a".into(), vec![(10, 20), (20, 30), (30, 40)]));
}

#[test]
fn a_base_later_than_the_target_is_refused_in_the_words_of_pbm() {
    let history = History { snapshots: vec![base("a", 10), base("c", 35)], ..plain() };
    let refusal = plan(&history, &Target::Before(at(35)), Some("c"), at(NOW)).unwrap_err();
    assert_eq!(refusal.code(), "base-too-late");
    assert!(
        refusal
            .to_string()
            .contains("snapshot's last write is later than the target time. Try to set an earlier snapshot")
    );
    assert_eq!(refusal.hint(), "snapshot a fits");
}

#[test]
fn a_failed_upload_ends_the_range_whatever_is_stored_after_it() {
    let history = history(vec![base("a", 10)], vec![s(10, 20), s(30, 40), s(40, 50)]);
    let timeline = timeline(&history);
    assert_eq!(all_seen(&timeline), [want(&["a"], 10, 20, Some((11, 20)))]);
    let cause = "no record of the cause: slices between 2021-02-03T00:00:20Z and 2021-02-03T00:00:30Z are missing";
    assert_eq!(holes(&timeline), [(20, 30, cause)]);
    assert_eq!(timeline.unbacked.iter().map(|u| (n(&u.start), n(&u.end))).collect::<Vec<_>>(), [(30, 50)]);

    let Refusal::InGap { gap, before, after, .. } = refused(&history, 45) else { panic!() };
    assert_eq!((hole(&gap), before, after), ((20, 30, cause), Some(Nearest::Time(at(20))), None));
}

#[test]
fn a_new_snapshot_after_a_gap_begins_a_new_range() {
    let mut history = history(vec![base("a", 10), base("b", 35)], vec![s(10, 20), s(30, 40), s(40, 50)]);
    history.gaps = vec![gap(20, 30, "the server's log no longer held 2021-02-03T00:00:20Z")];
    let timeline = timeline(&history);
    let want = [want(&["a"], 10, 20, Some((11, 20))), want(&["b"], 35, 50, Some((36, 50)))];
    assert_eq!(all_seen(&timeline), want);
    assert_eq!(holes(&timeline), [(20, 30, "the server's log no longer held 2021-02-03T00:00:20Z")]);
    assert_eq!(timeline.unbacked.iter().map(|u| (n(&u.start), n(&u.end))).collect::<Vec<_>>(), [(30, 35)]);

    let refusal = refused(&history, 25);
    assert_eq!(
        refusal.to_string(),
        "2021-02-03T00:00:25Z cannot be restored: the server's log no longer held 2021-02-03T00:00:20Z"
    );
    assert_eq!(refusal.hint(), "the nearest that can be restored are 2021-02-03T00:00:20Z and 2021-02-03T00:00:36Z");
    // The log is there, but nothing to apply it to.
    assert!(
        refused(&history, 33)
            .to_string()
            .contains("no snapshot leads into the log that is stored from 2021-02-03T00:00:30Z on")
    );
    let named = plan(&history, &Target::Before(at(40)), Some("a"), at(NOW)).unwrap_err();
    assert_eq!((named.code(), named.hint()), ("base-not-connected", "snapshot b fits".into()));
}

#[test]
fn a_recorded_gap_that_was_filled_later_is_none() {
    let history = History { gaps: vec![gap(20, 30, "a failed upload")], ..plain() };
    assert_eq!(timeline(&history).gaps, vec![]);

    // Nor is it the cause of the next one, which begins where it ended.
    let history =
        History { slices: vec![s(10, 20), s(20, 30), s(35, 40)], gaps: vec![gap(20, 30, "filled")], ..plain() };
    assert!(holes(&timeline(&history))[0].2.starts_with("no record of the cause"));
}

#[test]
fn records_of_a_gap_that_has_grown_are_all_told() {
    let mut history = history(vec![base("a", 10)], vec![s(10, 20), s(60, 70)]);
    history.gaps = vec![gap(40, 60, "second"), gap(20, 30, "first"), gap(70, 90, "not yet")];
    assert_eq!(holes(&timeline(&history)), [(20, 60, "first; second")]);
}

#[test]
fn equal_places_of_different_histories_do_not_meet() {
    // After an election, 20 of term 1 was rolled back and 20 of term 2 took its place.
    let slices = vec![slice(p(10), point(20, 20, 1), 1), slice(point(20, 20, 2), point(30, 30, 2), 2)];
    let history = history(vec![base("a", 10)], slices);
    assert_eq!(all_seen(&timeline(&history)), [want(&["a"], 10, 20, Some((11, 20)))]);
    let cause =
        "no record of the cause: slices overlap between 2021-02-03T00:00:20Z and 2021-02-03T00:00:20Z without meeting";
    assert_eq!(holes(&timeline(&history)), [(20, 20, cause)]);
    assert!(before(&history, 25).is_err());
}

#[test]
fn leftover_parts_beside_what_they_were_merged_into_change_nothing() {
    let merged = || slice(p(10), p(40), 9);
    for parts in [vec![], vec![s(10, 20)], vec![s(20, 30)], vec![s(30, 40)], plain().slices] {
        let mut history = plain();
        history.slices = [parts, vec![merged()]].concat();
        assert_eq!(chains(&history).iter().map(links).collect::<Vec<_>>(), [[(10, 40)]]);
        assert_eq!(all_seen(&timeline(&history)), [want(&["a"], 10, 40, Some((11, 40)))]);
        assert_eq!(read(&before(&history, 15).unwrap()).1, [(10, 40)]);
    }
}

#[test]
fn a_paused_writer_beside_its_successor_changes_nothing() {
    // The old holder wakes and stores (10,25] under fence 1; the new one had gone on from 10.
    let new = [slice(p(10), p(20), 2), slice(p(20), p(40), 2)];
    let history = history(vec![base("a", 10)], [vec![s(10, 25)], new.to_vec()].concat());
    assert_eq!(chains(&history).iter().map(links).collect::<Vec<_>>(), [[(10, 20), (20, 40)]]);
    assert_eq!(all_seen(&timeline(&history)), [want(&["a"], 10, 40, Some((11, 40)))]);
    assert_eq!(timeline(&history).gaps, vec![]);
}

#[test]
fn of_the_same_slice_twice_the_higher_fence_is_read() {
    let history = history(vec![base("a", 10)], vec![slice(p(10), p(20), 7), slice(p(10), p(20), 8), s(10, 20)]);
    assert_eq!(before(&history, 15).unwrap().streams[0].log[0].name.fence, 8);
}

#[test]
fn of_two_ways_to_the_same_end_the_one_over_fewer_slices_is_read() {
    // Merged under an old lease, whose parts a newer one stored again.
    let parts = [slice(p(10), p(20), 5), slice(p(20), p(30), 5)];
    let slices = [parts.to_vec(), vec![slice(p(10), p(30), 2), s(30, 40)]].concat();
    assert_eq!(read(&before(&history(vec![base("a", 10)], slices), 40).unwrap()).1, [(10, 30), (30, 40)]);
}

#[test]
fn a_base_bridges_runs_that_overlap_without_meeting() {
    let slices = vec![s(10, 30), s(25, 50)];
    let without = history(vec![base("a", 10)], slices.clone());
    assert_eq!(all_seen(&timeline(&without)), [want(&["a"], 10, 30, Some((11, 30)))]);
    assert_eq!(timeline(&without).gaps.len(), 1);

    let with = history(vec![base("a", 10), base("b", 28)], slices);
    assert_eq!(all_seen(&timeline(&with)), [want(&["a", "b"], 10, 50, Some((11, 50)))]);
    assert_eq!((timeline(&with).gaps, timeline(&with).unbacked), (vec![], vec![]));
    assert_eq!(read(&before(&with, 50).unwrap()), ("b".into(), vec![(25, 50)]));
}

#[test]
fn snapshots_alone_are_points() {
    let history = history(vec![base("b", 30), base("a", 10)], vec![]);
    let timeline = timeline(&history);
    assert_eq!(all_seen(&timeline), [want(&["a"], 10, 10, None), want(&["b"], 30, 30, None)]);
    assert_eq!(timeline.gaps, vec![]);

    let whole = plan(&history, &Target::Snapshot("a".into()), None, at(NOW)).unwrap();
    assert_eq!((read(&whole), whole.cut, whole.range), (("a".into(), vec![]), Cut::AtSnapshotEnd, None));
    let latest = plan(&history, &Target::Latest, None, at(NOW)).unwrap();
    assert_eq!((read(&latest), latest.cut), (("b".into(), vec![]), Cut::AtSnapshotEnd));

    let refusal = refused(&history, 20);
    assert_eq!(
        refusal.to_string(),
        "2021-02-03T00:00:20Z cannot be restored: \
         no log is stored between 2021-02-03T00:00:10Z and 2021-02-03T00:00:30Z"
    );
    assert_eq!(
        refusal.hint(),
        "the nearest that can be restored are snapshot a (the state at 2021-02-03T00:00:10Z) \
         and snapshot b (the state at 2021-02-03T00:00:30Z)"
    );
    assert_eq!(refused(&history, 31).code(), "after-end");
    assert_eq!(refused(&history, 10).code(), "before-first");
}

#[test]
fn a_log_that_ends_in_the_second_of_its_base_gives_positions_but_no_second() {
    let history = history(vec![base("a", 10)], vec![slice(p(10), point(11, 10, 1), 1)]);
    assert_eq!(all_seen(&timeline(&history)), [want(&["a"], 10, 11, None)]);
    let latest = plan(&history, &Target::Latest, None, at(NOW)).unwrap();
    assert_eq!((read(&latest).1, latest.cut), (vec![(10, 11)], Cut::Through { order: order(11) }));
    assert_eq!(refused(&history, 11).code(), "after-end");
}

#[test]
fn a_snapshot_just_taken_at_the_end_of_the_log_is_a_base_of_what_comes() {
    let mut history = history(vec![base("b", 40)], vec![s(30, 40)]);
    assert_eq!(all_seen(&timeline(&history)), [want(&["b"], 40, 40, None)]);
    assert_eq!(timeline(&history).unbacked.iter().map(|u| (n(&u.start), n(&u.end))).collect::<Vec<_>>(), [(30, 40)]);
    history.slices.push(s(40, 50));
    assert_eq!(all_seen(&timeline(&history)), [want(&["b"], 40, 50, Some((41, 50)))]);
}

#[test]
fn after_a_restore_old_and_new_log_are_never_joined() {
    // The new history goes on from the very position at which the old one ended.
    let snapshots = vec![base("a", 10), in_epoch(2, base("b", 40))];
    let slices = vec![s(10, 40), in_epoch(2, s(40, 60))];
    let history = History { epochs: vec![restored(2, "R", 41)], ..history(snapshots, slices) };
    let timeline = timeline(&history);
    let want = [want(&["a"], 10, 40, Some((11, 40))), want(&["b"], 40, 60, Some((41, 60)))];
    assert_eq!(all_seen(&timeline), want);
    assert_eq!(holes(&timeline), [(40, 40, "restore R replaced the data")]);
    assert_eq!(read(&before(&history, 40).unwrap()), ("a".into(), vec![(10, 40)]));
    let plan = before(&history, 41).unwrap();
    assert_eq!((read(&plan), plan.epoch), (("b".into(), vec![(40, 60)]), 2));
}

#[test]
fn between_two_epochs_the_restore_is_the_cause() {
    let snapshots = vec![base("a", 10), in_epoch(3, base("c", 80))];
    let slices = vec![s(10, 40), in_epoch(3, s(80, 90))];
    let epochs = vec![restored(3, "R3", 70), restored(2, "R2", 45)];
    let history = History { epochs, ..history(snapshots, slices) };
    assert_eq!(
        refused(&history, 60).to_string(),
        "2021-02-03T00:01:00Z cannot be restored: restore R2 replaced the data, then restore R3 replaced the data"
    );
    let without_record = History { epochs: vec![], ..history };
    assert!(refused(&without_record, 60).to_string().ends_with("no record of why a new history began"));
}

#[test]
fn where_epochs_overlap_in_time_the_newer_one_counts() {
    let snapshots = vec![base("a", 10), base("z", 50), in_epoch(2, base("b", 40))];
    let history = history(snapshots, vec![s(10, 60), in_epoch(2, s(40, 80))]);
    assert_eq!(before(&history, 55).unwrap().base.id, "b");
    assert_eq!(before(&history, 30).unwrap().base.id, "a");
    let latest = plan(&history, &Target::Latest, None, at(NOW)).unwrap();
    assert_eq!((read(&latest), latest.range), (("b".into(), vec![(40, 80)]), Some((at(41), at(80)))));
}

#[test]
fn a_selective_snapshot_is_a_base_only_by_name() {
    let history = history(vec![selective("a", 10, "shop.orders")], vec![s(10, 40)]);
    assert_eq!(timeline(&history).ranges, vec![]);
    assert_eq!(timeline(&history).unbacked.len(), 1);
    for target in [Target::Before(at(20)), Target::Latest] {
        let refusal = plan(&history, &target, None, at(NOW)).unwrap_err();
        assert_eq!(refusal.code(), "selective-base");
        assert!(refusal.to_string().contains("shop.orders"));
        assert!(refusal.hint().contains("--base-snapshot a"));
        let named = plan(&history, &target, Some("a"), at(NOW)).unwrap();
        assert_eq!((read(&named), named.range), (("a".into(), vec![(10, 40)]), Some((at(11), at(40)))));
    }
    assert!(plan(&history, &Target::Snapshot("a".into()), None, at(NOW)).is_ok());
    assert_eq!(plan(&history, &Target::Before(at(50)), Some("a"), at(NOW)).unwrap_err().code(), "base-not-connected");
}

#[test]
fn a_selective_snapshot_is_passed_over_for_an_older_full_one() {
    let history = History { snapshots: vec![base("a", 10), selective("b", 30, "shop.*")], ..plain() };
    assert_eq!(before(&history, 40).unwrap().base.id, "a");
}

#[test]
fn the_latest_is_the_end_of_the_log_from_the_newest_base() {
    let history = History { snapshots: vec![base("a", 10), base("b", 25)], ..plain() };
    let latest = plan(&history, &Target::Latest, None, at(NOW)).unwrap();
    assert_eq!(
        (read(&latest), latest.cut),
        (("b".into(), vec![(20, 30), (30, 40)]), Cut::Through { order: order(40) })
    );
    let latest = plan(&history, &Target::Latest, Some("a"), at(NOW)).unwrap();
    assert_eq!(read(&latest), ("a".into(), vec![(10, 20), (20, 30), (30, 40)]));
}

#[test]
fn the_future_is_told_from_what_is_not_captured_yet() {
    let refusal = plan(&plain(), &Target::Before(at(60)), None, at(50)).unwrap_err();
    assert_eq!(refusal, Refusal::InFuture { target: at(60), now: at(50), end: Some(Nearest::Time(at(40))) });
    assert_eq!(refusal.hint(), "the latest that can be restored is 2021-02-03T00:00:40Z");
    assert_eq!(plan(&plain(), &Target::Before(at(50)), None, at(50)).unwrap_err().code(), "after-end");
    // A clock of ours that is behind does not make captured log unusable.
    assert!(plan(&plain(), &Target::Before(at(35)), None, at(5)).is_ok());
}

#[test]
fn an_empty_repository_says_so() {
    let none = history(vec![], vec![]);
    assert_eq!(timeline(&none), Timeline::default());
    assert_eq!(refused(&none, 5), Refusal::NoSnapshots);
    assert_eq!(plan(&none, &Target::Latest, None, at(NOW)).unwrap_err(), Refusal::NoSnapshots);
    assert!(Refusal::NoSnapshots.to_string().starts_with("no base snapshot found"));
    let log_only = history(vec![], vec![s(10, 20)]);
    assert_eq!(refused(&log_only, 15), Refusal::NoSnapshots);
    assert_eq!(timeline(&log_only).unbacked.len(), 1);
}

#[test]
fn a_mistyped_name_is_answered_with_those_that_come_closest() {
    let ids = ["2021-02-03T08:08:36Z", "2021-02-04T08:00:00Z", "2021-02-05T08:00:00Z", "2021-03-01T08:00:00Z"];
    let history = history(ids.iter().map(|id| base(id, 10)).collect(), vec![]);
    let unknown = |name: &str| match plan(&history, &Target::Snapshot(name.into()), None, at(NOW)) {
        Err(Refusal::UnknownSnapshot { nearest, .. }) => nearest,
        other => panic!("{other:?}"),
    };
    assert_eq!(unknown("2021-02-04T08:00:01Z"), [ids[1], ids[0], ids[2]]);
    assert_eq!(unknown("2021-02-05"), [ids[2], ids[1], ids[0]]);
    assert_eq!(unknown("2021-03-1T08:00:00Z")[0], ids[3]);
    let error = plan(&history, &Target::Latest, Some("nope"), at(NOW)).unwrap_err();
    assert_eq!(error.code(), "unknown-snapshot");
    assert!(error.hint().starts_with("did you mean 2021-"), "{}", error.hint());
}

#[test]
fn a_snapshot_is_not_restored_from_another_one() {
    let history = History { snapshots: vec![base("a", 10), base("b", 25)], ..plain() };
    let of = |base| plan(&history, &Target::Snapshot("b".into()), Some(base), at(NOW));
    assert_eq!(of("a").unwrap_err().code(), "two-bases");
    assert_eq!(of("b").unwrap().range, Some((at(11), at(40))));
}

#[test]
fn what_is_captured_without_a_base_is_told_beyond_the_end() {
    let slices = vec![s(10, 40), slice(p(35), p(60), 2)];
    let history = history(vec![base("a", 10)], slices);
    // The runs overlap without meeting: the break is the reason.
    assert_eq!(refused(&history, 50).code(), "in-gap");

    let lone = common::history(vec![base("a", 10)], vec![s(30, 60)]);
    let refusal = refused(&lone, 50);
    assert_eq!(refusal.code(), "after-end");
    assert!(refusal.hint().contains("the log is stored until 2021-02-03T00:01:00Z"), "{}", refusal.hint());
}

#[test]
fn a_log_that_began_too_late_after_its_snapshot_has_a_cause() {
    let mut history = history(vec![base("a", 10)], vec![s(30, 60)]);
    history.gaps = vec![gap(10, 30, "the server's log had rolled over")];
    assert_eq!(holes(&timeline(&history)), [(10, 30, "the server's log had rolled over")]);
    assert_eq!(
        refused(&history, 50).to_string(),
        "2021-02-03T00:00:50Z cannot be restored: the server's log had rolled over"
    );
}

#[test]
fn of_several_streams_the_one_that_ends_first_ends_the_range() {
    let shard = |name: &str, slice: StoredSlice| StoredSlice { stream: name.into(), ..slice };
    let mut a = base("a", 10);
    let mut part = a.streams["rs0"].clone();
    part.last = p(14);
    a.streams.insert("rs1".into(), part);

    // Only one of the two is captured: the snapshot can be restored as it is, and no further.
    let captured = vec![shard("rs1", s(14, 20)), shard("rs1", s(20, 30))];
    let mut history = history(vec![a], captured);
    assert_eq!(all_seen(&timeline(&history)), [want(&["a"], 14, 14, None)]);
    let latest = plan(&history, &Target::Latest, None, at(NOW)).unwrap();
    assert_eq!((latest.cut, latest.streams.len()), (Cut::AtSnapshotEnd, 2));

    history.slices.push(s(10, 40));
    assert_eq!(all_seen(&timeline(&history)), [want(&["a"], 14, 30, Some((15, 30)))]);
    let plan = plan(&history, &Target::Latest, None, at(NOW)).unwrap();
    assert_eq!(plan.cut, Cut::Before(at(30)));
    let logs: Vec<_> = plan.streams.iter().map(|part| part.log.iter().map(bounds).collect::<Vec<_>>()).collect();
    assert_eq!(logs, [vec![(10, 40)], vec![(14, 20), (20, 30)]]);
}

#[test]
fn slices_that_hold_nothing_lead_nowhere() {
    // One start, two tags: such a pair would make a circle.
    let odd =
        vec![slice(p(20), p(20), 1), slice(point(20, 20, 1), point(20, 20, 2), 1), slice(point(20, 20, 2), p(20), 1)];
    let history = History { slices: [plain().slices, odd].concat(), ..plain() };
    assert_eq!(timeline(&history), timeline(&plain()));
    assert_eq!(chains(&history), chains(&plain()));
}

#[test]
fn a_snapshot_of_no_stream_is_no_base() {
    let mut odd = base("x", 20);
    odd.streams.clear();
    let history = History { snapshots: vec![odd, base("a", 10)], ..plain() };
    assert_eq!(timeline(&history), timeline(&plain()));
    assert_eq!(before(&history, 40).unwrap().base.id, "a");
    assert!(plan(&history, &Target::Before(at(30)), Some("x"), at(NOW)).is_err());
}

#[test]
fn a_hundred_thousand_slices_take_no_time() {
    // Every fifth slice is left over from a merge of ten, and every thousandth is missing.
    let mut slices: Vec<StoredSlice> = (0..80_000).filter(|n| n % 1000 != 999).map(|n| s(n * 5, n * 5 + 5)).collect();
    slices.extend((0..8_000).filter(|n| n % 100 != 99).map(|n| slice(p(n * 50), p(n * 50 + 50), 2)));
    slices.extend((0..12_000).map(|n| s(n * 30 + 1, n * 30 + 29)));
    let snapshots: Vec<SnapshotManifest> = (0..500).map(|n| base(&format!("b{n}"), n * 800 + 3)).collect();
    let history = history(snapshots, slices);

    let begun = std::time::Instant::now();
    let timeline = timeline(&history);
    assert!(timeline.ranges.len() > 50 && timeline.gaps.len() > 50);
    let last = timeline.ranges.last().and_then(|range| range.to).unwrap();
    assert!(plan(&history, &Target::Before(last), None, at(1_000_000)).is_ok());
    assert!(!hindsight_catalog::slices_to_merge(&history.slices, 10, None, u64::MAX).is_empty());
    assert!(hindsight_catalog::redundant(&history.slices).len() > 70_000);
    println!("{:?}", begun.elapsed());
    // A quadratic way takes minutes, also on a fast machine.
    assert!(begun.elapsed().as_secs() < 20);
}

/// What cannot be restored any more without the slices for which `gone` is true.
fn lost_without(history: &History, gone: impl Fn(&StoredSlice) -> bool) -> Vec<(u64, i64, i64)> {
    let mut less = history.clone();
    less.slices.retain(|slice| !gone(slice));
    losses(history, &less).iter().map(|loss| (loss.epoch, number(loss.first()), number(loss.last()))).collect()
}

#[test]
fn a_slice_that_is_damaged_costs_what_only_it_leads_to() {
    assert_eq!(lost_without(&plain(), |slice| bounds(slice) == (20, 30)), [(1, 21, 40)]);
    // The next base makes what follows it independent of the slice.
    let mut history = plain();
    history.snapshots.push(base("b", 35));
    assert_eq!(lost_without(&history, |slice| bounds(slice) == (20, 30)), [(1, 21, 35)]);
    // Parts that lie beside what they were merged into cost nothing.
    history.slices.push(s(10, 40));
    assert_eq!(lost_without(&history, |slice| bounds(slice) == (20, 30)), []);
}
