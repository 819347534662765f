//! One stream of one epoch as a graph: positions are its nodes, slices its edges.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};

use hindsight_format::{Point, Position, StoredSlice};
use jiff::Timestamp;

use crate::history::History;

/// How good it is to go on with a slice, best last: how far it leads, until when the log is known to have ended there (which
/// differs where servers of two histories wrote as far), over how few slices, written under which fence. The slice's index makes
/// the choice the same on every run.
type Rank<'a> = (&'a str, Timestamp, Reverse<u32>, u64, Reverse<usize>);

/// Where the best path from a slice leads.
#[derive(Clone, Copy)]
struct Way {
    /// The slice to go on with.
    next: Option<usize>,
    /// The last slice of the path.
    last: usize,
    /// Number of slices of the path.
    hops: u32,
}

/// The slices of one stream in one epoch, with the furthest way on from each.
///
/// Building it sorts the slices once; everything else is linear in what is asked.
pub(crate) struct Log<'a> {
    /// By start, the longer one first, then the higher fence; no two the same, none empty.
    slices: Vec<&'a StoredSlice>,
    /// Per slice, the best path that begins with it.
    ways: Vec<Way>,
    /// Per position, the best slice that starts there.
    best_at: HashMap<&'a Position, usize>,
    /// Per position, the latest sign of life: the log still ended there then.
    signs: HashMap<&'a Position, &'a StoredSlice>,
}

impl<'a> Log<'a> {
    /// Orders `slices`, which all count for one epoch, in one stream. What holds nothing (a start that is
    /// not before its end) is left out: it can lead nowhere. Signs of life only tell the time at which the log ended.
    pub(crate) fn new(slices: impl IntoIterator<Item = &'a StoredSlice>) -> Self {
        let mut signs: HashMap<&Position, &StoredSlice> = HashMap::new();
        let mut hold = |slice: &&'a StoredSlice| {
            if slice.name.is_sign_of_life() && signs.get(end(slice)).is_none_or(|other| is_older(other, slice)) {
                signs.insert(end(slice), slice);
            }
            start(slice).order() < end(slice).order()
        };
        let mut slices: Vec<_> = slices.into_iter().filter(|slice| hold(slice)).collect();
        slices.sort_by(|a, b| {
            let key = |s: &'a StoredSlice| (start(s).order(), start(s).tag(), Reverse((end(s).order(), end(s).tag())));
            key(a).cmp(&key(b)).then_with(|| b.name.fence.cmp(&a.name.fence))
        });
        slices.dedup_by(|a, b| a.name == b.name);

