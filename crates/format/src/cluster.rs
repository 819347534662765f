//! What is stored about a cluster as such: its identity, its epochs, its gaps.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::position::Point;

/// What tells one database cluster from another whatever it is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdentity {
    /// Name of the engine, such as `mongodb`.
    pub engine: String,
    /// The server's own identity (MongoDB: the `replicaSetId`).
    pub id: String,
}

/// `cluster.json`: written when a cluster first uses the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterDescriptor {
    /// The name it has in the repository.
    pub name: String,
    /// Which cluster that is.
    pub identity: ClusterIdentity,
    /// When it was registered.
    pub created_at: Timestamp,
}

/// `epochs/<number>.json`: a new history begins. Epoch 1 has no record: it is where all begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Its number, counted from 1.
    pub number: u64,
    /// When it began.
    pub started_at: Timestamp,
    /// Why it began.
    pub cause: EpochCause,
    /// What of an older one is its past, too; none where it has nothing to do with what was stored before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<Branch>,
}

/// Where an epoch branches off an older one: what is stored of that up to there counts for both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// The older one.
    pub epoch: u64,
    /// The only stream of the cluster.
    pub stream: String,
    /// The last position that both are known to have. A slice of the older one ends or begins there, so that no part of a slice counts.
    pub at: Point,
}

/// Why an epoch began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EpochCause {
    /// The restore of this id replaced the cluster's data.
    Restore(String),
    /// The server that is captured left the history that is stored before its end, for this reason: one took the place
    /// of another that had come further. What it writes has positions that are stored already.
    Left(String),
}

/// `gaps/<stream>/<epoch>/<end>.json`: why the log is not complete there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapRecord {
    /// The last stored point before the gap; none when nothing was stored before.
    pub start: Option<Point>,
    /// Where the log goes on.
    pub end: Point,
    /// One sentence for people.
    pub cause: String,
    /// When it was found.
    pub detected_at: Timestamp,
}

/// A gap record that was found in a repository, with what its key tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredGap {
    /// The stream in which the log is not complete.
    pub stream: String,
    /// The epoch of the cluster's history.
    pub epoch: u64,
    /// The record.
    pub record: GapRecord,
}
