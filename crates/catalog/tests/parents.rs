//! Snapshots that build upon others: what they lead to, and what is never removed before them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::random::*;
use common::*;
use hindsight_catalog::{
    History, Need, Refusal, Target, Wish, children, parents, plan, removal, timeline, to_build_upon, without,
};
use hindsight_format::{DamagedRecord, Place};
use proptest::prelude::*;

/// A full snapshot at 10, a chain of two on it at 20 and 30, another branch at 40, and a full one at 50.
fn chained() -> History {
    let snapshots = vec![
        base("a", 10),
        upon("a", base("b", 20)),
        upon("b", base("c", 30)),
        upon("a", base("d", 40)),
        base("e", 50),
    ];
    history(snapshots, (0..6).map(|n| s(n * 10, n * 10 + 10)).collect())
}

fn without_snapshot(mut history: History, id: &str) -> History {
    history.snapshots.retain(|snapshot| snapshot.id != id);
    history
}

fn names<'a>(snapshots: impl IntoIterator<Item = &'a hindsight_format::SnapshotManifest>) -> Vec<&'a str> {
    snapshots.into_iter().map(|snapshot| snapshot.id.as_str()).collect()
}

fn before(second: i64) -> Target {
    Target::Before(at(second))
}

#[test]
fn a_plan_names_everything_that_its_base_builds_upon() {
    let history = chained();
    let found = plan(&history, &before(36), None, at(100)).unwrap();
    assert_eq!((found.base.id.as_str(), names(&found.parents)), ("c", vec!["b", "a"]));
    assert_eq!(found.data_bytes, 3000);
    let found = plan(&history, &Target::Snapshot("d".into()), None, at(100)).unwrap();
    assert_eq!(names(&found.parents), ["a"]);
    assert!(plan(&history, &before(56), None, at(100)).unwrap().parents.is_empty());
    assert_eq!(names(children(&history, "a")), ["b", "c", "d"]);
    assert_eq!(names(parents(&history, history.snapshot("c").unwrap()).unwrap()), ["b", "a"]);
}

#[test]
fn the_newest_that_lacks_nothing_is_built_upon() {
    let history = chained();
    assert_eq!(to_build_upon(&history, 1, None).unwrap().id, "e");
    assert_eq!(to_build_upon(&history, 1, Some("c")).unwrap().id, "c");
    assert_eq!(to_build_upon(&history, 2, None).unwrap_err(), Refusal::NothingToBuildUpon);
    assert_eq!(to_build_upon(&history, 1, Some("x")).unwrap_err().code(), "unknown-snapshot");
    let torn = without_snapshot(without_snapshot(chained(), "b"), "e");
    assert_eq!(to_build_upon(&torn, 1, None).unwrap().id, "d");
    assert_eq!(to_build_upon(&torn, 1, Some("c")).unwrap_err().code(), "not-whole");
    let mut part = chained();
    part.snapshots.push(selective("f", 55, "x.y"));
    assert_eq!(to_build_upon(&part, 1, None).unwrap().id, "e");
    assert_eq!(to_build_upon(&part, 1, Some("f")).unwrap_err(), Refusal::OnlyAPart { name: "f".into() });
}

#[test]
fn what_lacks_a_part_is_no_base_and_is_refused_by_its_name() {
    let torn = without_snapshot(chained(), "b");
    // From the full one, along the log.
    assert_eq!(read(&plan(&torn, &before(36), None, at(100)).unwrap()).0, "a");
    assert!(timeline(&torn).ranges.iter().all(|range| !range.bases.contains(&"c".to_owned())));
    for named in [
        plan(&torn, &Target::Snapshot("c".into()), None, at(100)),
        plan(&torn, &before(36), Some("c"), at(100)),
        plan(&torn, &Target::Latest, Some("c"), at(100)),
    ] {
        let refused = named.unwrap_err();
        assert_eq!(refused.code(), "not-whole");
        assert_eq!(refused.to_string(), "snapshot c cannot be restored: it builds upon b, which is not stored");
        assert!(refused.hint().contains("another snapshot"));
    }
    let mut unread = without_snapshot(chained(), "b");
    unread.damaged.push(DamagedRecord { place: Place::Manifest("b".into()), key: "k".into(), why: "torn".into() });
    let refused = plan(&unread, &Target::Snapshot("c".into()), None, at(100)).unwrap_err().to_string();
    assert!(refused.contains("it builds upon b, and ") && refused.contains("torn"), "{refused}");

    let mut circle = chained();
    circle.snapshots[0].parent = Some("c".into());
    for name in ["a", "b", "c", "d"] {
        assert!(plan(&circle, &Target::Snapshot(name.into()), None, at(100)).is_err(), "{name}");
    }
}

