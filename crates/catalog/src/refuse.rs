//! Choosing the refusal: what is the matter with a target that no base leads to.

use hindsight_format::{SnapshotManifest, format_time};
use jiff::Timestamp;

use crate::footing::{Footing, Ground, rank};
use crate::history::History;
use crate::plan::Aim;
use crate::refusal::{Nearest, Refusal};
use crate::time::parse_time;
use crate::timeline::{Gap, Range, Timeline};

/// Why no base leads to `aim`.
pub(crate) fn refuse(history: &History, ground: &Ground<'_>, aim: Aim<'_>, now: Timestamp) -> Refusal {
    let target = aim.time();
    let timeline = Timeline::of(history, ground);
    if let Some(footing) = ground.footings.iter().rev().find(|f| f.is_selective() && aim.is_reached_from(f)) {
        return selective(footing.snapshot, target);
    }
    let before = timeline.ranges.iter().filter(|range| is_after(aim, range)).max_by_key(|range| last(range).time());
    let after = timeline.ranges.iter().filter(|range| is_before(aim, range)).min_by_key(|range| first(range).time());
    if target > now {
        return Refusal::InFuture { target, now, end: before.map(last) };
    }
    match (before, after) {
        (None, None) => match timeline.ranges.last() {
            Some(range) => Refusal::AfterEnd { target, end: last(range), captured: None },
            None => Refusal::NoSnapshots,
        },
        (None, Some(after)) => Refusal::BeforeFirst { target, earliest: first(after) },
        (Some(before), None) => after_last(&timeline, before, target),
        (Some(before), Some(after)) => {
            let gap = Box::new(between(&timeline, before, after, target));
            Refusal::InGap { target, gap, before: Some(last(before)), after: Some(first(after)) }
        }
    }
}

/// Why `named` does not lead to `aim`, when the newest fit base is `fit`.
pub(crate) fn refuse_base(
    history: &History,
    ground: &Ground<'_>,
    aim: Aim<'_>,
    named: &SnapshotManifest,
    fit: Option<&Footing<'_>>,
    now: Timestamp,
) -> Refusal {
    let target = aim.time();
    let name = named.id.clone();
    let fit_name = fit.map(|footing| footing.snapshot.id.clone());
    if named.streams.values().any(|part| aim.is_too_early_for(&part.last)) {
        return Refusal::BaseTooLate { name, last: named.restore_time(), target, earlier: fit_name };
    }
    // Where no base leads to, it does not help to say that this one does not.
    if fit.is_none() && (target > now || ground.full().next().is_some()) {
        return refuse(history, ground, aim, now);
    }
    let footing = ground.footings.iter().rev().find(|footing| footing.snapshot.id == named.id);
    let end = match footing.and_then(Footing::seconds) {
        Some((_, to)) => Nearest::Time(to),
        None => Nearest::Snapshot { id: name.clone(), time: named.restore_time() },
    };
    Refusal::BaseNotConnected { name, target, end, better: fit_name }
}

/// `snapshot` would lead to `target`, but is used only by name.
pub(crate) fn selective(snapshot: &SnapshotManifest, target: Timestamp) -> Refusal {
    Refusal::SelectiveBase { name: snapshot.id.clone(), namespaces: snapshot.namespaces.clone(), target }
}

/// There is no snapshot `name`: which of those there are may have been meant?
pub(crate) fn unknown_snapshot(history: &History, name: &str) -> Refusal {
    let time = |text: &str| parse_time(text, Timestamp::UNIX_EPOCH).ok().map(|parsed| parsed.time.as_second());
    let meant = time(name);
    let alike = |id: &str| id.bytes().zip(name.bytes()).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
    let mut nearest: Vec<_> = history.snapshots.iter().map(|snapshot| snapshot.id.clone()).collect();
    nearest.sort_by_key(|id| {
        // Names are times; of what is none, the longest common beginning counts.
        let distance = meant.zip(time(id)).map_or(i64::MAX, |(a, b)| a.abs_diff(b).try_into().unwrap_or(i64::MAX));
        (distance, std::cmp::Reverse((alike(id), id.clone())))
    });
    nearest.truncate(3);
    Refusal::UnknownSnapshot { name: name.to_owned(), nearest }
}

