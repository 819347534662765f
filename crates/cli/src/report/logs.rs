//! `logs`: lines as `pbm logs` has them.

use hindsight_format::format_time;
use hindsight_jobs::LogEntry;
use serde::Serialize;

use crate::output::Report;

/// A line.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    time: String,
    severity: char,
    host: String,
    process: u32,
    event: String,
    message: String,
}

/// Lines, oldest first.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Lines(Vec<Entry>);

impl Entry {
    pub(crate) fn of(entry: &LogEntry) -> Self {
        Self {
            time: format_time(entry.line.time),
            severity: entry.line.severity.letter(),
            host: entry.host.clone(),
            process: entry.pid,
            event: entry.line.event.clone(),
            message: entry.line.message.clone(),
        }
    }
}

impl Lines {
    pub(crate) fn of(entries: &[LogEntry]) -> Self {
        Self(entries.iter().map(Entry::of).collect())
    }
}

impl Report for Entry {
    fn text(&self) -> String {
        format!("{} {} [{}] [{}] {}\n", self.time, self.severity, self.host, self.event, self.message)
    }
}

impl Report for Lines {
    fn text(&self) -> String {
        self.0.iter().map(Entry::text).collect()
    }
}
