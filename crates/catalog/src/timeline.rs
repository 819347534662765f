//! The timeline: what can be restored, and why the rest cannot.

use std::collections::BTreeMap;

use hindsight_format::{DamagedRecord, EpochCause, GapRecord, Point, format_time};
use jiff::Timestamp;

use crate::footing::{Foothold, Footing, Ground, rank, seconds};
use crate::history::History;
use crate::shared::told_once;

/// What can be restored, and why the rest cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// Every stretch of history in which each point can be restored; by epoch, then by start.
    pub ranges: Vec<Range>,
    /// Where the log is broken between what was stored before and after; by epoch, then by start.
    pub gaps: Vec<Gap>,
    /// Log that is stored but that no full snapshot reaches; by epoch, stream, then by start.
    pub unbacked: Vec<Unbacked>,
}

/// A stretch of history in which each point can be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The epoch of the cluster's history.
    pub epoch: u64,
    /// Its bounds in each stream.
    pub streams: Vec<StreamRange>,
    /// The full (not selective) snapshots that it rests on, oldest first.
    pub bases: Vec<String>,
    /// Where the oldest base is consistent; with several streams, in the last of them to get there.
    pub start: Point,
    /// The last point that can be restored; with several streams, of the stream that ends first.
    pub end: Point,
    /// First whole second that can be restored *strictly before*: the one after `start`, as
    /// everything in a base must be older. None (as is `to`) when there is no such second: a
    /// snapshot that no log follows can be restored as it is, but to no other time.
    pub from: Option<Timestamp>,
    /// Last whole second that can be restored *strictly before*: that of `end`.
    pub to: Option<Timestamp>,
    /// Why the server left this behind, where a later epoch has all that comes before `start`, and goes on in another way: by
    /// its time alone, that other way is restored.
    pub left_behind: Option<String>,
}

/// The bounds of a range in one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRange {
    /// The stream.
    pub stream: String,
    /// Where the oldest base is consistent in it.
    pub start: Point,
    /// The last stored point of it.
    pub end: Point,
}

/// A break in the stored log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The epoch of what follows.
    pub epoch: u64,
    /// The stream.
    pub stream: String,
    /// The last stored point before; none when nothing is stored before.
    pub start: Option<Point>,
    /// Where the log goes on.
    pub end: Point,
    /// Why, in one phrase for people.
    pub cause: String,
    /// Whether the cause is on record. Otherwise something is missing that was there, or overlaps.
    pub explained: bool,
}

/// Log that is stored but that no full snapshot reaches: it can be searched, not restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unbacked {
    /// The epoch of the cluster's history.
    pub epoch: u64,
    /// The stream.
    pub stream: String,
    /// Where it starts (exclusive).
    pub start: Point,
    /// Where it ends (inclusive), or where the first base that reaches it is consistent.
    pub end: Point,
}

/// What can be restored of `history`, and why the rest cannot.
///
/// What an epoch has in common with one that branches off it is told once: ranges as those of the later one, gaps and log
/// without a base as those of the older one.
///
/// A range is the union of what its bases lead to: each base to the furthest point that slices
/// which meet lead to, from the slice that starts at the base's consistent point or holds it in
/// its midst. With several streams a base leads as far as the one that ends first.
pub fn timeline(history: &History) -> Timeline {
    Timeline::of(history, &Ground::new(history))
}

impl Timeline {
    pub(crate) fn of(history: &History, ground: &Ground<'_>) -> Self {
        let ranges = ranges(ground.full());
        let (gaps, unbacked) = (gaps(history, ground), unbacked(ground, &ranges));
        Self { ranges: told_once(history, ground, ranges), gaps, unbacked }
    }
}

/// What full snapshots, ordered as in a [`Ground`], lead to.
pub(crate) fn ranges<'g, 'a: 'g>(footings: impl Iterator<Item = &'g Footing<'a>>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for footing in footings {
        match ranges.last_mut() {
            Some(range) if range.meets(footing) => range.absorb(footing),
            _ => ranges.push(Range::on(footing)),
        }
    }
    ranges.sort_by(|a, b| (a.epoch, rank(&a.start)).cmp(&(b.epoch, rank(&b.start))));
    ranges
}

