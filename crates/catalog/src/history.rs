//! All that a repository holds about one cluster.

use hindsight_format::{DamagedRecord, EpochRecord, SnapshotManifest, StoredGap, StoredSlice};

/// All that a repository holds about one cluster, in any order.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// Complete snapshots.
    pub snapshots: Vec<SnapshotManifest>,
    /// Captured slices of all streams and epochs, snapshots' own ones not included.
    pub slices: Vec<StoredSlice>,
    /// The epochs that restores began; epoch 1 has no record.
    pub epochs: Vec<EpochRecord>,
    /// What was recorded about holes in the log.
    pub gaps: Vec<StoredGap>,
    /// Manifests and records of epochs that cannot be read.
    pub damaged: Vec<DamagedRecord>,
}

impl History {
    /// The snapshot called `id`.
    pub fn snapshot(&self, id: &str) -> Option<&SnapshotManifest> {
        self.snapshots.iter().find(|snapshot| snapshot.id == id)
    }

    /// The manifest of the snapshot called `id`, where it cannot be read.
    pub fn damaged_snapshot(&self, id: &str) -> Option<&DamagedRecord> {
        self.damaged.iter().find(|record| record.snapshot() == Some(id))
    }

    /// Snapshots of which the manifest cannot be read.
    pub fn damaged_snapshots(&self) -> impl Iterator<Item = &str> {
        self.damaged.iter().filter_map(DamagedRecord::snapshot)
    }
}
