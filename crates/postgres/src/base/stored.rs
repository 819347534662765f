//! The catalog object of a snapshot: what has to be known of a base before its files are read.

use std::collections::BTreeMap;

use hindsight_engine::{EngineError, Job, Result, SnapshotRequest};
use hindsight_format::{ObjectKind, ObjectRef, SnapshotManifest};
use hindsight_repository::{ClusterRepository, encode_frame};
use serde::{Deserialize, Serialize};

use crate::wal::{Expect, History, SegmentSize, Version};
use crate::{Lsn, TimelineId};

/// Name of the object in the snapshot's folder.
const NAME: &str = "catalog.json.zst";

/// What there is to know of a base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredBase {
    /// The cluster's identifier (`IDENTIFY_SYSTEM`).
    pub system_identifier: u64,
    /// Of the server, as it says it, such as `15.18 (Debian 15.18-0+deb12u1)`.
    pub server_version: String,
    /// The major version, which servers that take the base must have.
    pub major: u32,
    /// `wal_segment_size` in bytes.
    pub wal_segment_size: u32,
    /// `wal_block_size` in bytes.
    pub wal_block_size: u32,
    /// `block_size` in bytes.
    pub block_size: u32,
    /// Blocks in a file of a relation (`segment_size` divided by `block_size`).
    pub relation_blocks: u32,
    /// Whether pages have checksums.
    pub data_checksums: bool,
    /// Whether it was a standby that was read.
    pub standby: bool,
    /// Where its recovery begins: `START WAL LOCATION` of `backup_label`.
    pub start: Lsn,
    /// The timeline of that.
    pub start_timeline: TimelineId,
    /// Where it is whole: the end of the backup.
    pub stop: Lsn,
    /// The timeline of that.
    pub timeline: TimelineId,
    /// The history file of that timeline; empty for the first, which has none.
    pub history: String,
    /// Tablespaces besides the main data directory.
    pub tablespaces: Vec<StoredTablespace>,
    /// Databases, with what they took about.
    pub databases: Vec<StoredDatabase>,
    /// Settings that a server has to have at least as large as the source to recover (`max_connections` and its like), and
    /// those that it cannot start without (`shared_preload_libraries`).
    pub settings: BTreeMap<String, String>,
    /// Whether the source's configuration files lie outside its data directory, so that the base has none.
    pub configured_outside: bool,
}

/// A tablespace of a base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTablespace {
    /// Its OID: the name of its link in `pg_tblspc`, and of its folder among the objects.
    pub oid: u32,
    /// Its name; empty where it could not be told.
    pub name: String,
    /// Its folder on the source.
    pub location: String,
}

/// A database of a base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredDatabase {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Its size; 0 where it could not be told.
    pub bytes: u64,
}

impl StoredBase {
    /// What its log has to be like on `timeline`; none where this program cannot read it.
    pub fn expect(&self, timeline: TimelineId) -> Option<Expect> {
        Some(Expect {
            system_identifier: self.system_identifier,
            version: Version::from_major(self.major)?,
            timeline,
            segment_size: SegmentSize::new(self.wal_segment_size)?,
            block_size: self.wal_block_size,
        })
    }

    /// The history of its timeline.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn history(&self) -> Result<History> {
        if self.timeline == 1 {
            return Ok(History::first());
        }
        History::parse(self.timeline, &self.history)
            .map_err(|error| EngineError::damaged(format!("the history of a base cannot be read: {error}")))
    }

    /// Stores it.
    pub(crate) async fn store(&self, job: &Job, request: &SnapshotRequest) -> Result<ObjectRef> {
        let json = serde_json::to_vec(self)
            .map_err(|error| EngineError::damaged(format!("the catalog cannot be stored: {error}")))?;
        let key = job.cluster.keys().snapshot_object(&request.id, NAME);
        let mut writer = job.cluster.object_writer(key, ObjectKind::Catalog).await;
        writer.write(encode_frame(&json, request.compression_level, 0)?).await?;
        let written = writer.finish(None).await?;
        Ok(ObjectRef {
            name: NAME.to_owned(),
            stored_bytes: written.stored_bytes,
            raw_bytes: written.raw_bytes,
            footer_blake3: written.footer_blake3,
        })
    }

    /// Reads that of a snapshot.
    pub(crate) async fn load(cluster: &ClusterRepository, manifest: &SnapshotManifest) -> Result<Self> {
        cluster.require_open(manifest)?;
        let damaged = || EngineError::damaged(format!("the catalog of snapshot {} cannot be read", manifest.id));
        let object = manifest.objects.iter().find(|object| object.name == NAME).ok_or_else(damaged)?;
        let key = cluster.keys().snapshot_object(&manifest.id, NAME);
        let reader = cluster.object_reader(&key, Some(object)).await?;
        let mut json = Vec::new();
        for index in 0..reader.footer().frames.len() {
            json.extend_from_slice(&reader.frame(index).await?);
        }
        serde_json::from_slice(&json).map_err(|_| damaged())
    }
}
