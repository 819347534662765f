//! Taking a snapshot.

use hindsight_catalog::to_build_upon;
use hindsight_engine::{BackupType, Engine, EngineError, Job, Progress, SnapshotRequest, Throttle};
use hindsight_format::{CHECKPOINTS, OperationKind, SnapshotManifest, format_time};
use hindsight_repository::ClusterRepository;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::journal::{RESULT, job};
use crate::lineage::require_same;
use crate::operation::Exclusive;
use crate::overview::history;
use crate::{JobError, Result};

/// What the user has a say in.
#[derive(Clone, Debug, Default)]
pub struct BackupRequest {
    /// How it is to be made; none for the engine's own way.
    pub wanted: Option<BackupType>,
    /// The snapshot that an incremental one is to build upon; none for the newest.
    pub parent: Option<String>,
    /// Namespace patterns; empty for everything.
    pub namespaces: Vec<String>,
    /// zstd level; none for the cluster's setting.
    pub compression_level: Option<i32>,
    /// Readers at the same time; none for the cluster's setting.
    pub parallel: Option<u32>,
    /// Bytes to read per second, 0 for any number; none for the cluster's setting.
    pub rate_limit: Option<u64>,
    /// Whether to keep hashes of the data; none for the cluster's setting.
    pub hash: Option<bool>,
    /// Which one that was cut off is to be gone on with; none to begin a new one. Its namespaces are those of then.
    pub resume: Option<Resume>,
    /// Whether one that fails may stay as it is, to be gone on with later.
    pub keep_unfinished: bool,
}

/// A backup that was cut off.
#[derive(Clone, Debug)]
pub enum Resume {
    /// The newest.
    Newest,
    /// The one of this name.
    Named(String),
}

