//! The archives of a backup on their way from the server to objects.
//!
//! One task reads the socket and does nothing else but cut. Every frame is compressed on whichever core is free, up to as many
//! at once as there are cores; and one thread looks at all of them in their order, as the checksum of a file can only be
//! computed from its beginning to its end. Where one of them is behind, nothing more is read, and the server waits: no more than
//! some frames are ever in memory.

use std::collections::HashMap;

use bytes::Bytes;
use hindsight_engine::{EngineError, FailureKind, Job, Result, SnapshotRequest};
use hindsight_format::{ObjectKind, ObjectRef};
use hindsight_repository::{EncodedFrame, FRAME_TARGET, ObjectWriter, encode_frame};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::cut::Cutter;
use super::damage::{damaged, in_archive};
use super::look::{Look, Looked, Looker};
use super::manifest::BackupManifest;
use super::source::odd;
use super::stored::{BACKUP_MANIFEST, archive_folder};
use super::verify::VerifyOptions;
use crate::wire::{BackupEvent, BackupPosition, BaseBackup, Connection, Error as WireError, code};

/// After so many bytes of an archive the next file begins a new object, so that several can be read at once, and what fails is
/// repeated in pieces.
const OBJECT: u64 = 256 << 20;
/// Frames that wait to be looked at.
const WAITING: usize = 4;
/// Frames that are being compressed at the same time, at most: more than one connection brings data for at the usual levels, and 80 MiB
/// with what they make of data that do not compress.
const MOST_COMPRESSING: usize = 8;

/// A backup that has come and is stored, and in which nothing is wrong.
pub(super) struct Copied {
    /// The objects with its files, and the one with its manifest.
    pub(super) objects: Vec<ObjectRef>,
    pub(super) manifest: BackupManifest,
    /// Files that there are.
    pub(super) files: u64,
    /// Of files that hold only what changed, bytes that they have once restored.
    pub(super) restored: HashMap<Box<[u8]>, u64>,
    pub(super) end: BackupPosition,
    /// The session it came over.
    pub(super) connection: Connection,
}

/// Stores a backup, and looks at all of it.
pub(super) async fn copy(
    job: &Job,
    request: &SnapshotRequest,
    mut backup: BaseBackup,
    options: VerifyOptions,
) -> Result<Copied> {
    let sizes = backup.tablespaces().iter().map(|tablespace| tablespace.kib);
    let total = sizes.sum::<Option<u64>>().map(|kib| kib.saturating_mul(1024));
    job.progress.step("copying files", total);
    let mut sink = Sink::start(job, request, options);
    let streamed = stream(&mut backup, &mut sink).await;
    if let Err(error) = streamed {
        // It is told after the last of the data, so that we know ourselves which pages it is.
        if !server_found_damage(&error) {
            return Err(error);
        }
        sink.end().await?;
        let Looked { report, .. } = sink.finish().await?.1;
        return Err(match report.is_clean() {
            true => EngineError { kind: FailureKind::Damaged, ..error },
            false => damaged(&report).caused_by(error),
        });
    }
    let (objects, Looked { manifest, report }) = sink.finish().await?;
    if !report.is_clean() {
        return Err(damaged(&report));
    }
    let (end, connection) = backup.finish()?;
    Ok(Copied { objects, manifest, files: report.files, restored: report.restored, end, connection })
}

fn server_found_damage(error: &EngineError) -> bool {
    let wire = error.source.as_ref().and_then(|source| source.downcast_ref::<WireError>());
    wire.and_then(WireError::sqlstate) == Some(code::DATA_CORRUPTED)
}

async fn stream(backup: &mut BaseBackup, sink: &mut Sink) -> Result<()> {
    while let Some(event) = backup.next().await? {
        match event {
            BackupEvent::Archive { name, .. } => sink.archive(&name).await?,
            BackupEvent::Manifest => sink.manifest().await?,
            BackupEvent::Data(data) => sink.data(&data).await?,
            BackupEvent::Progress(_) => {}
        }
    }
    sink.end().await
}

/// Where the stream is cut.
struct Sink {
    job: Job,
    level: i32,
    present: Present,
    frame: Vec<u8>,
    storing: Worker<Store, Vec<ObjectRef>>,
    looking: Worker<Look, Looked>,
}

/// What data belong to.
enum Present {
    Nothing,
    Archive {
        folder: String,
        /// Objects of it that were begun.
        objects: u32,
        cutter: Cutter,
    },
    Manifest,
}

/// A task with a queue of what it is to do.
struct Worker<T, R> {
    queue: Option<mpsc::Sender<T>>,
    task: AbortOnDropHandle<Result<R>>,
}

impl<T, R> Worker<T, R> {
    fn new(queue: mpsc::Sender<T>, task: JoinHandle<Result<R>>) -> Self {
        Self { queue: Some(queue), task: AbortOnDropHandle::new(task) }
    }

    /// Waits for room in the queue. Where the task has failed, its error.
    async fn send(&mut self, item: T) -> Result<()> {
        if let Some(queue) = &self.queue
            && queue.send(item).await.is_ok()
        {
            return Ok(());
        }
        match self.end().await {
            Ok(_) => Err(EngineError::new(FailureKind::Local, "a part of the backup ended before its time")),
            Err(error) => Err(error),
        }
    }

    /// Waits until all is done.
    async fn end(&mut self) -> Result<R> {
        self.queue = None;
        (&mut self.task).await.map_err(ended)?
    }
}

fn ended(error: tokio::task::JoinError) -> EngineError {
    EngineError::new(FailureKind::Local, format!("a part of the backup ended: {error}"))
}