impl Range {
    fn on(footing: &Footing<'_>) -> Self {
        let streams = footing.streams.iter().map(|hold| StreamRange {
            stream: hold.stream.to_owned(),
            start: hold.start.clone(),
            end: hold.end.clone(),
        });
        let seconds = footing.seconds();
        Self {
            epoch: footing.epoch,
            streams: streams.collect(),
            bases: vec![footing.snapshot.id.clone()],
            start: footing.start.clone(),
            end: footing.end.clone(),
            from: seconds.map(|(from, _)| from),
            to: seconds.map(|(_, to)| to),
            left_behind: None,
        }
    }

    /// Whether nothing is missing between this range and a base that stands no earlier in it.
    fn meets(&self, footing: &Footing<'_>) -> bool {
        self.epoch == footing.epoch
            && self.streams.len() == footing.streams.len()
            && footing.start.time <= self.end.time
            && self.streams.iter().zip(&footing.streams).all(|(mine, hold)| {
                mine.stream == hold.stream && hold.start.position.order() <= mine.end.position.order()
            })
    }

    fn absorb(&mut self, footing: &Footing<'_>) {
        self.bases.push(footing.snapshot.id.clone());
        if rank(footing.end) > rank(&self.end) {
            self.end = footing.end.clone();
            for (mine, hold) in self.streams.iter_mut().zip(&footing.streams) {
                mine.end = hold.end.clone();
            }
            let seconds = seconds(&self.start, &self.end);
            (self.from, self.to) = (seconds.map(|(from, _)| from), seconds.map(|(_, to)| to));
        }
    }
}

/// Breaks between the runs of each stream, and between its epochs.
fn gaps(history: &History, ground: &Ground<'_>) -> Vec<Gap> {
    let mut gaps = Vec::new();
    // Per stream, where what was stored in the epoch before ended.
    let mut before: BTreeMap<&str, (u64, &Point)> = BTreeMap::new();
    let recorded = Recorded::new(history);

    for ((epoch, stream), stored) in stored(ground) {
        let gap = |start: Option<&Point>, end: &Point, cause: Result<String, String>| Gap {
            epoch,
            stream: stream.to_owned(),
            start: start.cloned(),
            end: end.clone(),
            explained: cause.is_ok(),
            cause: cause.unwrap_or_else(|unknown| unknown),
        };
        let branch = ground.branch(epoch, stream);
        // What comes before it is told of the epoch that it branches off.
        let is_told = |point: &Point| branch.is_some_and(|at| order(point) < order(at));
        if let (Some(first), Some(last)) = (stored.first(), stored.last())
            && let Some((older, end)) = before.insert(stream, (epoch, last))
            && branch.is_none()
        {
            gaps.push(gap(Some(end), first, Ok(new_history(history, older, epoch))));
        }
        if let Some((first, _)) = stored.runs.first()
            && !is_told(first)
            && let Some(earlier) = stored.bases.iter().rev().find(|base| order(base.start) < order(first))
            && let Some(cause) = recorded.between(epoch, stream, earlier.start, first)
        {
            gaps.push(gap(Some(earlier.start), first, Ok(cause)));
        }
        for (&(_, end), &(start, _)) in stored.runs.iter().zip(stored.runs.iter().skip(1)) {
            if is_told(start) {
                continue;
            }
            if order(end) < order(start) {
                let cause = recorded.between(epoch, stream, end, start).ok_or_else(|| missing(end, start));
                gaps.push(gap(Some(end), start, cause));
            } else if !stored.bases.iter().any(|base| order(base.start) <= order(end) && order(end) < order(base.end)) {
                gaps.push(gap(Some(start), end, Err(overlapping(start, end))));
            }
        }
    }
    gaps
}

/// What is stored of one stream in one epoch.
#[derive(Default)]
struct Stored<'g, 'a> {
    /// Start and end of each run, as [`Log::runs`](crate::log::Log::runs) orders them.
    runs: Vec<(&'a Point, &'a Point)>,
    /// The full snapshots' footholds, oldest first.
    bases: Vec<&'g Foothold<'a>>,
}

impl<'a> Stored<'_, 'a> {
    fn points(&self) -> impl Iterator<Item = &'a Point> {
        let runs = self.runs.iter().flat_map(|&(start, end)| [start, end]);
        runs.chain(self.bases.iter().map(|base| base.start))
    }

    fn first(&self) -> Option<&'a Point> {
        self.points().min_by_key(|&point| order(point))
    }

    fn last(&self) -> Option<&'a Point> {
        self.points().max_by_key(|&point| order(point))
    }
}