/// Takes a snapshot of the connected cluster, and stores it.
pub async fn backup(
    engine: &dyn Engine,
    cluster: &ClusterRepository,
    request: &BackupRequest,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<SnapshotManifest> {
    engine.accept_type(request.wanted)?;
    let id = match &request.resume {
        None => new_name(&cluster.snapshot_ids_in_use().await?),
        Some(resume) => unfinished(cluster, resume).await?,
    };
    let work = async {
        let taken = take(engine, cluster, &id, request, progress, cancel).await;
        match &taken {
            Ok(manifest) => tracing::info!(
                target: RESULT,
                "done: {} {}, {} bytes stored; it is at {}",
                manifest.totals.documents,
                engine.words().item.1,
                manifest.totals.stored_bytes,
                format_time(manifest.restore_time())
            ),
            Err(error) => tracing::error!(target: RESULT, hint = error.hint(), "failed: {error}"),
        }
        taken
    };
    work.instrument(job("backup", Some(&id))).await
}

async fn take(
    engine: &dyn Engine,
    cluster: &ClusterRepository,
    id: &str,
    request: &BackupRequest,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<SnapshotManifest> {
    require_same(engine, cluster).await?;
    let config = cluster.config().await?.1.backup;
    let throttle = Throttle::new(request.rate_limit.unwrap_or(u64::from(config.rate_limit_mib) << 20));
    let exclusive = Exclusive::take(cluster, OperationKind::Backup, id, cancel).await?;
    exclusive.may_be_cancelled();
    let job = Job { cluster: cluster.clone(), progress: progress.clone(), cancel: exclusive.cancel.clone(), throttle };
    let work = async {
        let epoch = cluster.current_epoch().await?;
        let snapshot = SnapshotRequest {
            id: id.to_owned(),
            epoch,
            wanted: request.wanted,
            // Nothing is deleted meanwhile: that would need the same lease.
            parent: parent(cluster, epoch, request).await?,
            namespaces: request.namespaces.clone(),
            compression_level: request.compression_level.unwrap_or(config.compression_level),
            parallel: request.parallel.unwrap_or(config.num_parallel_collections),
            hash: request.hash.unwrap_or(config.hash),
            checkpoint: u64::from(config.checkpoint_mib) << 20,
            resume: request.resume.is_some(),
        };
        tracing::info!(target: RESULT, "{}", if snapshot.resume { "goes on" } else { "begins" });
        let manifest = engine.snapshot(&job, &snapshot).await?;
        job.check()?;
        cluster.put_manifest(&manifest).await?;
        if !exclusive.is_held() {
            // A cleanup may have taken the objects for leftovers.
            cluster.delete_manifest(id).await?;
            return Err(EngineError::cancelled().into());
        }
        Ok(manifest)
    };
    let taken = exclusive.guard(work).await;
    let asked = exclusive.cancel_request().cloned();
    let kept = match &taken {
        Ok(_) => {
            forget_checkpoints(cluster, id).await;
            false
        }
        Err(error) => clear_away(cluster, id, request, error, &exclusive).await,
    };
    let taken = exclusive.release(taken).await;
    match (taken, asked) {
        (Err(_), Some(request)) => Err(JobError::Cancelled(Box::new(request))),
        (Err(error), None) if kept => Err(JobError::Interrupted { id: id.to_owned(), cause: Box::new(error) }),
        (taken, _) => taken,
    }
}

/// What an incremental backup is to build upon.
async fn parent(cluster: &ClusterRepository, epoch: u64, request: &BackupRequest) -> Result<Option<SnapshotManifest>> {
    if request.wanted != Some(BackupType::Incremental) {
        return Ok(None);
    }
    let history = history(cluster).await?;
    let parent = to_build_upon(&history, epoch, request.parent.as_deref())?;
    cluster.require_open(parent)?;
    Ok(Some(parent.clone()))
}

/// Removes what a failed backup has stored, unless it is wanted for another attempt; says whether it stays. What cannot be
/// removed now is told apart by having no manifest.
async fn clear_away(
    cluster: &ClusterRepository,
    id: &str,
    request: &BackupRequest,
    error: &JobError,
    exclusive: &Exclusive,
) -> bool {
    // On a full disk there is no room for what may be wanted once, as the capture needs it now.
    let keep = (request.keep_unfinished || request.resume.is_some()) && !error.is_cancelled() && !error.is_full();
    if !exclusive.is_held() {
        // Somebody else may be going on with it already.
        return keep;
    }
    // A repository that is away cannot tell; a job that goes on finds out.
    let noted = keep && cluster.snapshot_objects(id, CHECKPOINTS).await.is_ok_and(|noted| !noted.is_empty());
    if noted {
        return true;
    }
    if let Some(Err(error)) = exclusive.soon(cluster.delete_snapshot(id)).await {
        tracing::warn!(snapshot = id, %error, "the objects of the failed backup could not be removed");
    }
    false
}

async fn forget_checkpoints(cluster: &ClusterRepository, id: &str) {
    let removed = async {
        let noted: Vec<_> =
            cluster.snapshot_objects(id, CHECKPOINTS).await?.into_iter().map(|(name, _)| name).collect();
        cluster.delete_snapshot_objects(id, &noted).await
    };
    if let Err(error) = removed.await {
        tracing::debug!(snapshot = id, %error, "checkpoints of a complete snapshot stay behind; nothing reads them");
    }
}

/// The backup to go on with.
async fn unfinished(cluster: &ClusterRepository, resume: &Resume) -> Result<String> {
    let all = cluster.unfinished_snapshots().await?;
    let (name, found) = match resume {
        Resume::Newest => (None, all.into_iter().filter(|each| each.resumable).map(|each| each.id).max()),
        Resume::Named(id) => (Some(id.clone()), all.into_iter().map(|each| each.id).find(|found| found == id)),
    };
    found.ok_or(JobError::NothingToResume(name))
}

/// A name that nothing stored has: the present time, or the next free second.
pub(crate) fn new_name(used: &[String]) -> String {
    let mut time = Timestamp::now();
    while used.contains(&format_time(time)) {
        time += SignedDuration::from_secs(1);
    }
    format_time(time)
}
