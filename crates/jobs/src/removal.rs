//! Deleting: propose, confirm, carry out.

use hindsight_catalog::{Removal, Wish, removal};
use hindsight_engine::{EngineError, Progress};
use hindsight_format::{OperationKind, UnfinishedSnapshot, format_time};
use hindsight_repository::ClusterRepository;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::journal::{RESULT, job};
use crate::operation::{Exclusive, running_operation, without_readers};
use crate::overview::{history, warn_of_damage};
use crate::{JobError, Result};

/// A plan is made anew this often until it comes out the same twice.
const REPLANS: u32 = 10;

/// For so long retention leaves alone what a backup that was cut off has stored, so that somebody can go on with it.
const RESUMABLE: SignedDuration = SignedDuration::from_hours(24);

/// What would be deleted for `wish`. Changes nothing.
pub async fn propose_removal(cluster: &ClusterRepository, wish: &Wish) -> Result<Removal> {
    // What is in the making is no leftover. It may begin or end while this looks.
    let before = running(cluster).await?;
    let mut unfinished = leftovers(cluster, wish).await?;
    let after = running(cluster).await?;
    unfinished.retain(|unfinished| ![&before, &after].iter().any(|id| id.as_ref() == Some(&unfinished.id)));
    let capturing = capturing(cluster).await?;
    let history = history(cluster).await?;
    if !matches!(wish, Wish::Retention { .. }) {
        warn_of_damage(&history);
    }
    Ok(removal(&history, &unfinished, wish, capturing)?)
}

/// What unfinished snapshots `wish` can mean.
async fn leftovers(cluster: &ClusterRepository, wish: &Wish) -> Result<Vec<UnfinishedSnapshot>> {
    let mut unfinished = cluster.unfinished_snapshots().await?;
    if let Wish::Retention { .. } = wish {
        let young = |id: &str| id.parse::<Timestamp>().is_ok_and(|begun| begun + RESUMABLE > Timestamp::now());
        unfinished.retain(|unfinished| !(unfinished.resumable && young(&unfinished.id)));
    }
    Ok(unfinished)
}

/// The name of what runs alone.
async fn running(cluster: &ClusterRepository) -> Result<Option<String>> {
    let lease = running_operation(cluster).await?;
    Ok(lease.filter(|lease| lease.operation.kind != OperationKind::Cleanup).map(|lease| lease.operation.id))
}

/// The epoch whose log is captured, when capture is on.
async fn capturing(cluster: &ClusterRepository) -> Result<Option<u64>> {
    let enabled = cluster.config().await?.1.pitr.enabled;
    Ok(if enabled { Some(cluster.current_epoch().await?) } else { None })
}

