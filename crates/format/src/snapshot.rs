//! `manifest.json` of a snapshot.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::position::Point;
use crate::repository::WITHHELD;
use crate::slice::SliceName;

/// The manifest: written last, when everything that it names is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// Version of the format.
    pub format: u32,
    /// Its name: the time at which it was started, such as `2021-02-03T08:08:36Z`.
    pub id: String,
    /// Name of the engine that made it.
    pub engine: String,
    /// How it was made.
    pub kind: SnapshotKind,
    /// The snapshot that it builds upon, without which it cannot be restored; none where it holds everything itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The epoch of the cluster's history that it belongs to.
    pub epoch: u64,
    /// The namespaces it was limited to; empty for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// When the work began.
    pub started_at: Timestamp,
    /// When it was complete.
    pub finished_at: Timestamp,
    /// Where it was read from.
    pub source: SnapshotSource,
    /// Per stream: its own piece of the log. The snapshot is consistent at the end of it.
    pub streams: BTreeMap<String, StreamPart>,
    /// Objects with data, and the catalog.
    pub objects: Vec<ObjectRef>,
    /// Sums.
    pub totals: SnapshotTotals,
    /// What a restore of this snapshot as it is must hash to; none when nobody asked for it, or the
    /// moment did not allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hashes: Option<SnapshotHashes>,
    /// Program version that made it.
    pub created_by: String,
    /// In a sealed repository: to whom it is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<SnapshotSeal>,
}

/// That a snapshot is sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSeal {
    /// The public keys to which it is sealed.
    pub sealed_to: Vec<String>,
    /// Whether this is the part that everybody may read. The whole is under the same key, sealed.
    pub withheld: bool,
}

impl SnapshotManifest {
    /// Whether this is only the part that everybody may read.
    pub fn is_withheld(&self) -> bool {
        self.seal.as_ref().is_some_and(|seal| seal.withheld)
    }

    /// The part that everybody may read: what listing, planning and capturing need, and nothing
    /// that tells about the data.
    #[must_use]
    pub fn withhold(&self) -> Self {
        let hidden = || WITHHELD.to_owned();
        Self {
            namespaces: self.namespaces.first().map(|_| hidden()).into_iter().collect(),
            source: SnapshotSource { member: hidden(), ..self.source.clone() },
            objects: Vec::new(),
            hashes: None,
            seal: self.seal.clone().map(|seal| SnapshotSeal { withheld: true, ..seal }),
            ..self.clone()
        }
    }

    /// The point at which `stream` is consistent in this snapshot.
    pub fn consistent_at(&self, stream: &str) -> Option<&Point> {
        self.streams.get(stream).map(|part| &part.last)
    }

    /// The latest of all streams' consistent points: the restore time of the snapshot.
    pub fn restore_time(&self) -> Timestamp {
        self.streams.values().map(|part| part.last.time).max().unwrap_or(self.finished_at)
    }
}

/// Hashes of the data at the end of a snapshot, made by the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHashes {
    /// How they are made, in the engine's words (MongoDB: `dbHash`).
    pub method: String,
    /// By namespace.
    pub collections: BTreeMap<String, String>,
}

/// How a snapshot was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// By reading rows or documents.
    Logical,
    /// By copying files.
    Physical,
    /// By copying what has changed in them since another snapshot.
    Incremental,
}

impl SnapshotKind {
    /// Whether files were copied, rather than rows or documents read.
    pub fn copies_files(self) -> bool {
        matches!(self, Self::Physical | Self::Incremental)
    }
}

impl std::fmt::Display for SnapshotKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Logical => "logical",
            Self::Physical => "physical",
            Self::Incremental => "incremental",
        })
    }
}

/// Where a snapshot was read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSource {
    /// Host and port of the member.
    pub member: String,
    /// What it was then, such as `primary`.
    pub role: String,
    /// Server version.
    pub server_version: String,
    /// Compatibility version, where the engine has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compatibility_version: Option<String>,
}

/// A snapshot's own piece of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPart {
    /// The log is kept from here (exclusive): nothing that the data may miss is older.
    pub first: Point,
    /// The log is kept up to here (inclusive): the data and this log give the state here.
    pub last: Point,
    /// The slices, in order; each lies under the snapshot's folder as `<stream>/<name>`.
    pub slices: Vec<SliceName>,
}

/// An object that belongs to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Name under the snapshot's folder.
    pub name: String,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// Bytes after decompression.
    pub raw_bytes: u64,
    /// BLAKE3 (hex) of the footer, which holds the checksums of all frames.
    pub footer_blake3: String,
}

/// Sums over a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTotals {
    /// Containers, in the engine's words: collections, databases.
    pub collections: u64,
    /// Items in them, in the engine's words: documents, files (0 where it does not count).
    pub documents: u64,
    /// Bytes before compression, log included.
    pub raw_bytes: u64,
    /// Bytes stored, log included.
    pub stored_bytes: u64,
    /// Records in the snapshot's own piece of log.
    pub log_records: u64,
}

/// What is stored of a snapshot that has no manifest: of one that is being made, was given up, or is
/// being deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnfinishedSnapshot {
    /// Its name.
    pub id: String,
    /// Number of objects.
    pub objects: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Whether it was noted how far it came, so that a backup can go on from there.
    pub resumable: bool,
}
