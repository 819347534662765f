//! What could be restored before, and cannot any more: because it is damaged, or is removed.

use hindsight_format::{Point, format_time};
use jiff::{SignedDuration, Timestamp};

use crate::footing::{Footing, Ground, rank};
use crate::history::History;
use crate::shared::shared;
use crate::timeline::{Range, ranges};

/// A stretch of history that can be restored now, and could not be afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The epoch of the cluster's history.
    pub epoch: u64,
    /// The selective snapshot that leads there; none where full snapshots do.
    pub snapshot: Option<String>,
    /// Where it begins: the start of a range, which is lost too, or the end of one that stays.
    pub from: Point,
    /// Where it ends: the end of a range, which is lost too, or the start of one that stays.
    pub to: Point,
    /// First and last whole second that cannot be restored *strictly before* any more; none when it
    /// is a state within one second, such as that of a snapshot which no log follows.
    pub seconds: Option<(Timestamp, Timestamp)>,
}

impl Loss {
    fn new(epoch: u64, from: &Point, to: &Point) -> Self {
        let first = from.time.checked_add(SignedDuration::from_secs(1)).ok();
        let seconds = first.filter(|first| *first <= to.time).map(|first| (first, to.time));
        Self { epoch, snapshot: None, from: from.clone(), to: to.clone(), seconds }
    }

    /// What is left of it behind a point.
    fn after(self, point: &Point) -> Option<Self> {
        match rank(&self.from) < rank(point) {
            true => (rank(point) < rank(&self.to)).then(|| Self::new(self.epoch, point, &self.to)),
            false => Some(self),
        }
    }

    /// Whether something is lost that is at `time` or later.
    pub(crate) fn reaches(&self, time: Timestamp) -> bool {
        self.seconds.map_or(self.to.time, |(_, last)| last) >= time
    }

    /// The last moment of it.
    pub fn last(&self) -> Timestamp {
        self.seconds.map_or(self.to.time, |(_, last)| last)
    }

    /// The first moment of it.
    pub fn first(&self) -> Timestamp {
        self.seconds.map_or(self.from.time, |(first, _)| first)
    }

    /// `10:03:11 - 10:13:02` with dates, or the state at one moment.
    pub fn moments(&self) -> String {
        match self.seconds {
            Some((first, last)) => format!("{} - {}", format_time(first), format_time(last)),
            None => format!("the state at {}", format_time(self.to.time)),
        }
    }

    /// Which snapshot leads there, where that is not plain: the end of a phrase.
    pub fn origin(&self) -> String {
        self.snapshot.as_ref().map(|name| format!(" from the selective snapshot {name}")).unwrap_or_default()
    }

    /// Whether all of `other` is lost with this.
    pub fn covers(&self, other: &Self) -> bool {
        self.epoch == other.epoch
            && (self.snapshot.is_none() || self.snapshot == other.snapshot)
            && rank(&self.from) <= rank(&other.from)
            && rank(&other.to) <= rank(&self.to)
    }
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.moments(), self.origin())
    }
}

/// What can be restored of `before` and not of `after`, which has no more than `before`.
pub fn losses(before: &History, after: &History) -> Vec<Loss> {
    between(&Ground::new(before), &Ground::new(after))
}

/// The same, of what is known already.
pub(crate) fn between(before: &Ground<'_>, after: &Ground<'_>) -> Vec<Loss> {
    let (old, left) = (ranges(before.full()), ranges(after.full()));
    let mut losses = Vec::new();
    for (old, shared) in old.iter().zip(shared(&old, before)) {
        let lost = of_ranges(std::slice::from_ref(old), &left).into_iter();
        // What a later epoch has, too, is told of that, unless it stays there.
        losses.extend(lost.filter_map(|loss| match shared {
            Some(shared) => loss.after(shared),
            None => Some(loss),
        }));
    }
    losses.extend(selective(before, after));
    losses
}

/// What full snapshots lead to before and not after, in each epoch by itself. What is left of a range lies within it.
pub(crate) fn of_ranges(before: &[Range], after: &[Range]) -> Vec<Loss> {
    let mut losses = Vec::new();
    for old in before {
        let mut left: Vec<_> = after.iter().filter(|range| range.lies_within(old)).collect();
        left.sort_by(|a, b| rank(&a.start).cmp(&rank(&b.start)));
        let mut at = &old.start;
        for range in &left {
            if rank(at) < rank(&range.start) {
                losses.push(Loss::new(old.epoch, at, &range.start));
            }
            at = &range.end;
        }
        if left.is_empty() || rank(at) < rank(&old.end) {
            losses.push(Loss::new(old.epoch, at, &old.end));
        }
    }
    losses
}

/// What selective snapshots lead to before and not after. (That one of them is itself removed is
/// told by its name.)
fn selective(before: &Ground<'_>, after: &Ground<'_>) -> Vec<Loss> {
    let selective = before.footings.iter().filter(|footing| footing.is_selective());
    let loss = |old: &Footing<'_>| {
        let left = after.footings.iter().find(|footing| footing.snapshot.id == old.snapshot.id);
        let from = left.map_or(old.start, |left| left.end);
        let loss = Loss::new(old.epoch, from, old.end);
        (rank(from) < rank(old.end)).then(|| Loss { snapshot: Some(old.snapshot.id.clone()), ..loss })
    };
    selective.filter_map(loss).collect()
}

impl Range {
    fn lies_within(&self, old: &Self) -> bool {
        self.epoch == old.epoch
            && self.streams.iter().map(|part| &part.stream).eq(old.streams.iter().map(|part| &part.stream))
            && rank(&old.start) <= rank(&self.start)
            && rank(&self.end) <= rank(&old.end)
    }
}
