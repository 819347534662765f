//! What an epoch and one that branches off it both have: told once, as what the later one has.

use std::collections::BTreeMap;

use hindsight_format::Point;

use crate::footing::{Ground, rank, seconds};
use crate::history::History;
use crate::timeline::{Range, told};

/// For each of `ranges`, which are all of a history, up to where one of a later epoch has the same; none where none does.
pub(crate) fn shared<'r>(ranges: &'r [Range], ground: &'r Ground<'_>) -> Vec<Option<&'r Point>> {
    let mut of_base: BTreeMap<&str, Vec<&Range>> = BTreeMap::new();
    for range in ranges {
        for base in &range.bases {
            of_base.entry(base).or_default().push(range);
        }
    }
    let shared = |range: &Range| {
        // What leads to its beginning leads from there on.
        let others = range.bases.first().and_then(|base| of_base.get(base.as_str()))?;
        let common = others.iter().filter_map(|other| {
            let part = ground.ancestry.of(other.epoch).iter().find(|part| part.epoch == range.epoch)?;
            let ends_before = other.end.position.order() < part.until.position.order();
            Some(if ends_before { &other.end } else { part.until })
        });
        common.max_by_key(|point| point.position.order())
    };
    ranges.iter().map(shared).collect()
}

/// The same ranges, without what one of a later epoch has, too.
pub(crate) fn told_once(history: &History, ground: &Ground<'_>, ranges: Vec<Range>) -> Vec<Range> {
    let shared: Vec<Option<Point>> = shared(&ranges, ground).into_iter().map(Option::<&Point>::cloned).collect();
    ranges.into_iter().zip(shared).filter_map(|(range, shared)| range.after(shared, history)).collect()
}

impl Range {
    /// What is left of it behind a point; none where there is no second in that.
    fn after(mut self, shared: Option<Point>, history: &History) -> Option<Self> {
        let Some(start) = shared else { return Some(self) };
        if rank(&start) >= rank(&self.end) {
            return None;
        }
        let (from, to) = seconds(&start, &self.end)?;
        (self.from, self.to) = (Some(from), Some(to));
        for part in &mut self.streams {
            part.start = start.clone();
        }
        self.start = start;
        self.left_behind = why_left(history, self.epoch);
        Some(self)
    }
}

/// Why the server left an epoch for one that branches off it.
fn why_left(history: &History, epoch: u64) -> Option<String> {
    let heirs = history.epochs.iter().filter(|record| record.branch.as_ref().is_some_and(|off| off.epoch == epoch));
    heirs.max_by_key(|record| record.number).map(|record| told(&record.cause))
}
