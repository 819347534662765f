//! Scanning a collection by its UUID, in one piece or by ranges of `_id`.
//!
//! A rename, an index build or an election may end a cursor at any time. A range goes on after the
//! last `_id` that it has; a whole collection in its natural order is begun again, under a new
//! segment number, so that what the first attempt stored does not count.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bson::{Bson, Document, RawDocumentBuf, doc};
use futures::{StreamExt, TryStreamExt};
use hindsight_engine::{EngineError, FailureKind, Result};
use mongodb::raw_batch_cursor::RawBatchCursor;

use super::catalog::{Found, uuid_bson};
use super::checkpoint::NotedPiece;
use super::data::{FrameSink, Outcome, Shared};
use super::stored::Segment;
use crate::cluster::Source;
use crate::failure::{code, code_of, driver};
use crate::oplog::diff::raw::Elements;
use crate::oplog::docid::raw_id;
use crate::oplog::entry::{Uuid, malformed, next_document};

/// Collections that take longer than from one checkpoint to the next are read in ranges of this part of that: what ends a
/// scan then costs no more than a checkpoint would keep. All others are read in their natural order, which costs the server
/// less, as it need not look each document up.
const RANGES: u64 = 4;
/// Bytes that the server is asked for at a time, about. It would give up to 16 MiB: memory that is neither in the processor's
/// caches when it is copied, nor kept at hand by the allocator.
const BATCH: u64 = 4 << 20;
/// Documents that it is asked for at a time, at the most.
const MAX_BATCH: u64 = 1_000_000;
/// A scan that is ended this often in a row without getting further fails.
const ATTEMPTS: u32 = 30;
/// So does one to which no server has answered for this long: an election is over sooner.
const SILENCE: Duration = Duration::from_secs(30);

/// A collection or a part of it.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Its place among the collections.
    pub(super) collection: usize,
    pub(super) uuid: Uuid,
    db: String,
    namespace: String,
    pub(super) range: Option<Range>,
    pub(super) bytes: u64,
    /// Documents that the server is asked for at a time.
    batch: u32,
    known: Option<Vec<u8>>,
    /// What was read, if it was.
    pub(super) segment: Option<Segment>,
}

/// From `from` (inclusive; none: the beginning) to `to` (exclusive; none: MaxKey), by the index on `_id`; from MaxKey on
/// there is the one document that has it.
#[derive(Clone, Debug)]
pub(super) struct Range {
    pub(super) from: Option<Bson>,
    pub(super) to: Option<Bson>,
}

/// What to read, the largest first so that the readers end at about the same time; with what `before` says was read.
pub(super) async fn plan(
    source: &Source,
    collections: &[Found],
    checkpoint: u64,
    before: Vec<NotedPiece>,
) -> Vec<Piece> {
    let mut noted: HashMap<Uuid, Vec<NotedPiece>> = HashMap::new();
    for piece in before {
        noted.entry(piece.uuid.bytes()).or_default().push(piece);
    }
    let mut pieces = Vec::new();
    for (number, found) in collections.iter().enumerate() {
        let noted = noted.remove(&found.uuid).filter(|_| found.known.is_none()).unwrap_or_default();
        let count = noted.len().max(1) as u64;
        for piece in noted.iter().cloned() {
            let range = match (piece.from, piece.to) {
                (None, None) => None,
                (from, to) => Some(Range { from, to }),
            };
            pieces.push(Piece::of(number, found, range, found.bytes / count, piece.segment));
        }
        if !noted.is_empty() {
            continue;
        }
        let split = found.bytes > checkpoint && can_be_split(found);
        let bounds = if split { bounds(source, found, checkpoint / RANGES).await } else { Vec::new() };
        let piece = |range, bytes| Piece::of(number, found, range, bytes, None);
        if bounds.is_empty() {
            pieces.push(piece(None, found.bytes));
            continue;
        }
        let part = found.bytes / (bounds.len() as u64 + 1);
        let froms = std::iter::once(None).chain(bounds.iter().cloned().map(Some));
        let tos = bounds.iter().cloned().map(Some).chain([None]);
        pieces.extend(froms.zip(tos).map(|(from, to)| piece(Some(Range { from, to }), part)));
        // The end of a range is exclusive, also where none is named: then it is MaxKey.
        pieces.push(piece(Some(Range { from: Some(Bson::MaxKey), to: None }), 0));
    }
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.bytes));
    pieces
}