/// Deletes what `wish` is for, as long as that takes no snapshot and loses nothing that was not in
/// `shown`. Gives what was deleted.
///
/// No backup, restore or other cleanup runs meanwhile; the capture may. Where this is cut off, what is
/// left is as true as before, and the same again finishes it.
pub async fn remove(
    cluster: &ClusterRepository,
    wish: &Wish,
    shown: &Removal,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Removal> {
    let work = async {
        let done = remove_alone(cluster, wish, shown, progress, cancel).await;
        match &done {
            Ok(done) => tracing::info!(target: RESULT, "done: {}", in_words(done)),
            Err(error) => tracing::error!(target: RESULT, hint = error.hint(), "failed: {error}"),
        }
        done
    };
    work.instrument(job(event(wish), None)).await
}

async fn remove_alone(
    cluster: &ClusterRepository,
    wish: &Wish,
    shown: &Removal,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Removal> {
    progress.step("looking what is to be deleted", None);
    let id = format_time(Timestamp::now());
    let exclusive = alone(cluster, &id, cancel).await?;
    let work = async {
        without_readers(cluster, &id).await?;
        let plan = settled_plan(cluster, wish).await?;
        if !plan.is_covered_by(shown) {
            return Err(JobError::Changed);
        }
        carry_out(cluster, &plan, progress, &exclusive).await?;
        Ok(plan)
    };
    let done = exclusive.guard(work).await;
    exclusive.release(done).await
}

/// The right to delete. It takes some bytes in the repository: where the disk is full, the oldest logs of jobs, on which
/// nothing depends, make room for it.
async fn alone(cluster: &ClusterRepository, id: &str, cancel: &CancellationToken) -> Result<Exclusive> {
    loop {
        match Exclusive::take(cluster, OperationKind::Cleanup, id, cancel).await {
            Err(JobError::Repository(error)) if error.is_full() => match cluster.delete_oldest_journal().await? {
                0 => return Err(JobError::NoRoomToDelete(error)),
                count => tracing::warn!(count, "the disk is full: the oldest logs of jobs make room for deleting"),
            },
            taken => return taken,
        }
    }
}

/// The plan, made until it comes out the same twice. A listing takes its time: when slices are merged
/// meanwhile, it may show neither the parts nor the whole, and a base may seem not to lead on.
async fn settled_plan(cluster: &ClusterRepository, wish: &Wish) -> Result<Removal> {
    let plan = async || -> Result<Removal> {
        let unfinished = leftovers(cluster, wish).await?;
        let capturing = capturing(cluster).await?;
        Ok(removal(&history(cluster).await?, &unfinished, wish, capturing)?)
    };
    let mut last = plan().await?;
    for _ in 0..REPLANS {
        let next = plan().await?;
        if next.snapshots == last.snapshots && next.slices == last.slices {
            return Ok(next);
        }
        last = next;
    }
    Err(JobError::Changed)
}

/// Snapshots first, the oldest first, each its manifest first; then the log, from its old end. So what
/// can be restored shrinks from its old end as well, wherever this is cut off.
async fn carry_out(
    cluster: &ClusterRepository,
    plan: &Removal,
    progress: &Progress,
    exclusive: &Exclusive,
) -> Result<()> {
    let check = || if exclusive.cancel.is_cancelled() { Err(EngineError::cancelled()) } else { Ok(()) };
    tracing::info!(target: RESULT, "begins: {}", in_words(plan));
    progress.step("deleting", Some(plan.stored_bytes()));
    for snapshot in &plan.snapshots {
        check()?;
        exclusive.tell(&format!("deleting snapshot {}", snapshot.id));
        cluster.delete_snapshot(&snapshot.id).await?;
        tracing::info!(target: RESULT, "snapshot {} is deleted", snapshot.id);
        progress.add(snapshot.totals.stored_bytes);
    }
    for id in &plan.damaged {
        check()?;
        cluster.delete_snapshot(id).await?;
        tracing::info!(target: RESULT, "snapshot {id}, which could not be read, is deleted");
    }
    for slice in &plan.slices {
        check()?;
        exclusive.tell(&format!("deleting log up to {}", format_time(slice.name.end.time)));
        cluster.delete_slice(slice).await?;
        tracing::debug!(slice = %slice.name, "deleted");
        progress.add(slice.stored_bytes);
    }
    for gap in &plan.gaps {
        check()?;
        cluster.delete_gap(gap).await?;
    }
    for unfinished in &plan.unfinished {
        check()?;
        cluster.delete_snapshot(&unfinished.id).await?;
        tracing::info!(target: RESULT, "what was left of the unfinished snapshot {} is deleted", unfinished.id);
        progress.add(unfinished.stored_bytes);
    }
    // Nobody who could be meant by one holds the right to work now.
    cluster.clear_cancels().await?;
    Ok(())
}

/// What the logs call it.
fn event(wish: &Wish) -> &'static str {
    match wish {
        Wish::Snapshot(_) | Wish::Snapshots { .. } => "delete-backup",
        Wish::Log { .. } => "delete-pitr",
        Wish::Everything { .. } => "cleanup",
        Wish::Retention { .. } => "retention",
    }
}

fn in_words(plan: &Removal) -> String {
    let mut text = format!(
        "snapshots: {}, slices of log: {}, unfinished snapshots: {}, bytes: {}",
        plan.snapshots.len() + plan.damaged.len(),
        plan.slices.len(),
        plan.unfinished.len(),
        plan.stored_bytes()
    );
    for loss in &plan.losses {
        text.push_str(&format!("; {loss} can no longer be restored"));
    }
    text
}
