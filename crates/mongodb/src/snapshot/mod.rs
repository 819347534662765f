//! Taking a logical snapshot: a fuzzy dump, and the piece of oplog that makes it consistent.
//!
//! Documents are read at different moments while the server goes on. What makes them one state is
//! the oplog from before the first to after the last of these moments; the snapshot keeps it, so
//! that it can be restored alone.

pub(crate) mod catalog;
pub(crate) mod checkpoint;
mod data;
pub(crate) mod hash;
mod lag;
mod log;
mod scan;
pub(crate) mod stored;

use std::collections::BTreeMap;

use bson::doc;
use hindsight_engine::{BackupType, EngineError, FailureKind, Job, Result, Selection, SnapshotRequest};
use hindsight_format::{FORMAT_VERSION, SnapshotKind, SnapshotManifest, SnapshotSource, SnapshotTotals, StreamPart};
use jiff::Timestamp;

use self::checkpoint::Checkpoint;
use crate::cluster::{Cluster, Source, optime, wait_committed};
use crate::failure::{driver, unsupported};
use crate::oplog::entry::Entry;
use crate::optime::Optime;

/// How often collections are listed again because the member changed meanwhile.
const LISTINGS: u32 = 5;

/// Refuses what cannot be taken.
pub(crate) fn require_logical(wanted: Option<BackupType>) -> Result<()> {
    match wanted {
        None | Some(BackupType::Logical) => Ok(()),
        Some(kind @ (BackupType::Physical | BackupType::Incremental)) => Err(unsupported(
            format!("backups of the type {kind} cannot be taken of MongoDB"),
            "they copy the files of a server through $backupCursor, which only some servers have; --type logical works \
             with every MongoDB, and PITR makes up for increments",
        )),
        Some(BackupType::External) => {
            Err(unsupported("backups of the type external are not coordinated", "use --type logical"))
        }
    }
}

/// Takes the snapshot and stores everything but its manifest.
pub(crate) async fn take(cluster: &Cluster, job: &Job, request: &SnapshotRequest) -> Result<SnapshotManifest> {
    job.progress.step("choosing a member to read from", None);
    let source = cluster.source().await?;

    let (done, log) = match request.resume {
        true => go_on(cluster, job, request, &source).await?,
        false => begin(cluster, job, request, &source).await?,
    };
    let selection = Selection::new(done.namespaces.clone())
        .map_err(|e| EngineError::new(FailureKind::Unsupported, e.to_string()))?;
    let (first, started_at) = (done.first.clone(), done.started_at);
    let read_from = Optime::from_point(&done.read_from)?;

    let hashing = hash::Hashing::begin(job, &source, &selection, request.hash).await;
    job.progress.step("listing collections", None);
    let mut collections = list(&source, &selection).await?;
    job.check()?;

    let mut objects = tokio::select! {
        copied = data::copy(job, request, &source, &mut collections, done) => copied?,
        never = lag::watch(cluster, job) => match never {},
    };

    let both = hashing.again(job, &source, &selection).await;
    job.progress.step("closing the log", None);
    let end = source.shown().await?;
    confirm(&source, end).await?;
    let own = log.finish(end).await?;

    let hashes = hash::kept(job, both, &own);

    let documents = collections.iter().flat_map(|c| &c.segments).map(|s| s.documents).sum();
    let count = collections.len() as u64;
    objects.push(stored::store(job, request, read_from, collections).await?);
    let totals = SnapshotTotals {
        collections: count,
        documents,
        raw_bytes: objects.iter().map(|o| o.raw_bytes).sum::<u64>() + own.raw_bytes,
        stored_bytes: objects.iter().map(|o| o.stored_bytes).sum::<u64>() + own.stored_bytes,
        log_records: own.records,
    };
    let part = StreamPart { first, last: own.last.point()?, slices: own.slices };
    Ok(SnapshotManifest {
        format: FORMAT_VERSION,
        id: request.id.clone(),
        engine: crate::NAME.to_owned(),
        kind: SnapshotKind::Logical,
        parent: None,
        epoch: request.epoch,
        namespaces: selection.patterns().to_vec(),
        started_at,
        finished_at: Timestamp::now(),
        source: SnapshotSource {
            member: source.host,
            role: source.role,
            server_version: cluster.version.clone(),
            compatibility_version: cluster.compatibility_version.clone(),
        },
        streams: BTreeMap::from([(cluster.set_name.clone(), part)]),
        objects,
        totals,
        hashes,
        created_by: env!("CARGO_PKG_VERSION").to_owned(),
        seal: None,
    })
}

