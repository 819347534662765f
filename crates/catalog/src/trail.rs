//! By what a database has come that goes on with what is stored.

use std::collections::BTreeMap;

use hindsight_format::Point;

use crate::chains::chains;
use crate::history::History;

/// For each stream of an epoch, points of the newest part of its log that is in one piece, oldest first: the last one of each tag, so
/// that the very last is the newest that is known. Whoever goes on with that has come by all of them.
pub fn trails(history: &History, epoch: u64) -> Vec<Vec<Point>> {
    let mut trails: BTreeMap<&str, Vec<Point>> = BTreeMap::new();
    let chains = chains(history);
    for chain in chains.iter().filter(|chain| chain.epoch == epoch) {
        let ends = chain.slices.iter().map(|slice| slice.name.end.clone());
        newest(trails.entry(&chain.stream).or_default(), std::iter::once(chain.start.clone()).chain(ends).collect());
    }
    for snapshot in history.snapshots.iter().filter(|snapshot| snapshot.epoch == epoch) {
        for (stream, part) in &snapshot.streams {
            newest(trails.entry(stream).or_default(), vec![part.last.clone()]);
        }
    }
    // Where the log goes on after a gap, although nothing may be stored of that yet.
    for gap in history.gaps.iter().filter(|gap| gap.epoch == epoch) {
        newest(trails.entry(&gap.stream).or_default(), vec![gap.record.end.clone()]);
    }
    let mut trails: Vec<_> = trails.into_values().collect();
    for trail in &mut trails {
        trail.reverse();
        trail.dedup_by(|older, newer| older.position.tag() == newer.position.tag());
        trail.reverse();
    }
    trails
}

/// Of two trails the one that comes further; of two that come as far the first one.
fn newest(known: &mut Vec<Point>, other: Vec<Point>) {
    let end = |trail: &[Point]| trail.last().map(|point| point.position.order().to_owned());
    if end(&other) > end(known) {
        *known = other;
    }
}
