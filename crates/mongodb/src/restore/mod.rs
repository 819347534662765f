//! Restoring: fold the log, then stream the base through it into a server that only sees inserts.

mod data;
mod insert;
mod prepare;
pub(crate) mod schema;
mod users;

use std::collections::HashMap;

use bson::doc;
use futures::TryStreamExt;
use hindsight_catalog::RestorePlan;
use hindsight_engine::{EngineError, FailureKind, Job, RestoreOptions, Result, Selection};
use hindsight_format::RestoreTotals;
use hindsight_repository::ObjectReader;
use tokio::sync::mpsc;

pub(crate) use prepare::{prepare, release};

use crate::cluster::{Cluster, number, progress, wait_committed};
use crate::failure::driver;
use crate::fold::{Fold, Folded};
use crate::oplog::entry::{Uuid, next_document};
use crate::optime::Optime;
use crate::snapshot::stored::{self, StoredCatalog};

/// Frames of log on their way to the fold.
const FRAMES_AHEAD: usize = 4;

/// Carries out the plan.
pub(crate) async fn run(
    cluster: &Cluster,
    job: &Job,
    plan: &RestorePlan,
    selection: &Selection,
    options: &RestoreOptions,
) -> Result<RestoreTotals> {
    // Everything up to the fold only reads. Damage found here leaves the target as it is.
    let catalog = stored::load(&job.cluster, &plan.base).await?;
    let readers = data::open(job, plan).await?;
    // Of everything, all data are read; of some namespaces only theirs, which the log may have renamed.
    let all = selection.is_all() && !options.skip_check;
    let (what, bytes) = match all {
        true => ("folding the log, and reading the data through", plan.log_bytes + data::stored_bytes(&readers)),
        false => ("folding the log", plan.log_bytes),
    };
    job.progress.step(what, Some(bytes));
    let folding = fold(job, plan, &catalog, options);
    let checking = async {
        match all {
            true => data::check(job, &catalog, |_| true, &readers).await,
            false => Ok(()),
        }
    };
    let (mut folded, ()) = tokio::try_join!(folding, checking)?;
    let mut wanted = schema::wanted(&folded.catalog, selection);
    if !all && !options.skip_check {
        job.progress.step("reading the data through", None);
        let used = |uuid: &Uuid| wanted.target(uuid).is_some() || wanted.definitions(uuid).is_some();
        data::check(job, &catalog, used, &readers).await?;
    }
    let definitions = data::definitions(&catalog, &wanted, &readers, &mut folded).await?;
    wanted.find_orphans(&definitions);
    schema::check_kinds(&wanted, &cluster.version)?;
    job.check()?;
    options.gate.cross().await?;

    job.progress.step("dropping what is replaced", None);
    schema::clear(&cluster.client, selection).await?;
    job.progress.step("creating views and collections", None);
    schema::create_views(&cluster.client, selection, &definitions).await?;
    let roomy = schema::can_be_resized(&cluster.version, cluster.compatibility_version.as_deref());
    schema::create(&cluster.client, &wanted, roomy).await?;

    let copied = data::copy(cluster, job, &catalog, &wanted, &readers, &mut folded, options).await?;

    job.progress.step("building indexes", None);
    let indexes = schema::build_indexes(&cluster.client, job, &wanted).await?;
    schema::finish(&cluster.client, &wanted, roomy).await?;
    if selection.is_all() {
        job.progress.step("restoring users and roles", None);
        users::restore(&cluster.client, job, &definitions).await?;
    }

    job.progress.step("checking", None);
    check_counts(cluster, job, &wanted, &copied.inserted, roomy).await?;
    wait_committed(&cluster.client, progress(&cluster.client).await?.applied).await?;
    Ok(RestoreTotals {
        collections: wanted.len() as u64,
        documents: copied.inserted.values().sum(),
        bytes: copied.bytes,
        indexes,
        log_records: folded.records,
    })
}

