//! What a repository keeps for one cluster: identity, settings, snapshots, restores, objects.

use hindsight_format::{
    ClusterConfig, ClusterDescriptor, ClusterIdentity, ConfigError, Keys, ObjectKind, ObjectRef, RestoreRecord,
    SnapshotManifest, check_name,
};
use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::reader::ObjectReader;
use crate::repository::Repository;
use crate::writer::ObjectWriter;

/// How often a change of the settings is tried again when others change them at the same time.
const CONFIG_ATTEMPTS: u32 = 30;

/// One cluster's part of a repository. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClusterRepository {
    repository: Repository,
    name: String,
    keys: Keys,
}

impl ClusterRepository {
    pub(crate) fn new(repository: Repository, name: &str, keys: Keys) -> Self {
        Self { repository, name: name.to_owned(), keys }
    }

    /// Name of the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The repository it is in.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Which cluster is registered under this name.
    pub async fn descriptor(&self) -> Result<Option<ClusterDescriptor>> {
        self.repository.read(&self.keys.descriptor()).await
    }

    /// Makes sure that the name stands for this cluster: registers it the first time, and refuses
    /// with [`Error::OtherCluster`] when another one has the name.
    pub async fn register(&self, identity: &ClusterIdentity) -> Result<ClusterDescriptor> {
        let key = self.keys.descriptor();
        let fresh =
            ClusterDescriptor { name: self.name.clone(), identity: identity.clone(), created_at: Timestamp::now() };
        let stored = match self.descriptor().await? {
            Some(stored) => stored,
            None if self.repository.create_record(&key, &fresh).await? => return Ok(fresh),
            None => self.descriptor().await?.ok_or(Error::Missing { key })?,
        };
        if stored.identity == *identity {
            return Ok(stored);
        }
        Err(Error::OtherCluster { name: self.name.clone(), stored: stored.identity, found: identity.clone() })
    }

    /// The settings in force with their number; `(0, default)` when none were ever stored.
    pub async fn config(&self) -> Result<(u64, ClusterConfig)> {
        match self.numbers(&self.keys.configs()).await?.last() {
            None => Ok((0, ClusterConfig::default())),
            Some(&number) => {
                let key = self.keys.config(number);
                let config = self.repository.read(&key).await?;
                Ok((number, config.ok_or(Error::Missing { key })?))
            }
        }
    }

    /// Changes the settings, starting again from the newest ones when another writer was first.
    pub async fn update_config(
        &self,
        change: impl Fn(ClusterConfig) -> Result<ClusterConfig, ConfigError>,
    ) -> Result<ClusterConfig> {
        for _ in 0..CONFIG_ATTEMPTS {
            let (number, config) = self.config().await?;
            let changed = change(config.clone())?;
            if changed == config && number > 0 {
                return Ok(config);
            }
            if self.repository.create_record(&self.keys.config(number + 1), &changed).await? {
                return Ok(changed);
            }
        }
        Err(Error::Refused(format!("others keep changing the settings of {}: try again", self.name)))
    }

    /// All complete snapshots, by id. One that cannot be read is an error that names it.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotManifest>> {
        let ids = self.repository.store().folders(&self.keys.snapshots()).await?;
        let keys = ids.iter().map(|id| self.keys.manifest(id)).collect();
        let found = self.repository.read_all(keys).await?;
        found.into_iter().map(|(key, manifest)| self.checked(&key, manifest)).collect()
    }

    /// One complete snapshot.
    pub async fn snapshot(&self, id: &str) -> Result<Option<SnapshotManifest>> {
        check_name(id, "snapshot name")?;
        let key = self.keys.manifest(id);
        let found = self.repository.read(&key).await?;
        found.map(|manifest| self.checked(&key, manifest)).transpose()
    }

    fn checked(&self, key: &str, manifest: SnapshotManifest) -> Result<SnapshotManifest> {
        if self.keys.manifest(&manifest.id) == key {
            return Ok(manifest);
        }
        Err(Error::damaged(key, format!("it is the manifest of the snapshot {}", manifest.id)))
    }

    /// Completes a snapshot: everything that the manifest names must be stored before. Storing the
    /// same again is fine; another one is [`Error::Exists`].
    pub async fn put_manifest(&self, manifest: &SnapshotManifest) -> Result<()> {
        check_name(&manifest.id, "snapshot name")?;
        let key = self.keys.manifest(&manifest.id);
        if self.repository.create_record(&key, manifest).await? { Ok(()) } else { Err(Error::Exists { key }) }
    }

    /// Names of all snapshots that have any object, complete or not.
    pub async fn snapshot_ids_in_use(&self) -> Result<Vec<String>> {
        self.repository.store().folders(&self.keys.snapshots()).await
    }

    /// Removes a snapshot, complete or not: the manifest first, so that no reader finds a snapshot
    /// with objects missing.
    pub async fn delete_snapshot(&self, id: &str) -> Result<()> {
        check_name(id, "snapshot name")?;
        let store = self.repository.store();
        store.delete(&self.keys.manifest(id)).await?;
        let objects = store.list(&self.keys.snapshot(id)).await?;
        store.delete_all(objects.into_iter().map(|entry| entry.key).collect()).await
    }

    /// All restores' records, by id.
    pub async fn restores(&self) -> Result<Vec<RestoreRecord>> {
        let entries = self.repository.store().list(&self.keys.restores()).await?;
        let keys = entries.into_iter().map(|entry| entry.key).filter(|key| key.ends_with(".json")).collect();
        let found = self.repository.read_all(keys).await?;
        Ok(found.into_iter().map(|(_, record)| record).collect())
    }

    /// One restore's record.
    pub async fn restore(&self, id: &str) -> Result<Option<RestoreRecord>> {
        check_name(id, "restore name")?;
        self.repository.read(&self.keys.restore(id)).await
    }

    /// Writes a restore's record, over the one before.
    pub async fn put_restore(&self, record: &RestoreRecord) -> Result<()> {
        check_name(&record.id, "restore name")?;
        self.repository.write(&self.keys.restore(&record.id), record).await
    }

    /// Begins an object under one of [`ClusterRepository::keys`].
    pub async fn object_writer(&self, key: String, kind: ObjectKind) -> ObjectWriter {
        ObjectWriter::new(self.repository.store().clone(), key, kind, self.repository.sizes())
    }

    /// Opens an object; `expect` is what a manifest says about it.
    pub async fn object_reader(&self, key: &str, expect: Option<&ObjectRef>) -> Result<ObjectReader> {
        ObjectReader::open(self.repository.store().clone(), key, expect, None).await
    }

    /// The numbers of the numbered records in a folder, ascending.
    pub(crate) async fn numbers(&self, folder: &str) -> Result<Vec<u64>> {
        let entries = self.repository.store().list(folder).await?;
        let number = |key: &str| key.strip_prefix(folder)?.strip_suffix(".json")?.parse().ok();
        let mut numbers: Vec<u64> = entries.iter().filter_map(|entry| number(&entry.key)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}
