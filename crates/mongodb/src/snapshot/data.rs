//! Copying documents: several readers, each with an object of its own that it fills frame by
//! frame.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hindsight_engine::{EngineError, FailureKind, Job, Result, SnapshotRequest};
use hindsight_format::{ObjectKind, ObjectRef};
use hindsight_repository::{EncodedFrame, FRAME_TARGET, ObjectWriter, encode_frame};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::catalog::Found;
use super::scan::{self, Piece};
use super::stored::Segment;
use crate::cluster::Source;

/// A new object is begun when one has grown to this size: what fails is repeated in pieces.
const OBJECT: u64 = 1 << 30;
/// Frames of one reader that are being compressed at the same time.
const COMPRESSING: usize = 2;

/// What the readers share.
pub(super) struct Shared {
    pub(super) job: Job,
    pub(super) source: Source,
    pub(super) queue: Mutex<VecDeque<Piece>>,
    pub(super) next_segment: AtomicU32,
    next_object: AtomicU64,
    snapshot: String,
    level: i32,
}

/// What became of a piece.
pub(super) enum Outcome {
    Copied { collection: usize, segment: Segment },
    Gone { collection: usize },
}

/// Copies all documents of `collections`, and notes in them what was copied.
pub(super) async fn copy(
    job: &Job,
    request: &SnapshotRequest,
    source: &Source,
    collections: &mut Vec<Found>,
) -> Result<Vec<ObjectRef>> {
    let readers = match request.parallel {
        0 => std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8),
        n => n as usize,
    };
    let pieces = scan::plan(source, collections, readers).await;
    let shared = Arc::new(Shared {
        job: job.clone(),
        source: source.clone(),
        queue: Mutex::new(pieces.into()),
        next_segment: AtomicU32::new(1),
        next_object: AtomicU64::new(1),
        snapshot: request.id.clone(),
        level: request.compression_level,
    });
    let mut running = JoinSet::new();
    for _ in 0..readers {
        running.spawn(reader(shared.clone()));
    }
    let mut objects = Vec::new();
    while let Some(ended) = running.join_next().await {
        let (stored, outcomes) =
            ended.map_err(|e| EngineError::new(FailureKind::Local, format!("a reader ended: {e}")))??;
        objects.extend(stored);
        for outcome in outcomes {
            match outcome {
                Outcome::Copied { collection, segment } => {
                    if let Some(found) = collections.get_mut(collection) {
                        found.segments.push(segment);
                    }
                }
                Outcome::Gone { collection } => {
                    if let Some(found) = collections.get_mut(collection) {
                        found.gone = true;
                    }
                }
            }
        }
    }
    // The log tells that they were dropped; what was read of them by then does not count.
    collections.retain(|found| !found.gone);
    objects.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(objects)
}

async fn reader(shared: Arc<Shared>) -> Result<(Vec<ObjectRef>, Vec<Outcome>)> {
    let mut sink = FrameSink::start(shared.clone());
    let mut outcomes = Vec::new();
    loop {
        shared.job.check()?;
        let piece = shared.queue.lock().ok().and_then(|mut queue| queue.pop_front());
        let Some(piece) = piece else { break };
        match scan::copy(&shared, &piece, &mut sink).await {
            Ok(outcome) => outcomes.push(outcome),
            // What really failed may be the storing, which is known when the sink is closed.
            Err(error) => return Err(sink.finish().await.err().unwrap_or(error)),
        }
    }
    Ok((sink.finish().await?, outcomes))
}

/// Where a reader puts documents: cut into frames, compressed on other threads, stored in order.
pub(super) struct FrameSink {
    shared: Arc<Shared>,
    frame: Vec<u8>,
    segment: u32,
    frames: mpsc::Sender<JoinHandle<hindsight_repository::Result<EncodedFrame>>>,
    storing: JoinHandle<Result<Vec<ObjectRef>>>,
}

impl FrameSink {
    fn start(shared: Arc<Shared>) -> Self {
        let (frames, queue) = mpsc::channel(COMPRESSING);
        let storing = tokio::spawn(store(shared.clone(), queue));
        Self { shared, frame: Vec::with_capacity(FRAME_TARGET + (64 << 10)), segment: 0, frames, storing }
    }

    /// Begins a scan; returns its number.
    pub(super) async fn begin(&mut self) -> Result<u32> {
        self.flush().await?;
        self.segment = self.shared.next_segment.fetch_add(1, Ordering::Relaxed);
        Ok(self.segment)
    }

    /// Takes a document.
    pub(super) async fn push(&mut self, document: &[u8]) -> Result<()> {
        if self.frame.len() + document.len() > FRAME_TARGET && !self.frame.is_empty() {
            self.flush().await?;
        }
        self.frame.extend_from_slice(document);
        Ok(())
    }

    /// Ends the present frame.
    pub(super) async fn flush(&mut self) -> Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let raw = std::mem::replace(&mut self.frame, Vec::with_capacity(FRAME_TARGET + (64 << 10)));
        self.shared.job.progress.add(raw.len() as u64);
        let (level, segment) = (self.shared.level, self.segment);
        let encoding = tokio::task::spawn_blocking(move || encode_frame(&raw, level, segment));
        self.frames
            .send(encoding)
            .await
            .map_err(|_| EngineError::new(FailureKind::Repository, "storing the documents failed"))
    }

    async fn finish(mut self) -> Result<Vec<ObjectRef>> {
        let flushed = self.flush().await;
        drop(self.frames);
        let stored = self.storing.await.map_err(|e| EngineError::new(FailureKind::Local, e.to_string()))??;
        flushed.map(|()| stored)
    }
}

async fn store(
    shared: Arc<Shared>,
    mut frames: mpsc::Receiver<JoinHandle<hindsight_repository::Result<EncodedFrame>>>,
) -> Result<Vec<ObjectRef>> {
    let mut stored = Vec::new();
    let mut open: Option<(String, ObjectWriter)> = None;
    while let Some(encoding) = frames.recv().await {
        let frame = encoding.await.map_err(|e| EngineError::new(FailureKind::Local, e.to_string()))??;
        let (_, writer) = match &mut open {
            Some(open) => open,
            none => {
                let number = shared.next_object.fetch_add(1, Ordering::Relaxed);
                let name = format!("data/{number:06}.bson.zst");
                let key = shared.job.cluster.keys().snapshot_object(&shared.snapshot, &name);
                none.insert((name, shared.job.cluster.object_writer(key, ObjectKind::Data).await))
            }
        };
        writer.write(frame).await?;
        if writer.stored_bytes() >= OBJECT
            && let Some((name, writer)) = open.take()
        {
            stored.push(close(name, writer).await?);
        }
    }
    if let Some((name, writer)) = open {
        stored.push(close(name, writer).await?);
    }
    Ok(stored)
}

async fn close(name: String, writer: ObjectWriter) -> Result<ObjectRef> {
    let written = writer.finish(None).await?;
    Ok(ObjectRef {
        name,
        stored_bytes: written.stored_bytes,
        raw_bytes: written.raw_bytes,
        footer_blake3: written.footer_blake3,
    })
}
