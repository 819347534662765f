//! Random histories, and an oracle that tries everything.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use hindsight_catalog::{History, Target};
use hindsight_format::{Point, SnapshotManifest, StoredSlice};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// Positions of a random log: 0 to this.
pub const LAST: i64 = 30;
pub const NOW: i64 = 10_000;

/// A log: the time and the tag of each position.
#[derive(Clone, Debug)]
pub struct Truth {
    pub seconds: Vec<i64>,
    pub tags: Vec<u64>,
}

impl Truth {
    pub fn point(&self, n: i64) -> Point {
        let index = usize::try_from(n).unwrap();
        point(n, self.seconds[index], self.tags[index])
    }
}

pub fn truth() -> impl Strategy<Value = Truth> {
    // Many positions in a second, and seconds without any.
    let steps =
        prop::collection::vec((select(vec![0_i64, 0, 0, 1, 1, 2, 7]), prop::bool::weighted(0.1)), LAST as usize + 1);
    steps.prop_map(|steps| {
        let (mut second, mut tag) = (0, 1);
        let (mut seconds, mut tags) = (vec![], vec![]);
        for (step, elected) in steps {
            second += step;
            tag += u64::from(elected);
            seconds.push(second);
            tags.push(tag);
        }
        Truth { seconds, tags }
    })
}

/// What a writer stored: meeting slices from cut to cut, some of them lost, some merged.
pub fn writer(truth: Truth, fence: u64) -> impl Strategy<Value = Vec<StoredSlice>> {
    let cuts = prop::collection::btree_set(0..=LAST, 0..14);
    let merges = prop::collection::vec((any::<Index>(), any::<Index>()), 0..3);
    (cuts, prop::collection::vec(prop::bool::weighted(0.85), 14), merges).prop_map(move |(cuts, kept, merges)| {
        let cuts: Vec<_> = cuts.into_iter().collect();
        let mut slices: Vec<_> = cuts.windows(2).map(|c| slice(truth.point(c[0]), truth.point(c[1]), fence)).collect();
        for (a, b) in merges {
            if slices.len() > 1 {
                let (a, b) = (a.index(slices.len()), b.index(slices.len()));
                let (a, b) = (&slices[a.min(b)].name.start, &slices[a.max(b)].name.end);
                if n(a) < n(b) {
                    slices.push(slice(a.clone(), b.clone(), fence + 10));
                }
            }
        }
        slices
            .into_iter()
            .zip(kept.into_iter().chain(std::iter::repeat(true)))
            .filter(|(_, kept)| *kept)
            .map(|(s, _)| s)
            .collect()
    })
}

/// Slices that three writers stored, and signs of life, shuffled, some twice, some with a position of another history.
pub fn log(truth: Truth) -> impl Strategy<Value = Vec<StoredSlice>> {
    let signs = prop::collection::vec((0..=LAST, 0_i64..4), 0..4);
    let signs = signs.prop_map({
        let truth = truth.clone();
        move |signs| {
            let second = |n: i64| truth.seconds[usize::try_from(n).unwrap()];
            // Until the next one, and behind the last one as long as one likes.
            let until = |n: i64, later: i64| match n {
                LAST => later,
                _ => later.min(second(n + 1) - second(n)),
            };
            signs.into_iter().map(|(n, later)| sign(truth.point(n), until(n, later))).collect::<Vec<_>>()
        }
    });
    let writers = (writer(truth.clone(), 1), writer(truth.clone(), 2), writer(truth, 3));
    let foreign = prop::option::weighted(0.2, (any::<Index>(), any::<bool>()));
    (writers, signs, foreign, prop::option::weighted(0.2, any::<Index>()))
        .prop_map(|((a, b, c), signs, foreign, twice)| {
            let mut all = [a, b, c].concat();
            if let (Some(index), false) = (twice, all.is_empty()) {
                all.push(all[index.index(all.len())].clone());
            }
            if let (Some((index, at_end)), false) = (foreign, all.is_empty()) {
                let index = index.index(all.len());
                let name = &mut all[index].name;
                let bound = if at_end { &mut name.end } else { &mut name.start };
                *bound = point(n(bound), number(bound.time), 99);
            }
            all.extend(signs);
            all
        })
        .prop_shuffle()
}