/// Whether what is aimed at comes before all that can be restored of `range`.
fn is_before(aim: Aim<'_>, range: &Range) -> bool {
    match aim {
        Aim::Before(time) => time <= range.start.time,
        Aim::Through { time, order } => (time, order) < rank(&range.start),
    }
}

/// Whether what is aimed at comes after all that can be restored of `range`.
fn is_after(aim: Aim<'_>, range: &Range) -> bool {
    match aim {
        Aim::Before(time) => time > range.end.time,
        Aim::Through { time, order } => (time, order) > rank(&range.end),
    }
}

/// The first state that can be restored of a range.
fn first(range: &Range) -> Nearest {
    range.from.map_or_else(|| as_it_is(range.bases.first(), range.start.time), Nearest::Time)
}

/// The last state that can be restored of a range.
fn last(range: &Range) -> Nearest {
    range.to.map_or_else(|| as_it_is(range.bases.last(), range.end.time), Nearest::Time)
}

fn as_it_is(base: Option<&String>, time: Timestamp) -> Nearest {
    base.map_or(Nearest::Time(time), |id| Nearest::Snapshot { id: id.clone(), time })
}

/// The target is later than all ranges, of which `before` is the last.
fn after_last(timeline: &Timeline, before: &Range, target: Timestamp) -> Refusal {
    match timeline.gaps.iter().find(|gap| is_behind(gap, before)) {
        Some(gap) => Refusal::InGap { target, gap: Box::new(gap.clone()), before: Some(last(before)), after: None },
        None => {
            let captured = timeline.unbacked.iter().map(|log| log.end.time).max();
            Refusal::AfterEnd { target, end: last(before), captured: captured.filter(|time| *time > before.end.time) }
        }
    }
}

/// Whether a break of the log is what ends a range, or a later one. (Where slices overlap without
/// meeting, the break begins before the range's end.)
fn is_behind(gap: &Gap, range: &Range) -> bool {
    let start = gap.start.as_ref().unwrap_or(&gap.end);
    gap.epoch >= range.epoch && rank(&gap.end) >= rank(&range.end) && rank(start) >= rank(&range.start)
}

/// What cannot be restored between two ranges, and why `target` cannot.
fn between(timeline: &Timeline, before: &Range, after: &Range, target: Timestamp) -> Gap {
    let (start, end) = (&before.end, &after.start);
    let mut breaks = timeline
        .gaps
        .iter()
        .filter(|gap| gap.epoch <= after.epoch && is_behind(gap, before) && rank(&gap.end) <= rank(&after.start));
    let at = |from: Timestamp, to: Timestamp| (from..=to).contains(&target);
    let hole = breaks.clone().find(|gap| gap.start.as_ref().is_some_and(|start| at(start.time, gap.end.time)));
    let log = timeline.unbacked.iter().find(|log| at(log.start.time, log.end.time));
    let explained = hole.is_some_and(|hole| hole.explained);
    let cause = match (hole, log) {
        (Some(hole), _) => hole.cause.clone(),
        (None, Some(log)) => {
            let why = breaks.next_back().map(|gap| format!(" ({})", gap.cause)).unwrap_or_default();
            format!("no snapshot leads into the log that is stored from {} on{why}", format_time(log.start.time))
        }
        (None, None) => {
            format!("no log is stored between {} and {}", format_time(start.time), format_time(end.time))
        }
    };
    let stream = after.streams.first().map(|part| part.stream.clone()).unwrap_or_default();
    Gap { epoch: after.epoch, stream, start: Some(start.clone()), end: end.clone(), cause, explained }
}