/// Begins a snapshot: with nothing done, and its log being read.
async fn begin(
    cluster: &Cluster,
    job: &Job,
    request: &SnapshotRequest,
    source: &Source,
) -> Result<(Checkpoint, log::OwnLog)> {
    let started_at = Timestamp::now();
    let first = begin_of_log(source).await?;
    let log = log::OwnLog::start(job, request, &cluster.set_name, source, log::Stored::starting_at(first)).await?;
    // Whatever transaction is not open any more is in the data from here on.
    let read_from = source.progress().await?.applied;
    confirm(source, read_from).await?;
    let done = Checkpoint {
        run: 0,
        epoch: request.epoch,
        namespaces: request.namespaces.clone(),
        started_at,
        first: first.point()?,
        read_from: read_from.point()?,
        next_segment: 1,
        objects: Vec::new(),
        pieces: Vec::new(),
    };
    Ok((done, log))
}

/// Goes on with a snapshot that was cut off. What was read before is part of the same history as what is read now: the
/// log leads from the one to the other without a break.
async fn go_on(
    cluster: &Cluster,
    job: &Job,
    request: &SnapshotRequest,
    source: &Source,
) -> Result<(Checkpoint, log::OwnLog)> {
    let (done, stored) = Checkpoint::take_up(job, request, &cluster.set_name).await?;
    let log = log::OwnLog::start(job, request, &cluster.set_name, source, stored).await?;
    let bytes: u64 = done.pieces.iter().filter_map(|piece| piece.segment.as_ref()).map(|segment| segment.bytes).sum();
    tracing::info!(objects = done.objects.len(), bytes, "goes on with what is stored");
    Ok((done, log))
}

/// All that is to be copied, as the log has it too. A listing is no read of what a majority has: it may show an index
/// that is rolled back later. Nor does the driver tell when it has asked once more, after a restart that lost the end of
/// the member's oplog.
async fn list(source: &Source, selection: &Selection) -> Result<Vec<catalog::Found>> {
    for _ in 0..LISTINGS {
        let before = source.standing().await?;
        let found = catalog::list(source, selection).await?;
        confirm(source, source.shown().await?).await?;
        if source.standing().await? == before {
            return Ok(found);
        }
        tracing::info!(
            member = source.host,
            "the member was restarted or changed its state while it listed its collections"
        );
    }
    let message =
        format!("{} was restarted or changed its state again and again while it listed its collections", source.host);
    Err(EngineError::new(FailureKind::Server, message).hint("start the backup again when the replica set is at rest"))
}

/// Waits until `seen` is safe from rollback, and makes sure that it was not rolled back before: what
/// was read up to it is then part of the history that the log tells.
async fn confirm(source: &Source, seen: Optime) -> Result<()> {
    wait_committed(&source.client, seen).await?;
    let oplog = source.client.database("local").collection::<bson::RawDocumentBuf>("oplog.rs");
    let entry = oplog.find_one(doc! {"ts": {"$gte": seen.timestamp()}}).await;
    let entry = entry.map_err(|e| driver("checking for a rollback", e))?;
    match entry.as_ref().map(|entry| Entry::parse(entry.as_bytes())).transpose()? {
        Some(entry) if entry.at == seen => Ok(()),
        _ => Err(EngineError::new(
            FailureKind::Server,
            format!("{} was rolled back past {seen} while it was read", source.host),
        )
        .hint("start the backup again")),
    }
}

/// Where the snapshot's own piece of oplog begins (exclusive): at what is committed now, or before
/// the first entry of the oldest transaction that is still open. The order of the two questions
/// matters: a transaction that ends in between is in the data. As in the server's initial sync
/// (mongo/src/mongo/db/repl/README.md, "Oplog fetching").
async fn begin_of_log(source: &Source) -> Result<Optime> {
    let doing = "looking for open transactions";
    let committed = source.progress().await?.committed;
    let transactions = source.client.database("config").collection::<bson::Document>("transactions");
    let oldest = transactions
        .find_one(doc! {"state": {"$in": ["prepared", "inProgress"]}, "startOpTime": {"$exists": true}})
        .sort(doc! {"startOpTime.ts": 1})
        .await
        .map_err(|e| driver(doing, e))?;
    let Some(oldest) = oldest else { return Ok(committed) };
    let begun = optime(&oldest, "startOpTime")?;
    if begun > committed {
        return Ok(committed);
    }
    let oplog = source.client.database("local").collection::<bson::RawDocumentBuf>("oplog.rs");
    let before = oplog
        .find_one(doc! {"ts": {"$lt": begun.timestamp()}})
        .sort(doc! {"$natural": -1})
        .await
        .map_err(|e| driver(doing, e))?;
    match before {
        Some(entry) => Ok(Entry::parse(entry.as_bytes())?.at),
        None => Err(EngineError::new(
            FailureKind::Server,
            format!("a transaction has been open since {begun}, which the oplog does not reach back to"),
        )
        .hint("end that transaction, or enlarge the oplog")),
    }
}
