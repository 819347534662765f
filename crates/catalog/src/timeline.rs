//! The timeline: what can be restored, and why the rest cannot.

use hindsight_format::Point;
use jiff::Timestamp;

use crate::history::History;

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
pub fn timeline(history: &History) -> Timeline {
    let _ = history;
    Timeline::default()
}
