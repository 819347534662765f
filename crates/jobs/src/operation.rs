//! The right to be the only backup, restore or cleanup of a cluster, and the right to read from one
//! that others work on.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hindsight_engine::{EngineError, FailureKind};
use hindsight_format::{CancelRequest, LeaseRecord, Operation, OperationKind, format_time};
use hindsight_repository::{Acquired, ClusterRepository, DEFAULT_TTL, Error as RepositoryError, Lease, host_name};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{JobError, Result};

/// Name of the lease under which backups, restores and cleanups are alone.
pub const OPERATION_LEASE: &str = "operation";
/// Beginning of the names of leases of those who only read. Each has one of its own.
pub(crate) const READING: &str = "reading.";
/// A wish that the work stops is looked for this often.
const LOOK: Duration = Duration::from_millis(1500);
/// How long work may take to end after the right to it was lost.
const GRACE: Duration = Duration::from_secs(5);

/// The right, while it is held.
pub(crate) struct Exclusive {
    lease: Lease,
    cluster: ClusterRepository,
    /// Cancelled by the user, or when the right is lost.
    pub(crate) cancel: CancellationToken,
    /// Who asked the work to stop, once somebody did.
    asked: Arc<OnceLock<CancelRequest>>,
    /// The right to read from another cluster.
    reading: Option<Reading>,
}

impl Exclusive {
    /// Takes it, or says who has it.
    pub(crate) async fn take(
        cluster: &ClusterRepository,
        kind: OperationKind,
        id: &str,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let lease = acquire(cluster, OPERATION_LEASE, kind, id).await?;
        let cancel = cancel.child_token();
        cancelled_when_lost(&lease, cancel.clone());
        Ok(Self { lease, cluster: cluster.clone(), cancel, asked: Arc::default(), reading: None })
    }

    /// The right only to read from `source`, for work that touches nothing that others share.
    pub(crate) async fn reading(
        source: &ClusterRepository,
        kind: OperationKind,
        id: &str,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let cancel = cancel.child_token();
        let Reading { lease, cluster } = Reading::take(source, kind, id, &cancel).await?;
        Ok(Self { lease, cluster, cancel, asked: Arc::default(), reading: None })
    }

    /// From now on nothing is deleted from what `source` has stored either, if it is another cluster.
    pub(crate) async fn reads(&mut self, source: &ClusterRepository, kind: OperationKind, id: &str) -> Result<()> {
        if self.cluster.name() != source.name() {
            self.reading = Some(Reading::take(source, kind, id, &self.cancel).await?);
        }
        Ok(())
    }

    /// Tells others how far it is.
    pub(crate) fn tell(&self, detail: &str) {
        self.lease.set_detail(detail.to_owned());
    }

    /// Does `work`, which ends by itself when it is cancelled; where it hangs on a repository that does not answer, it
    /// is given up soon after the right was lost.
    pub(crate) async fn guard<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.soon(work).await.unwrap_or_else(|| Err(EngineError::cancelled().into()))
    }

    /// What comes of `work`; none when it takes long without the right.
    pub(crate) async fn soon<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let lost = self.lease.lost();
        let given_up = async {
            lost.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            done = work => Some(done),
            () = given_up => None,
        }
    }

    /// Whether it is still held.
    pub(crate) fn is_held(&self) -> bool {
        !self.lease.lost().is_cancelled()
    }

    /// From now on the work is cancelled when somebody asks for that, on whatever machine.
    pub(crate) fn may_be_cancelled(&self) {
        let (cluster, holder) = (self.cluster.clone(), self.lease.holder_id().to_owned());
        let (cancel, asked) = (self.cancel.clone(), self.asked.clone());
        let watch = async move {
            while !cancel.is_cancelled() {
                // While the repository is away, the work has other troubles.
                if let Ok(Some(request)) = cluster.cancel_request(&holder).await {
                    tracing::info!("asked to stop, from {}", request.requested_from);
                    asked.set(request).ok();
                    cancel.cancel();
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = cancel.cancelled() => {}
                }
            }
        };
        tokio::spawn(watch.in_current_span());
    }

    /// Who asked the work to stop.
    pub(crate) fn cancel_request(&self) -> Option<&CancelRequest> {
        self.asked.get()
    }

    /// Gives it back after work of which `done` came, which is told as it is: a right that cannot be given back runs
    /// out by itself. Work that was cut off as the right was lost, because the repository did not answer, has
    /// failed for that.
    pub(crate) async fn release<T>(mut self, done: Result<T>) -> Result<T> {
        if let Some(reading) = self.reading.take() {
            self.soon(reading.release()).await;
        }
        self.cancel.cancel();
        let done = match done {
            Err(JobError::Engine(error)) if error.kind == FailureKind::Cancelled => {
                Err(self.lease.take_failure().map_or(JobError::Engine(error), JobError::Repository))
            }
            done => done,
        };
        if self.asked.get().is_some()
            && let Err(error) = self.cluster.clear_cancel(self.lease.holder_id()).await
        {
            tracing::debug!(%error, "the wish to stop stays behind until the next cleanup");
        }
        if self.lease.name().starts_with(READING) {
            Reading { lease: self.lease, cluster: self.cluster }.release().await;
        } else if let Err(error) = self.lease.release().await {
            tracing::warn!(%error, "the right to be alone could not be given back, and runs out by itself");
        }
        done
    }
}

