//! Restoring: propose, confirm, carry out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use hindsight_catalog::{RestorePlan, Target, plan};
use hindsight_engine::{
    Destination, Engine, EngineError, Gate, Job, Preview, Progress, RestoreOptions, Restored, Selection, Throttle,
};
use hindsight_format::{
    EpochCause, FORMAT_VERSION, LeaseRecord, OperationKind, Place, RestoreRecord, RestoreState, RestoreTotals,
    StoredSlice,
};
use hindsight_repository::{ClusterRepository, DEFAULT_TTL, Error as RepositoryError, Repository};
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::agent::CAPTURE_LEASE;
use crate::backup::new_name;
use crate::journal::{RESULT, job};
use crate::operation::Exclusive;
use crate::overview::warn_of_damage;
use crate::planned::{Planned, history_meant, restore_point};
use crate::{JobError, Result};

/// MiB of folded log in memory where the settings say nothing.
const FOLD_MEMORY_MIB: usize = 64;
/// Slices that are looked at together.
const OPENED_AT_ONCE: usize = 16;
/// A plan is made anew this often when slices that it names were merged meanwhile.
const REPLANS: u32 = 5;

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// The restore point.
    pub target: Target,
    /// The base snapshot to use; none for the best one.
    pub base: Option<String>,
    /// The history that is meant: that of this epoch, as if no later one had begun; none for all there is.
    pub epoch: Option<u64>,
    /// Which namespaces, under which name.
    pub selection: Selection,
    /// Where to.
    pub destination: Destination,
    /// Connections that write; none for the cluster's setting.
    pub parallel: Option<u32>,
    /// Bytes to insert per second, 0 for any number; none for the cluster's setting.
    pub rate_limit: Option<u64>,
    /// Whether to touch the target without having read all data of the base before.
    pub skip_check: bool,
}

impl RestoreRequest {
    /// Everything, as it was at `target`, into the connected database, with the cluster's settings.
    #[must_use]
    pub fn to(target: Target) -> Self {
        Self {
            target,
            base: None,
            epoch: None,
            selection: Selection::default(),
            destination: Destination::Connected,
            parallel: None,
            rate_limit: None,
            skip_check: false,
        }
    }
}

/// What a restore would do: everything was checked that can be without changing anything.
#[derive(Debug)]
pub struct Proposal {
    /// The cluster whose history it is.
    pub source: ClusterRepository,
    /// What was asked for; where that was later than all that is stored, the end of it.
    pub request: RestoreRequest,
    /// The time that was asked for, where what is stored ends before, and that end.
    pub clamped: Option<(Timestamp, Timestamp)>,
    /// What will be read.
    pub plan: RestorePlan,
    /// What will happen to the target.
    pub preview: Preview,
    /// The cluster that is written to, where the repository knows it.
    pub target: Option<ClusterRepository>,
    /// Whether the target's history ends with this restore, and a new epoch begins: where all data are
    /// replaced. Some namespaces more or less are a part of the history that goes on.
    pub begins_epoch: bool,
    /// The agent that captures the target now, and will be suspended.
    pub capture: Option<LeaseRecord>,
    /// Whether the target's capture is switched on, so that it begins anew afterwards.
    pub captures_afterwards: bool,
}

impl Proposal {
    /// The restore point in words.
    pub fn restore_point(&self) -> String {
        restore_point(&self.plan, self.clamped)
    }
}

/// What a restore came to.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its record, as it is stored.
    pub record: RestoreRecord,
    /// What the engine says is to be done next, a sentence each.
    pub next: Vec<String>,
}

/// Plans a restore of the history of `source`. Changes nothing.
pub async fn propose(
    engine: &dyn Engine,
    repository: &Repository,
    source: &ClusterRepository,
    mut request: RestoreRequest,
) -> Result<Proposal> {
    engine.accept(&request.destination)?;
    let stored = history_meant(source, request.epoch).await?;
    warn_of_damage(&stored);
    let Planned { target, clamped, plan } =
        Planned::of(source, &stored, request.epoch, &request.target, request.base.as_deref()).await?;
    request.target = target;
    require_open(source, &plan).await?;
    let preview = engine.prepare_restore(source, &plan, &request.selection, &request.destination).await?;
    let known = repository.clusters().await?;
    // Of several copies of one, the source itself.
    let target = known.iter().filter(|cluster| cluster.identity == preview.into);
    let target = target.max_by_key(|cluster| cluster.name == source.name());
    let target = target.map(|cluster| repository.cluster(&cluster.name)).transpose()?;
    let begins_epoch = target.is_some() && request.selection.is_all();
    let (mut capture, mut captures_afterwards) = (None, false);
    if let Some(target) = target.as_ref().filter(|_| begins_epoch) {
        capture = target.lease_state(CAPTURE_LEASE).await?.filter(|lease| target.lease_is_live(CAPTURE_LEASE, lease));
        captures_afterwards = target.config().await?.1.pitr.enabled;
    }
    let source = source.clone();
    Ok(Proposal { source, request, clamped, plan, preview, target, begins_epoch, capture, captures_afterwards })
}

