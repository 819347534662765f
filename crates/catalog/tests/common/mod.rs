//! Short ways to write down a history: positions are numbers, and so are times.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs)]

pub mod random;

use std::collections::BTreeMap;

use hindsight_catalog::{Chain, Gap, History, Nearest, Range, RestorePlan};
use hindsight_format::{
    Branch, EpochCause, EpochRecord, FORMAT_VERSION, GapRecord, Point, Position, SliceName, SnapshotKind,
    SnapshotManifest, SnapshotSource, SnapshotTotals, StoredGap, StoredSlice, StreamPart,
};
use jiff::Timestamp;

/// 2021-02-03T00:00:00Z, the second that positions are counted from.
const ZERO: i64 = 1_612_310_400;

/// Second `n` of the tests.
pub fn at(n: i64) -> Timestamp {
    Timestamp::from_second(ZERO + n).unwrap()
}

/// The number of a second.
pub fn number(time: Timestamp) -> i64 {
    time.as_second() - ZERO
}

/// Position `n`, at second `n`.
pub fn p(n: i64) -> Point {
    point(n, n, 1)
}

pub fn order(n: i64) -> String {
    format!("{n:010}")
}

pub fn point(n: i64, second: i64, tag: u64) -> Point {
    Point { time: at(second), position: Position::new(order(n), tag.to_string()).unwrap() }
}

pub fn slice(start: Point, end: Point, fence: u64) -> StoredSlice {
    StoredSlice { stream: "rs0".into(), epoch: 1, name: SliceName { start, end, fence }, stored_bytes: 10 }
}

/// The slice `(start, end]` under fence 1.
pub fn s(start: i64, end: i64) -> StoredSlice {
    slice(p(start), p(end), 1)
}

/// The log still ended at `point` so many seconds after it.
pub fn sign(point: Point, later: i64) -> StoredSlice {
    let end = Point { time: at(number(point.time) + later), ..point.clone() };
    slice(point, end, 1)
}

/// A full snapshot that is consistent at `last`.
pub fn snapshot(id: &str, last: Point) -> SnapshotManifest {
    let first = Point { time: last.time, position: Position::new("0", last.position.tag()).unwrap() };
    let own = SliceName { start: first.clone(), end: last.clone(), fence: 0 };
    SnapshotManifest {
        format: FORMAT_VERSION,
        id: id.into(),
        engine: "mongodb".into(),
        kind: SnapshotKind::Logical,
        parent: None,
        epoch: 1,
        namespaces: vec![],
        started_at: first.time,
        finished_at: last.time,
        source: SnapshotSource {
            member: "h:1".into(),
            role: "secondary".into(),
            server_version: "7.0.0".into(),
            compatibility_version: None,
        },
        streams: BTreeMap::from([("rs0".into(), StreamPart { first, last, slices: vec![own] })]),
        objects: vec![],
        totals: SnapshotTotals { stored_bytes: 1000, ..SnapshotTotals::default() },
        hashes: None,
        created_by: "test".into(),
        seal: None,
    }
}

/// The snapshot `id` at position `n`.
pub fn base(id: &str, n: i64) -> SnapshotManifest {
    snapshot(id, p(n))
}

/// The same, building upon `parent`.
pub fn upon(parent: &str, child: SnapshotManifest) -> SnapshotManifest {
    SnapshotManifest { kind: SnapshotKind::Incremental, parent: Some(parent.into()), ..child }
}

/// The same for only `namespace`.
pub fn selective(id: &str, n: i64, namespace: &str) -> SnapshotManifest {
    SnapshotManifest { namespaces: vec![namespace.into()], ..base(id, n) }
}

pub fn in_epoch<T: InEpoch>(epoch: u64, what: T) -> T {
    what.in_epoch(epoch)
}

pub trait InEpoch {
    fn in_epoch(self, epoch: u64) -> Self;
}

impl InEpoch for StoredSlice {
    fn in_epoch(self, epoch: u64) -> Self {
        Self { epoch, ..self }
    }
}

impl InEpoch for SnapshotManifest {
    fn in_epoch(self, epoch: u64) -> Self {
        Self { epoch, ..self }
    }
}

pub fn history(snapshots: Vec<SnapshotManifest>, slices: Vec<StoredSlice>) -> History {
    History { cluster: "rs0".into(), snapshots, slices, epochs: vec![], gaps: vec![], damaged: vec![] }
}

pub fn restored(number: u64, name: &str, second: i64) -> EpochRecord {
    EpochRecord { number, started_at: at(second), cause: EpochCause::Restore(name.into()), branch: None }
}

/// The epoch `number` branches off `epoch` at `at`.
pub fn branched(number: u64, epoch: u64, at: Point) -> EpochRecord {
    let cause = EpochCause::Left(format!("left {epoch}"));
    let started_at = at.time;
    EpochRecord { number, started_at, cause, branch: Some(Branch { epoch, stream: "rs0".into(), at }) }
}

pub fn gap(start: i64, end: i64, cause: &str) -> StoredGap {
    let record = GapRecord { start: Some(p(start)), end: p(end), cause: cause.into(), detected_at: at(end) };
    StoredGap { stream: "rs0".into(), epoch: 1, record }
}

/// The number of a point.
pub fn n(point: &Point) -> i64 {
    point.position.order().parse().unwrap()
}

/// A range as `(bases, start, end, from, to)`.
pub type Seen = (Vec<String>, i64, i64, Option<i64>, Option<i64>);

pub fn seen(range: &Range) -> Seen {
    (range.bases.clone(), n(&range.start), n(&range.end), range.from.map(number), range.to.map(number))
}

pub fn want(bases: &[&str], start: i64, end: i64, seconds: Option<(i64, i64)>) -> Seen {
    let bases = bases.iter().map(|&id| id.to_owned()).collect();
    (bases, start, end, seconds.map(|s| s.0), seconds.map(|s| s.1))
}

/// A chain as its slices.
pub fn links(chain: &Chain) -> Vec<(i64, i64)> {
    chain.slices.iter().map(bounds).collect()
}

pub fn bounds(slice: &StoredSlice) -> (i64, i64) {
    (n(&slice.name.start), n(&slice.name.end))
}

/// A plan as its base and the log of its first stream.
pub fn read(plan: &RestorePlan) -> (String, Vec<(i64, i64)>) {
    (plan.base.id.clone(), plan.streams[0].log.iter().map(bounds).collect())
}

/// A gap as `(start, end, cause)`.
pub fn hole(gap: &Gap) -> (i64, i64, &str) {
    (gap.start.as_ref().map_or(-1, n), n(&gap.end), gap.cause.as_str())
}

pub fn second(nearest: &Nearest) -> i64 {
    number(nearest.time())
}
