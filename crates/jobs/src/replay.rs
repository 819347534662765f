//! Replaying a stretch of the stored log on top of what a cluster holds.

use hindsight_catalog::{Stretch, Target, stretch};
use hindsight_engine::{Engine, Job, Probe, Progress, ReplayTotals, Throttle};
use hindsight_format::{FORMAT_VERSION, OperationKind, RestoreRecord, RestoreState, RestoreTotals, format_time};
use hindsight_repository::{ClusterRepository, Repository};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::Result;
use crate::backup::new_name;
use crate::journal::{RESULT, job};
use crate::operation::Exclusive;
use crate::overview::history;
use crate::restore::{require_open_slices, restore_names};

/// What stands in a record where a restore names its snapshot.
const NO_SNAPSHOT: &str = "-";

/// What a replay would do.
#[derive(Debug)]
pub struct Replay {
    /// The cluster whose history it is.
    pub source: ClusterRepository,
    /// What is read.
    pub stretch: Stretch,
    /// Who is connected.
    pub into: Probe,
    /// The cluster that is written to, where the repository knows it.
    pub target: Option<ClusterRepository>,
}

impl Replay {
    /// The stretch in words.
    pub fn stretch_text(&self) -> String {
        let end = |target: &Target| match target {
            Target::Through { order, .. } => order.clone(),
            Target::Before(time) => format_time(*time),
            Target::Snapshot(_) | Target::Latest => String::new(),
        };
        let until = if matches!(self.stretch.to, Target::Through { .. }) { "through" } else { "to just before" };
        format!("the log from {} {until} {}", end(&self.stretch.from), end(&self.stretch.to))
    }
}

/// Plans a replay of the history of `source` on the connected cluster. Changes nothing.
pub async fn propose_replay(
    engine: &dyn Engine,
    repository: &Repository,
    source: &ClusterRepository,
    from: &Target,
    to: &Target,
) -> Result<Replay> {
    engine.accept_replay()?;
    let stretch = stretch(&history(source).await?, from, to)?;
    require_open_slices(source, stretch.slices.iter()).await?;
    let into = engine.probe().await?;
    let known = repository.clusters().await?;
    let target = known.iter().find(|cluster| cluster.identity == into.identity);
    let target = target.map(|cluster| repository.cluster(&cluster.name)).transpose()?;
    Ok(Replay { source: source.clone(), stretch, into, target })
}

/// Carries out what was planned. It is an ordinary write to the target: a capture of it goes on.
pub async fn replay(
    engine: &dyn Engine,
    plan: &Replay,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(RestoreRecord, ReplayTotals)> {
    let used = restore_names(&plan.source).await?;
    let id = new_name(&used);
    let place = plan.target.as_ref().unwrap_or(&plan.source);
    let work = async {
        tracing::info!(target: RESULT, "begins: {} into {}", plan.stretch_text(), plan.into.natural_name);
        let done = alone(engine, plan, place, &id, progress, cancel).await;
        match &done {
            Ok((_, totals)) => tracing::info!(target: RESULT, "done: {} operations", totals.operations),
            Err(error) => tracing::error!(target: RESULT, hint = error.hint(), "failed: {error}"),
        }
        done
    };
    work.instrument(job("replay", Some(&id))).await
}

/// With the rights that are needed, as a restore has them.
async fn alone(
    engine: &dyn Engine,
    plan: &Replay,
    place: &ClusterRepository,
    id: &str,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<(RestoreRecord, ReplayTotals)> {
    let mut exclusive = Exclusive::take(place, OperationKind::Replay, id, cancel).await?;
    let done = async {
        exclusive.reads(&plan.source, OperationKind::Replay, id).await?;
        carry_out(engine, plan, id, progress, &exclusive).await
    }
    .await;
    exclusive.release(done).await
}

async fn carry_out(
    engine: &dyn Engine,
    plan: &Replay,
    id: &str,
    progress: &Progress,
    exclusive: &Exclusive,
) -> Result<(RestoreRecord, ReplayTotals)> {
    let mut record = first_record(plan, id);
    let work = async {
        plan.source.put_restore(&record).await?;
        let job = Job {
            cluster: plan.source.clone(),
            progress: progress.clone(),
            cancel: exclusive.cancel.clone(),
            throttle: Throttle::default(),
        };
        Ok(engine.replay(&job, &plan.stretch, std::env::temp_dir()).await?)
    };
    let done = exclusive.guard(work).await;
    record.finished_at = Some(Timestamp::now());
    record.step = progress.current().name;
    match &done {
        Ok(ReplayTotals { operations, .. }) => {
            record.state = RestoreState::Success;
            record.totals.log_records = *operations;
        }
        Err(error) => {
            let error: &crate::JobError = error;
            record.state = RestoreState::Error;
            record.error = Some(error.to_string());
        }
    }
    let recorded = plan.source.put_restore(&record).await;
    let totals = done?;
    recorded?;
    Ok((record, totals))
}

fn first_record(plan: &Replay, id: &str) -> RestoreRecord {
    RestoreRecord {
        format: FORMAT_VERSION,
        id: id.to_owned(),
        state: RestoreState::InProgress,
        // Not as a restore does: what was there stays, and nothing is half restored.
        touched: false,
        step: "starting".to_owned(),
        started_at: Timestamp::now(),
        finished_at: None,
        snapshot: NO_SNAPSHOT.to_owned(),
        target: format!("replay of {}", plan.stretch_text()),
        namespaces: Vec::new(),
        renamed: None,
        into: plan.into.identity.clone(),
        into_hosts: plan.into.members.iter().map(|member| member.host.as_str()).collect::<Vec<_>>().join(","),
        new_epoch: None,
        kept: None,
        reached: None,
        totals: RestoreTotals::default(),
        error: None,
        run_by: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
