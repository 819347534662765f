//! Copying documents: several readers, each with an object of its own that it fills frame by
//! frame.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use hindsight_engine::{EngineError, FailureKind, Job, Result, SnapshotRequest};
use hindsight_format::{ObjectKind, ObjectRef};
use hindsight_repository::{EncodedFrame, FRAME_TARGET, ObjectWriter, encode_frame};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::task::AbortOnDropHandle;

use super::catalog::Found;
use super::checkpoint::Checkpoint;
use super::scan::{self, Piece};
use super::stored::Segment;
use crate::cluster::Source;

/// A new object is begun when one has grown to this size: what fails is repeated in pieces, and what a folder has to write
/// to its disk when an object is closed is written while the next one is filled.
const OBJECT: u64 = 128 << 20;
/// Frames of one reader that are being compressed at the same time.
const COMPRESSING: usize = 2;

/// What the readers share.
pub(super) struct Shared {
    pub(super) job: Job,
    pub(super) source: Source,
    pub(super) queue: Mutex<VecDeque<(usize, Piece)>>,
    pub(super) next_segment: AtomicU32,
    next_object: AtomicU32,
    ledger: tokio::sync::Mutex<Ledger>,
    snapshot: String,
    level: i32,
    /// Bytes after which what was done is noted.
    checkpoint: u64,
}

/// What became of a piece.
pub(super) enum Outcome {
    Copied(Segment),
    Gone,
}

/// What was done: what is stored, and which pieces are whole in it.
struct Ledger {
    noted: Checkpoint,
    pieces: Vec<Piece>,
    gone: HashSet<usize>,
    /// Number of the next checkpoint.
    next: u32,
}

impl Ledger {
    fn add(&mut self, object: Option<ObjectRef>, outcomes: Vec<(usize, Outcome)>) {
        self.noted.objects.extend(object);
        for (number, outcome) in outcomes {
            let Some(piece) = self.pieces.get_mut(number) else { continue };
            match outcome {
                Outcome::Copied(segment) => piece.segment = Some(segment),
                Outcome::Gone => drop(self.gone.insert(piece.collection)),
            }
        }
    }

    async fn note(&mut self, shared: &Shared) -> Result<()> {
        self.noted.next_segment = shared.next_segment.load(Ordering::Relaxed);
        self.noted.pieces = self.pieces.iter().map(Piece::noted).collect();
        self.noted.store(&shared.job, &shared.snapshot, self.next).await?;
        self.next += 1;
        Ok(())
    }
}

/// Copies all documents of `collections` that `done` does not name, and notes in them what was copied.
pub(super) async fn copy(
    job: &Job,
    request: &SnapshotRequest,
    source: &Source,
    collections: &mut Vec<Found>,
    mut done: Checkpoint,
) -> Result<Vec<ObjectRef>> {
    let readers = match request.parallel {
        0 => std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8),
        n => n as usize,
    };
    let pieces = scan::plan(source, collections, request.checkpoint, std::mem::take(&mut done.pieces)).await;
    let left = || pieces.iter().enumerate().filter(|(_, piece)| piece.segment.is_none());
    job.progress.step("copying documents", Some(left().map(|(_, piece)| piece.bytes).sum()));
    let shared = Arc::new(Shared {
        job: job.clone(),
        source: source.clone(),
        queue: Mutex::new(left().map(|(number, piece)| (number, piece.clone())).collect()),
        next_segment: AtomicU32::new(done.next_segment),
        next_object: AtomicU32::new(done.first_number()),
        snapshot: request.id.clone(),
        level: request.compression_level,
        checkpoint: request.checkpoint,
        ledger: tokio::sync::Mutex::new(Ledger {
            next: done.first_number(),
            noted: done,
            pieces,
            gone: HashSet::new(),
        }),
    });
    let mut running = JoinSet::new();
    for _ in 0..readers {
        running.spawn(reader(shared.clone()));
    }
    while let Some(ended) = running.join_next().await {
        ended.map_err(|e| EngineError::new(FailureKind::Local, format!("a reader ended: {e}")))??;
    }
    let mut ledger = shared.ledger.lock().await;
    for piece in std::mem::take(&mut ledger.pieces) {
        if let (Some(found), Some(segment)) = (collections.get_mut(piece.collection), piece.segment) {
            found.segments.push(segment);
        }
    }
    // The log tells that they were dropped; what was read of them by then does not count.
    let mut number = 0..;
    collections.retain(|_| !number.next().is_some_and(|number| ledger.gone.contains(&number)));
    let mut objects = std::mem::take(&mut ledger.noted.objects);
    objects.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(objects)
}

