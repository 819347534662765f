//! Evidence: what a verification or drill leaves in the repository.

use hindsight_format::{FORMAT_VERSION, ProofKind, ProofRecord};
use hindsight_repository::{ClusterRepository, host_name};
use jiff::Timestamp;

use crate::Result;

/// Problems that are kept in words.
const TOLD: usize = 20;

/// A proof that is not stored yet.
pub(crate) struct Draft {
    pub(crate) kind: ProofKind,
    pub(crate) started_at: Timestamp,
    pub(crate) snapshots: Vec<String>,
    pub(crate) broken: Vec<String>,
    /// The captured log was read too.
    pub(crate) log: bool,
    pub(crate) restore_point: Option<String>,
    /// What was found wrong; nothing means that it passed.
    pub(crate) problems: Vec<String>,
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    pub(crate) recovery_ms: Option<u64>,
    pub(crate) hashes_compared: Option<u64>,
    pub(crate) server_version: Option<String>,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            kind: ProofKind::Read,
            started_at: Timestamp::now(),
            snapshots: Vec::new(),
            broken: Vec::new(),
            log: false,
            restore_point: None,
            problems: Vec::new(),
            objects: 0,
            bytes: 0,
            recovery_ms: None,
            hashes_compared: None,
            server_version: None,
        }
    }
}

impl Draft {
    /// Stores it, as of now.
    pub(crate) async fn store(mut self, cluster: &ClusterRepository) -> Result<ProofRecord> {
        let findings = self.problems.len() as u64;
        self.problems.truncate(TOLD);
        let record = ProofRecord {
            format: FORMAT_VERSION,
            id: String::new(),
            kind: self.kind,
            passed: findings == 0,
            started_at: self.started_at,
            finished_at: Timestamp::now(),
            snapshots: self.snapshots,
            broken: self.broken,
            log: self.log,
            restore_point: self.restore_point,
            findings,
            told: self.problems,
            objects: self.objects,
            bytes: self.bytes,
            recovery_ms: self.recovery_ms,
            hashes_compared: self.hashes_compared,
            server_version: self.server_version,
            host: host_name(),
            run_by: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok(cluster.put_proof(record).await?)
    }
}
