//! The drill: a restore into a server of its own, which then checks what it got.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use hindsight_catalog::{RestorePlan, Target};
use hindsight_engine::{
    Engine, EngineError, Examined, FailureKind, Gate, Job, Progress, Scratch, ScratchRequest, Selection, Throttle,
};
use hindsight_format::{OperationKind, ProofKind, ProofRecord, RestoreTotals};
use hindsight_repository::ClusterRepository;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::journal::RESULT;
use crate::operation::while_reading;
use crate::overview::history;
use crate::planned::Planned;
use crate::proof::Draft;
use crate::restore::{RestoreRequest, options, run_planned};
use crate::{JobError, Result};

/// What to restore for a trial.
#[derive(Clone, Debug)]
pub struct DrillRequest {
    /// The restore point; of a time after the end of what is stored becomes that end, where a restore would lead to it.
    pub target: Target,
    /// The base snapshot to use; none for the best one.
    pub base: Option<String>,
    /// The server's program; none to look for it in `PATH`.
    pub program: Option<PathBuf>,
    /// Folder in which the server gets one for its data, with room for them.
    pub folder: PathBuf,
}

/// What a drill gave.
#[derive(Debug)]
pub struct Drilled {
    /// What was wrong, a line each; nothing when the restore is as good as it should be.
    pub problems: Vec<String>,
    /// What was restored; none when the restore failed.
    pub totals: Option<RestoreTotals>,
    /// What the server said about it.
    pub examined: Option<Examined>,
    /// The evidence that was stored.
    pub proof: ProofRecord,
}

/// A gate that is always open: the target is nobody's. Knows whether it was crossed.
#[derive(Default)]
struct Open(AtomicBool);

#[async_trait]
impl Gate for Open {
    async fn cross(&self) -> hindsight_engine::Result<()> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Restores into a server that is started for that and gone afterwards, lets it check everything, and keeps the
/// result as evidence. A restore that fails for what is stored, and data that are not as they should be, are no errors
/// but results; that no server can be started, or the repository is away, is one.
pub async fn drill(
    engine: &Arc<dyn Engine>,
    cluster: &ClusterRepository,
    request: &DrillRequest,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Drilled> {
    let cancel = cancel.child_token();
    let work = try_and_tell(engine, cluster, request, progress, &cancel);
    while_reading(cluster, OperationKind::Verify, &cancel, work).await
}

async fn try_and_tell(
    engine: &Arc<dyn Engine>,
    cluster: &ClusterRepository,
    request: &DrillRequest,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Drilled> {
    let started_at = Timestamp::now();
    let planned =
        Planned::of(cluster, &history(cluster).await?, None, &request.target, request.base.as_deref()).await?;
    let restore_point = planned.restore_point();
    let Planned { target, plan, .. } = planned;
    progress.step("starting a server to restore into", None);
    let scratch = ScratchRequest {
        program: request.program.clone(),
        folder: request.folder.clone(),
        must_hold: plan.base.source.server_version.clone(),
    };
    let scratch = tokio::select! {
        started = engine.start_scratch(&scratch) => started?,
        () = cancel.cancelled() => return Err(EngineError::cancelled().into()),
    };
    let job = Job {
        cluster: cluster.clone(),
        progress: progress.clone(),
        cancel: cancel.clone(),
        throttle: Throttle::default(),
    };
    // The server goes whatever happens, also when this is dropped.
    let tried = tokio::select! {
        tried = try_out(&*scratch, &job, &plan, target) => tried,
        () = cancel.cancelled() => Err(EngineError::cancelled().into()),
    };
    let version = scratch.version().to_owned();
    let stopped = scratch.stop().await;

    let mut draft = Draft {
        kind: ProofKind::Drill,
        started_at,
        snapshots: vec![plan.base.id.clone()],
        restore_point: Some(restore_point),
        objects: (plan.parents.iter().chain([&plan.base]).map(|s| s.objects.len()).sum::<usize>()
            + plan.streams.iter().map(|s| s.own.len() + s.log.len()).sum::<usize>()) as u64,
        bytes: plan.data_bytes + plan.log_bytes,
        server_version: Some(version),
        ..Draft::default()
    };
    let (totals, examined) = match tried {
        Ok(tried) => {
            draft.recovery_ms = Some(tried.recovery_ms);
            draft.hashes_compared = tried.examined.hashes_compared;
            draft.problems.clone_from(&tried.examined.problems);
            (Some(tried.totals), Some(tried.examined))
        }
        Err(error) if !is_evidence(&error) || cluster.snapshot(&plan.base.id).await?.is_none() => return Err(error),
        Err(error) => {
            draft.problems.push(told(&error));
            (None, None)
        }
    };
    if !draft.problems.is_empty() {
        draft.broken.push(plan.base.id.clone());
    }
    let problems = draft.problems.clone();
    let proof = draft.store(cluster).await?;
    match problems.first() {
        None => tracing::info!(
            target: RESULT,
            "{} was restored for a trial in {} ms, nothing is wrong",
            plan.base.id,
            proof.recovery_ms.unwrap_or_default()
        ),
        Some(problem) => tracing::error!(target: RESULT, "{} was restored for a trial: {problem}", plan.base.id),
    }
    stopped?;
    Ok(Drilled { problems, totals, examined, proof })
}

/// A restore that was made, and examined.
struct Tried {
    totals: RestoreTotals,
    recovery_ms: u64,
    examined: Examined,
}

async fn try_out(scratch: &dyn Scratch, job: &Job, plan: &RestorePlan, target: Target) -> Result<Tried> {
    let engine = scratch.engine();
    let selection = Selection::new(plan.base.namespaces.clone())
        .map_err(|error| EngineError::new(FailureKind::Damaged, error.to_string()))?;
    let begun = Instant::now();
    let destination = scratch.destination();
    let preview = engine.prepare_restore(&job.cluster, plan, &selection, &destination).await?;
    let gate = Arc::new(Open::default());
    let options = options(&job.cluster, gate.clone(), None, false).await?;
    let request = RestoreRequest { selection, destination, ..RestoreRequest::to(target) };
    let totals = run_planned(&*engine, job, plan, &request, &preview, &options, &gate.0).await?.totals;
    let recovery_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let examined = scratch.examine(job, plan, &totals).await?;
    Ok(Tried { totals, recovery_ms, examined })
}

/// Whether a failure says something about what is stored, rather than about this machine, the way to the repository,
/// or who stopped it.
fn is_evidence(error: &JobError) -> bool {
    matches!(error.kind(), Some(FailureKind::Damaged | FailureKind::Server | FailureKind::Unsupported))
}

fn told(error: &JobError) -> String {
    match error.hint() {
        Some(hint) => format!("the restore failed: {error} ({hint})"),
        None => format!("the restore failed: {error}"),
    }
}
