//! `restores/<id>.json`: the history of restores, and their state machine.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cluster::ClusterIdentity;
use crate::position::Point;
use crate::repository::WITHHELD;

/// A restore that was begun. Rewritten by the process that runs it, under the operation lease of
/// the cluster whose history is restored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestoreRecord {
    /// Version of the format.
    pub format: u32,
    /// Its name: the time at which it was started.
    pub id: String,
    /// Where it stands.
    pub state: RestoreState,
    /// Whether anything was changed in the target. Once it was, only success makes the target whole. Where the target is
    /// replaced in one step, it is whole at all times, and this is true from success on.
    pub touched: bool,
    /// The step it is at, or was at when it failed, for people.
    pub step: String,
    /// When it was begun.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// The base snapshot.
    pub snapshot: String,
    /// The restore point in words, such as `just before 2021-02-07T02:59:59Z`.
    pub target: String,
    /// Namespaces it was limited to; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// `from=to` when restored under another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed: Option<String>,
    /// The cluster that was written to.
    pub into: ClusterIdentity,
    /// Its hosts, for people.
    pub into_hosts: String,
    /// The epoch that begins with it, when the target is itself kept in the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_epoch: Option<u64>,
    /// Where the target is kept as it was, from the moment on at which it may be replaced in one step. Until success it is there
    /// if that was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// Where in the log it came to, where the engine can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<Point>,
    /// What was written.
    pub totals: RestoreTotals,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Program version that ran it.
    pub run_by: String,
}

impl RestoreRecord {
    /// The same without what tells about the data, for a sealed repository.
    #[must_use]
    pub fn withhold(&self) -> Self {
        let hidden = || WITHHELD.to_owned();
        // Of a new cluster: where it was made.
        let id = match self.into.id.split_once('@') {
            Some((source, _)) => format!("{source}@{WITHHELD}"),
            None => self.into.id.clone(),
        };
        Self {
            namespaces: self.namespaces.first().map(|_| hidden()).into_iter().collect(),
            renamed: self.renamed.as_ref().map(|_| hidden()),
            into: ClusterIdentity { id, ..self.into.clone() },
            into_hosts: hidden(),
            kept: self.kept.as_ref().map(|_| hidden()),
            error: self.error.as_ref().map(|_| hidden()),
            ..self.clone()
        }
    }
}

/// States of a restore. `InProgress` with no live lease means that it was cut off: where it had `touched` the target, that is
/// half restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreState {
    /// Running, or cut off.
    InProgress,
    /// Complete and checked.
    Success,
    /// Failed; the target is half restored unless the error says otherwise.
    Error,
}

impl std::fmt::Display for RestoreState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::InProgress => "in_progress",
            Self::Success => "success",
            Self::Error => "error",
        })
    }
}

/// What a restore wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreTotals {
    /// Containers created, in the engine's words: collections, databases.
    pub collections: u64,
    /// Items written, in the engine's words: documents, files.
    pub documents: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Indexes built, where the engine counts them.
    pub indexes: u64,
    /// Log records taken into account (PostgreSQL: of a part of a slice its share).
    pub log_records: u64,
}
