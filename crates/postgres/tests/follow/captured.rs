//! A capture as the agent does it, and what comes of it.

use std::fs;

use hindsight_engine::{EngineError, LogBuffer, LogCheck, LogReader};
use hindsight_format::{LogSummary, Point, SliceName, StoredSlice};
use hindsight_postgres::check::LogPieceCheck;
use hindsight_postgres::wal::{Segment, SegmentSize};
use hindsight_postgres::{Lsn, STREAM, TimelineId};
use hindsight_repository::ClusterRepository;
use hindsight_testkit::Postgres;

use crate::{place, reader, soon};

/// A log on its way into a repository.
pub struct Capture<'a> {
    pub cluster: &'a ClusterRepository,
    pub reader: Box<dyn LogReader>,
    pub buffer: LogBuffer,
    /// Bytes after which a slice is stored.
    pub limit: usize,
    pub stored: Vec<StoredSlice>,
}

impl<'a> Capture<'a> {
    pub async fn open(server: &Postgres, cluster: &'a ClusterRepository, after: Option<&Point>) -> Self {
        let (reader, at) = reader(server, cluster, after).await;
        assert!(after.is_none_or(|after| *after == at), "{at}");
        Self::of(cluster, reader, at)
    }

    pub fn of(cluster: &'a ClusterRepository, reader: Box<dyn LogReader>, at: Point) -> Self {
        Self { cluster, reader, buffer: LogBuffer::starting_at(at), limit: 300_000, stored: Vec::new() }
    }

    /// The end of what was read.
    pub fn end(&self) -> Lsn {
        place(&self.buffer.summary.end).0
    }

    pub async fn read(&mut self) -> Result<(), EngineError> {
        soon(self.reader.read(&mut self.buffer)).await?;
        if self.buffer.len() >= self.limit {
            self.store().await;
        }
        Ok(())
    }

    /// Reads on, and stores all of it.
    pub async fn until(&mut self, end: Lsn) {
        soon(async {
            while self.end() < end {
                self.read().await.unwrap();
            }
        })
        .await;
        self.store().await;
    }

    pub async fn store(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let piece = self.buffer.take();
        let name = SliceName { start: piece.summary.start.clone(), end: piece.summary.end.clone(), fence: 1 };
        let mut slice = StoredSlice { stream: STREAM.to_owned(), epoch: 1, name, stored_bytes: 0 };
        let written = piece.store(self.cluster, self.cluster.slice_key(&slice), 1).await.unwrap();
        slice.stored_bytes = written.stored_bytes;
        assert_eq!(written.raw_bytes, bytes_in(&slice.name), "{}", slice.name);
        self.reader.stored(&slice.name.end);
        self.stored.push(slice);
    }
}

pub fn bytes_in(name: &SliceName) -> u64 {
    place(&name.end).0.since(place(&name.start).0).unwrap()
}

/// The frames of slices that follow each other: where they begin, of which timeline they are, and what is in them.
pub async fn frames(cluster: &ClusterRepository, slices: &[StoredSlice]) -> Vec<(Lsn, TimelineId, Vec<u8>)> {
    let (mut frames, mut at) = (Vec::new(), place(&slices[0].name.start).0);
    for pair in slices.windows(2) {
        assert_eq!(pair[0].name.end, pair[1].name.start);
    }
    for slice in slices {
        let reader = cluster.slice_reader(slice).await.unwrap();
        for index in 0..reader.footer().frames.len() {
            let raw = reader.frame(index).await.unwrap();
            let next = at.checked_add(raw.len() as u64).unwrap();
            frames.push((at, reader.footer().frames[index].segment, raw));
            at = next;
        }
    }
    assert_eq!(at, place(&slices.last().unwrap().name.end).0);
    frames
}

/// The server's own bytes of its log.
pub fn of_server(server: &Postgres, timeline: TimelineId, from: Lsn, to: Lsn) -> Vec<u8> {
    let (size, mut at, mut bytes) = (SegmentSize::DEFAULT, from, Vec::new());
    while at < to {
        let segment = Segment::at(timeline, at, size);
        let start = segment.start(size).unwrap();
        let file = fs::read(server.data_dir().join("pg_wal").join(segment.name(size))).unwrap();
        let until = to.min(start.checked_add(size.bytes().into()).unwrap());
        bytes.extend_from_slice(&file[(at.0 - start.0) as usize..(until.0 - start.0) as usize]);
        at = until;
    }
    bytes
}

/// Compares all that is stored with what the server has.
pub async fn compare(server: &Postgres, cluster: &ClusterRepository, slices: &[StoredSlice]) {
    for (at, timeline, raw) in frames(cluster, slices).await {
        let end = at.checked_add(raw.len() as u64).unwrap();
        assert!(raw == of_server(server, timeline, at, end), "{at} to {end} on timeline {timeline}");
    }
}

/// What a check makes of the frames of a slice.
pub fn checked(name: &SliceName, frames: &[(u32, &[u8])]) -> Result<LogSummary, String> {
    let mut check: Box<dyn LogCheck> = Box::new(LogPieceCheck::new(&name.start, &name.end).unwrap());
    for (segment, raw) in frames {
        check.frame(*segment, raw)?;
    }
    check.finish()
}

/// The checks find in every slice what it says of itself.
pub async fn check(cluster: &ClusterRepository, slices: &[StoredSlice]) {
    for slice in slices {
        let reader = cluster.slice_reader(slice).await.unwrap();
        let frames = frames(cluster, std::slice::from_ref(slice)).await;
        let frames: Vec<_> = frames.iter().map(|(_, segment, raw)| (*segment, raw.as_slice())).collect();
        let found = checked(&slice.name, &frames).unwrap_or_else(|why| panic!("{}: {why}", slice.name));
        assert_eq!(Some(&found), reader.footer().log.as_ref(), "{}", slice.name);
    }
}

/// How many records of a kind were counted.
pub async fn counted(cluster: &ClusterRepository, slices: &[StoredSlice], namespace: &str, kind: &str) -> u64 {
    let mut sum = 0;
    for slice in slices {
        let reader = cluster.slice_reader(slice).await.unwrap();
        let log = reader.footer().log.as_ref().unwrap();
        sum += log.counts.get(namespace).and_then(|kinds| kinds.get(kind)).copied().unwrap_or(0);
    }
    sum
}
