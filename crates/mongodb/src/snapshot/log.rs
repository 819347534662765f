//! The snapshot's own piece of oplog, read while the documents are copied.

use hindsight_engine::{EngineError, FailureKind, Job, LogBuffer, LogReader, Result, SnapshotRequest};
use hindsight_format::{LogSummary, SliceName};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cluster::Source;
use crate::namespace;
use crate::oplog::reader::{Opened, OplogReader};
use crate::optime::Optime;

/// Bytes of log that make a slice.
const SLICE: usize = 16 << 20;

/// The log being read.
pub(super) struct OwnLog {
    /// Where it may end; none while it must go on.
    until: watch::Sender<Option<Optime>>,
    task: JoinHandle<Result<Stored>>,
}

/// The log, read and stored.
pub(super) struct Stored {
    pub(super) last: Optime,
    pub(super) slices: Vec<SliceName>,
    pub(super) raw_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) records: u64,
    /// Records that changed something that is protected.
    pub(super) writes: u64,
}

impl Stored {
    /// Nothing yet.
    pub(super) fn starting_at(first: Optime) -> Self {
        Self { last: first, slices: Vec::new(), raw_bytes: 0, stored_bytes: 0, records: 0, writes: 0 }
    }

    /// Counts a slice.
    pub(super) fn add(&mut self, name: SliceName, summary: &LogSummary, raw_bytes: u64, stored_bytes: u64) {
        self.records += summary.records;
        self.writes += writes(summary);
        self.raw_bytes += raw_bytes;
        self.stored_bytes += stored_bytes;
        self.slices.push(name);
    }
}

struct Writer {
    job: Job,
    snapshot: String,
    stream: String,
    level: i32,
    stored: Stored,
}

impl OwnLog {
    /// Begins to read after what is stored already.
    pub(super) async fn start(
        job: &Job,
        request: &SnapshotRequest,
        stream: &str,
        source: &Source,
        stored: Stored,
    ) -> Result<Self> {
        let reader = match OplogReader::open(&source.client, stored.last).await? {
            Opened::Continues(reader) => reader,
            Opened::Lost(cause) => {
                return Err(EngineError::new(FailureKind::Server, cause).hint("start a new backup"));
            }
        };
        let writer = Writer {
            job: job.clone(),
            snapshot: request.id.clone(),
            stream: stream.to_owned(),
            level: request.compression_level,
            stored,
        };
        let (until, seen) = watch::channel(None);
        let task = tokio::spawn(read(reader, writer, seen));
        Ok(Self { until, task })
    }

    /// Reads on until `end`, and ends.
    pub(super) async fn finish(self, end: Optime) -> Result<Stored> {
        self.until.send_replace(Some(end));
        match self.task.await {
            Ok(result) => result,
            Err(e) => Err(EngineError::new(FailureKind::Local, format!("reading the log ended: {e}"))),
        }
    }
}

async fn read(
    mut reader: Box<OplogReader>,
    mut writer: Writer,
    mut until: watch::Receiver<Option<Optime>>,
) -> Result<Stored> {
    let mut buffer = LogBuffer::starting_at(reader.last().point()?);
    loop {
        let end = *until.borrow_and_update();
        if end.is_some_and(|end| reader.last() >= end) {
            writer.store(&mut buffer).await?;
            writer.stored.last = reader.last();
            return Ok(writer.stored);
        }
        tokio::select! {
            read = reader.read(&mut buffer) => read?,
            _ = until.changed() => {}
            () = writer.job.cancel.cancelled() => return Err(EngineError::cancelled()),
        }
        if buffer.len() >= SLICE {
            writer.store(&mut buffer).await?;
        }
    }
}

impl Writer {
    async fn store(&mut self, buffer: &mut LogBuffer) -> Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        let piece = buffer.take();
        let name = SliceName { start: piece.summary.start.clone(), end: piece.summary.end.clone(), fence: 0 };
        let key = self.job.cluster.keys().snapshot_object(&self.snapshot, &format!("{}/{name}", self.stream));
        let written = piece.store(&self.job.cluster, key, self.level).await?;
        self.stored.add(name, &piece.summary, written.raw_bytes, written.stored_bytes);
        Ok(())
    }
}

/// Records that are more than signs of life and the server's own housekeeping.
fn writes(summary: &LogSummary) -> u64 {
    let protected = summary.counts.iter().filter(|(ns, _)| {
        let (db, coll) = namespace::split(ns);
        !ns.is_empty() && namespace::is_protected(db, coll)
    });
    protected.flat_map(|(_, operations)| operations.values()).sum()
}
