//! Moving documents: base frames in, merged with the fold, inserts out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bson::Document;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use hindsight_catalog::RestorePlan;
use hindsight_engine::{EngineError, FailureKind, Job, RestoreOptions, Result};
use hindsight_format::ObjectRef;
use hindsight_repository::ObjectReader;
use mongodb::Client;

use super::insert::insert;
use super::schema::Wanted;
use crate::cluster::Cluster;
use crate::fold::{Buffers, Folded, Pass};
use crate::oplog::entry::{Uuid, decode, next_document};
use crate::snapshot::stored::StoredCatalog;

/// Bytes of documents that the log alone created, in one insert.
const REST: usize = 4 << 20;
/// Objects that are read at the same time.
const OBJECTS: usize = 2;
/// Objects that are checked at the same time.
const CHECKED: usize = 4;

/// What was moved.
#[derive(Debug, Default)]
pub(super) struct Copied {
    /// Documents inserted, by collection.
    pub(super) inserted: HashMap<Uuid, u64>,
    /// Bytes inserted.
    pub(super) bytes: u64,
}

/// Documents that are not inserted but used, by database and collection.
pub(super) type Definitions = HashMap<(String, String), Vec<Document>>;

/// What all workers share.
struct Shared {
    client: Client,
    job: Job,
    wanted: Wanted,
    pass: Pass,
    copied: Mutex<Copied>,
}

/// Opens all data objects, which checks their footers.
pub(super) async fn open(job: &Job, plan: &RestorePlan) -> Result<Vec<ObjectReader>> {
    let objects: Vec<ObjectRef> = plan.base.objects.iter().filter(|o| o.name.starts_with("data/")).cloned().collect();
    let open = |object: ObjectRef| {
        let cluster = job.cluster.clone();
        let key = cluster.keys().snapshot_object(&plan.base.id, &object.name);
        async move { Ok::<_, EngineError>(cluster.object_reader(&key, Some(&object)).await?) }
    };
    stream::iter(objects.into_iter().map(open)).buffered(8).try_collect().await
}

/// Bytes of the data objects.
pub(super) fn stored_bytes(readers: &[ObjectReader]) -> u64 {
    readers.iter().map(ObjectReader::stored_bytes).sum()
}

/// Reads all frames that a restore of the collections `used` will read, and makes sure that they are as they were
/// written. Frames are not decompressed for that.
pub(super) async fn check(
    job: &Job,
    catalog: &StoredCatalog,
    used: impl Fn(&Uuid) -> bool,
    readers: &[ObjectReader],
) -> Result<()> {
    let segments = &segments(catalog, used);
    let one = |reader: &ObjectReader| {
        let reader = reader.clone();
        async move {
            job.check()?;
            let read = |bytes| job.progress.add(bytes);
            let checked = reader.check_stored(|frame| segments.contains_key(&frame.segment), read);
            tokio::select! {
                checked = checked => Ok(checked?),
                () = job.cancel.cancelled() => Err(EngineError::cancelled()),
            }
        }
    };
    stream::iter(readers.iter().map(one)).buffer_unordered(CHECKED).try_collect().await
}

/// The documents that define views, users and roles.
pub(super) async fn definitions(
    catalog: &StoredCatalog,
    wanted: &Wanted,
    readers: &[ObjectReader],
    folded: &mut Folded,
) -> Result<Definitions> {
    let pass = folded.effects.definitions();
    let mut runs: HashMap<Uuid, Vec<u8>> = HashMap::new();
    let segments = segments(catalog, |uuid| wanted.definitions(uuid).is_some());
    for reader in readers {
        let mut frames = reader.stream(|frame| segments.contains_key(&frame.segment), 2);
        while let Some((entry, frame)) = frames.try_next().await? {
            let uuid = segments.get(&entry.segment).copied().unwrap_or_default();
            let (run, mut buffers) = (runs.entry(uuid).or_default(), Buffers::default());
            let mut frame = &frame[..];
            while let Some(document) = next_document(&mut frame)? {
                pass.merge(&uuid, document, &mut buffers, run)?;
            }
        }
    }
    for uuid in pass.touched() {
        runs.entry(*uuid).or_default().extend(pass.rest(uuid)?.next(usize::MAX)?);
    }
    let mut found = Definitions::new();
    for (uuid, run) in &runs {
        let Some(place) = wanted.definitions(uuid) else { continue };
        let mut run = run.as_slice();
        while let Some(document) = next_document(&mut run)? {
            let bad = |e| EngineError::damaged(format!("a document of {}.{} cannot be read: {e}", place.0, place.1));
            found.entry(place.clone()).or_default().push(decode(document).map_err(bad)?);
        }
    }
    Ok(found)
}

/// Copies all documents of what is wanted.
pub(super) async fn copy(
    cluster: &Cluster,
    job: &Job,
    catalog: &StoredCatalog,
    wanted: &Wanted,
    readers: &[ObjectReader],
    folded: &mut Folded,
    options: &RestoreOptions,
) -> Result<Copied> {
    let segments = segments(catalog, |uuid| wanted.target(uuid).is_some());
    let workers = match options.parallel {
        0 => std::thread::available_parallelism().map_or(4, |n| 2 * usize::from(n)).clamp(4, 16),
        n => n as usize,
    };
    let total: u64 = catalog
        .collections
        .iter()
        .flat_map(|c| &c.segments)
        .filter(|s| segments.contains_key(&s.id))
        .map(|s| s.bytes)
        .fold(0, u64::saturating_add);
    let mut copied = Copied::default();
    let passes = folded.effects.count();
    for number in 0..passes {
        let name = match passes {
            1 => "inserting documents".to_owned(),
            _ => format!("inserting documents, pass {} of {passes} (the log did not fit in memory)", number + 1),
        };
        job.progress.step(&name, Some(total));
        let pass = folded.effects.load(number)?;
        let shared = Arc::new(Shared {
            client: cluster.client.clone(),
            job: job.clone(),
            wanted: wanted.clone(),
            pass,
            copied: Mutex::new(copied),
        });
        run_pass(&shared, &segments, readers, workers).await?;
        copied = Arc::into_inner(shared)
            .and_then(|shared| shared.copied.into_inner().ok())
            .ok_or_else(|| EngineError::new(FailureKind::Local, "a restore worker did not end"))?;
    }
    Ok(copied)
}