        let mut log = Self { ways: Vec::new(), best_at: HashMap::with_capacity(slices.len()), signs, slices };
        log.ways = vec![Way { next: None, last: 0, hops: 1 }; log.slices.len()];
        // A slice ends after it starts, so that all slices that can follow are done before it.
        for index in (0..log.slices.len()).rev() {
            let slice = log.slices[index];
            log.ways[index] = match log.best_at.get(end(slice)) {
                Some(&next) => Way { next: Some(next), last: log.ways[next].last, hops: log.ways[next].hops + 1 },
                None => Way { next: None, last: index, hops: 1 },
            };
            let rank = log.rank(index);
            if log.best_at.get(start(slice)).is_none_or(|&other| log.rank(other) < rank) {
                log.best_at.insert(start(slice), index);
            }
        }
        log
    }

    /// Of each epoch and stream, with what counts for it of the epochs that it branches off.
    pub(crate) fn by_stream(history: &'a History) -> BTreeMap<(u64, &'a str), Self> {
        history.slices_by_stream().into_iter().map(|(key, slices)| (key, Self::new(slices))).collect()
    }

    /// All slices, by start.
    pub(crate) fn slices(&self) -> &[&'a StoredSlice] {
        &self.slices
    }

    /// The furthest point that is reached by going on from the slice `index`.
    pub(crate) fn reach(&self, index: usize) -> &'a Point {
        self.latest(&self.slices[self.ways[index].last].name.end)
    }

    /// The same place at the latest time at which the log is known to have still ended there.
    pub(crate) fn latest(&self, point: &'a Point) -> &'a Point {
        let sign = self.signs.get(&point.position).filter(|_| !self.best_at.contains_key(&point.position));
        sign.map(|sign| &sign.name.end).filter(|end| end.time > point.time).unwrap_or(point)
    }

    /// Whether a sign of life tells something that the log, or a later sign, does not.
    pub(crate) fn needs(&self, sign: &StoredSlice) -> bool {
        !self.best_at.contains_key(end(sign))
            && self.signs.get(end(sign)).is_some_and(|latest| latest.name == sign.name)
    }

    /// Indexes of the best path that begins with the slice `index`.
    pub(crate) fn path(&self, index: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(index), |&at| self.ways[at].next)
    }

    /// The beginnings of all runs, in order: each the best slice at a position where no slice ends.
    /// A run that lies within another one is left out.
    pub(crate) fn runs(&self) -> Vec<usize> {
        let ends: HashSet<_> = self.slices.iter().map(|slice| end(slice)).collect();
        let mut runs: Vec<_> =
            self.best_at.iter().filter(|(position, _)| !ends.contains(*position)).map(|(_, &index)| index).collect();
        runs.sort_by_key(|&index| (start(self.slices[index]).order(), Reverse(self.rank(index))));
        let mut reached = "";
        runs.retain(|&index| {
            let further = self.reach(index).position.order() > reached;
            if further {
                reached = self.reach(index).position.order();
            }
            further
        });
        runs
    }

    /// For each of `points`, which must be sorted by `order`, the best slice with which the log
    /// goes on from there: one that starts exactly there, or one in whose midst the point lies. With a
    /// point that is strict, the latter only where the slice can be of the same history: one with the same tag
    /// at both ends holds no point with another. (The files of a physical snapshot are of one history alone, and
    /// servers that branch off from another have the same positions again.)
    pub(crate) fn entries(&self, points: &[(&Point, bool)]) -> Vec<Option<usize>> {
        let mut waiting = self.slices.iter().enumerate().peekable();
        let mut open: BinaryHeap<(Rank<'a>, usize)> = BinaryHeap::new();
        let mut entries = Vec::with_capacity(points.len());
        for (point, strict) in points {
            let order = point.position.order();
            while let Some((index, _)) = waiting.next_if(|(_, slice)| start(slice).order() < order) {
                open.push((self.rank(index), index));
            }
            // What ends here or before is of no use to any later point either.
            while open.peek().is_some_and(|&(_, index)| end(self.slices[index]).order() <= order) {
                open.pop();
            }
            let fits = |index: usize| !strict || self.can_hold(index, &point.position);
            let amid = match open.peek() {
                Some(&(_, best)) if !fits(best) => {
                    let others =
                        open.iter().filter(|&&(_, index)| end(self.slices[index]).order() > order && fits(index));
                    others.max().map(|&(_, index)| index)
                }
                best => best.map(|&(_, index)| index),
            };
            let exact = self.best_at.get(&point.position).copied();
            entries.push(amid.into_iter().chain(exact).max_by_key(|&index| self.rank(index)));
        }
        entries
    }

    fn can_hold(&self, index: usize, position: &Position) -> bool {
        let (start, end) = (start(self.slices[index]), end(self.slices[index]));
        start.tag() != end.tag() || start.tag() == position.tag()
    }

    fn rank(&self, index: usize) -> Rank<'a> {
        let way = self.ways[index];
        let reached = self.latest(&self.slices[way.last].name.end);
        (reached.position.order(), reached.time, Reverse(way.hops), self.slices[index].name.fence, Reverse(index))
    }
}

/// Whether of two signs of life at one position the first one is the older; of two of the same time it is the one under the lower fence.
fn is_older(sign: &StoredSlice, other: &StoredSlice) -> bool {
    let key = |sign: &StoredSlice| (sign.name.end.time, sign.name.fence, sign.name.start.time);
    key(sign) < key(other)
}

/// Where a slice starts.
pub(crate) fn start(slice: &StoredSlice) -> &Position {
    &slice.name.start.position
}

/// Where a slice ends.
pub(crate) fn end(slice: &StoredSlice) -> &Position {
    &slice.name.end.position
}