/// Reads the snapshot's own log and what follows it, and folds it.
async fn fold(job: &Job, plan: &RestorePlan, catalog: &StoredCatalog, options: &RestoreOptions) -> Result<Folded> {
    let stream = plan.streams.first().ok_or_else(|| EngineError::damaged("the snapshot names no stream"))?;
    let part = plan.base.streams.get(&stream.stream);
    let part = part.ok_or_else(|| EngineError::damaged("the snapshot has no log of its stream"))?;
    let consistent_at = Optime::from_point(&part.last)?;
    let selective = !plan.base.namespaces.is_empty();
    let base = catalog.base(consistent_at, selective);
    let mut fold = Fold::new(base, crate::cut(&plan.cut)?, options.fold_memory, options.scratch.clone());

    let (frames, mut queue) = mpsc::channel::<bytes::Bytes>(FRAMES_AHEAD);
    let folding = tokio::task::spawn_blocking(move || {
        while let Some(frame) = queue.blocking_recv() {
            let mut run = &frame[..];
            while let Some(entry) = next_document(&mut run)? {
                if !fold.feed(entry)? {
                    return Ok(fold);
                }
            }
        }
        Ok::<_, EngineError>(fold)
    });
    let read = async {
        for name in &stream.own {
            let reader = job.cluster.snapshot_slice_reader(&plan.base.id, &stream.stream, name).await?;
            if !forward(job, &reader, &frames).await? {
                return Ok(());
            }
        }
        for slice in &stream.log {
            let reader = job.cluster.slice_reader(slice).await?;
            if !forward(job, &reader, &frames).await? {
                return Ok(());
            }
            job.progress.add(slice.stored_bytes);
        }
        Ok::<_, EngineError>(())
    };
    let read = read.await;
    drop(frames);
    let fold = folding.await.map_err(|e| EngineError::new(FailureKind::Local, format!("folding ended: {e}")))??;
    read?;
    let reached = fold.last().is_some_and(|last| last >= consistent_at) || part.first == part.last;
    if !reached {
        return Err(EngineError::damaged(format!(
            "the log of snapshot {} ends before {consistent_at}, where the snapshot is consistent",
            plan.base.id
        )));
    }
    fold.finish()
}

/// Hands on all frames; false when no more are wanted.
pub(crate) async fn forward(job: &Job, reader: &ObjectReader, frames: &mpsc::Sender<bytes::Bytes>) -> Result<bool> {
    let mut stream = reader.stream(|_| true, 2);
    while let Some((_, frame)) = stream.try_next().await? {
        job.check()?;
        if frames.send(frame).await.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What was inserted must be there. The roles of a restore allow no look at stored functions and orphaned
/// buckets, nor at what servers hide behind those. Capped collections that could not be made `roomy` may have let go of their
/// oldest documents.
async fn check_counts(
    cluster: &Cluster,
    job: &Job,
    wanted: &schema::Wanted,
    inserted: &HashMap<Uuid, u64>,
    roomy: bool,
) -> Result<()> {
    let seen = |c: &&schema::Target| !c.is_orphaned() && !c.is_hidden() && c.name != crate::namespace::FUNCTIONS;
    for collection in wanted.iter().filter(seen) {
        let expected = inserted.get(&collection.uuid).copied().unwrap_or(0);
        let database = cluster.client.database(&collection.db);
        let doing = format!("counting {}.{}", collection.db, collection.name);
        // The roles that a restore needs allow this, but no reading.
        let command = doc! {"collStats": crate::namespace::visible(&collection.name)};
        let reply = database.run_command(command).await.map_err(|e| driver(&doing, e))?;
        let counts = reply.get_document("timeseries").ok().and_then(|buckets| number(buckets, "bucketCount"));
        let found = counts.or_else(|| number(&reply, "count")).unwrap_or(-1);
        if u64::try_from(found) == Ok(expected) {
            continue;
        }
        if collection.is_capped() && !roomy {
            job.progress.warn(format!(
                "{} is capped, and held more than its size allows: of {expected} documents the oldest are left out, {found} \
                 are there (MongoDB 6.0 and later can take them all)",
                collection.namespace()
            ));
            continue;
        }
        return Err(EngineError::new(
            FailureKind::Server,
            format!(
                "{}.{} has {found} documents after the restore, {expected} were inserted",
                collection.db, collection.name
            ),
        )
        .hint("was something else writing to it? stop it, and restore again"));
    }
    Ok(())
}
