//! What keeps a repository tidy: leftovers of unfinished snapshots, wishes to stop, logs of jobs.

use std::collections::{BTreeMap, BTreeSet};

use hindsight_format::{CHECKPOINTS, CancelRequest, JournalBatch, Place, UnfinishedSnapshot, check_name};
use jiff::Timestamp;

use crate::cluster::ClusterRepository;
use crate::error::Result;
use crate::store::Entry;

impl ClusterRepository {
    /// What is stored of snapshots that have no manifest, by id. They may be in the making.
    pub async fn unfinished_snapshots(&self) -> Result<Vec<UnfinishedSnapshot>> {
        let folder = self.keys().snapshots();
        let mut found: BTreeMap<String, UnfinishedSnapshot> = BTreeMap::new();
        let mut complete = BTreeSet::new();
        let store = self.repository().store();
        let mut entries = store.list(&folder).await?;
        entries.extend(store.staged(&folder).await?);
        for Entry { key, size } in entries {
            let Some((id, name)) = key.strip_prefix(&folder).and_then(|rest| rest.split_once('/')) else { continue };
            if name == "manifest.json" {
                complete.insert(id.to_owned());
            }
            let fresh = || UnfinishedSnapshot { id: id.to_owned(), objects: 0, stored_bytes: 0, resumable: false };
            let unfinished = found.entry(id.to_owned()).or_insert_with(fresh);
            unfinished.objects += 1;
            unfinished.stored_bytes += size;
            unfinished.resumable |= name.starts_with(CHECKPOINTS) && !name.contains('#');
        }
        // Other names are not ours.
        found.retain(|id, _| !complete.contains(id) && check_name(id, "snapshot name").is_ok());
        Ok(found.into_values().collect())
    }

    /// Names of the objects of a snapshot, as a manifest would name them, with the bytes stored. `folder`: only those in
    /// it (`data/`); empty for all.
    pub async fn snapshot_objects(&self, id: &str, folder: &str) -> Result<Vec<(String, u64)>> {
        check_name(id, "snapshot name")?;
        let entries = self.repository().store().list(&self.keys().snapshot_object(id, folder)).await?;
        let objects = entries.into_iter().filter_map(|entry| match self.placed(entry) {
            (entry, Some(Place::SnapshotObject { name, .. })) => Some((name, entry.size)),
            _ => None,
        });
        Ok(objects.collect())
    }

    /// Deletes objects of a snapshot that its manifest does not name, or will not.
    pub async fn delete_snapshot_objects(&self, id: &str, names: &[String]) -> Result<()> {
        check_name(id, "snapshot name")?;
        let keys = names.iter().map(|name| self.stored_key(&self.keys().snapshot_object(id, name)));
        self.repository().store().delete_all(keys.collect()).await
    }

    /// Asks the holder `holder` of a lease to stop its work.
    pub async fn request_cancel(&self, holder: &str, request: &CancelRequest) -> Result<()> {
        check_name(holder, "holder of a lease")?;
        self.repository().write(&self.keys().cancel(holder), request).await
    }

    /// Whether the holder `holder` of a lease was asked to stop, and by whom.
    pub async fn cancel_request(&self, holder: &str) -> Result<Option<CancelRequest>> {
        check_name(holder, "holder of a lease")?;
        self.repository().read(&self.keys().cancel(holder)).await
    }

    /// Forgets that the holder `holder` of a lease was asked to stop.
    pub async fn clear_cancel(&self, holder: &str) -> Result<()> {
        check_name(holder, "holder of a lease")?;
        self.repository().store().delete(&self.keys().cancel(holder)).await
    }

    /// Forgets all wishes to stop. Only when nobody can be meant by one any more.
    pub async fn clear_cancels(&self) -> Result<()> {
        let entries = self.repository().store().list(&self.keys().cancels()).await?;
        self.repository().store().delete_all(entries.into_iter().map(|entry| entry.key).collect()).await
    }

    /// Stores lines of the logs of jobs. `writer` tells apart what several processes store at once.
    pub async fn put_journal(&self, stored_at: Timestamp, writer: u32, batch: &JournalBatch) -> Result<()> {
        let key = self.keys().journal_batch(stored_at, writer);
        match self.repository().is_sealed() {
            true => self.repository().write(&key, &batch.withhold()).await,
            false => self.repository().write(&key, batch).await,
        }
    }

    /// Keys of the batches of log lines that were stored after `after`, oldest first.
    pub async fn journal_keys(&self, after: Option<Timestamp>) -> Result<Vec<String>> {
        let (store, folder) = (self.repository().store(), self.keys().journal());
        let entries = match after {
            Some(time) => store.list_after(&folder, &self.keys().journal_at(time)).await?,
            None => store.list(&folder).await?,
        };
        Ok(entries.into_iter().map(|entry| entry.key).filter(|key| key.ends_with(".json")).collect())
    }

    /// Batches of log lines by their keys; those that are gone meanwhile, or damaged, are left out.
    pub async fn journal(&self, keys: Vec<String>) -> Result<Vec<JournalBatch>> {
        Ok(self.repository().read_readable(keys).await?.into_iter().map(|(_, batch)| batch).collect())
    }

    /// Removes the batches of log lines that were stored before `time`, and says how many there were.
    pub async fn delete_journal_before(&self, time: Timestamp) -> Result<usize> {
        let bound = self.keys().journal_at(time);
        let old: Vec<_> = self.journal_keys(None).await?.into_iter().filter(|key| *key < bound).collect();
        let count = old.len();
        self.repository().store().delete_all(old).await?;
        Ok(count)
    }

    /// Removes the older half of the batches of log lines, and says how many that were.
    pub async fn delete_oldest_journal(&self) -> Result<usize> {
        let mut keys = self.journal_keys(None).await?;
        keys.truncate(keys.len().div_ceil(2));
        let count = keys.len();
        self.repository().store().delete_all(keys).await?;
        Ok(count)
    }

    /// Names of all leases that were ever taken and not removed.
    pub async fn lease_names(&self) -> Result<Vec<String>> {
        self.repository().store().folders(&self.keys().lease_folder()).await
    }

    /// Removes all that is stored of a lease. Only for names that are never used again, as its numbers
    /// would begin anew.
    pub async fn forget_lease(&self, name: &str) -> Result<()> {
        check_name(name, "lease name")?;
        let entries = self.repository().store().list(&self.keys().leases(name)).await?;
        self.repository().store().delete_all(entries.into_iter().map(|entry| entry.key).collect()).await
    }
}