async fn reader(shared: Arc<Shared>) -> Result<()> {
    let mut sink = FrameSink::start(shared.clone());
    loop {
        shared.job.check()?;
        let piece = shared.queue.lock().ok().and_then(|mut queue| queue.pop_front());
        let Some((number, piece)) = piece else { break };
        let copied = match scan::copy(&shared, &piece, &mut sink).await {
            Ok(outcome) => sink.done(number, outcome).await,
            Err(error) => Err(error),
        };
        // What really failed may be the storing, which is known when the sink is closed.
        if let Err(error) = copied {
            return Err(sink.finish().await.err().unwrap_or(error));
        }
    }
    sink.finish().await
}

/// Where a reader puts documents: cut into frames, compressed on other threads, stored in order.
pub(super) struct FrameSink {
    shared: Arc<Shared>,
    frame: Vec<u8>,
    segment: u32,
    /// Bytes, and pieces that are whole in them, since what was done was noted.
    bytes: u64,
    outcomes: Vec<(usize, Outcome)>,
    queue: mpsc::Sender<Item>,
    storing: JoinHandle<Result<()>>,
}

/// What is to be stored.
enum Item {
    Frame(JoinHandle<hindsight_repository::Result<EncodedFrame>>),
    /// The object is to be closed: these pieces are whole in it and in those before.
    Done {
        outcomes: Vec<(usize, Outcome)>,
        noted: bool,
    },
}

impl FrameSink {
    fn start(shared: Arc<Shared>) -> Self {
        let (sender, queue) = mpsc::channel(COMPRESSING);
        let storing = tokio::spawn(store(shared.clone(), queue));
        let frame = Vec::with_capacity(FRAME_TARGET + (64 << 10));
        Self { shared, frame, segment: 0, bytes: 0, outcomes: Vec::new(), queue: sender, storing }
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
        self.shared.job.pass(raw.len() as u64).await?;
        self.bytes += raw.len() as u64;
        self.shared.job.progress.add(raw.len() as u64);
        let (level, segment) = (self.shared.level, self.segment);
        let encoding = tokio::task::spawn_blocking(move || encode_frame(&raw, level, segment));
        self.send(Item::Frame(encoding)).await
    }

    /// A piece is done. After every so many bytes that is noted.
    async fn done(&mut self, number: usize, outcome: Outcome) -> Result<()> {
        self.outcomes.push((number, outcome));
        if self.bytes < self.shared.checkpoint {
            return Ok(());
        }
        self.bytes = 0;
        let outcomes = std::mem::take(&mut self.outcomes);
        self.send(Item::Done { outcomes, noted: true }).await
    }

    async fn send(&self, item: Item) -> Result<()> {
        let sent = self.queue.send(item).await;
        sent.map_err(|_| EngineError::new(FailureKind::Repository, "storing the documents failed"))
    }

    async fn finish(mut self) -> Result<()> {
        let flushed = self.flush().await;
        let outcomes = std::mem::take(&mut self.outcomes);
        let sent = self.send(Item::Done { outcomes, noted: false }).await;
        drop(self.queue);
        self.storing.await.map_err(|e| EngineError::new(FailureKind::Local, e.to_string()))??;
        flushed.and(sent)
    }
}

async fn store(shared: Arc<Shared>, mut queue: mpsc::Receiver<Item>) -> Result<()> {
    let mut open: Option<(String, ObjectWriter)> = None;
    let mut closing: Option<AbortOnDropHandle<Result<ObjectRef>>> = None;
    while let Some(item) = queue.recv().await {
        match item {
            Item::Frame(encoding) => {
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
                if writer.stored_bytes() >= OBJECT {
                    settle(&shared, &mut closing).await?;
                    closing =
                        open.take().map(|(name, writer)| AbortOnDropHandle::new(tokio::spawn(close(name, writer))));
                }
            }
            Item::Done { outcomes, noted } => {
                settle(&shared, &mut closing).await?;
                let object = match open.take() {
                    Some((name, writer)) => Some(close(name, writer).await?),
                    None => None,
                };
                let mut ledger = shared.ledger.lock().await;
                ledger.add(object, outcomes);
                if noted {
                    ledger.note(&shared).await?;
                }
            }
        }
    }
    Ok(())
}

/// Waits for the object that is being closed.
async fn settle(shared: &Shared, closing: &mut Option<AbortOnDropHandle<Result<ObjectRef>>>) -> Result<()> {
    let Some(task) = closing.take() else { return Ok(()) };
    let object = task.await.map_err(|e| EngineError::new(FailureKind::Local, e.to_string()))??;
    shared.ledger.lock().await.add(Some(object), Vec::new());
    Ok(())
}

async fn close(name: String, writer: ObjectWriter) -> Result<ObjectRef> {
    Ok(writer.finish(None).await?.named(name))
}
