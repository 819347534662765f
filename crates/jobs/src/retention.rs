//! Keeping no more than the settings say: the agent's work, beside the capture.

use std::time::Duration;

use hindsight_catalog::Wish;
use hindsight_engine::Progress;
use hindsight_repository::ClusterRepository;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::removal::{propose_removal, remove};
use crate::{JobError, Result};

/// Applies the rules of retention every now and then until cancelled. Never fails: it is tried again.
pub(crate) async fn keep_to_the_rules(cluster: ClusterRepository, every: Duration, cancel: CancellationToken) {
    loop {
        match apply(&cluster, &cancel).await {
            Ok(()) => {}
            Err(_) if cancel.is_cancelled() => return,
            Err(JobError::Busy(record)) => {
                tracing::debug!("retention waits: a {} is running", record.operation.kind);
            }
            Err(error) => tracing::warn!(hint = error.hint(), "what is too old could not be deleted: {error}"),
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = cancel.cancelled() => return,
        }
    }
}

async fn apply(cluster: &ClusterRepository, cancel: &CancellationToken) -> Result<()> {
    let rules = cluster.config().await?.1.retention;
    let now = Timestamp::now();
    let ago = |days: u32| now.checked_sub(SignedDuration::from_hours(24 * i64::from(days))).ok().filter(|_| days > 0);
    let wish = Wish::Retention { before: ago(rules.days), count: rules.count };
    if rules.days > 0 || rules.count > 0 {
        // Looking takes no lease; most of the time there is nothing to do.
        let plan = propose_removal(cluster, &wish).await?;
        if !plan.is_empty() {
            remove(cluster, &wish, &plan, &Progress::default(), cancel).await?;
        }
    }
    if let Some(time) = ago(rules.log_days) {
        let count = cluster.delete_journal_before(time).await?;
        tracing::debug!(count, "old logs of jobs are removed");
    }
    Ok(())
}
