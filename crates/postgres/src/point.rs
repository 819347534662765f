//! Points of a PostgreSQL log, as they are stored.
//!
//! `order` is the position in the log in 16 upper-case hexadecimal digits, so that it sorts as text; `tag` is the timeline,
//! in decimal. A point says: the log up to here, and the byte before it was written on that timeline.

use hindsight_format::{Point, Position, PositionError};
use jiff::Timestamp;

use crate::{Lsn, TimelineId};

/// The point at a position of the log. Times are stored in whole seconds, rounded down.
///
/// # Errors
/// There is no such timeline, or nothing can lie before that position.
pub fn point(time: Timestamp, at: Lsn, timeline: TimelineId) -> Result<Point, PositionError> {
    let (order, tag) = (format!("{:016X}", at.0), timeline.to_string());
    if timeline == 0 || !at.is_valid() {
        return Err(unreadable(format!("{order}-{tag}")));
    }
    let position = Position::new(order, tag)?;
    // A part of a second is negative before 1970, and would be rounded up.
    let seconds = time.as_second() - i64::from(time.subsec_nanosecond() < 0);
    let time = Timestamp::from_second(seconds).map_err(|_| unreadable(time.to_string()))?;
    Ok(Point { time, position })
}

/// The position and timeline of a point.
///
/// # Errors
/// It is no point of a PostgreSQL log.
pub fn of_point(point: &Point) -> Result<(Lsn, TimelineId), PositionError> {
    of_position(&point.position)
}

/// The same of its position.
///
/// # Errors
/// It is no position of a PostgreSQL log.
pub fn of_position(position: &Position) -> Result<(Lsn, TimelineId), PositionError> {
    let lsn = u64::from_str_radix(position.order(), 16);
    let found = lsn.ok().zip(position.tag().parse::<TimelineId>().ok());
    // One spelling a position: points that are equal have equal texts.
    let found = found.filter(|(lsn, timeline)| {
        *timeline != 0
            && *lsn != 0
            && format!("{lsn:016X}") == position.order()
            && timeline.to_string() == position.tag()
    });
    found.map(|(lsn, timeline)| (Lsn(lsn), timeline)).ok_or_else(|| unreadable(position.to_string()))
}

fn unreadable(text: String) -> PositionError {
    PositionError { text, what: "position of a PostgreSQL log" }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn they_look_like_this() {
        let time = "2026-03-01T10:00:00.75Z".parse().unwrap();
        let there = point(time, "16/B374D848".parse().unwrap(), 12).unwrap();
        assert_eq!(there.key_text(), "20260301T100000Z-00000016B374D848-12");
        assert_eq!(of_point(&there), Ok((Lsn(0x16_B374_D848), 12)));
        let early = point("1969-12-31T23:59:59.5Z".parse().unwrap(), Lsn(1), 1).unwrap();
        assert_eq!(early.time, "1969-12-31T23:59:59Z".parse().unwrap());
    }

    #[test]
    fn others_are_refused() {
        for (order, tag) in [
            ("00000016b374d848", "1"),
            ("16B374D848", "1"),
            ("00000000000000016B374D848", "1"),
            ("0000000000000000", "1"),
            ("00000016B374D848", "0"),
            ("00000016B374D848", "01"),
            ("00000016B374D848", "4294967296"),
            ("00000016B374D848", "A"),
            ("1612339716.0000000002", "7"),
        ] {
            assert!(of_position(&Position::new(order, tag).unwrap()).is_err(), "{order}-{tag}");
        }
        let time = Timestamp::UNIX_EPOCH;
        assert!(point(time, Lsn(7), 0).is_err());
        assert!(point(time, Lsn::INVALID, 1).is_err());
    }

    proptest! {
        #[test]
        fn they_lead_back_and_sort(a in 1_u64.., b in 1_u64.., timeline in 1_u32..) {
            let time = Timestamp::UNIX_EPOCH;
            let points = [a, b].map(|lsn| point(time, Lsn(lsn), timeline).unwrap());
            for (point, lsn) in points.iter().zip([a, b]) {
                prop_assert_eq!(of_point(point), Ok((Lsn(lsn), timeline)));
                prop_assert_eq!(&Point::from_key_text(&point.key_text()), &Ok(point.clone()));
            }
            let [x, y] = points.each_ref().map(|point| point.position.order());
            prop_assert_eq!(x.cmp(y), a.cmp(&b));
        }
    }
}
