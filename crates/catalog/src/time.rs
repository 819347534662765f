//! Reading the time that a person typed.

use hindsight_format::format_time;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use thiserror::Error;

/// A time that a person typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedTime {
    /// The time, in whole seconds.
    pub time: Timestamp,
    /// Whether it carried no offset and was read as UTC.
    pub assumed_utc: bool,
}

/// Why a text is no time. The message shows the accepted forms, with the present time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{text:?} is no time: {why}. Write {now}, or the same with an offset such as +02:00 instead of Z; \
     without either it is read as UTC, and a date alone as its first second"
)]
pub struct TimeError {
    /// The text, cut short when it is long.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
    /// The present time in the accepted form.
    pub now: String,
}

/// Reads a time that a person typed: `2021-02-07T02:59:59` or `2021-02-07`, the first also with a
/// space for the `T` and followed by `Z`, `+02:00`, `+0200` or `+02`. Letters may be lower case;
/// without an offset it is UTC. `now` only makes the example in a refusal a fresh one.
///
/// A fraction of a second is refused unless it is zero, as a restore is to a whole second and
/// rounding would change which writes are part of it. So is a leap second, which no database log
/// has.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_time(text: &str, now: Timestamp) -> Result<ParsedTime, TimeError> {
    read(text.trim()).map_err(|why| TimeError { text: text.chars().take(60).collect(), why, now: format_time(now) })
}

fn read(text: &str) -> Result<ParsedTime, String> {
    let mut rest = Reader(text.as_bytes());
    let (year, month, day) = match (rest.digits(4), rest.eat(b"-"), rest.digits(2), rest.eat(b"-"), rest.digits(2)) {
        (Some(year), true, Some(month), true, Some(day)) => (year, month, day),
        _ => return Err("it does not begin with a date such as 2021-02-07".to_owned()),
    };
    if rest.0.is_empty() {
        return Ok(ParsedTime { time: utc(civil((year, month, day), (0, 0, 0))?, 0)?, assumed_utc: true });
    }
    let parts = (rest.eat(b"Tt "), rest.digits(2), rest.eat(b":"), rest.digits(2), rest.eat(b":"), rest.digits(2));
    let (true, Some(hour), true, Some(minute), true, Some(second)) = parts else {
        return Err("after the date there is no time of day such as T02:59:59".to_owned());
    };
    if rest.eat(b".,") {
        let fraction = rest.take_while(|byte| byte.is_ascii_digit());
        if fraction.is_empty() || fraction.iter().any(|digit| *digit != b'0') {
            return Err("a restore is to a whole second, so leave the fraction out".to_owned());
        }
    }
    let civil = civil((year, month, day), (hour, minute, second))?;
    let offset = match rest.0 {
        [] => None,
        [b'Z' | b'z'] => Some(0),
        other => Some(offset(other)?),
    };
    Ok(ParsedTime { time: utc(civil, offset.unwrap_or(0))?, assumed_utc: offset.is_none() })
}

/// Seconds east of UTC of `+02:00`, `+0200` or `+02`.
fn offset(text: &[u8]) -> Result<i32, String> {
    let bad = || "what follows the time of day is no offset such as Z or +02:00".to_owned();
    let mut rest = Reader(text);
    let sign = if rest.eat(b"+") {
        1
    } else if rest.eat(b"-") {
        -1
    } else {
        return Err(bad());
    };
    let hours = rest.digits(2).ok_or_else(bad)?;
    let minutes = if rest.0.is_empty() {
        0
    } else {
        rest.eat(b":");
        rest.digits(2).ok_or_else(bad)?
    };
    if !rest.0.is_empty() {
        return Err(bad());
    }
    if hours > 23 || minutes > 59 {
        return Err("there is no such offset".to_owned());
    }
    Ok(sign * (i32::from(hours) * 3600 + i32::from(minutes) * 60))
}

fn civil((year, month, day): (i16, i16, i16), (hour, minute, second): (i16, i16, i16)) -> Result<DateTime, String> {
    if second == 60 {
        return Err("database logs have no leap seconds, so use the second before or after".to_owned());
    }
    // No part has more than two digits here, but for the year.
    let part = |value: i16| i8::try_from(value).unwrap_or(i8::MAX);
    DateTime::new(year, part(month), part(day), 0, 0, 0, 0)
        .map_err(|_| format!("there is no day {year:04}-{month:02}-{day:02}"))?;
    DateTime::new(year, part(month), part(day), part(hour), part(minute), part(second), 0)
        .map_err(|_| format!("there is no time of day {hour:02}:{minute:02}:{second:02}"))
}