/// Refuses a plan of which a part is sealed to others than whose identity is at hand: recipients may have
/// changed between the snapshot and the end of the log.
async fn require_open(source: &ClusterRepository, plan: &RestorePlan) -> Result<()> {
    plan.parents.iter().chain([&plan.base]).try_for_each(|snapshot| source.require_open(snapshot))?;
    require_open_slices(source, plan.streams.iter().flat_map(|stream| &stream.log)).await
}

/// The same for captured log.
pub(crate) async fn require_open_slices(
    source: &ClusterRepository,
    slices: impl Iterator<Item = &StoredSlice>,
) -> Result<()> {
    source.repository().require_identity()?;
    futures::stream::iter(slices)
        .map(|slice| async move { source.require_open_slice(slice).await })
        .buffer_unordered(OPENED_AT_ONCE)
        .try_collect::<()>()
        .await?;
    Ok(())
}

/// The record of a restore, kept up to date in the repository.
struct Recorder {
    source: ClusterRepository,
    target: Option<ClusterRepository>,
    begins_epoch: bool,
    /// Where the target is kept, if it is replaced in one step.
    keeps: Option<String>,
    crossed: AtomicBool,
    progress: Progress,
    record: Mutex<RestoreRecord>,
}

impl Recorder {
    async fn change(&self, change: impl FnOnce(&mut RestoreRecord)) -> Result<RestoreRecord> {
        let mut record = self.record.lock().await;
        change(&mut record);
        for place in self.places() {
            place.put_restore(&record).await?;
        }
        Ok(record.clone())
    }

    /// The history's cluster, and the one written to where that is another.
    fn places(&self) -> impl Iterator<Item = &ClusterRepository> {
        let other = self.target.as_ref().filter(|target| target.name() != self.source.name());
        std::iter::once(&self.source).chain(other)
    }
}

#[async_trait]
impl Gate for Recorder {
    /// From here on the target is changed: its history ends here, a new epoch begins. What is kept aside as a whole is not changed:
    /// it is what it was or what is restored, and the capture can go on in the new epoch with either.
    async fn cross(&self) -> hindsight_engine::Result<()> {
        self.crossed.store(true, Ordering::Relaxed);
        let mut epoch = None;
        if let Some(target) = self.target.as_ref().filter(|_| self.begins_epoch) {
            let id = self.record.lock().await.id.clone();
            epoch = Some(target.begin_epoch(EpochCause::Restore(id), None).await?.number);
        }
        let changed = self.change(|record| {
            record.touched = self.keeps.is_none();
            record.kept.clone_from(&self.keeps);
            record.new_epoch = epoch;
            record.step = self.progress.current().name;
        });
        let changed = changed.await;
        if changed.is_err() {
            // Nobody goes through, which the last word on this restore then says.
            unchanged(&mut *self.record.lock().await);
        }
        to_engine(changed)
    }

    /// The epoch has begun and stays, and the capture goes on in it: nothing is half restored.
    async fn undone(&self) -> hindsight_engine::Result<()> {
        to_engine(self.change(unchanged).await)
    }
}

/// The target is what it was.
fn unchanged(record: &mut RestoreRecord) {
    record.touched = false;
    record.kept = None;
}

fn to_engine<T>(done: Result<T>) -> hindsight_engine::Result<()> {
    match done {
        Ok(_) => Ok(()),
        Err(JobError::Repository(error)) => Err(error.into()),
        Err(other) => Err(EngineError::new(hindsight_engine::FailureKind::Local, other.to_string())),
    }
}

