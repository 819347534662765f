//! A stretch of the log by itself, without a base: for replaying it on top of what is there.

use hindsight_format::{Point, StoredSlice};
use jiff::{SignedDuration, Timestamp};

use crate::chains::chains;
use crate::history::History;
use crate::plan::{Aim, Target};
use crate::refusal::Refusal;

/// How far before its start a stretch is read, for transactions that begin before it and commit in it.
const LOOK_BACK: SignedDuration = SignedDuration::from_mins(10);

/// The stored log from one point to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The stream.
    pub stream: String,
    /// The epoch of the cluster's history.
    pub epoch: u64,
    /// The first point that counts: this time, or this very position.
    pub from: Target,
    /// Where it ends: strictly before this time, or with this very position.
    pub to: Target,
    /// The slices, in order, each starting where the one before ends. They begin earlier than `from` does, so
    /// that transactions are known from their beginning.
    pub slices: Vec<StoredSlice>,
    /// Bytes stored of these slices.
    pub stored_bytes: u64,
}

/// The log from `from` (inclusive) to `to` (strictly before a time; up to and including a position), in the
/// newest epoch that has all of it in one piece.
///
/// # Errors
/// A [`Refusal`] when the two are no points of the log, are in the wrong order, or not all of the log between them
/// is stored.
pub fn stretch(history: &History, from: &Target, to: &Target) -> Result<Stretch, Refusal> {
    let (Some(start), Some(end)) = (Aim::of(from), Aim::of(to)) else {
        return Err(Refusal::NoStretch);
    };
    if !start.is_before(end) {
        return Err(Refusal::Backwards { from: start.time(), to: end.time() });
    }
    let chains = chains(history);
    let holds = |chain: &&crate::chains::Chain| begins_before(&chain.start, start) && end.is_captured_at(&chain.end);
    let Some(chain) = chains.iter().filter(holds).max_by_key(|chain| chain.epoch) else {
        let stored = chains.iter().map(|chain| (chain.start.time, chain.end.time)).collect();
        return Err(Refusal::NotStored { from: start.time(), to: end.time(), stored });
    };
    let earliest = start.time().saturating_sub(LOOK_BACK).unwrap_or(Timestamp::MIN);
    let mut slices = Vec::new();
    for slice in chain.slices.iter().filter(|slice| slice.name.end.time >= earliest) {
        slices.push(slice.clone());
        if end.is_captured_at(&slice.name.end) {
            break;
        }
    }
    let stored_bytes = slices.iter().map(|slice| slice.stored_bytes).fold(0, u64::saturating_add);
    let (stream, epoch) = (chain.stream.clone(), chain.epoch);
    Ok(Stretch { stream, epoch, from: from.clone(), to: to.clone(), slices, stored_bytes })
}

/// Whether everything from `from` on comes after `start`, which is exclusive.
fn begins_before(start: &Point, from: Aim<'_>) -> bool {
    match from {
        Aim::Before(time) => start.time < time,
        Aim::Through { order, .. } => start.position.order() < order,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use hindsight_format::{Position, SliceName};

    use super::*;

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn history(slices: &[(i64, i64, u64)]) -> History {
        let point = |n: i64| Point { time: time(n), position: Position::new(format!("{n:06}.1"), "1").unwrap() };
        let slice = |&(from, to, epoch): &(i64, i64, u64)| StoredSlice {
            stream: "rs0".into(),
            epoch,
            name: SliceName { start: point(from), end: point(to), fence: 1 },
            stored_bytes: 7,
        };
        History { slices: slices.iter().map(slice).collect(), ..History::default() }
    }

    fn spans(history: &History, from: i64, to: i64) -> Result<Vec<(i64, i64)>, Refusal> {
        let found = stretch(history, &Target::Before(time(from)), &Target::Before(time(to)))?;
        assert_eq!(found.stored_bytes, 7 * found.slices.len() as u64);
        let span = |s: &StoredSlice| (s.name.start.time.as_second(), s.name.end.time.as_second());
        Ok(found.slices.iter().map(span).collect())
    }

    #[test]
    fn it_reads_what_it_needs_and_a_little_before() {
        let history = history(&[(0, 1000, 1), (1000, 2000, 1), (2000, 3000, 1), (3000, 4000, 1)]);
        assert_eq!(spans(&history, 2700, 2900).unwrap(), [(2000, 3000)]);
        assert_eq!(spans(&history, 2100, 3001).unwrap(), [(1000, 2000), (2000, 3000), (3000, 4000)]);
        assert_eq!(spans(&history, 1, 4000).unwrap().len(), 4);
    }

    #[test]
    fn what_is_not_stored_in_one_piece_is_refused() {
        let history = history(&[(0, 1000, 1), (1100, 2000, 1), (2000, 3000, 2)]);
        for (from, to) in [(0, 500), (500, 1500), (1500, 2500), (2500, 3001)] {
            assert!(matches!(spans(&history, from, to), Err(Refusal::NotStored { .. })), "{from} {to}");
        }
        assert!(matches!(spans(&history, 500, 500), Err(Refusal::Backwards { .. })));
        assert!(stretch(&history, &Target::Latest, &Target::Latest).is_err());
    }

    #[test]
    fn positions_are_inclusive() {
        let history = history(&[(0, 1000, 1), (1000, 2000, 1)]);
        let at = |second: i64, order: &str| Target::Through { time: time(second), order: order.to_owned() };
        let found = stretch(&history, &at(0, "000000.2"), &at(1000, "001000.1")).unwrap();
        assert_eq!(found.slices.len(), 1);
        assert!(stretch(&history, &at(0, "000000.1"), &at(1000, "001000.1")).is_err());
        assert!(stretch(&history, &at(5, "000005.1"), &at(5, "000005.1")).is_ok());
    }
}
