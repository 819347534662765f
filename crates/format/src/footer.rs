//! The footer at the end of every framed object: what a reader wants without reading all.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::position::Point;

/// What a framed object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// Data of a snapshot.
    Data,
    /// The catalog of a snapshot: what there is, and how it is defined.
    Catalog,
    /// A slice of a stream.
    Slice,
}

/// The footer: written last, as JSON in a skippable zstd frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Footer {
    /// Version of the format.
    pub format: u32,
    /// What the object holds.
    pub kind: ObjectKind,
    /// The key it was written under: an object that was moved or swapped is found out.
    pub key: String,
    /// Every frame, in order.
    pub frames: Vec<FrameEntry>,
    /// For slices: what is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogSummary>,
}

/// One frame: an independent zstd frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameEntry {
    /// Bytes stored.
    #[serde(rename = "l")]
    pub stored_len: u32,
    /// Bytes after decompression.
    #[serde(rename = "r")]
    pub raw_len: u32,
    /// CRC-32 of the stored bytes.
    #[serde(rename = "c")]
    pub crc32: u32,
    /// In data of a snapshot the scan, in a slice the part of the log (PostgreSQL: the timeline) that the frame belongs
    /// to; 0 where there is none.
    #[serde(rename = "s", default, skip_serializing_if = "is_zero")]
    pub segment: u32,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// What a slice holds, without reading it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogSummary {
    /// Exclusive start.
    pub start: Point,
    /// Inclusive end.
    pub end: Point,
    /// Number of log records.
    pub records: u64,
    /// Records per namespace and kind of operation.
    pub counts: BTreeMap<String, OpCounts>,
    /// Records per minute: Unix time of the minute's start, number.
    pub histogram: BTreeMap<i64, u64>,
    /// Records that a restore has to know of before it touches anything, as the engine says which; none where they were not
    /// counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notable: Option<u64>,
}

/// Records by kind of operation, as the engine names them.
pub type OpCounts = BTreeMap<String, u64>;

impl LogSummary {
    /// An empty summary of what follows `start`.
    pub fn starting_at(start: Point) -> Self {
        let (counts, histogram) = (BTreeMap::new(), BTreeMap::new());
        Self { end: start.clone(), start, records: 0, counts, histogram, notable: None }
    }

    /// Counts records of the same minute, which `unix_seconds` lies in.
    pub fn count(&mut self, namespace: &str, op: &str, unix_seconds: i64, records: u64) {
        self.records += records;
        *self.histogram.entry(unix_seconds - unix_seconds.rem_euclid(60)).or_default() += records;
        if !self.counts.contains_key(namespace) {
            self.counts.insert(namespace.to_owned(), OpCounts::new());
        }
        if let Some(ops) = self.counts.get_mut(namespace) {
            match ops.get_mut(op) {
                Some(n) => *n += records,
                None => {
                    ops.insert(op.to_owned(), records);
                }
            }
        }
    }

    /// Adds what the following piece holds: `self.end` must be `next.start`.
    pub fn absorb(&mut self, next: &Self) {
        self.end = next.end.clone();
        // Where there are no records none is notable.
        let notable = |piece: &Self| piece.notable.or((piece.records == 0).then_some(0));
        self.notable = match (self.notable, next.notable) {
            (None, None) => None,
            _ => notable(self).and_then(|mine| mine.checked_add(notable(next)?)),
        };
        // Sums of what was read: they may be anything.
        self.records = self.records.saturating_add(next.records);
        for (namespace, ops) in &next.counts {
            let mine = self.counts.entry(namespace.clone()).or_default();
            for (op, n) in ops {
                let sum = mine.entry(op.clone()).or_default();
                *sum = sum.saturating_add(*n);
            }
        }
        for (minute, n) in &next.histogram {
            let sum = self.histogram.entry(*minute).or_default();
            *sum = sum.saturating_add(*n);
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::position::Position;

    #[test]
    fn notable_records_are_known_where_all_pieces_tell() {
        let start = Point { time: Timestamp::UNIX_EPOCH, position: Position::new("1", "1").unwrap() };
        let piece = |records, notable| LogSummary { records, notable, ..LogSummary::starting_at(start.clone()) };
        for (first, second, both) in [
            ((5, Some(1)), (7, Some(2)), Some(3)),
            // A sign of life.
            ((5, Some(1)), (0, None), Some(1)),
            ((0, None), (7, Some(0)), Some(0)),
            ((0, None), (0, None), None),
            // One of a time when they were not counted.
            ((5, None), (7, Some(0)), None),
            ((5, Some(0)), (7, None), None),
            ((5, Some(u64::MAX)), (7, Some(1)), None),
        ] {
            let mut sum = piece(first.0, first.1);
            sum.absorb(&piece(second.0, second.1));
            assert_eq!((sum.records, sum.notable), (first.0 + second.0, both), "{first:?} {second:?}");
        }
    }
}