/// The segments that are wanted, with their collection.
fn segments(catalog: &StoredCatalog, wanted: impl Fn(&Uuid) -> bool) -> HashMap<u32, Uuid> {
    let used = catalog.collections.iter().filter(|c| wanted(&c.uuid));
    used.flat_map(|c| c.segments.iter().map(|s| (s.id, c.uuid))).collect()
}

async fn run_pass(
    shared: &Arc<Shared>,
    segments: &HashMap<u32, Uuid>,
    readers: &[ObjectReader],
    workers: usize,
) -> Result<()> {
    let capped = |uuid: &Uuid| shared.wanted.target(uuid).is_some_and(super::schema::Target::is_capped);
    // Everything whose order is free.
    let frames = stream::iter(readers.to_vec()).map(|reader| {
        let free = |segment: u32| segments.get(&segment).is_some_and(|uuid| !capped(uuid));
        reader.stream(|frame| free(frame.segment), 2)
    });
    frames
        .flatten_unordered(OBJECTS)
        .map(|frame| {
            let shared = shared.clone();
            async move {
                let (entry, bytes) = frame?;
                let uuid = segments.get(&entry.segment).copied().unwrap_or_default();
                shared.job.check()?;
                join(tokio::spawn(shared.clone().base_frame(uuid, bytes, false))).await
            }
        })
        .buffer_unordered(workers)
        .try_collect::<()>()
        .await?;
    // What keeps its order: one after the other, the base before what the log added.
    for (uuid, mine) in by_collection(segments).into_iter().filter(|(uuid, _)| capped(uuid)) {
        for reader in readers {
            let mut frames = reader.stream(|frame| mine.contains(&frame.segment), 2);
            while let Some((_, bytes)) = frames.try_next().await? {
                shared.clone().base_frame(uuid, bytes, true).await?;
            }
        }
    }
    let touched: Vec<Uuid> = shared.pass.touched().copied().collect();
    stream::iter(touched)
        .map(|uuid| {
            let (shared, ordered) = (shared.clone(), capped(&uuid));
            async move { join(tokio::spawn(shared.rest(uuid, ordered))).await }
        })
        .buffer_unordered(workers)
        .try_collect()
        .await
}

fn by_collection(segments: &HashMap<u32, Uuid>) -> HashMap<Uuid, Vec<u32>> {
    let mut by: HashMap<Uuid, Vec<u32>> = HashMap::new();
    for (segment, uuid) in segments {
        by.entry(*uuid).or_default().push(*segment);
    }
    by
}

async fn join(task: tokio::task::JoinHandle<Result<()>>) -> Result<()> {
    task.await.map_err(|e| EngineError::new(FailureKind::Local, format!("a restore worker ended: {e}")))?
}

impl Shared {
    /// Merges a frame of the base with the fold, and inserts what remains.
    async fn base_frame(self: Arc<Self>, uuid: Uuid, frame: Bytes, ordered: bool) -> Result<()> {
        let bytes = frame.len() as u64;
        let run = match self.pass.leaves_alone(&uuid) {
            true => frame,
            false => self.merged(&uuid, frame)?,
        };
        self.deliver(uuid, run, ordered).await?;
        self.job.progress.add(bytes);
        Ok(())
    }

    /// What has become of the documents of a frame.
    fn merged(&self, uuid: &Uuid, frame: Bytes) -> Result<Bytes> {
        let mut out = Vec::with_capacity(frame.len() + 1024);
        let mut buffers = Buffers::default();
        let mut run = &frame[..];
        while let Some(document) = next_document(&mut run)? {
            self.pass.merge(uuid, document, &mut buffers, &mut out)?;
        }
        Ok(out.into())
    }

    /// Inserts what the log alone created.
    async fn rest(self: Arc<Self>, uuid: Uuid, ordered: bool) -> Result<()> {
        let mut rest = self.pass.rest(&uuid)?;
        loop {
            let run = rest.next(REST)?;
            if run.is_empty() {
                return Ok(());
            }
            self.job.check()?;
            self.deliver(uuid, run.into(), ordered).await?;
        }
    }

    async fn deliver(&self, uuid: Uuid, run: Bytes, ordered: bool) -> Result<()> {
        if run.is_empty() {
            return Ok(());
        }
        let Some(target) = self.wanted.target(&uuid) else { return Ok(()) };
        target.check_visible()?;
        let bytes = run.len() as u64;
        self.job.pass(bytes).await?;
        let inserted = insert(&self.client, &target.db, &target.name, run, ordered).await?;
        if let Ok(mut copied) = self.copied.lock() {
            *copied.inserted.entry(uuid).or_default() += inserted;
            copied.bytes += bytes;
        }
        Ok(())
    }
}