impl Piece {
    fn of(collection: usize, found: &Found, range: Option<Range>, bytes: u64, segment: Option<Segment>) -> Self {
        Self {
            collection,
            uuid: found.uuid,
            db: found.db.clone(),
            namespace: found.namespace(),
            range,
            bytes,
            batch: BATCH.checked_div(found.average).unwrap_or(MAX_BATCH).clamp(1, MAX_BATCH) as u32,
            known: found.known.clone(),
            segment,
        }
    }

    /// As a checkpoint has it.
    pub(super) fn noted(&self) -> NotedPiece {
        let (from, to) = self.range.clone().map_or((None, None), |range| (range.from, range.to));
        NotedPiece { uuid: bson::Uuid::from_bytes(self.uuid), from, to, segment: self.segment.clone() }
    }
}

/// Ranges need a plain index on `_id`: capped collections must keep their order, clustered ones
/// have no such index, and under a collation the index does not hold the values themselves.
fn can_be_split(found: &Found) -> bool {
    let special = ["clusteredIndex", "collation", "timeseries"].iter().any(|option| found.options.contains_key(option));
    !special && !found.is_capped()
}

/// Bounds that cut the collection into ranges of about `range` bytes; none when it cannot be sampled (then it is read in
/// one piece).
async fn bounds(source: &Source, found: &Found, range: u64) -> Vec<Bson> {
    const SAMPLES: u64 = 20;
    let parts = (found.bytes / range.max(1)).clamp(2, 4096);
    let sample = [
        doc! {"$sample": {"size": (parts * SAMPLES) as i64}},
        doc! {"$project": {"_id": 1}},
        doc! {"$sort": {"_id": 1}},
    ];
    let collection = source.client.database(&found.db).collection::<Document>(&found.name);
    let ids = async { collection.aggregate(sample).await?.try_collect::<Vec<_>>().await };
    let Ok(ids) = ids.await else { return Vec::new() };
    let mut bounds: Vec<Bson> = ids
        .chunks(SAMPLES as usize)
        .skip(1)
        .filter_map(|chunk| chunk.first()?.get("_id").cloned())
        // The sample was taken by name; an array cannot be an _id, and a regular expression as a
        // bound would be taken for a pattern. MaxKey bounds a range by itself.
        .filter(|id| !matches!(id, Bson::Array(_) | Bson::RegularExpression(_) | Bson::MaxKey))
        .collect();
    bounds.dedup();
    bounds
}

/// Copies a piece.
pub(super) async fn copy(shared: &Shared, piece: &Piece, sink: &mut FrameSink) -> Result<Outcome> {
    let mut failures = 0;
    let mut silent: Option<Instant> = None;
    let mut after: Option<RawDocumentBuf> = None;
    let mut segment = Segment { id: sink.begin().await?, documents: 0, bytes: 0 };
    if let Some(known) = &piece.known {
        let mut run = known.as_slice();
        while let Some(document) = next_document(&mut run)? {
            sink.push(document).await?;
            segment.documents += 1;
            segment.bytes += document.len() as u64;
        }
        sink.flush().await?;
        return Ok(Outcome::Copied(segment));
    }
    loop {
        shared.job.check()?;
        let before = segment.documents;
        match scan(shared, piece, sink, &mut after, &mut segment).await? {
            Ended::Complete => {
                sink.flush().await?;
                return Ok(Outcome::Copied(segment));
            }
            Ended::Gone => return Ok(Outcome::Gone),
            Ended::Broken(error) => {
                failures = if segment.documents > before && piece.range.is_some() { 0 } else { failures + 1 };
                let answered = segment.documents > before || code_of(&error).is_some();
                silent = (!answered).then(|| silent.unwrap_or_else(Instant::now));
                if failures >= ATTEMPTS || silent.is_some_and(|since| since.elapsed() >= SILENCE) {
                    return Err(driver(&format!("reading {}", piece.namespace), error));
                }
                tracing::warn!(namespace = piece.namespace, %error, "a scan was ended, going on");
                tokio::time::sleep(Duration::from_millis(20 * u64::from(failures.min(10)))).await;
                if piece.range.is_none() {
                    segment = Segment { id: sink.begin().await?, documents: 0, bytes: 0 };
                }
            }
        }
    }
}