fn stored<'g, 'a>(ground: &'g Ground<'a>) -> BTreeMap<(u64, &'a str), Stored<'g, 'a>> {
    let mut all: BTreeMap<_, Stored<'g, 'a>> = BTreeMap::new();
    for (&key, log) in &ground.logs {
        let runs: Vec<_> =
            log.runs().into_iter().map(|index| (&log.slices()[index].name.start, log.reach(index))).collect();
        if !runs.is_empty() {
            all.entry(key).or_default().runs = runs;
        }
    }
    for footing in ground.full() {
        for hold in &footing.streams {
            all.entry((footing.epoch, hold.stream)).or_default().bases.push(hold);
        }
    }
    all
}

fn order(point: &Point) -> &str {
    point.position.order()
}

fn missing(start: &Point, end: &Point) -> String {
    let (start, end) = (format_time(start.time), format_time(end.time));
    format!("no record of the cause: slices between {start} and {end} are missing")
}

fn overlapping(start: &Point, end: &Point) -> String {
    let (start, end) = (format_time(start.time), format_time(end.time));
    format!("no record of the cause: slices overlap between {start} and {end} without meeting")
}

/// Why the history went from one epoch to a later one.
fn new_history(history: &History, older: u64, newer: u64) -> String {
    let mut epochs: Vec<_> = history.epochs.iter().filter(|e| e.number > older && e.number <= newer).collect();
    epochs.sort_by_key(|epoch| epoch.number);
    let unread = history.damaged.iter().filter_map(DamagedRecord::epoch).filter(|n| *n > older && *n <= newer);
    let unread = unread.map(|number| format!("why epoch {number} began cannot be read"));
    let causes: Vec<_> = epochs.into_iter().map(|epoch| told(&epoch.cause)).chain(unread).collect();
    if causes.is_empty() { "no record of why a new history began".to_owned() } else { causes.join(", then ") }
}

/// Why an epoch began, for people.
pub(crate) fn told(cause: &EpochCause) -> String {
    match cause {
        EpochCause::Restore(name) => format!("restore {name} replaced the data"),
        EpochCause::Left(cause) => cause.clone(),
    }
}

/// The recorded gaps, to be found by position.
struct Recorded<'a> {
    /// Per epoch and stream, by the order of their ends.
    records: BTreeMap<(u64, &'a str), Vec<&'a GapRecord>>,
}

impl<'a> Recorded<'a> {
    fn new(history: &'a History) -> Self {
        let mut records: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for gap in &history.gaps {
            records.entry((gap.epoch, gap.stream.as_str())).or_default().push(&gap.record);
        }
        for records in records.values_mut() {
            records.sort_by_key(|record| order(&record.end));
        }
        Self { records }
    }

    /// What was recorded about holes that end after `start` and no later than `end`: a hole may
    /// have become larger since, when what lay behind it was deleted.
    fn between(&self, epoch: u64, stream: &str, start: &Point, end: &Point) -> Option<String> {
        let records = self.records.get(&(epoch, stream))?;
        let first = records.partition_point(|record| order(&record.end) <= order(start));
        let within = records[first..].iter().take_while(|record| order(&record.end) <= order(end));
        let mut causes: Vec<_> = within.map(|record| record.cause.as_str()).collect();
        causes.dedup();
        (!causes.is_empty()).then(|| causes.join("; "))
    }
}

/// What the ranges leave of the runs.
fn unbacked(ground: &Ground<'_>, ranges: &[Range]) -> Vec<Unbacked> {
    let mut covers: BTreeMap<(u64, &str), Vec<&StreamRange>> = BTreeMap::new();
    for range in ranges {
        for part in &range.streams {
            covers.entry((range.epoch, &part.stream)).or_default().push(part);
        }
    }
    let mut unbacked = Vec::new();
    for (key, stored) in stored(ground) {
        let mut covers = covers.remove(&key).unwrap_or_default().into_iter().peekable();
        let mut push = |start: &Point, end: &Point| {
            if order(start) < order(end) {
                let (epoch, stream) = (key.0, key.1.to_owned());
                unbacked.push(Unbacked { epoch, stream, start: start.clone(), end: end.clone() });
            }
        };
        // The same.
        let mut done = ground.branch(key.0, key.1);
        for (start, end) in stored.runs {
            let mut at = done.map_or(start, |done| later(done, start));
            while let Some(cover) = covers.next_if(|cover| order(&cover.start) < order(end)) {
                push(at, &cover.start);
                at = later(at, &cover.end);
            }
            push(at, end);
            done = Some(later(at, end));
        }
    }
    unbacked
}

fn later<'p>(a: &'p Point, b: &'p Point) -> &'p Point {
    if order(b) > order(a) { b } else { a }
}
