//! The end of what is stored, for a time that is later than that.

use hindsight_format::DamagedRecord;
use jiff::Timestamp;

use crate::history::History;
use crate::plan::{Cut, RestorePlan, Target, plan};
use crate::refusal::{Nearest, Refusal};

/// Everything that is stored, where more was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Clamped {
    /// The time asked for: just before it.
    pub asked: Timestamp,
    /// The end of what is stored, at which the log is cut off.
    pub end: Timestamp,
    /// That very point, to be planned again.
    pub target: Target,
    /// What is read.
    pub plan: RestorePlan,
}

/// What is stored to its end, for a time for which [`plan`] says `refusal`.
///
/// None unless the log simply ends before that time. Where something is known to have come after it, what was there at that time is
/// something else: log that no snapshot leads into, a hole, a later history. A snapshot that no log follows is a state
/// of its own, to be named, and so is what a base leads to that does not lead as far as another.
pub fn clamp(
    history: &History,
    refusal: &Refusal,
    target: &Target,
    base: Option<&str>,
    now: Timestamp,
) -> Option<Clamped> {
    let (Target::Before(asked), Refusal::AfterEnd { end: Nearest::Time(end), captured: None, .. }) = (target, refusal)
    else {
        return None;
    };
    let plan = |base| plan(history, &Target::Latest, base, now).ok();
    let (last, newest) = (plan(base)?, plan(None)?);
    if (last.epoch, &last.cut) != (newest.epoch, &newest.cut) || last.range.map(|(_, to)| to) != Some(*end) {
        return None;
    }
    let began_later = history.epochs.iter().any(|epoch| epoch.number > last.epoch && epoch.started_at < *asked);
    let unread = history.damaged.iter().filter_map(DamagedRecord::epoch).any(|number| number > last.epoch);
    let is_hole_behind = history.gaps.iter().filter(|gap| gap.epoch == last.epoch).any(|gap| match &last.cut {
        Cut::Through { order } => gap.record.end.position.order() > order.as_str(),
        _ => gap.record.end.time > *end,
    });
    if began_later || unread || is_hole_behind {
        return None;
    }
    let target = match &last.cut {
        Cut::Through { order } => Target::Through { time: *end, order: order.clone() },
        Cut::Before(time) => Target::Before(*time),
        Cut::AtSnapshotEnd => return None,
    };
    Some(Clamped { asked: *asked, end: *end, target, plan: last })
}
