//! The catalog object of a snapshot: what has to be known of a base before its files are read.

use std::collections::BTreeMap;

use hindsight_engine::{EngineError, Job, Result, SnapshotRequest};
use hindsight_format::{ObjectKind, ObjectRef, SnapshotManifest};
use hindsight_repository::{ClusterRepository, encode_frame};
use serde::{Deserialize, Serialize};

use super::manifest::{BackupManifest, ManifestReader};
use super::page::PageSizes;
use crate::feed::blocking;
use crate::wal::{Expect, History, SegmentSize, Version};
use crate::{Lsn, TimelineId};

/// Name of the object in the snapshot's folder.
const NAME: &str = "catalog.json.zst";
/// Name of the one with the server's own manifest, as the server sent it.
pub(super) const BACKUP_MANIFEST: &str = "backup_manifest.zst";
/// Folder of the objects with files: below it a folder for the main data directory, and one for each tablespace.
const DATA: &str = "data/";
/// The folder of the main data directory.
const MAIN: &str = "base";

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
    /// Of one that holds only what changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub increment: Option<StoredIncrement>,
    /// Whether the source's configuration files lie outside its data directory, so that the base has none.
    pub configured_outside: bool,
}

/// What there is to know of a base that holds only what changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredIncrement {
    /// Where the base began that it builds upon.
    pub since: Lsn,
    /// Bytes of the main data directory, once restored.
    pub main: u64,
    /// Bytes of tablespaces by OID, once restored.
    pub tablespaces: BTreeMap<u32, u64>,
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

    /// How it keeps relations; none where no server does it so.
    pub fn pages(&self) -> Option<PageSizes> {
        PageSizes::new(self.block_size as usize, self.relation_blocks)
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
        Ok(writer.finish(None).await?.named(NAME))
    }

    /// Reads that of a snapshot.
    pub(crate) async fn load(cluster: &ClusterRepository, manifest: &SnapshotManifest) -> Result<Self> {
        let damaged = || EngineError::damaged(format!("the catalog of snapshot {} cannot be read", manifest.id));
        let reader = cluster.snapshot_object(manifest, NAME).await?.ok_or_else(damaged)?;
        let mut json = Vec::new();
        for index in 0..reader.footer().frames.len() {
            json.extend_from_slice(&reader.frame(index).await?);
        }
        serde_json::from_slice(&json).map_err(|_| damaged())
    }
}

/// The folder, within the snapshot's, of the objects with the archive of a tablespace, or of the main data directory.
pub(super) fn archive_folder(tablespace: Option<u32>) -> String {
    format!("{DATA}{}/", tablespace.map_or_else(|| MAIN.to_owned(), |oid| oid.to_string()))
}

/// Of which archive an object holds a part; none if it holds none.
pub(crate) fn archive_of(object: &str) -> Option<Option<u32>> {
    let (folder, _) = object.strip_prefix(DATA)?.split_once('/')?;
    if folder == MAIN { Some(None) } else { folder.parse().ok().map(Some) }
}

/// Reads the server's own manifest of a snapshot.
///
/// # Errors
/// It cannot be read, or is not the one that the server wrote.
pub(crate) async fn load_backup_manifest(
    cluster: &ClusterRepository,
    manifest: &SnapshotManifest,
) -> Result<BackupManifest> {
    let bad = |why: &dyn std::fmt::Display| EngineError::damaged(format!("snapshot {}: {why}", manifest.id));
    let object = cluster.snapshot_object(manifest, BACKUP_MANIFEST).await?;
    let object = object.ok_or_else(|| bad(&"its manifest does not name the one of the server"))?;
    let mut reader = ManifestReader::new();
    for index in 0..object.footer().frames.len() {
        let frame = object.frame(index).await?;
        let read = blocking(move || Ok(reader.feed(&frame).map(|()| reader))).await?;
        reader = read.map_err(|error| bad(&error))?;
    }
    reader.finish().map_err(|error| bad(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_know_their_archive() {
        for archive in [None, Some(16385)] {
            assert_eq!(archive_of(&format!("{}000001.tar.zst", archive_folder(archive))), Some(archive));
        }
        for other in [NAME, BACKUP_MANIFEST, "wal/x", "data/x", "data/x/000001.tar.zst"] {
            assert_eq!(archive_of(other), None, "{other}");
        }
    }
}
