//! The long jobs: backup, restore, removal, verification, and the agent that captures.
//!
//! A job takes what it needs from an engine and a repository, and adds what makes it safe: leases,
//! epochs, records, settings. Command line and server only call what is here.

mod agent;
mod backup;
mod capture;
mod drill;
mod error;
mod journal;
mod lineage;
mod logs;
mod merge;
mod metrics;
mod operation;
mod overview;
mod place;
mod planned;
mod proof;
mod removal;
mod replay;
mod restore;
mod retention;
mod room;
mod standstill;
mod verify;

pub use agent::{Agent, CAPTURE_LEASE, Tuning};
pub use backup::{BackupRequest, Resume, backup};
pub use drill::{DrillRequest, Drilled, drill};
pub use error::JobError;
pub use journal::Journal;
pub use lineage::departure;
pub use logs::{LogEntry, LogFilter, LogReader};
pub use merge::merge;
pub use metrics::Metrics;
pub use operation::{OPERATION_LEASE, cancel_backup};
pub use overview::{Captured, Overview, history, overview};
pub use place::{find_cluster, register};
pub use planned::{Planned, history_meant};
pub use removal::{propose_removal, remove};
pub use replay::{Replay, propose_replay, replay};
pub use restore::{Finished, Proposal, RestoreRequest, propose, restore};
pub use room::{LITTLE_TIME, time_left};
pub use verify::{Finding, Level, Verified, verify};

/// Result of a job.
pub type Result<T> = std::result::Result<T, JobError>;
