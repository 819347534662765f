//! Footings: where each snapshot stands in the log, and how far the log leads from it.

use std::collections::BTreeMap;

use hindsight_format::{Ancestry, Point, SnapshotManifest};
use jiff::{SignedDuration, Timestamp};

use crate::history::History;
use crate::log::Log;
use crate::parents::parents;

/// The logs of a history, and the footing of each of its snapshots in them.
pub(crate) struct Ground<'a> {
    /// How its epochs branch off each other.
    pub(crate) ancestry: Ancestry<'a>,
    /// By epoch and stream.
    pub(crate) logs: BTreeMap<(u64, &'a str), Log<'a>>,
    /// Of every snapshot that is whole and names at least one stream, one in each epoch that it counts for; by epoch, streams, then
    /// oldest first.
    pub(crate) footings: Vec<Footing<'a>>,
}

/// Where a snapshot stands in the log, and how far the log leads from it.
pub(crate) struct Footing<'a> {
    /// The snapshot.
    pub(crate) snapshot: &'a SnapshotManifest,
    /// The epoch whose log it stands in: its own, or one that branches off that behind it.
    pub(crate) epoch: u64,
    /// In each of its streams.
    pub(crate) streams: Vec<Foothold<'a>>,
    /// Where it is consistent: of several streams, in the last one to get there.
    pub(crate) start: &'a Point,
    /// The furthest point it leads to: of several streams, in the one that ends first.
    pub(crate) end: &'a Point,
}

/// A footing in one stream.
pub(crate) struct Foothold<'a> {
    /// The stream.
    pub(crate) stream: &'a str,
    /// Where the snapshot is consistent.
    pub(crate) start: &'a Point,
    /// The slice of the log with which to go on; none when no log follows.
    pub(crate) entry: Option<usize>,
    /// The furthest point to which the log leads; `start` when no log follows.
    pub(crate) end: &'a Point,
}

impl<'a> Ground<'a> {
    pub(crate) fn new(history: &'a History) -> Self {
        let (ancestry, logs) = (Ancestry::new(&history.epochs), Log::by_stream(history));
        // What lacks a part that it builds upon cannot be restored.
        let whole: Vec<_> = history.snapshots.iter().filter(|snapshot| parents(history, snapshot).is_ok()).collect();
        let own = whole.iter().filter_map(|snapshot| Footing::on_its_own(snapshot, snapshot.epoch));
        let mut footings: Vec<_> = own.collect();
        for (epoch, line) in ancestry.branching() {
            let counts = |snapshot: &&&SnapshotManifest| line.iter().any(|part| part.has_snapshot(snapshot));
            footings.extend(whole.iter().filter(counts).filter_map(|snapshot| Footing::on_its_own(snapshot, epoch)));
        }

        let mut holds: BTreeMap<_, Vec<(&mut Foothold<'a>, bool)>> = BTreeMap::new();
        for footing in &mut footings {
            let (epoch, strict) = (footing.epoch, footing.snapshot.kind.copies_files());
            for hold in &mut footing.streams {
                holds.entry((epoch, hold.stream)).or_default().push((hold, strict));
            }
        }
        for (key, mut holds) in holds {
            let Some(log) = logs.get(&key) else { continue };
            holds.sort_by_key(|(hold, _)| hold.start.position.order());
            let points: Vec<_> = holds.iter().map(|(hold, strict)| (hold.start, *strict)).collect();
            for ((hold, _), entry) in holds.into_iter().zip(log.entries(&points)) {
                hold.entry = entry;
                hold.end = entry.map_or_else(|| log.latest(hold.start), |index| log.reach(index));
            }
        }

        footings.iter_mut().for_each(Footing::find_end);
        footings.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
        Self { ancestry, logs, footings }
    }

    /// Where an epoch branches off another one.
    pub(crate) fn branch(&self, epoch: u64, stream: &str) -> Option<&'a Point> {
        self.ancestry.of(epoch).first().filter(|part| part.stream == stream).map(|part| part.until)
    }

    /// The footings of full snapshots, in each epoch that they count for: those that may serve as a base without being named.
    pub(crate) fn full(&self) -> impl DoubleEndedIterator<Item = &Footing<'a>> {
        self.footings.iter().filter(|footing| !footing.is_selective())
    }
}

impl<'a> Footing<'a> {
    /// Without any log that follows; none when the snapshot names no stream.
    fn on_its_own(snapshot: &'a SnapshotManifest, epoch: u64) -> Option<Self> {
        let parts = snapshot.streams.iter();
        let start = parts.clone().map(|(_, part)| &part.last).max_by_key(|&point| rank(point))?;
        let streams = parts.map(|(stream, part)| Foothold { stream, start: &part.last, entry: None, end: &part.last });
        Some(Self { snapshot, epoch, streams: streams.collect(), start, end: start })
    }

    fn find_end(&mut self) {
        if let Some(end) = self.streams.iter().map(|hold| hold.end).min_by_key(|&point| rank(point)) {
            // Where a stream has no log the base can be restored as it is, and no further.
            self.end = if rank(end) > rank(self.start) { end } else { self.start };
        }
    }

    fn sort_key(&self) -> (u64, Vec<&'a str>, (Timestamp, &'a str), &'a str) {
        let streams = self.streams.iter().map(|hold| hold.stream).collect();
        (self.epoch, streams, rank(self.start), &self.snapshot.id)
    }

    /// Whether it holds only some namespaces.
    pub(crate) fn is_selective(&self) -> bool {
        !self.snapshot.namespaces.is_empty()
    }

    /// First and last whole second that it can be restored *strictly before*.
    pub(crate) fn seconds(&self) -> Option<(Timestamp, Timestamp)> {
        seconds(self.start, self.end)
    }
}

/// By time, then by order within it. Between streams only times compare.
pub(crate) fn rank(point: &Point) -> (Timestamp, &str) {
    (point.time, point.position.order())
}

/// First and last whole second T such that all up to `start` is before T, and all before T is
/// captured when the log is up to `end`.
pub(crate) fn seconds(start: &Point, end: &Point) -> Option<(Timestamp, Timestamp)> {
    let from = start.time.checked_add(SignedDuration::from_secs(1)).ok()?;
    (from <= end.time).then_some((from, end.time))
}
