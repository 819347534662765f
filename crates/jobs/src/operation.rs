//! The right to be the only backup or restore of a cluster.

use hindsight_format::{Operation, OperationKind};
use hindsight_repository::{Acquired, ClusterRepository, DEFAULT_TTL, Lease};
use tokio_util::sync::CancellationToken;

use crate::{JobError, Result};

/// Name of the lease under which backups and restores are alone.
pub const OPERATION_LEASE: &str = "operation";

/// The right, while it is held.
pub(crate) struct Exclusive {
    lease: Lease,
    /// Cancelled by the user, or when the right is lost.
    pub(crate) cancel: CancellationToken,
}

impl Exclusive {
    /// Takes it, or says who has it.
    pub(crate) async fn take(
        cluster: &ClusterRepository,
        kind: OperationKind,
        id: &str,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let operation = Operation { kind, id: id.to_owned(), detail: String::new() };
        match cluster.acquire(OPERATION_LEASE, operation, DEFAULT_TTL).await? {
            Acquired::Busy(record) => Err(JobError::Busy(Box::new(record))),
            Acquired::Held(lease) => {
                let cancel = cancel.child_token();
                let (lost, both) = (lease.lost(), cancel.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = lost.cancelled() => both.cancel(),
                        () = both.cancelled() => {}
                    }
                });
                Ok(Self { lease, cancel })
            }
        }
    }

    /// Tells others how far it is.
    pub(crate) fn tell(&self, detail: &str) {
        self.lease.set_detail(detail.to_owned());
    }

    /// Gives it back.
    pub(crate) async fn release(self) -> Result<()> {
        self.cancel.cancel();
        Ok(self.lease.release().await?)
    }
}