#[test]
fn a_parent_goes_with_or_after_its_children_never_before() {
    let history = chained();
    for capturing in [None, Some(1)] {
        let refused = removal(&history, &[], &Wish::Snapshot("a".into()), capturing).unwrap_err();
        assert_eq!(refused.to_string(), "cannot delete snapshot a: b and c and d build on it");
        assert!(refused.hint().contains("the newest (d)"), "{}", refused.hint());
        let refused = removal(&history, &[], &Wish::Snapshot("b".into()), capturing).unwrap_err();
        assert_eq!(refused, Refusal::HasChildren { name: "b".into(), children: vec!["c".into()] });
        assert_eq!(refused.to_string(), "cannot delete snapshot b: c builds on it");
        let plan = removal(&history, &[], &Wish::Snapshot("c".into()), capturing).unwrap();
        assert_eq!(names(&plan.snapshots), ["c"]);
        assert!(plan.losses.is_empty());
    }
    // What is needed for 41 is d, and what d builds upon; the log before d is not.
    let plan = removal(&history, &[], &Wish::Everything { before: at(41) }, None).unwrap();
    assert_eq!(names(&plan.snapshots), ["c", "b"]);
    assert_eq!(
        plan.kept_snapshots,
        [
            ("a".to_owned(), Need::Children(vec!["d".to_owned()])),
            ("d".to_owned(), Need::Restores { from: at(41), to: at(50) }),
        ]
    );
    assert_eq!(plan.slices.iter().map(bounds).collect::<Vec<_>>(), [(0, 10), (10, 20), (20, 30), (30, 40)]);
    assert!(plan.kept_log.is_empty());
    // All of it, the last ones of the chain first.
    let plan = removal(&history, &[], &Wish::Everything { before: at(55) }, None).unwrap();
    assert_eq!(names(&plan.snapshots), ["c", "b", "d", "a"]);
    // By number: the newest two, and what they build upon.
    let plan = removal(&history, &[], &Wish::Retention { before: None, count: 2 }, Some(1)).unwrap();
    assert_eq!((names(&plan.snapshots), plan.kept_snapshots.len()), (vec!["c", "b"], 1));
    // One that lacks its parent is of no use to anybody.
    let torn = without_snapshot(chained(), "b");
    let plan = removal(&torn, &[], &Wish::Everything { before: at(41) }, None).unwrap();
    assert_eq!(names(&plan.snapshots), ["c"]);
}

/// Every snapshot is whole.
fn is_whole(history: &History) -> bool {
    history.snapshots.iter().all(|snapshot| parents(history, snapshot).is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_ever_left_that_lacks_a_part(
        (_, mut history) in any_history(),
        fathers in prop::collection::vec(any::<Option<prop::sample::Index>>(), 16),
        wish in prop_oneof![
            (0..5_u32, 1..3_u32).prop_map(|(n, epoch)| Wish::Snapshot(format!("b{n}e{epoch}"))),
            (-1_i64..80).prop_map(|before| Wish::Everything { before: at(before) }),
            (-1_i64..80).prop_map(|before| Wish::Snapshots { before: at(before), sort: None }),
            (-1_i64..80, 0..4_u32).prop_map(|(before, count)| Wish::Retention { before: Some(at(before)), count }),
        ],
        capturing in prop::option::of(1..3_u64),
    ) {
        history.snapshots.sort_by_key(|snapshot| (snapshot.restore_time(), snapshot.id.clone()));
        for at in 1..history.snapshots.len() {
            let father = fathers.get(at).copied().flatten().map(|index| history.snapshots[index.index(at)].id.clone());
            history.snapshots[at].parent = father;
        }
        prop_assert!(is_whole(&history));
        match removal(&history, &[], &wish, capturing) {
            Ok(plan) => {
                prop_assert_eq!(&timeline(&without(&history, &plan)).ranges, &plan.left);
                for (id, need) in &plan.kept_snapshots {
                    if let Need::Children(children) = need {
                        prop_assert!(!children.is_empty(), "{} stays for nothing", id);
                        prop_assert!(children.iter().all(|child| plan.snapshots.iter().all(|gone| gone.id != *child)));
                    }
                }
                // Wherever it is cut off.
                for done in 0..=plan.snapshots.len() {
                    let mut left = history.clone();
                    left.snapshots.retain(|s| !plan.snapshots[..done].iter().any(|gone| gone.id == s.id));
                    prop_assert!(is_whole(&left), "after {} of {:?}", done, names(&plan.snapshots));
                }
            }
            Err(Refusal::HasChildren { name, children: named }) => {
                prop_assert_eq!(names(children(&history, &name)), named);
            }
            Err(Refusal::LastPitrBase { .. } | Refusal::UnknownSnapshot { .. }) => {}
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
