//! Which epochs what is stored of one counts for.

use std::collections::BTreeMap;

use crate::cluster::{Branch, EpochRecord};
use crate::position::Point;
use crate::slice::StoredSlice;
use crate::snapshot::SnapshotManifest;

/// How the epochs of a cluster branch off each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ancestry<'a> {
    /// Of each epoch that branches off: what it has of older ones, the nearest first.
    inherited: BTreeMap<u64, Vec<Inherited<'a>>>,
}

/// What of an older epoch counts for a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited<'a> {
    /// The older one.
    pub epoch: u64,
    /// In this stream.
    pub stream: &'a str,
    /// Up to here.
    pub until: &'a Point,
}

impl<'a> Ancestry<'a> {
    /// As the records of epochs tell. One that is no older is none to branch off.
    pub fn new(epochs: &'a [EpochRecord]) -> Self {
        let branches = epochs.iter().filter_map(|record| Some((record.number, record.branch.as_ref()?)));
        let branches: BTreeMap<u64, &Branch> = branches.filter(|(number, branch)| branch.epoch < *number).collect();
        let line = |number: &u64| {
            let mut line: Vec<Inherited<'a>> = Vec::new();
            let mut next = branches.get(number);
            while let Some(Branch { epoch, stream, at }) = next.copied() {
                let nearer = line.last();
                // Where it left the nearer one before that began, this is as far as it goes here.
                let until =
                    nearer.map(|nearer| nearer.until).filter(|until| until.position.order() < at.position.order());
                if nearer.is_some_and(|nearer| nearer.stream != stream) {
                    break;
                }
                line.push(Inherited { epoch: *epoch, stream, until: until.unwrap_or(at) });
                next = branches.get(epoch);
            }
            line
        };
        Self { inherited: branches.keys().map(|number| (*number, line(number))).collect() }
    }

    /// What counts for an epoch beside its own, the nearest first; nothing where it branches off none.
    pub fn of(&self, epoch: u64) -> &[Inherited<'a>] {
        self.inherited.get(&epoch).map_or(&[], Vec::as_slice)
    }

    /// The epochs that branch off others, each with what it has of them.
    pub fn branching(&self) -> impl Iterator<Item = (u64, &[Inherited<'a>])> {
        self.inherited.iter().map(|(epoch, line)| (*epoch, line.as_slice()))
    }

    /// The epochs that a slice counts for, its own first.
    pub fn epochs_of(&self, slice: &StoredSlice) -> impl Iterator<Item = u64> {
        let heirs = self.inherited.iter().filter(|(_, line)| line.iter().any(|part| part.has_slice(slice)));
        std::iter::once(slice.epoch).chain(heirs.map(|(epoch, _)| *epoch))
    }
}

impl Inherited<'_> {
    /// Whether a slice is a part of it. That the log of the older one still ended there at a later time says nothing of another one.
    pub fn has_slice(&self, slice: &StoredSlice) -> bool {
        let (end, until) = (slice.name.end.position.order(), self.until.position.order());
        (slice.epoch, slice.stream.as_str()) == (self.epoch, self.stream)
            && (end < until || end == until && !slice.name.is_sign_of_life())
    }

    /// Whether a snapshot of everything is a part of it.
    pub fn has_snapshot(&self, snapshot: &SnapshotManifest) -> bool {
        let is_within =
            |stream: &str, last: &Point| stream == self.stream && last.position.order() <= self.until.position.order();
        snapshot.epoch == self.epoch
            && snapshot.namespaces.is_empty()
            && !snapshot.streams.is_empty()
            && snapshot.streams.iter().all(|(stream, part)| is_within(stream, &part.last))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use jiff::Timestamp;

    use super::*;
    use crate::cluster::EpochCause;
    use crate::position::Position;

    fn point(n: u64) -> Point {
        Point { time: Timestamp::UNIX_EPOCH, position: Position::new(format!("{n:04}"), "1").unwrap() }
    }

    fn record(number: u64, branch: Option<(u64, u64)>) -> EpochRecord {
        let branch = branch.map(|(epoch, at)| Branch { epoch, stream: "wal".into(), at: point(at) });
        EpochRecord { number, started_at: Timestamp::UNIX_EPOCH, cause: EpochCause::Left("x".into()), branch }
    }

    fn line(epochs: &[EpochRecord], epoch: u64) -> Vec<(u64, String)> {
        let parts = Ancestry::new(epochs);
        parts.of(epoch).iter().map(|part| (part.epoch, part.until.position.order().to_owned())).collect()
    }

    #[test]
    fn an_epoch_has_of_each_older_one_what_lies_before_it_left() {
        let mut epochs = vec![record(2, Some((1, 20))), record(3, Some((2, 50))), record(4, None)];
        assert_eq!(line(&epochs, 2), [(1, "0020".into())]);
        assert_eq!(line(&epochs, 3), [(2, "0050".into()), (1, "0020".into())]);
        assert_eq!((line(&epochs, 1), line(&epochs, 4)), (vec![], vec![]));
        // It left before the second began.
        epochs[1] = record(3, Some((2, 10)));
        assert_eq!(line(&epochs, 3), [(2, "0010".into()), (1, "0010".into())]);
    }

    #[test]
    fn records_that_make_no_sense_make_no_circles() {
        for branch in [(2, 5), (3, 5), (0, 5)] {
            let epochs = vec![record(2, Some(branch)), record(3, Some((2, 5)))];
            assert!(line(&epochs, 3).len() <= 2, "{branch:?}");
        }
    }

    #[test]
    fn records_without_a_branch_are_read_and_written_as_ever() {
        let old = r#"{"number":2,"started_at":"1970-01-01T00:00:00Z","cause":{"left":"x"}}"#;
        let record = serde_json::from_str::<EpochRecord>(old).unwrap();
        assert_eq!((&record, serde_json::to_string(&record).unwrap().as_str()), (&self::record(2, None), old));
    }
}
