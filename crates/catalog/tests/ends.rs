//! Where what is stored ends: signs of life, targets behind it, and who goes on with it.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use hindsight_catalog::{Cut, History, Nearest, Refusal, Target, clamp, plan, redundant, timeline, trails};
use hindsight_format::Point;

/// A snapshot at 10 and log from there to 40.
fn plain() -> History {
    history(vec![base("a", 10)], vec![s(10, 20), s(20, 30), s(30, 40)])
}

/// Server and log rest at position 40: it is told that it was still so `later` seconds after.
fn resting(later: i64) -> History {
    let mut history = plain();
    history.slices.push(sign(p(40), later));
    history
}

#[test]
fn a_sign_of_life_moves_the_end_without_any_log() {
    assert_eq!(seen(&timeline(&resting(25)).ranges[0]).4, Some(65));
    let shown = plan(&resting(25), &Target::Before(at(65)), None, at(99)).unwrap();
    assert_eq!((&shown.cut, shown.range.unwrap().1), (&Cut::Before(at(65)), at(65)));
    assert_eq!(read(&shown), read(&plan(&plain(), &Target::Before(at(40)), None, at(99)).unwrap()));
    let refused = plan(&resting(25), &Target::Before(at(66)), None, at(99)).unwrap_err();
    assert_eq!(refused, Refusal::AfterEnd { target: at(66), end: Nearest::Time(at(65)), captured: None });
    // Once the log goes on, it is the log that tells.
    let mut history = resting(25);
    history.slices.push(slice(point(40, 65, 1), point(50, 70, 1), 1));
    assert_eq!(redundant(&history.slices), [sign(p(40), 25)]);
    assert_eq!(seen(&timeline(&history).ranges[0]).4, Some(70));
    // A later one repeats it.
    let mut history = resting(25);
    history.slices.push(sign(p(40), 30));
    assert_eq!(redundant(&history.slices), [sign(p(40), 25)]);
    // A snapshot that no log follows has a range all the same.
    let alone = History { slices: vec![sign(p(10), 5)], snapshots: vec![base("a", 10)], ..plain() };
    assert_eq!(seen(&timeline(&alone).ranges[0]), want(&["a"], 10, 10, Some((11, 15))));
    let shown = plan(&alone, &Target::Latest, None, at(99)).unwrap();
    assert_eq!((shown.cut, shown.log_bytes), (Cut::Before(at(15)), 0));
}

#[test]
fn a_time_after_all_that_is_stored_is_clamped_where_nothing_came_after() {
    let clamped = |history: &History, target: i64, base: Option<&str>| {
        let target = Target::Before(at(target));
        let refusal = plan(history, &target, base, at(99)).unwrap_err();
        clamp(history, &refusal, &target, base, at(99))
            .map(|clamped| (number(clamped.asked), number(clamped.end), clamped))
    };
    let (asked, end, all) = clamped(&plain(), 60, None).unwrap();
    assert_eq!((asked, end), (60, 40));
    assert_eq!(all.target, Target::Through { time: at(40), order: order(40) });
    assert_eq!(all.plan, plan(&plain(), &Target::Latest, None, at(99)).unwrap());
    // Planned again it leads to the same, also when there is more by then.
    let more = History { slices: [plain().slices, vec![s(40, 50)]].concat(), ..plain() };
    assert_eq!(plan(&more, &all.target, None, at(99)).unwrap().cut, all.plan.cut);
    assert_eq!(clamped(&resting(25), 80, None).map(|(_, end, _)| end), Some(65));
    // In the future, and before all that is stored.
    assert!(clamped(&plain(), 100, None).is_none() && clamped(&plain(), 1, None).is_none());
    // Log that no snapshot leads into; a hole behind; a snapshot that no log follows; a base that leads less far.
    let behind = History { slices: [plain().slices, vec![s(45, 50)]].concat(), ..plain() };
    assert!(clamped(&behind, 60, None).is_none());
    let hole = History { gaps: vec![gap(40, 45, "the server's log had rolled over")], ..plain() };
    assert!(clamped(&hole, 60, None).is_none());
    assert!(clamped(&history(vec![base("a", 10)], vec![]), 60, None).is_none());
    // A history that began before that time, of which nothing is stored yet.
    let began = |second| History { epochs: vec![restored(2, "R", second)], ..plain() };
    assert!(clamped(&began(50), 60, None).is_none() && clamped(&began(70), 60, None).is_some());
}

#[test]
fn of_two_logs_that_lead_as_far_the_one_counts_that_is_known_to_have_rested_there() {
    // In one slice, but of a server of another history.
    let mut history = resting(5);
    history.slices.push(slice(p(0), point(40, 40, 99), 11));
    assert_eq!(timeline(&history).ranges.iter().map(seen).collect::<Vec<_>>(), [want(&["a"], 10, 40, Some((11, 45)))]);
    let planned = plan(&history, &Target::Before(at(45)), None, at(100)).unwrap();
    assert_eq!(read(&planned), ("a".to_owned(), vec![(10, 20), (20, 30), (30, 40)]));
}

#[test]
fn a_trail_is_of_the_newest_log_in_one_piece() {
    let told = |history: &History| -> Vec<Vec<(i64, String)>> {
        let told = |trail: &Vec<Point>| trail.iter().map(|p| (n(p), p.position.tag().to_owned())).collect();
        trails(history, 1).iter().map(told).collect()
    };
    let switched = vec![s(0, 20), slice(p(20), point(30, 30, 2), 1), slice(point(30, 30, 2), point(40, 40, 2), 1)];
    let at = |n: i64, tag: &str| (n, tag.to_owned());
    assert_eq!(told(&history(vec![base("a", 10)], switched.clone())), [vec![at(20, "1"), at(40, "2")]]);
    // After a gap, where something is stored and where nothing is yet.
    let after = [switched.clone(), vec![slice(point(50, 50, 3), point(60, 60, 3), 1)]].concat();
    assert_eq!(told(&history(vec![], after)), [vec![at(60, "3")]]);
    let mut gap = gap(40, 50, "lost");
    gap.record.end = point(50, 50, 3);
    assert_eq!(told(&History { gaps: vec![gap], ..history(vec![], switched) }), [vec![at(50, "3")]]);
    assert_eq!(told(&history(vec![base("a", 10)], vec![])), [vec![at(10, "1")]]);
    assert!(told(&history(vec![in_epoch(2, base("a", 10))], vec![])).is_empty());
}
