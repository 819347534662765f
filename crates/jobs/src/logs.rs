//! Reading the logs of jobs back.

use std::collections::BTreeSet;

use hindsight_format::{JournalBatch, JournalLine, Severity};
use hindsight_repository::ClusterRepository;
use jiff::{SignedDuration, Timestamp};

use crate::Result;

/// Batches that are read at once.
const CHUNK: usize = 64;
/// By how much clocks of machines may differ without lines being missed.
const MARGIN: SignedDuration = SignedDuration::from_mins(10);

/// Which lines are wanted.
#[derive(Clone, Debug)]
pub struct LogFilter {
    /// This severity, and worse.
    pub severity: Severity,
    /// Only of this event: a kind of job such as `backup`, or one job such as `backup/NAME`.
    pub event: Option<String>,
    /// Only of the job of this name.
    pub name: Option<String>,
    /// Only from hosts whose names begin so.
    pub host: Option<String>,
}

/// A line, and where it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The line.
    pub line: JournalLine,
    /// The host.
    pub host: String,
    /// The process there.
    pub pid: u32,
}

impl LogFilter {
    fn wants(&self, line: &JournalLine, host: &str) -> bool {
        let (kind, name) = line.event.split_once('/').unwrap_or((&line.event, ""));
        line.severity <= self.severity
            && self.event.as_ref().is_none_or(|event| *event == line.event || event == kind)
            && self.name.as_ref().is_none_or(|wanted| wanted == name)
            && self.host.as_ref().is_none_or(|wanted| host.starts_with(wanted.as_str()))
    }

    fn of(&self, batches: Vec<JournalBatch>) -> Vec<LogEntry> {
        let mut entries = Vec::new();
        for JournalBatch { host, pid, lines, .. } in batches {
            let wanted = lines.into_iter().filter(|line| self.wants(line, &host));
            entries.extend(wanted.map(|line| LogEntry { line, host: host.clone(), pid }));
        }
        entries.sort_by_key(|entry| entry.line.time);
        entries
    }
}

/// Reads the logs of the jobs of a cluster, from the last lines on.
pub struct LogReader {
    cluster: ClusterRepository,
    filter: LogFilter,
    /// Keys of the batches that were read.
    seen: BTreeSet<String>,
}

impl LogReader {
    /// Begins to read.
    pub fn new(cluster: ClusterRepository, filter: LogFilter) -> Self {
        Self { cluster, filter, seen: BTreeSet::new() }
    }

    /// The last `count` lines; 0: all.
    pub async fn tail(&mut self, count: usize) -> Result<Vec<LogEntry>> {
        let keys = self.cluster.journal_keys(None).await?;
        self.seen.extend(keys.iter().cloned());
        let mut entries: Vec<LogEntry> = Vec::new();
        let mut enough = false;
        for chunk in keys.rchunks(CHUNK) {
            entries.extend(self.filter.of(self.cluster.journal(chunk.to_vec()).await?));
            // What another process said earlier may have been stored later: one chunk more.
            if enough {
                break;
            }
            enough = count > 0 && entries.len() >= count;
        }
        entries.sort_by_key(|entry| entry.line.time);
        let unwanted = if count == 0 { 0 } else { entries.len().saturating_sub(count) };
        entries.drain(..unwanted);
        Ok(entries)
    }

    /// The lines that were stored since this, or [`LogReader::tail`], was asked last.
    pub async fn fresh(&mut self) -> Result<Vec<LogEntry>> {
        let since = Timestamp::now() - MARGIN;
        let mut keys = self.cluster.journal_keys(Some(since)).await?;
        keys.retain(|key| self.seen.insert(key.clone()));
        let bound = self.cluster.keys().journal_at(since);
        self.seen = self.seen.split_off(&bound);
        Ok(self.filter.of(self.cluster.journal(keys).await?))
    }
}