impl Sink {
    fn start(job: &Job, request: &SnapshotRequest, options: VerifyOptions) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, MOST_COMPRESSING);
        let (to_store, store_queue) = mpsc::channel(cores);
        let (to_look, mut look_queue) = mpsc::channel(WAITING);
        let storing = tokio::spawn(store(job.clone(), request.id.clone(), store_queue));
        let looking = tokio::task::spawn_blocking(move || {
            let mut looker = Looker::new(options);
            while let Some(next) = look_queue.blocking_recv() {
                looker.take(next)?;
            }
            looker.finish()
        });
        Self {
            job: job.clone(),
            level: request.compression_level,
            present: Present::Nothing,
            frame: Vec::new(),
            storing: Worker::new(to_store, storing),
            looking: Worker::new(to_look, looking),
        }
    }

    /// An archive begins, such as `base.tar` or `16385.tar`.
    async fn archive(&mut self, name: &str) -> Result<()> {
        self.end().await?;
        let garbled = || odd(format!("the server sends an unknown archive {name:?}"));
        let tablespace = match name.strip_suffix(".tar").ok_or_else(garbled)? {
            "base" => None,
            oid => Some(oid.parse::<u32>().map_err(|_| garbled())?),
        };
        self.looking.send(Look::Archive(tablespace)).await?;
        self.present = Present::Archive { folder: archive_folder(tablespace), objects: 0, cutter: Cutter::new(OBJECT) };
        self.next_object().await
    }

    async fn manifest(&mut self) -> Result<()> {
        self.end().await?;
        self.looking.send(Look::Manifest).await?;
        self.present = Present::Manifest;
        self.storing.send(Store::Object(BACKUP_MANIFEST.to_owned(), ObjectKind::Catalog)).await
    }

    async fn data(&mut self, data: &[u8]) -> Result<()> {
        let cut = match &mut self.present {
            Present::Nothing => {
                return Err(odd("the server sends data of no archive"));
            }
            Present::Manifest => None,
            Present::Archive { cutter, folder, .. } => cutter.take(data).map_err(|error| in_archive(folder, &error))?,
        };
        let Some((before, after)) = cut.and_then(|at| data.split_at_checked(at)) else { return self.fill(data).await };
        self.fill(before).await?;
        self.flush().await?;
        self.next_object().await?;
        self.fill(after).await
    }

    async fn next_object(&mut self) -> Result<()> {
        let Present::Archive { folder, objects, .. } = &mut self.present else { return Ok(()) };
        *objects += 1;
        let name = format!("{folder}{objects:06}.tar.zst");
        self.storing.send(Store::Object(name, ObjectKind::Data)).await
    }

    async fn fill(&mut self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            if self.frame.capacity() == 0 {
                self.frame.reserve_exact(FRAME_TARGET);
            }
            let (now, later) = data.split_at(data.len().min(FRAME_TARGET - self.frame.len()));
            self.frame.extend_from_slice(now);
            data = later;
            if self.frame.len() == FRAME_TARGET {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Ends the present frame.
    async fn flush(&mut self) -> Result<()> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let raw = Bytes::from(std::mem::take(&mut self.frame));
        self.job.pass(raw.len() as u64).await?;
        self.job.progress.add(raw.len() as u64);
        self.looking.send(Look::Bytes(raw.clone())).await?;
        let level = self.level;
        let encoding = tokio::task::spawn_blocking(move || encode_frame(&raw, level, 0));
        self.storing.send(Store::Frame(encoding)).await
    }

    /// Ends what data belonged to.
    async fn end(&mut self) -> Result<()> {
        self.flush().await?;
        if matches!(std::mem::replace(&mut self.present, Present::Nothing), Present::Nothing) {
            return Ok(());
        }
        self.looking.send(Look::End).await?;
        self.storing.send(Store::End).await
    }

    /// Waits until all is stored and looked at.
    async fn finish(mut self) -> Result<(Vec<ObjectRef>, Looked)> {
        let looked = self.looking.end().await?;
        Ok((self.storing.end().await?, looked))
    }
}

/// What is to be stored.
enum Store {
    /// An object begins.
    Object(String, ObjectKind),
    Frame(JoinHandle<hindsight_repository::Result<EncodedFrame>>),
    /// It is whole, as it also is where the next one begins.
    End,
}

async fn store(job: Job, snapshot: String, mut queue: mpsc::Receiver<Store>) -> Result<Vec<ObjectRef>> {
    let mut objects = Vec::new();
    let mut open: Option<(String, ObjectWriter)> = None;
    // The end of an object waits for the disk or the network: meanwhile the next one is filled.
    let mut closing: Option<AbortOnDropHandle<Result<ObjectRef>>> = None;
    while let Some(item) = queue.recv().await {
        if let Store::Frame(encoding) = item {
            let frame = encoding.await.map_err(ended)??;
            if let Some((_, writer)) = &mut open {
                writer.write(frame).await?;
            }
            continue;
        }
        if let Some((name, writer)) = open.take() {
            if let Some(closing) = closing.take() {
                objects.push(closing.await.map_err(ended)??);
            }
            closing = Some(AbortOnDropHandle::new(tokio::spawn(close(name, writer))));
        }
        if let Store::Object(name, kind) = item {
            let key = job.cluster.keys().snapshot_object(&snapshot, &name);
            open = Some((name, job.cluster.object_writer(key, kind).await));
        }
    }
    if let Some(closing) = closing {
        objects.push(closing.await.map_err(ended)??);
    }
    Ok(objects)
}

async fn close(name: String, writer: ObjectWriter) -> Result<ObjectRef> {
    Ok(writer.finish(None).await?.named(name))
}
