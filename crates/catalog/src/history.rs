//! All that a repository holds about one cluster.

use std::collections::BTreeMap;

use hindsight_format::{Ancestry, DamagedRecord, EpochRecord, SnapshotManifest, StoredGap, StoredSlice};

/// All that a repository holds about one cluster, in any order.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// Complete snapshots.
    pub snapshots: Vec<SnapshotManifest>,
    /// Captured slices of all streams and epochs, snapshots' own ones not included.
    pub slices: Vec<StoredSlice>,
    /// The epochs that began since; epoch 1 has no record.
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

    /// The captured slices that count for an epoch: its own, and of those that it branches off what lies before that.
    pub fn slices_of(&self, epoch: u64) -> impl Iterator<Item = &StoredSlice> {
        let ancestry = Ancestry::new(&self.epochs);
        self.slices
            .iter()
            .filter(move |slice| slice.epoch == epoch || ancestry.of(epoch).iter().any(|part| part.has_slice(slice)))
    }

    /// The snapshots that count for an epoch, in the same way.
    pub fn snapshots_of(&self, epoch: u64) -> impl Iterator<Item = &SnapshotManifest> {
        let ancestry = Ancestry::new(&self.epochs);
        self.snapshots.iter().filter(move |snapshot| {
            snapshot.epoch == epoch || ancestry.of(epoch).iter().any(|part| part.has_snapshot(snapshot))
        })
    }

    /// What it was before the epochs after `epoch` began: what only an older history has is found in that alone.
    #[must_use]
    pub fn until_epoch(mut self, epoch: u64) -> Self {
        self.snapshots.retain(|snapshot| snapshot.epoch <= epoch);
        self.slices.retain(|slice| slice.epoch <= epoch);
        self.epochs.retain(|record| record.number <= epoch);
        self.gaps.retain(|gap| gap.epoch <= epoch);
        self.damaged.retain(|record| record.epoch().is_none_or(|number| number <= epoch));
        self
    }

    /// The slices that count for each epoch, by epoch and stream.
    pub(crate) fn slices_by_stream(&self) -> BTreeMap<(u64, &str), Vec<&StoredSlice>> {
        let mut own: BTreeMap<(u64, &str), Vec<&StoredSlice>> = BTreeMap::new();
        for slice in &self.slices {
            own.entry((slice.epoch, slice.stream.as_str())).or_default().push(slice);
        }
        let mut all = own.clone();
        for (epoch, line) in Ancestry::new(&self.epochs).branching() {
            for part in line {
                let older = own.get(&(part.epoch, part.stream)).into_iter().flatten();
                let older: Vec<_> = older.copied().filter(|slice| part.has_slice(slice)).collect();
                if !older.is_empty() {
                    all.entry((epoch, part.stream)).or_default().extend(older);
                }
            }
        }
        all
    }
}