/// Carries out what was proposed.
pub async fn restore(
    engine: &dyn Engine,
    proposal: &Proposal,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Finished> {
    let source = &proposal.source;
    let mut used = restore_names(source).await?;
    let (id, rights) = loop {
        let id = new_name(&used);
        match rights(proposal, &id, cancel).await {
            // Somebody else's began in the same second.
            Err(JobError::Busy(record)) if record.operation.id == id => used.push(id),
            rights => break (id, rights),
        }
    };
    let work = async {
        tracing::info!(
            target: RESULT,
            "begins: {} from snapshot {}",
            proposal.restore_point(),
            proposal.plan.base.id
        );
        let done = alone(engine, proposal, &id, progress, rights).await;
        match &done {
            Ok(Finished { record, .. }) => tracing::info!(
                target: RESULT,
                "done: {} {}, {} log records taken into account",
                record.totals.documents,
                engine.words().item.1,
                record.totals.log_records
            ),
            Err(error) => tracing::error!(target: RESULT, hint = error.hint(), "failed: {error}"),
        }
        done
    };
    work.instrument(job("restore", Some(&id))).await
}

/// Names that restores have, whether or not their records can be read.
pub(crate) async fn restore_names(source: &ClusterRepository) -> Result<Vec<String>> {
    let restores = source.list_restores().await?;
    let damaged = restores.damaged.into_iter().filter_map(|record| match record.place {
        Place::Restore(id) => Some(id),
        _ => None,
    });
    Ok(restores.records.into_iter().map(|record| record.id).chain(damaged).collect())
}

/// The rights that are needed: nobody else works on what is written to, and nothing is deleted from what is read.
async fn rights(proposal: &Proposal, id: &str, cancel: &CancellationToken) -> Result<Exclusive> {
    let source = &proposal.source;
    let mut exclusive = match (&proposal.target, &proposal.request.destination) {
        // A new cluster is nobody else's: backups and the capture of the source go on.
        (None, Destination::Directory(_)) => Exclusive::reading(source, OperationKind::Restore, id, cancel).await?,
        // What is written to must not be used by others meanwhile; what is read may.
        (target, _) => {
            let place = target.as_ref().unwrap_or(source);
            Exclusive::take(place, OperationKind::Restore, id, cancel).await?
        }
    };
    match exclusive.reads(source, OperationKind::Restore, id).await {
        Ok(()) => Ok(exclusive),
        Err(error) => exclusive.release(Err(error)).await,
    }
}

async fn alone(
    engine: &dyn Engine,
    proposal: &Proposal,
    id: &str,
    progress: &Progress,
    rights: Result<Exclusive>,
) -> Result<Finished> {
    let exclusive = rights?;
    let done = carry_out(engine, proposal, id, progress, &exclusive).await;
    exclusive.release(done).await
}

async fn carry_out(
    engine: &dyn Engine,
    proposal: &Proposal,
    id: &str,
    progress: &Progress,
    exclusive: &Exclusive,
) -> Result<Finished> {
    let recorder = Arc::new(Recorder {
        source: proposal.source.clone(),
        target: proposal.target.clone(),
        begins_epoch: proposal.begins_epoch,
        keeps: proposal.preview.kept.as_ref().map(|path| path.display().to_string()),
        crossed: AtomicBool::new(false),
        progress: progress.clone(),
        record: Mutex::new(first_record(proposal, id)),
    });
    recorder.change(|_| {}).await?;
    let run = async {
        if let Some(target) = proposal.target.as_ref().filter(|_| proposal.begins_epoch) {
            progress.step("waiting for the agent to store what it has", None);
            suspend_capture(target, progress).await?;
        }
        let told = tell_steps(progress, exclusive);
        let request = &proposal.request;
        let options = options(&proposal.source, recorder.clone(), request.parallel, request.skip_check).await?;
        let cancel = exclusive.cancel.clone();
        let config = proposal.source.config().await?.1.restore;
        let throttle = Throttle::new(request.rate_limit.unwrap_or(u64::from(config.rate_limit_mib) << 20));
        let job = Job { cluster: proposal.source.clone(), progress: progress.clone(), cancel, throttle };
        let run = run_planned(engine, &job, &proposal.plan, request, &proposal.preview, &options, &recorder.crossed);
        tokio::select! {
            restored = run => restored,
            () = told => unreachable_end(),
        }
    };
    let result = exclusive.guard(run).await;
    let step = progress.current().name;
    let told = recorder.change(|record| {
        record.finished_at = Some(Timestamp::now());
        record.step = step;
        match &result {
            Ok(restored) => {
                record.state = RestoreState::Success;
                record.touched = true;
                record.totals = restored.totals;
                record.reached.clone_from(&restored.reached);
            }
            Err(error) => {
                record.state = RestoreState::Error;
                record.error = Some(error.to_string());
            }
        }
    });
    let record = exclusive.soon(told).await;
    // The first failure is the one to tell.
    let next = result?.next;
    let record = record.unwrap_or_else(|| Err(EngineError::cancelled().into()))?;
    Ok(Finished { record, next })
}

/// Steps are told for as long as the restore runs, so that this is never awaited to its end.
fn unreachable_end() -> Result<Restored> {
    Err(EngineError::cancelled().into())
}

async fn tell_steps(progress: &Progress, exclusive: &Exclusive) {
    let mut steps = progress.watch();
    loop {
        let step = steps.borrow_and_update().name.clone();
        exclusive.tell(&step);
        if steps.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn first_record(proposal: &Proposal, id: &str) -> RestoreRecord {
    RestoreRecord {
        format: FORMAT_VERSION,
        id: id.to_owned(),
        state: RestoreState::InProgress,
        touched: false,
        step: "starting".to_owned(),
        started_at: Timestamp::now(),
        finished_at: None,
        snapshot: proposal.plan.base.id.clone(),
        target: proposal.restore_point(),
        namespaces: proposal.request.selection.patterns().to_vec(),
        renamed: proposal.request.selection.renaming().map(|r| format!("{}={}", r.from, r.to)),
        into: proposal.preview.into.clone(),
        into_hosts: proposal.preview.into_hosts.clone(),
        new_epoch: None,
        kept: None,
        reached: None,
        totals: RestoreTotals::default(),
        error: None,
        run_by: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Waits until the agent has stored what it has read and let go, or is gone.
async fn suspend_capture(target: &ClusterRepository, progress: &Progress) -> Result<()> {
    let begun = std::time::Instant::now();
    let limit = 2 * DEFAULT_TTL;
    loop {
        let lease = target.lease_state(CAPTURE_LEASE).await?;
        let Some(lease) = lease.filter(|lease| target.lease_is_live(CAPTURE_LEASE, lease)) else { return Ok(()) };
        if begun.elapsed() > limit {
            progress.warn(format!(
                "the agent on {} did not let go within {} s; what it had not stored yet of the old history is not kept",
                lease.holder.host,
                limit.as_secs()
            ));
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Runs the plan. Slices may be merged while it is made: then it is made again, unless the gate was `crossed`.
pub(crate) async fn run_planned(
    engine: &dyn Engine,
    job: &Job,
    first: &RestorePlan,
    request: &RestoreRequest,
    preview: &Preview,
    options: &RestoreOptions,
    crossed: &AtomicBool,
) -> Result<Restored> {
    let mut current = first.clone();
    for _ in 0..REPLANS {
        match engine.restore(job, &current, &request.selection, &request.destination, preview, options).await {
            Err(error) if is_missing(&error) && !crossed.load(Ordering::Relaxed) => {
                // In a later one the same time may be another moment.
                let history = history_meant(&job.cluster, Some(current.epoch)).await?;
                let again = plan(&history, &request.target, Some(&current.base.id), Timestamp::now())?;
                if again == current {
                    return Err(error.into());
                }
                current = again;
            }
            other => return Ok(other?),
        }
    }
    Err(EngineError::damaged("the stored log kept changing while it was read").hint("try again").into())
}

/// How to restore the history of `source`: what the request leaves open comes from its settings.
pub(crate) async fn options(
    source: &ClusterRepository,
    gate: Arc<dyn Gate>,
    parallel: Option<u32>,
    skip_check: bool,
) -> Result<RestoreOptions> {
    let config = source.config().await?.1.restore;
    let fold_memory = match config.fold_memory_mib {
        0 => FOLD_MEMORY_MIB,
        mib => mib as usize,
    } << 20;
    let parallel = parallel.unwrap_or(config.num_insertion_workers);
    Ok(RestoreOptions { gate, parallel, fold_memory, scratch: std::env::temp_dir(), skip_check })
}

fn is_missing(error: &EngineError) -> bool {
    let source = error.source.as_ref().and_then(|source| source.downcast_ref::<RepositoryError>());
    source.is_some_and(RepositoryError::is_missing)
}
