//! Why a job failed.

use hindsight_catalog::{Nearest, Refusal};
use hindsight_engine::{EngineError, FailureKind};
use hindsight_format::{CancelRequest, LeaseRecord, format_time};
use hindsight_repository::Error as RepositoryError;
use jiff::Timestamp;
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
    /// A backup failed, and can be gone on with.
    #[error("{cause}")]
    Interrupted {
        /// Name of the backup.
        id: String,
        /// Why.
        cause: Box<JobError>,
    },
    /// No backup, or not that one, was cut off in such a way that it can be gone on with.
    #[error("{}", .0.as_ref().map_or("no interrupted backup can be gone on with".to_owned(), |id| format!("{id} is no interrupted backup")))]
    NothingToResume(Option<String>),
    /// There is no backup to cancel.
    #[error("no backup is running")]
    NothingToCancel,
    /// More would be deleted than was shown.
    #[error("what is stored has changed since the plan was shown; nothing was deleted")]
    Changed,
    /// Deleting would make room, and has none to begin.
    #[error("{0}")]
    NoRoomToDelete(RepositoryError),
    /// The restore point is about to be captured.
    #[error(
        "{} cannot be restored yet: what is stored ends at {end}, and the agent on {host} captures what comes after",
        format_time(*.asked)
    )]
    NotYetCaptured {
        /// The restore point: just before it.
        asked: Timestamp,
        /// The end of what is stored.
        end: Nearest,
        /// The machine of the agent.
        host: String,
    },
    /// The connected database is one of another history: a copy of the one that is stored, or one that took its place.
    #[error("{why}: it is not what is stored of {cluster}")]
    OtherHistory {
        /// The cluster that is stored.
        cluster: String,
        /// What tells the two apart.
        why: String,
    },
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
            Self::Refused(Refusal::Damaged { .. } | Refusal::NotWhole { .. }) => Some(FailureKind::Damaged),
            Self::Repository(_) | Self::NoRoomToDelete(_) => Some(FailureKind::Repository),
            Self::Interrupted { cause, .. } => cause.kind(),
            _ => None,
        }
    }

    /// Whether it failed because it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled(_)) || self.kind() == Some(FailureKind::Cancelled)
    }

    /// Whether the repository has no more room.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Repository(error) | Self::NoRoomToDelete(error) => error.is_full(),
            Self::Engine(EngineError { source: Some(source), .. }) => {
                source.downcast_ref::<RepositoryError>().is_some_and(RepositoryError::is_full)
            }
            Self::Interrupted { cause, .. } => cause.is_full(),
            _ => false,
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
            Self::NotYetCaptured { .. } => Some(
                "run it again within a minute or two: once the log has come that far, that very moment is restored; `--time latest` \
                 restores what is there now"
                    .to_owned(),
            ),
            Self::OtherHistory { cluster, .. } => Some(format!(
                "if it is a copy, keep it under a name of its own with --cluster NAME; if it took the place of {cluster}, run the agent \
                 with it (`config --set pitr.enabled=true`, then `agent`), which goes on or begins a new history, and takes a snapshot"
            )),
            Self::NoRoomToDelete(_) => Some(
                "deleting needs some KiB itself: make that much room on the disk, such as by removing any file beside the \
                 repository, and run it again"
                    .to_owned(),
            ),
            Self::Changed => Some("run it again to see the new plan".to_owned()),
            Self::Interrupted { id, cause } => {
                let way =
                    format!("`backup --resume` goes on with {id}; `cleanup` or another backup need not wait for that");
                Some(cause.hint().map_or(way.clone(), |hint| format!("{hint}; {way}")))
            }
            Self::NothingToResume(_) => Some("start a new one with `backup`".to_owned()),
            Self::Repository(_) | Self::Cancelled(_) | Self::NothingToCancel => None,
        }
    }
}