fn utc(civil: DateTime, offset_seconds: i32) -> Result<Timestamp, String> {
    let offset = Offset::from_seconds(offset_seconds).map_err(|_| "there is no such offset".to_owned())?;
    offset.to_timestamp(civil).map_err(|_| "it is out of range".to_owned())
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Takes exactly `count` (at most 4) digits.
    fn digits(&mut self, count: usize) -> Option<i16> {
        let (head, tail) = self.0.split_at_checked(count)?;
        let value = head
            .iter()
            .try_fold(0, |value: i16, byte| byte.is_ascii_digit().then(|| value * 10 + i16::from(byte - b'0')))?;
        self.0 = tail;
        Some(value)
    }

    /// Takes one byte if it is one of `allowed`.
    fn eat(&mut self, allowed: &[u8]) -> bool {
        match self.0.split_first() {
            Some((byte, tail)) if allowed.contains(byte) => {
                self.0 = tail;
                true
            }
            _ => false,
        }
    }

    fn take_while(&mut self, wanted: impl Fn(&u8) -> bool) -> &'a [u8] {
        let count = self.0.iter().take_while(|byte| wanted(byte)).count();
        let (head, tail) = self.0.split_at(count);
        self.0 = tail;
        head
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parsed(text: &str) -> Result<(String, bool), String> {
        let now = Timestamp::from_second(1_612_666_799).unwrap();
        let result = parse_time(text, now).map_err(|e| e.to_string())?;
        Ok((format_time(result.time), result.assumed_utc))
    }

    #[test]
    fn without_an_offset_it_is_utc() {
        for text in ["2021-02-07T02:59:59", "2021-02-07 02:59:59", "2021-02-07t02:59:59", " 2021-02-07T02:59:59.000 "] {
            assert_eq!(parsed(text), Ok(("2021-02-07T02:59:59Z".into(), true)), "{text}");
        }
        assert_eq!(parsed("2021-02-07"), Ok(("2021-02-07T00:00:00Z".into(), true)));
    }

    #[test]
    fn an_offset_counts() {
        for text in [
            "2021-02-07T02:59:59Z",
            "2021-02-07 02:59:59z",
            "2021-02-07T02:59:59.000Z",
            "2021-02-07T02:59:59-00:00",
            "2021-02-07T04:59:59+02:00",
            "2021-02-07T04:59:59+0200",
            "2021-02-07T04:59:59+02",
            "2021-02-06T21:29:59-05:30",
            "2021-02-07t02:59:59z",
        ] {
            assert_eq!(parsed(text), Ok(("2021-02-07T02:59:59Z".into(), false)), "{text}");
        }
        // The day changes with the offset.
        assert_eq!(parsed("2021-03-01T00:30:00+01:00"), Ok(("2021-02-28T23:30:00Z".into(), false)));
    }

    #[test]
    fn what_is_no_time_is_refused_with_the_accepted_forms() {
        for (text, why) in [
            ("", "does not begin with a date"),
            ("yesterday", "does not begin with a date"),
            ("07.02.2021", "does not begin with a date"),
            ("21-02-07T02:59:59", "does not begin with a date"),
            ("-2021-02-07", "does not begin with a date"),
            ("٢٠٢١-02-07", "does not begin with a date"),
            ("1612666799,1", "does not begin with a date"),
            ("2021-02-07T02:59", "no time of day"),
            ("2021-02-07T", "no time of day"),
            ("2021-02-07Z", "no time of day"),
            ("2021-02-07_02:59:59", "no time of day"),
            ("2021-02-07T2:59:59", "no time of day"),
            ("2021-02-07T02:59:5", "no time of day"),
            ("2021-02-07T02:59:59.5", "whole second"),
            ("2021-02-07T02:59:59.", "whole second"),
            ("2021-02-07T02:59:59.123Z", "whole second"),
            ("2021-02-07T02:59:59 CET", "no offset"),
            ("2021-02-07T02:59:59ZZ", "no offset"),
            ("2021-02-07T02:59:59+", "no offset"),
            ("2021-02-07T02:59:59+2", "no offset"),
            ("2021-02-07T02:59:59+02:", "no offset"),
            ("2021-02-07T02:59:59+02:00x", "no offset"),
            ("2021-02-07T02:59:59−02:00", "no offset"),
            ("2021-02-07T02:59:59+24:00", "no such offset"),
            ("2021-02-07T02:59:59+02:60", "no such offset"),
            ("2021-02-07T02:59:60", "leap seconds"),
            ("2021-02-07T24:00:00", "no time of day 24:00:00"),
            ("2021-02-07T02:60:00", "no time of day 02:60:00"),
            ("2021-02-07T99:99:99", "no time of day 99:99:99"),
            ("2021-02-29", "no day 2021-02-29"),
            ("1900-02-29T00:00:00", "no day 1900-02-29"),
            ("2021-13-01", "no day 2021-13-01"),
            ("2021-00-00", "no day 2021-00-00"),
            ("9999-12-31T23:59:59-10:00", "out of range"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
            assert!(error.contains("Write 2021-02-07T02:59:59Z"), "{text}: {error}");
        }
    }

    #[test]
    fn leap_days_and_the_last_second_exist() {
        assert!(parsed("2024-02-29").is_ok());
        assert!(parsed("2000-02-29T23:59:59Z").is_ok());
        assert!(parsed("0000-01-01").is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = parsed(&text);
        }

        #[test]
        fn what_we_show_we_read(second in -62_135_596_800_i64..253_402_207_200) {
            let time = Timestamp::from_second(second).unwrap();
            let read = parse_time(&format_time(time), time).unwrap();
            proptest::prop_assert_eq!(read, ParsedTime { time, assumed_utc: false });
        }

        #[test]
        fn almost_times_never_panic(text in "[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{0,4})?[Zz+-]?[0-9:]{0,6}") {
            let _ = parsed(&text);
        }
    }
}
