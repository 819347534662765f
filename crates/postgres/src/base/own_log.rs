//! The snapshot's own piece of the log, read while its files are copied.

use hindsight_engine::{EngineError, FailureKind, Job, LogBuffer, LogReader as _, Result, SnapshotRequest};
use hindsight_format::{Point, Position, SliceName};
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use crate::follow::{Follower, Reserved};
use crate::wire::BackupPosition;
use crate::{Lsn, STREAM, of_point};

/// Bytes of log that make a slice. So much may come at once that it has 32 MiB in the end: the follower waits for the end of records
/// up to 16 MiB long, and the unused rest of a segment counts as part of one.
const SLICE: usize = 8 << 20;

/// The log being read.
pub(super) struct OwnLog {
    first: Point,
    /// Where it may end; none while it must go on.
    until: watch::Sender<Option<Lsn>>,
    task: AbortOnDropHandle<Result<Stored>>,
}

/// The log, read and stored.
pub(super) struct Stored {
    pub(super) first: Point,
    last: Position,
    pub(super) slices: Vec<SliceName>,
    pub(super) raw_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) records: u64,
}

struct Writer {
    job: Job,
    snapshot: String,
    level: i32,
    stored: Stored,
}

impl OwnLog {
    /// Begins to read, from the beginning of the segment on that a backup begins in: a server that recovers reads that.
    pub(super) async fn start(
        job: &Job,
        request: &SnapshotRequest,
        reserved: Reserved,
        start: BackupPosition,
    ) -> Result<Self> {
        let (mut reader, first) = tokio::select! {
            begun = reserved.follow(start.lsn) => begun?,
            () = job.cancel.cancelled() => return Err(EngineError::cancelled()),
        };
        reader.read_for_base(start.lsn);
        let stored = Stored {
            first: first.clone(),
            last: first.position.clone(),
            slices: Vec::new(),
            raw_bytes: 0,
            stored_bytes: 0,
            records: 0,
        };
        let (snapshot, level) = (request.id.clone(), request.compression_level);
        let writer = Writer { job: job.clone(), snapshot, level, stored };
        let (until, seen) = watch::channel(None);
        let task = AbortOnDropHandle::new(tokio::spawn(read(reader, writer, seen)));
        Ok(Self { first, until, task })
    }

    /// Returns when it cannot be read or stored any more, with the reason.
    pub(super) async fn failed(&mut self) -> EngineError {
        match (&mut self.task).await {
            Ok(Err(error)) => error,
            Ok(Ok(stored)) => ended(format!("at {}", stored.last)),
            Err(error) => cut_off(error),
        }
    }

    /// Reads on until `stop` is in it, and ends.
    pub(super) async fn finish(self, stop: Lsn) -> Result<Stored> {
        self.until.send_replace(Some(stop));
        let stored = self.task.await.map_err(cut_off)??;
        Ok(Stored { first: self.first, ..stored })
    }
}

fn cut_off(error: JoinError) -> EngineError {
    ended(error.to_string())
}

fn ended(how: impl std::fmt::Display) -> EngineError {
    EngineError::new(FailureKind::Local, format!("reading the log ended: {how}"))
}

impl Stored {
    /// Where it ends. By the server's clock it was `clock` then, which is rounded up, as everything up to here has to be older.
    pub(super) fn last(&self, clock: Timestamp) -> Point {
        let later = TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Ceil);
        let time = clock.round(later).unwrap_or(clock);
        Point { time, position: self.last.clone() }
    }
}

async fn read(mut reader: Follower, mut writer: Writer, mut until: watch::Receiver<Option<Lsn>>) -> Result<Stored> {
    let mut buffer = LogBuffer::starting_at(writer.stored.first.clone());
    loop {
        let stop = *until.borrow_and_update();
        // At once: what is copied until the end is of no use.
        if let Some(copied) = reader.copied().filter(|copied| stop.is_none_or(|stop| copied.at < stop)) {
            return Err(copied.failure());
        }
        let (at, _) = of_point(&buffer.summary.end).map_err(|error| ended(&error))?;
        let done = stop.is_some_and(|stop| at >= stop);
        if done || buffer.len() >= SLICE {
            writer.store(&mut buffer).await?;
            reader.stored(&buffer.summary.end);
        }
        if done {
            return Ok(writer.stored);
        }
        tokio::select! {
            read = reader.read(&mut buffer) => read?,
            changed = until.changed() => changed.map_err(|error| ended(&error))?,
        }
    }
}

impl Writer {
    async fn store(&mut self, buffer: &mut LogBuffer) -> Result<()> {
        if buffer.holds_nothing() {
            return Ok(());
        }
        let piece = buffer.take();
        let name = SliceName { start: piece.summary.start.clone(), end: piece.summary.end.clone(), fence: 0 };
        let key = self.job.cluster.keys().snapshot_object(&self.snapshot, &format!("{STREAM}/{name}"));
        let written = piece.store(&self.job.cluster, key, self.level).await?;
        let stored = &mut self.stored;
        stored.records += piece.summary.records;
        stored.raw_bytes += written.raw_bytes;
        stored.stored_bytes += written.stored_bytes;
        stored.last = name.end.position.clone();
        stored.slices.push(name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point;

    #[test]
    fn its_end_is_later_than_everything_in_it() {
        let first = point("2026-03-01T10:00:00Z".parse().unwrap(), Lsn(0x100_0000), 1).unwrap();
        let last = first.position.clone();
        let stored = Stored { first, last, slices: Vec::new(), raw_bytes: 0, stored_bytes: 0, records: 0 };
        for (clock, time) in [
            ("2026-03-01T10:00:07.000001Z", "2026-03-01T10:00:08Z"),
            ("2026-03-01T10:00:07Z", "2026-03-01T10:00:07Z"),
            ("1969-12-31T23:59:58.5Z", "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(stored.last(clock.parse().unwrap()).time, time.parse().unwrap(), "{clock}");
        }
    }
}
