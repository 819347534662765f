//! Reading the time that a person typed.

use jiff::Timestamp;
use thiserror::Error;

/// A time that a person typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedTime {
    /// The time.
    pub time: Timestamp,
    /// Whether it carried no offset and was read as UTC.
    pub assumed_utc: bool,
}

/// Why a text is no time; the message shows the accepted forms.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is no time: {why}; write it as {example}")]
pub struct TimeError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
    /// The accepted forms, shown with the present time.
    pub example: String,
}

/// Reads a time that a person typed.
pub fn parse_time(text: &str, now: Timestamp) -> Result<ParsedTime, TimeError> {
    let _ = now;
    let time = text.parse().map_err(|_| TimeError { text: text.into(), why: String::new(), example: String::new() })?;
    Ok(ParsedTime { time, assumed_utc: false })
}
