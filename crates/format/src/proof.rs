//! `proofs/<id>.json`: evidence that what is stored was read, or restored for a trial.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::repository::WITHHELD;

/// One verification or drill, written when it has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofRecord {
    /// Version of the format.
    pub format: u32,
    /// Its name: the time at which it was begun.
    pub id: String,
    /// What was done.
    pub kind: ProofKind,
    /// Whether nothing was found wrong.
    pub passed: bool,
    /// When it was begun.
    pub started_at: Timestamp,
    /// When it had ended.
    pub finished_at: Timestamp,
    /// The snapshots that were read, or the one that was restored.
    pub snapshots: Vec<String>,
    /// Those of them that cannot be restored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broken: Vec<String>,
    /// Whether the captured log was read too.
    #[serde(default)]
    pub log: bool,
    /// The restore point of a drill, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_point: Option<String>,
    /// Number of things that were found wrong.
    pub findings: u64,
    /// The first of them, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub told: Vec<String>,
    /// Objects and captured slices that were read.
    pub objects: u64,
    /// Bytes that were read as they are stored.
    pub bytes: u64,
    /// Milliseconds that the restore of a drill took, from an empty server to checked data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_ms: Option<u64>,
    /// Collections whose hash was compared with the one kept at backup time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes_compared: Option<u64>,
    /// The version of the server that a drill restored into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// Host that ran it.
    pub host: String,
    /// Program version that ran it.
    pub run_by: String,
}

impl ProofRecord {
    /// The same without what tells about the data, for a sealed repository.
    #[must_use]
    pub fn withhold(&self) -> Self {
        let told = self.told.iter().map(|_| WITHHELD.to_owned()).collect();
        Self { told, host: WITHHELD.to_owned(), ..self.clone() }
    }
}

/// What kind of evidence it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProofKind {
    /// Everything was read and checked.
    Read,
    /// It was restored into a server of its own.
    Drill,
}
