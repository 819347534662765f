//! Names of slices: everything a timeline needs is in the name.

use std::fmt;
use std::str::FromStr;

use crate::position::{Point, PositionError};

/// Ending of every slice name: one zstd stream of log records, readable with `zstd -d`.
const SUFFIX: &str = ".log.zst";

/// The name of a slice: `<start>_<end>.<fence>.log.zst`. It holds what came after `start`, up to
/// and including `end`; `fence` is the number of the lease under which it was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SliceName {
    /// Exclusive start.
    pub start: Point,
    /// Inclusive end.
    pub end: Point,
    /// Fencing token of the writer.
    pub fence: u64,
}

impl SliceName {
    /// Whether it holds nothing, and says that the log still ended there at a later time: where a database writes no log while
    /// nobody works with it, nothing else tells that time has passed.
    pub fn is_sign_of_life(&self) -> bool {
        self.start.position == self.end.position
    }
}

impl fmt::Display for SliceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}.{:010}{SUFFIX}", self.start.key_text(), self.end.key_text(), self.fence)
    }
}

impl FromStr for SliceName {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let bad = || PositionError::new(text, "slice name");
        let rest = text.strip_suffix(SUFFIX).ok_or_else(bad)?;
        let (start, rest) = rest.split_once('_').ok_or_else(bad)?;
        let (end, fence) = rest.rsplit_once('.').ok_or_else(bad)?;
        let slice = Self {
            start: Point::from_key_text(start).map_err(|_| bad())?,
            end: Point::from_key_text(end).map_err(|_| bad())?,
            fence: fence.parse().map_err(|_| bad())?,
        };
        // One spelling a slice, so that a name found is the name that would be written.
        if fence == format!("{:010}", slice.fence) && slice.start.position.order() <= slice.end.position.order() {
            Ok(slice)
        } else {
            Err(bad())
        }
    }
}

impl serde::Serialize for SliceName {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SliceName {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A slice that was found in a repository: what its key and a listing tell about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoredSlice {
    /// The stream it is a piece of.
    pub stream: String,
    /// The epoch of the cluster's history that it belongs to.
    pub epoch: u64,
    /// Its name, with its bounds.
    pub name: SliceName,
    /// Its size in the store.
    pub stored_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_nothing_else_parses() {
        let name =
            "20210203T080836Z-1612339716.0000000002-7_20210203T080841Z-1612339721.0000000001-7.0000000012.log.zst";
        let slice: SliceName = name.parse().unwrap();
        assert_eq!(slice.fence, 12);
        assert_eq!(slice.to_string(), name);
        for bad in [
            "",
            "x.log.zst",
            &name.replace("_", "-"),
            &name.replace("0000000012", "12"),
            &name.replace(".log.zst", ""),
            // backwards
            "20210203T080841Z-1612339721.0000000001-7_20210203T080836Z-1612339716.0000000002-7.0000000012.log.zst",
        ] {
            assert!(bad.parse::<SliceName>().is_err(), "{bad}");
        }
    }
}
