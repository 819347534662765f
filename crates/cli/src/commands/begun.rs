//! The name of a job that has just begun.

use std::time::Duration;

use hindsight_format::{LeaseState, OperationKind};
use hindsight_jobs::OPERATION_LEASE;
use hindsight_repository::ClusterRepository;
use jiff::Timestamp;

/// Waits until this process holds the right to do `kind` of work, and tells the name that the work
/// was given. Never ends when it does not come to that: the work then fails, and says why itself.
pub(crate) async fn begun(cluster: &ClusterRepository, kind: OperationKind) -> String {
    let since = Timestamp::now();
    loop {
        if let Ok(Some(lease)) = cluster.lease_state(OPERATION_LEASE).await {
            let own = lease.holder.pid == std::process::id() && lease.acquired_at >= since;
            if own && lease.state == LeaseState::Held && lease.operation.kind == kind {
                return lease.operation.id;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
