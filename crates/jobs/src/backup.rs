//! Taking a snapshot.

use hindsight_engine::{Engine, EngineError, Job, Progress, SnapshotRequest};
use hindsight_format::{OperationKind, SnapshotManifest, format_time};
use hindsight_repository::ClusterRepository;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::journal::{RESULT, job};
use crate::operation::Exclusive;
use crate::{JobError, Result};

/// What the user has a say in.
#[derive(Clone, Debug, Default)]
pub struct BackupRequest {
    /// Namespace patterns; empty for everything.
    pub namespaces: Vec<String>,
    /// zstd level; none for the cluster's setting.
    pub compression_level: Option<i32>,
    /// Readers at the same time; none for the cluster's setting.
    pub parallel: Option<u32>,
    /// Whether to keep hashes of the data; none for the cluster's setting.
    pub hash: Option<bool>,
}

/// Takes a snapshot of the connected cluster, and stores it.
pub async fn backup(
    engine: &dyn Engine,
    cluster: &ClusterRepository,
    request: &BackupRequest,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<SnapshotManifest> {
    let id = new_name(cluster.snapshot_ids_in_use().await?);
    let work = async {
        let taken = take(engine, cluster, &id, request, progress, cancel).await;
        match &taken {
            Ok(manifest) => tracing::info!(
                target: RESULT,
                "done: {} documents, {} bytes stored; it is at {}",
                manifest.totals.documents,
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
    let config = cluster.config().await?.1.backup;
    let exclusive = Exclusive::take(cluster, OperationKind::Backup, id, cancel).await?;
    exclusive.may_be_cancelled();
    let job = Job { cluster: cluster.clone(), progress: progress.clone(), cancel: exclusive.cancel.clone() };
    let taken = async {
        let snapshot = SnapshotRequest {
            id: id.to_owned(),
            epoch: cluster.current_epoch().await?,
            namespaces: request.namespaces.clone(),
            compression_level: request.compression_level.unwrap_or(config.compression_level),
            parallel: request.parallel.unwrap_or(config.num_parallel_collections),
            hash: request.hash.unwrap_or(config.hash),
        };
        tracing::info!(target: RESULT, "begins");
        let manifest = engine.snapshot(&job, &snapshot).await?;
        job.check()?;
        cluster.put_manifest(&manifest).await?;
        // Without the right to work, a cleanup may have taken the objects for leftovers.
        if exclusive.is_held() { Ok(manifest) } else { Err(EngineError::cancelled().into()) }
    }
    .await;
    if taken.is_err() {
        // What was stored belongs to nothing. What cannot be removed now is told apart by having
        // no manifest.
        if let Err(error) = cluster.delete_snapshot(id).await {
            tracing::warn!(snapshot = id, %error, "the objects of the failed backup could not be removed");
        }
    }
    let asked = exclusive.cancel_request().cloned();
    exclusive.release().await?;
    match asked {
        Some(request) if taken.is_err() => Err(JobError::Cancelled(Box::new(request))),
        _ => taken,
    }
}

/// A name that nothing stored has: the present time, or the next free second.
pub(crate) fn new_name(used: Vec<String>) -> String {
    let mut time = Timestamp::now();
    while used.contains(&format_time(time)) {
        time += SignedDuration::from_secs(1);
    }
    format_time(time)
}
