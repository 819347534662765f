//! MongoDB's positions.

use std::fmt;

use bson::Timestamp;
use hindsight_engine::EngineError;
use hindsight_format::{Point, Position};

/// An optime: the `ts` of an oplog entry, and the election term `t` in which it was written.
///
/// Ordered by `ts`. Terms never decrease along a history, and two entries of one history never
/// share a `ts`; the term is what tells an entry from one of a history that was rolled back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Optime {
    /// Unix time.
    pub secs: u32,
    /// Counter within the second.
    pub inc: u32,
    /// Election term.
    pub term: i64,
}

impl Optime {
    /// An optime from `ts` and `t`.
    pub fn new(ts: Timestamp, term: i64) -> Self {
        Self { secs: ts.time, inc: ts.increment, term }
    }

    /// The `ts` alone.
    pub fn timestamp(self) -> Timestamp {
        Timestamp { time: self.secs, increment: self.inc }
    }

    /// The sortable text of a `ts`.
    pub fn order_text(secs: u32, inc: u32) -> String {
        format!("{secs:010}.{inc:010}")
    }

    /// As the rest of Hindsight knows it.
    pub fn point(self) -> Result<Point, EngineError> {
        let bad = || EngineError::damaged(format!("{self} is no optime of a replica set"));
        let term = u64::try_from(self.term).map_err(|_| bad())?;
        let position = Position::new(Self::order_text(self.secs, self.inc), term.to_string()).map_err(|_| bad())?;
        let time = jiff::Timestamp::from_second(self.secs.into()).map_err(|_| bad())?;
        Ok(Point { time, position })
    }

    /// From what [`Optime::point`] gave.
    pub fn from_point(point: &Point) -> Result<Self, EngineError> {
        let parse = || {
            let (secs, inc) = point.position.order().split_once('.')?;
            Some(Self { secs: secs.parse().ok()?, inc: inc.parse().ok()?, term: point.position.tag().parse().ok()? })
        };
        parse().ok_or_else(|| EngineError::damaged(format!("{} is no MongoDB optime", point.position)))
    }
}

impl fmt::Display for Optime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{} (term {})", self.secs, self.inc, self.term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optimes_and_points_agree_in_value_and_order() {
        let a = Optime { secs: 1_700_000_000, inc: 2, term: 3 };
        let b = Optime { secs: 1_700_000_000, inc: 10, term: 3 };
        let (pa, pb) = (a.point().unwrap(), b.point().unwrap());
        assert_eq!(Optime::from_point(&pa).unwrap(), a);
        assert!(pa.position.order() < pb.position.order() && a < b);
    }
}