enum Ended {
    Complete,
    Gone,
    Broken(mongodb::error::Error),
}

fn ended(error: mongodb::error::Error, doing: &str) -> Result<Ended> {
    use mongodb::error::ErrorKind;
    match (code_of(&error), &*error.kind) {
        (Some(code::NAMESPACE_NOT_FOUND), _) => Ok(Ended::Gone),
        (
            Some(code::QUERY_PLAN_KILLED | code::CURSOR_NOT_FOUND | code::CAPPED_POSITION_LOST | code::INTERRUPTED),
            _,
        ) => Ok(Ended::Broken(error)),
        (None, ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. } | ErrorKind::ServerSelection { .. }) => {
            Ok(Ended::Broken(error))
        }
        // States of a member that is in an election or steps down.
        (Some(91 | 189 | 10107 | 11600 | 11602 | 13435 | 13436), _) => Ok(Ended::Broken(error)),
        _ => Err(driver(doing, error)),
    }
}

async fn scan(
    shared: &Shared,
    piece: &Piece,
    sink: &mut FrameSink,
    after: &mut Option<RawDocumentBuf>,
    segment: &mut Segment,
) -> Result<Ended> {
    let doing = format!("reading {}", piece.namespace);
    let mut cursor = match open(&shared.source, piece, after.as_ref()).await {
        Ok(cursor) => cursor,
        Err(error) => return ended(error, &doing),
    };
    let resumed = after.take();
    let mut last = resumed.clone();
    let result = loop {
        let batch = tokio::select! {
            batch = cursor.next() => batch,
            () = shared.job.cancel.cancelled() => return Err(EngineError::cancelled()),
        };
        let batch = match batch {
            None => break Ok(Ended::Complete),
            Some(Ok(batch)) => batch,
            Some(Err(error)) => break ended(error, &doing),
        };
        let documents = batch.doc_slices().map_err(|e| driver(&doing, e))?;
        let mut elements = Elements::new(documents.as_bytes()).map_err(malformed)?;
        let mut newest = None;
        while let Some(element) = elements.next().map_err(malformed)? {
            newest = Some(element.value);
            // The range was opened again at a document that it has already.
            if resumed.as_ref().is_some_and(|r| raw_id(r.as_bytes()).ok() == raw_id(element.value).ok()) {
                continue;
            }
            sink.push(element.value).await?;
            segment.documents += 1;
            segment.bytes += element.value.len() as u64;
        }
        if let (Some(_), Some(newest)) = (&piece.range, newest) {
            last = Some(id_alone(newest)?);
        }
    };
    *after = last;
    result
}

/// `{_id: ...}` of a document.
fn id_alone(document: &[u8]) -> Result<RawDocumentBuf> {
    let bad = |e: &dyn std::fmt::Display| {
        EngineError::new(FailureKind::Server, format!("a document has no readable _id: {e}"))
    };
    let document = bson::RawDocument::from_bytes(document).map_err(|e| bad(&e))?;
    let id = document.get("_id").map_err(|e| bad(&e))?.ok_or_else(|| bad(&"missing"))?;
    let mut alone = RawDocumentBuf::new();
    alone.append(bson::raw::cstr!("_id"), id);
    Ok(alone)
}

async fn open(
    source: &Source,
    piece: &Piece,
    after: Option<&RawDocumentBuf>,
) -> mongodb::error::Result<RawBatchCursor> {
    let mut command = doc! {"find": uuid_bson(&piece.uuid)};
    if let Some(range) = &piece.range {
        command.insert("hint", doc! {"_id": 1});
        if let Some(to) = &range.to {
            command.insert("max", doc! {"_id": to.clone()});
        }
        match (after, &range.from) {
            (None, Some(Bson::MaxKey)) => drop(command.insert("filter", doc! {"_id": Bson::MaxKey})),
            (None, Some(from)) => drop(command.insert("min", doc! {"_id": from.clone()})),
            _ => {}
        }
    }
    command.insert("batchSize", i64::from(piece.batch));
    command.insert("noCursorTimeout", true);
    command.insert("readConcern", doc! {"level": "majority"});
    let mut command = RawDocumentBuf::try_from(&command)?;
    if let Some(after) = after {
        command.append(bson::raw::cstr!("min"), after.clone());
    }
    source.client.database(&piece.db).run_raw_cursor_command(command).batch_size(piece.batch).batch().await
}
