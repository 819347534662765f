//! `logs/<time>-<writer>.json`: what jobs did, in their own words.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

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
