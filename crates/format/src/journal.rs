//! `logs/<time>-<writer>.json`: what jobs did, in their own words.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::repository::WITHHELD;

/// Lines that a process stored together. Created once and never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalBatch {
    /// Version of the format.
    pub format: u32,
    /// Host name of the process.
    pub host: String,
    /// Its number on that host.
    pub pid: u32,
    /// The lines, in the order in which they were said.
    pub lines: Vec<JournalLine>,
}

impl JournalBatch {
    /// The part that everybody may read: what went wrong may name collections, hosts and users.
    #[must_use]
    pub fn withhold(&self) -> Self {
        let mut open = self.clone();
        for line in open.lines.iter_mut().filter(|line| line.severity <= Severity::Warning) {
            WITHHELD.clone_into(&mut line.message);
        }
        open
    }
}

/// One thing that a job said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalLine {
    /// When.
    pub time: Timestamp,
    /// How bad it is.
    pub severity: Severity,
    /// The job: its kind, and its name where it has one, such as `backup/2021-02-03T08:08:36Z`.
    pub event: String,
    /// What it said, without secrets.
    pub message: String,
}

/// How bad a line is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Severity {
    /// A job failed, or something was lost.
    #[serde(rename = "E")]
    Error,
    /// Something is not as it should be; the job goes on.
    #[serde(rename = "W")]
    Warning,
    /// What was done.
    #[serde(rename = "I")]
    Info,
    /// Details.
    #[serde(rename = "D")]
    Debug,
}

impl Severity {
    /// Its letter.
    pub fn letter(self) -> char {
        match self {
            Self::Error => 'E',
            Self::Warning => 'W',
            Self::Info => 'I',
            Self::Debug => 'D',
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_name_something_is_withheld() {
        let line = |severity, message: &str| JournalLine {
            time: Timestamp::UNIX_EPOCH,
            severity,
            event: "backup".to_owned(),
            message: message.to_owned(),
        };
        let lines = vec![line(Severity::Info, "begins"), line(Severity::Warning, "a.b"), line(Severity::Error, "a.b")];
        let batch = JournalBatch { format: 1, host: "h".to_owned(), pid: 1, lines }.withhold();
        let messages: Vec<_> = batch.lines.iter().map(|line| line.message.as_str()).collect();
        assert_eq!(messages, ["begins", WITHHELD, WITHHELD]);
    }
}
