//! Leases: a numbered chain of small objects; the highest number holds.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One state of a lease. Taking, renewing and releasing each create the next number, which only
/// one writer can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Number of this state, and the fencing token of what is done under it.
    pub number: u64,
    /// Held or given back.
    pub state: LeaseState,
    /// Who.
    pub holder: LeaseHolder,
    /// What for.
    pub operation: Operation,
    /// When this holder got it.
    pub acquired_at: Timestamp,
    /// When this state was written.
    pub renewed_at: Timestamp,
    /// Seconds after `renewed_at` at which others may take it.
    pub ttl_secs: u32,
}

/// Whether a lease is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// Held until it runs out.
    Held,
    /// Given back: anybody may take it.
    Released,
}

/// A process that holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseHolder {
    /// Random, new each time a lease is taken.
    pub id: String,
    /// Host name.
    pub host: String,
    /// Process number on that host.
    pub pid: u32,
    /// Where that number means this process: the boot of the machine and its PID namespace. None
    /// where the operating system does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_space: Option<String>,
    /// Program version.
    pub version: String,
}

/// What a lease is held for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Kind of work.
    pub kind: OperationKind,
    /// Its name, such as the snapshot's.
    pub id: String,
    /// One line on how far it is, for people.
    pub detail: String,
}

/// `cancel/<holder>.json`: somebody wants the holder of a lease to stop. Named by the holder's id, so
/// that it can be meant for no other work than that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// The work that is to end.
    pub operation: Operation,
    /// The host from which that was asked.
    pub requested_from: String,
    /// When it was asked.
    pub requested_at: Timestamp,
}

/// Kinds of work that need to be alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Taking a snapshot.
    Backup,
    /// Restoring.
    Restore,
    /// Replaying log on top of what is there.
    Replay,
    /// Capturing a stream.
    Capture,
    /// Deleting what is not needed any more.
    Cleanup,
    /// Reading what is stored, to make sure of it.
    Verify,
}

impl std::fmt::Display for OperationKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Replay => "log replay",
            Self::Capture => "capture",
            Self::Cleanup => "cleanup",
            Self::Verify => "verification",
        })
    }
}