/// The right to read what one cluster has stored while something else is done with it: nothing is
/// deleted meanwhile. Those who read first say so and then look for a cleanup, a cleanup does the
/// same the other way round: one of the two sees the other.
struct Reading {
    lease: Lease,
    cluster: ClusterRepository,
}

impl Reading {
    /// Takes it, or says which cleanup is running. `cancel` is cancelled when it is lost.
    async fn take(
        cluster: &ClusterRepository,
        kind: OperationKind,
        id: &str,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let lease = acquire(cluster, &format!("{READING}{id}"), kind, id).await?;
        let running = match running_operation(cluster).await {
            // Nobody can take a lease whose state cannot be read: there is no cleanup.
            Err(error) if error.is_unreadable() => None,
            running => running?,
        };
        let reading = Self { lease, cluster: cluster.clone() };
        if let Some(record) = running.filter(|record| record.operation.kind == OperationKind::Cleanup) {
            reading.give_back().await?;
            return Err(JobError::Busy(Box::new(record)));
        }
        cancelled_when_lost(&reading.lease, cancel.clone());
        Ok(reading)
    }

    /// Gives it back. That this fails is no failure of the work: the right runs out by itself.
    async fn release(self) {
        if let Err(error) = self.give_back().await {
            tracing::debug!(%error, "the right to read runs out by itself");
        }
    }

    async fn give_back(self) -> Result<()> {
        let name = self.lease.name().to_owned();
        self.lease.release().await?;
        Ok(self.cluster.forget_lease(&name).await?)
    }
}

/// Does `work`, which reads what is stored; nothing is deleted meanwhile. It ends with `cancel`, which is cancelled
/// when the right is lost, and afterwards.
pub(crate) async fn while_reading<T>(
    cluster: &ClusterRepository,
    kind: OperationKind,
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    // Several may read at the same time.
    let id = format!("{}-{:08x}", format_time(Timestamp::now()), rand::random::<u32>());
    let reading = Reading::take(cluster, kind, &id, cancel).await?;
    let done = work.await;
    cancel.cancel();
    reading.release().await;
    done
}

/// Makes sure that nobody reads what `cluster` has stored, for a cleanup that holds the right to it;
/// or says who does. What readers that are gone have left behind is removed.
pub(crate) async fn without_readers(cluster: &ClusterRepository, id: &str) -> Result<()> {
    for name in cluster.lease_names().await?.into_iter().filter(|name| name.starts_with(READING)) {
        let lease = acquire(cluster, &name, OperationKind::Cleanup, id).await?;
        lease.release().await?;
        cluster.forget_lease(&name).await?;
    }
    Ok(())
}

/// What runs alone now.
pub(crate) async fn running_operation(
    cluster: &ClusterRepository,
) -> std::result::Result<Option<LeaseRecord>, RepositoryError> {
    let lease = cluster.lease_state(OPERATION_LEASE).await?;
    Ok(lease.filter(|lease| cluster.lease_is_live(OPERATION_LEASE, lease)))
}

async fn acquire(cluster: &ClusterRepository, name: &str, kind: OperationKind, id: &str) -> Result<Lease> {
    let operation = Operation { kind, id: id.to_owned(), detail: String::new() };
    match cluster.acquire(name, operation, DEFAULT_TTL).await? {
        Acquired::Busy(record) => Err(JobError::Busy(Box::new(record))),
        Acquired::Held(lease) => Ok(lease),
    }
}

fn cancelled_when_lost(lease: &Lease, cancel: CancellationToken) {
    let lost = lease.lost();
    tokio::spawn(async move {
        tokio::select! {
            () = lost.cancelled() => cancel.cancel(),
            () = cancel.cancelled() => {}
        }
    });
}

/// Asks the backup that is running, on whatever machine, to stop; it does within seconds. Says which
/// it is.
///
/// # Errors
/// None is running.
pub async fn cancel_backup(cluster: &ClusterRepository) -> Result<Operation> {
    let running = running_operation(cluster).await?;
    let Some(record) = running.filter(|record| record.operation.kind == OperationKind::Backup) else {
        return Err(JobError::NothingToCancel);
    };
    let request = CancelRequest {
        operation: record.operation.clone(),
        requested_from: host_name(),
        requested_at: Timestamp::now(),
    };
    cluster.request_cancel(&record.holder.id, &request).await?;
    Ok(record.operation)
}
