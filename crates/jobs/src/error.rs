//! Why a job failed.

use hindsight_catalog::Refusal;
use hindsight_engine::{EngineError, FailureKind};
use hindsight_format::{CancelRequest, LeaseRecord, format_time};
use hindsight_repository::Error as RepositoryError;
use thiserror::Error;

/// Why a job failed. Each is one line; [`JobError::hint`] says what to do.
#[derive(Debug, Error)]
pub enum JobError {
    /// The database, or what is stored of it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The restore point cannot be restored, or what was named cannot be deleted.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Something else is running.
    #[error(
        "another operation in progress: {} {} on {} (process {}) since {}",
        .0.operation.kind, .0.operation.id, .0.holder.host, .0.holder.pid, format_time(.0.acquired_at)
    )]
    Busy(Box<LeaseRecord>),
    /// Somebody asked the work to stop.
    #[error("{} {} was cancelled from {}", .0.operation.kind, .0.operation.id, .0.requested_from)]
    Cancelled(Box<CancelRequest>),
    /// There is no backup to cancel.
    #[error("no backup is running")]
    NothingToCancel,
    /// More would be deleted than was shown.
    #[error("what is stored has changed since the plan was shown; nothing was deleted")]
    Changed,
    /// Which cluster is meant is not clear.
    #[error("{what}")]
    WhichCluster {
        /// What is unclear.
        what: String,
        /// What to do.
        hint: String,
    },
}

impl JobError {
    /// The kind of failure, where an engine or repository failed.
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            Self::Engine(error) => Some(error.kind),
            Self::Repository(RepositoryError::Damaged { .. } | RepositoryError::Missing { .. }) => {
                Some(FailureKind::Damaged)
            }
            Self::Repository(_) => Some(FailureKind::Repository),
            _ => None,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Engine(error) => error.hint.clone(),
            Self::Refused(refusal) => Some(refusal.hint()),
            Self::Busy(record) => Some(format!(
                "wait for it to end (last sign of life {}); if that process is gone, this lock opens by itself {} s after its last sign of life",
                format_time(record.renewed_at),
                record.ttl_secs
            )),
            Self::WhichCluster { hint, .. } => Some(hint.clone()),
            Self::Changed => Some("run it again to see the new plan".to_owned()),
            Self::Repository(_) | Self::Cancelled(_) | Self::NothingToCancel => None,
        }
    }
}
