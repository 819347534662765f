//! Positions in a stream, and points: positions with the time they stand for.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::Offset;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A place in a stream, as its engine writes it.
///
/// `order` sorts as plain text: within one stream and epoch, a later place has a greater text.
/// `tag` says which history the place belongs to (MongoDB: the election term; PostgreSQL: the
/// timeline) and never takes part in ordering, only in equality: two pieces of a log meet where
/// both agree. Engines convert to and from their own types at their edge, so nothing but an engine
/// ever interprets the text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    order: String,
    tag: String,
}

/// What is wrong with a stored position, point or slice name.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not a {what}")]
pub struct PositionError {
    /// The text that was found.
    pub text: String,
    /// What was expected there.
    pub what: &'static str,
}

impl PositionError {
    pub(crate) fn new(text: &str, what: &'static str) -> Self {
        Self { text: text.to_owned(), what }
    }
}

fn plain(part: &str) -> bool {
    !part.is_empty() && part.len() <= 64 && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.')
}

impl Position {
    /// A position from its two parts, each of ASCII letters, digits and dots.
    pub fn new(order: impl Into<String>, tag: impl Into<String>) -> Result<Self, PositionError> {
        let (order, tag) = (order.into(), tag.into());
        if plain(&order) && plain(&tag) {
            Ok(Self { order, tag })
        } else {
            Err(PositionError::new(&format!("{order}-{tag}"), "position"))
        }
    }

    /// The sortable part.
    pub fn order(&self) -> &str {
        &self.order
    }

    /// The part that tells histories apart.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.order, self.tag)
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        match text.split_once('-') {
            Some((order, tag)) => Self::new(order, tag),
            None => Err(PositionError::new(text, "position")),
        }
    }
}

impl Serialize for Position {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A position with its time (UTC, whole seconds, rounded down).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Point {
    /// When, by the clock of the database.
    pub time: Timestamp,
    /// Where in the stream. This is the truth; `time` is a view of it.
    pub position: Position,
}

impl Point {
    /// The text used in key names: `20210203T080836Z-<position>`, fixed width in its time, so that
    /// names list in order of time.
    pub fn key_text(&self) -> String {
        // By hand, as listings have many of them.
        let time = Offset::UTC.to_datetime(self.time);
        let (year, month, day, hour, minute, second) =
            (time.year(), time.month(), time.day(), time.hour(), time.minute(), time.second());
        format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z-{}", self.position)
    }

    /// Reads what [`Point::key_text`] wrote.
    pub fn from_key_text(text: &str) -> Result<Self, PositionError> {
        let bad = || PositionError::new(text, "point in a key name");
        let (time, position) = text.split_once('-').ok_or_else(bad)?;
        if time.len() != "20210203T080836Z".len() {
            return Err(bad());
        }
        let point = Self { time: time.parse().map_err(|_| bad())?, position: position.parse()? };
        // One spelling a point.
        if point.key_text() == text { Ok(point) } else { Err(bad()) }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", format_time(self.time), self.position)
    }
}

/// A time as every part of Hindsight shows it: UTC, whole seconds, with its offset (`Z`).
pub fn format_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// As [`format_time`], for optional times: `-` when there is none.
pub fn format_utc(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), format_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_survive_their_key_text() {
        let point = Point {
            time: Timestamp::from_second(1_612_339_716).unwrap(),
            position: Position::new("1612339716.0000000002", "7").unwrap(),
        };
        assert_eq!(point.key_text(), "20210203T080836Z-1612339716.0000000002-7");
        assert_eq!(Point::from_key_text(&point.key_text()), Ok(point));
    }

    #[test]
    fn hostile_texts_are_refused() {
        for text in ["", "-", "a-", "-b", "a/b-1", "a-b-c", "..-é", "a"] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
        for text in ["20210203T080836Z", "x-1-2", "20210203T080836Z-1", "20211303T080836Z-1-1"] {
            assert!(Point::from_key_text(text).is_err(), "{text}");
        }
    }
}