pub fn bases(truth: Truth) -> impl Strategy<Value = Vec<SnapshotManifest>> {
    prop::collection::vec((0..=LAST, prop::bool::weighted(0.15), prop::bool::weighted(0.05)), 0..5).prop_map(
        move |all| {
            let mut bases = vec![];
            for (index, (n, is_selective, is_foreign)) in all.into_iter().enumerate() {
                let mut last = truth.point(n);
                if is_foreign {
                    last = point(n, number(last.time), 98);
                }
                let mut base = snapshot(&format!("b{index}"), last);
                if is_selective {
                    base.namespaces.push("shop.orders".into());
                }
                bases.push(base);
            }
            bases
        },
    )
}

/// One epoch: its log, and what is stored of it.
pub fn epoch(number: u64) -> impl Strategy<Value = (Truth, Vec<StoredSlice>, Vec<SnapshotManifest>)> {
    truth().prop_flat_map(|truth| (Just(truth.clone()), log(truth.clone()), bases(truth))).prop_map(move |(t, s, b)| {
        let slices = s.into_iter().map(|slice| in_epoch(number, slice)).collect();
        let rename = |base: SnapshotManifest| SnapshotManifest { id: format!("{}e{number}", base.id), ..base };
        (t, slices, b.into_iter().map(|base| in_epoch(number, rename(base))).collect())
    })
}

/// A history of one stream and two epochs.
pub fn any_history() -> impl Strategy<Value = (BTreeMap<u64, Truth>, History)> {
    (epoch(1), prop::option::weighted(0.4, epoch(2))).prop_map(|((truth, slices, snapshots), second)| {
        let mut truths = BTreeMap::from([(1, truth)]);
        let mut all = history(snapshots, slices);
        if let Some((truth, slices, snapshots)) = second {
            truths.insert(2, truth);
            all.slices.extend(slices);
            all.snapshots.extend(snapshots);
            all.epochs.push(restored(2, "r", 5));
        }
        (truths, all)
    })
}

/// The oracle: all points that slices which meet lead to from `base`, by trying every slice again
/// and again.
pub fn reached(history: &History, base: &SnapshotManifest, stream: &str) -> HashSet<Point> {
    let Some(start) = base.consistent_at(stream) else { return HashSet::new() };
    let mine: Vec<_> = history.slices.iter().filter(|s| s.stream == stream && s.epoch == base.epoch).collect();
    let mut reached = HashSet::from([start.clone()]);
    for slice in &mine {
        if n(&slice.name.start) < n(start) && n(start) < n(&slice.name.end) {
            reached.insert(slice.name.end.clone());
        }
    }
    loop {
        let meets = |s: &&&StoredSlice| {
            reached.iter().any(|point| point.position == s.name.start.position) && !reached.contains(&s.name.end)
        };
        let Some(slice) = mine.iter().find(meets) else { return reached };
        reached.insert(slice.name.end.clone());
    }
}

pub fn furthest(history: &History, base: &SnapshotManifest, stream: &str) -> Point {
    reached(history, base, stream).into_iter().max_by_key(|point| (n(point), point.time)).expect("the base itself")
}

pub fn leads_to(history: &History, base: &SnapshotManifest, target: &Target) -> bool {
    base.streams.iter().all(|(stream, part)| {
        let end = furthest(history, base, stream);
        match target {
            Target::Before(time) => part.last.time < *time && *time <= end.time,
            Target::Through { order, .. } => {
                part.last.position.order() <= order.as_str() && order.as_str() <= end.position.order()
            }
            _ => unreachable!("not asked"),
        }
    })
}

pub fn full(history: &History) -> impl Iterator<Item = &SnapshotManifest> {
    history.snapshots.iter().filter(|base| base.namespaces.is_empty())
}

/// Which of the targets full snapshots of an epoch lead to, by trying all.
pub fn restorable(history: &History, epoch: u64, targets: &[Target]) -> BTreeSet<usize> {
    let bases: Vec<_> = full(history).filter(|base| base.epoch == epoch).collect();
    let can = |target: &&Target| bases.iter().any(|base| leads_to(history, base, target));
    targets.iter().enumerate().filter(|(_, target)| can(target)).map(|(index, _)| index).collect()
}

/// The furthest position that full snapshots of an epoch lead to.
pub fn end(history: &History, epoch: u64) -> Option<i64> {
    full(history).filter(|base| base.epoch == epoch).map(|base| n(&furthest(history, base, "rs0"))).max()
}

pub fn targets(truths: &BTreeMap<u64, Truth>) -> Vec<Target> {
    let end = truths.values().flat_map(|truth| truth.seconds.last().copied()).max().unwrap() + 3;
    let times = (-1..end).map(|second| Target::Before(at(second)));
    let positions = (0..=LAST).map(|n| Target::Through { time: truths[&1].point(n).time, order: order(n) });
    times.chain(positions).collect()
}
