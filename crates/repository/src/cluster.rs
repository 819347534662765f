//! What a repository keeps for one cluster: identity, settings, snapshots, restores, objects.

use futures::StreamExt;
use hindsight_format::{
    ClusterConfig, ClusterDescriptor, ClusterIdentity, ConfigError, DamagedRecord, Keys, ObjectKind, ObjectRef, Place,
    ProofRecord, RestoreRecord, SnapshotManifest, SnapshotSeal, StoredSlice, check_name, format_time,
};
use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::reader::ObjectReader;
use crate::recipients::texts;
use crate::repository::{READ_AT_ONCE, Repository};
use crate::seal::SealedObject;
use crate::store::Entry;
use crate::writer::ObjectWriter;

/// How often a change of the settings is tried again when others change them at the same time.
const CONFIG_ATTEMPTS: u32 = 30;

/// Records that were listed: one that is damaged does not hide the others.
#[derive(Clone, Debug)]
pub struct Listed<T> {
    /// Those that can be read.
    pub records: Vec<T>,
    /// Those that cannot.
    pub damaged: Vec<DamagedRecord>,
}

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
        match self.numbers(&self.keys.configs(), |number| self.keys.config(number)).await?.last() {
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

    /// All complete snapshots, by id.
    pub async fn list_snapshots(&self) -> Result<Listed<SnapshotManifest>> {
        self.listed(self.each_snapshot().await?)
    }

    /// The same; one that cannot be read is an error that names it.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotManifest>> {
        self.each_snapshot().await?.into_iter().map(|(_, read)| read).collect()
    }

    async fn each_snapshot(&self) -> Result<Vec<(String, Result<SnapshotManifest>)>> {
        let ids = self.repository.store().folders(&self.keys.snapshots()).await?;
        let keys = ids.iter().map(|id| self.keys.manifest(id)).collect();
        let found = self.repository.read_each(keys).await?;
        let checked = futures::stream::iter(found).map(|(key, read)| async move {
            let checked = match read {
                Ok(manifest) => self.checked(key.clone(), manifest).await,
                Err(error) => Err(error),
            };
            (key, checked)
        });
        Ok(checked.buffered(READ_AT_ONCE).collect().await)
    }

    /// Tells the records that can be read from those that cannot. What else went wrong is an error.
    pub(crate) fn listed<T>(&self, read: Vec<(String, Result<T>)>) -> Result<Listed<T>> {
        let mut listed = Listed { records: Vec::new(), damaged: Vec::new() };
        for (key, read) in read {
            match read {
                Ok(record) => listed.records.push(record),
                // Missing is the sealed part of a manifest.
                Err(error) if error.is_unreadable() || error.is_missing() => {
                    let why = error.to_string();
                    // What has no place was not listed.
                    listed.damaged.extend(self.keys.place(&key).map(|place| DamagedRecord { key, why, place }));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(listed)
    }

    /// One complete snapshot.
    pub async fn snapshot(&self, id: &str) -> Result<Option<SnapshotManifest>> {
        check_name(id, "snapshot name")?;
        let key = self.keys.manifest(id);
        match self.repository.read(&key).await? {
            Some(manifest) => self.checked(key, manifest).await.map(Some),
            None => Ok(None),
        }
    }

    async fn checked(&self, key: String, manifest: SnapshotManifest) -> Result<SnapshotManifest> {
        if self.keys.manifest(&manifest.id) != key {
            return Err(Error::damaged(&key, format!("it is the manifest of the snapshot {}", manifest.id)));
        }
        if manifest.is_withheld() != self.repository.is_sealed() {
            return Err(Error::damaged(&key, "whether it is sealed is not what the repository says"));
        }
        self.unsealed(key, manifest).await
    }

    /// The whole manifest, where it is sealed and the identity at hand opens it.
    async fn unsealed(&self, key: String, open: SnapshotManifest) -> Result<SnapshotManifest> {
        if !open.is_withheld() || !self.repository.has_identity() {
            return Ok(open);
        }
        let whole: SnapshotManifest = match self.repository.read_sealed(&key).await {
            Ok(Some(whole)) => whole,
            Ok(None) => return Err(Error::Missing { key: self.stored_key(&key) }),
            // It stays what everybody may read.
            Err(Error::Sealed { .. }) => return Ok(open),
            Err(error) => return Err(error),
        };
        if whole.withhold() == open {
            return Ok(whole);
        }
        Err(Error::damaged(&key, "it does not say what its sealed part says: one of them was changed"))
    }

    /// Refuses a snapshot that the identity at hand does not open.
    pub fn require_open(&self, manifest: &SnapshotManifest) -> Result<()> {
        let Some(seal) = manifest.seal.as_ref().filter(|seal| seal.withheld) else { return Ok(()) };
        Err(self.repository.sealed(&format!("snapshot {}", manifest.id), &seal.sealed_to))
    }

    /// Refuses a slice that the identity at hand does not open. Reads only how it begins.
    pub async fn require_open_slice(&self, slice: &StoredSlice) -> Result<()> {
        let Some(keys) = self.repository.keyring() else { return Ok(()) };
        let store = self.repository.store().clone();
        let key = self.stored_key(&self.slice_key(slice));
        SealedObject::find(store, &key, Some(slice.stored_bytes), keys).await?.try_keys().await
    }

    /// The key under which an object is stored: in a sealed repository it has an ending.
    pub fn stored_key(&self, key: &str) -> String {
        self.repository.stored_key(key)
    }

    /// Completes a snapshot: everything that the manifest names must be stored before. Storing the
    /// same again is fine; another one is [`Error::Exists`].
    pub async fn put_manifest(&self, manifest: &SnapshotManifest) -> Result<()> {
        check_name(&manifest.id, "snapshot name")?;
        let key = self.keys.manifest(&manifest.id);
        let open = match self.repository.is_sealed() {
            true => self.seal_manifest(&key, manifest).await?,
            false => manifest.clone(),
        };
        if self.repository.create_record(&key, &open).await? { Ok(()) } else { Err(Error::Exists { key }) }
    }

    /// Stores the whole manifest, sealed, and gives the part that everybody may read.
    async fn seal_manifest(&self, key: &str, manifest: &SnapshotManifest) -> Result<SnapshotManifest> {
        let stored: Option<SnapshotManifest> = self.repository.read(key).await?;
        let recipients = self.repository.recipients().await?;
        // The same may be stored again, also after the recipients have changed.
        let sealed_to = match stored.as_ref().and_then(|stored| stored.seal.as_ref()) {
            Some(seal) => seal.sealed_to.clone(),
            None => texts(&recipients),
        };
        let seal = SnapshotSeal { sealed_to, withheld: false };
        let whole = SnapshotManifest { seal: Some(seal), ..manifest.clone() };
        if stored.is_none() {
            self.repository.write_sealed(key, &whole, &recipients).await?;
        }
        Ok(whole.withhold())
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
        store.delete_all(objects.into_iter().map(|entry| entry.key).collect()).await?;
        store.delete_staged(store.staged(&self.keys.snapshot(id)).await?).await
    }

    /// Makes a snapshot incomplete again.
    pub async fn delete_manifest(&self, id: &str) -> Result<()> {
        check_name(id, "snapshot name")?;
        self.repository.store().delete(&self.keys.manifest(id)).await
    }

    /// All restores' records, by id.
    pub async fn list_restores(&self) -> Result<Listed<RestoreRecord>> {
        self.listed(self.each_restore().await?)
    }

    /// The same; one that cannot be read is an error that names it.
    pub async fn restores(&self) -> Result<Vec<RestoreRecord>> {
        self.each_restore().await?.into_iter().map(|(_, read)| read).collect()
    }

    async fn each_restore(&self) -> Result<Vec<(String, Result<RestoreRecord>)>> {
        let entries = self.repository.store().list(&self.keys.restores()).await?;
        let keys = entries.into_iter().map(|entry| entry.key);
        let keys = keys.filter(|key| matches!(self.keys.place(key), Some(Place::Restore(_)))).collect();
        self.repository.read_each(keys).await
    }

    /// One restore's record.
    pub async fn restore(&self, id: &str) -> Result<Option<RestoreRecord>> {
        check_name(id, "restore name")?;
        self.repository.read(&self.keys.restore(id)).await
    }

    /// Writes a restore's record, over the one before.
    pub async fn put_restore(&self, record: &RestoreRecord) -> Result<()> {
        check_name(&record.id, "restore name")?;
        let key = self.keys.restore(&record.id);
        match self.repository.is_sealed() {
            true => self.repository.write(&key, &record.withhold()).await,
            false => self.repository.write(&key, record).await,
        }
    }

    /// The records of verifications and drills, by id. One that cannot be read is left out: it is evidence,
    /// and nothing rests on it.
    pub async fn proofs(&self) -> Result<Vec<ProofRecord>> {
        let entries = self.repository.store().list(&self.keys.proofs()).await?;
        let keys = entries.into_iter().map(|entry| entry.key).filter(|key| key.ends_with(".json")).collect();
        let found = self.repository.read_readable(keys).await?;
        Ok(found.into_iter().map(|(_, proof)| proof).collect())
    }

    /// Ids of the records of verifications and drills, oldest first.
    pub async fn proof_ids(&self) -> Result<Vec<String>> {
        let entries = self.repository.store().list(&self.keys.proofs()).await?;
        let id = |entry: Entry| match self.keys.place(&entry.key) {
            Some(Place::Proof(id)) => Some(id),
            _ => None,
        };
        Ok(entries.into_iter().filter_map(id).collect())
    }

    /// The record of one verification or drill; none where it cannot be read.
    pub async fn proof(&self, id: &str) -> Result<Option<ProofRecord>> {
        check_name(id, "proof name")?;
        Ok(self.repository.read_readable(vec![self.keys.proof(id)]).await?.pop().map(|(_, proof)| proof))
    }

    /// Writes the record of a verification or drill, under its id or the next free second.
    pub async fn put_proof(&self, mut proof: ProofRecord) -> Result<ProofRecord> {
        let mut time = proof.started_at;
        loop {
            proof.id = format_time(time);
            let key = self.keys.proof(&proof.id);
            let stored = if self.repository.is_sealed() { proof.withhold() } else { proof.clone() };
            if self.repository.create_record(&key, &stored).await? {
                return Ok(proof);
            }
            time += SignedDuration::from_secs(1);
        }
    }

    /// Everything that is stored of the cluster, whatever it is, and what it stands for; none where nothing is
    /// called so. Keys of sealed objects come without their ending.
    pub async fn stored(&self) -> Result<Vec<(Entry, Option<Place>)>> {
        let entries = self.repository.store().list(&self.keys.cluster()).await?;
        Ok(entries.into_iter().map(|entry| self.placed(entry)).collect())
    }

    pub(crate) fn placed(&self, mut entry: Entry) -> (Entry, Option<Place>) {
        let place = self.keys.place(&entry.key);
        let is_object =
            |place: &Option<Place>| matches!(place, Some(Place::SnapshotObject { .. } | Place::Slice { .. }));
        if !self.repository.is_sealed() {
            return (entry, place);
        }
        let Some(key) = self.repository.unsealed_key(&entry.key) else {
            // What is not sealed is no object of a sealed repository.
            let place = if is_object(&place) { None } else { place };
            return (entry, place);
        };
        let place = match self.keys.place(key) {
            // The whole manifest, which is an object beside the record of that name.
            Some(Place::Manifest(snapshot)) => {
                Some(Place::SnapshotObject { snapshot, name: key.rsplit('/').next().unwrap_or_default().to_owned() })
            }
            place => place.filter(|place| is_object(&Some(place.clone()))),
        };
        if place.is_some() {
            entry.key = key.to_owned();
        }
        (entry, place)
    }

    /// The whole of a manifest of which the record was read, where it is sealed and the identity at hand opens it.
    pub async fn whole(&self, open: SnapshotManifest) -> Result<SnapshotManifest> {
        let key = self.keys.manifest(&open.id);
        self.checked(key, open).await
    }

    /// The record under a key of this cluster, checked; none when there is none.
    pub async fn record<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        self.repository.read(key).await
    }

    /// Begins an object under one of [`ClusterRepository::keys`].
    pub async fn object_writer(&self, key: String, kind: ObjectKind) -> ObjectWriter {
        // Captured slices are merged later by who captured them.
        let session = kind == ObjectKind::Slice && key.starts_with(&self.keys.log());
        ObjectWriter::new(&self.repository, key, kind, session)
    }

    /// Opens an object; `expect` is what a manifest says about it.
    pub async fn object_reader(&self, key: &str, expect: Option<&ObjectRef>) -> Result<ObjectReader> {
        ObjectReader::open(&self.repository, key, expect, None).await
    }

    /// Opens an object of a snapshot; none if its manifest names none of this name. Refuses a manifest that is sealed.
    pub async fn snapshot_object(&self, manifest: &SnapshotManifest, name: &str) -> Result<Option<ObjectReader>> {
        self.require_open(manifest)?;
        let Some(object) = manifest.objects.iter().find(|object| object.name == name) else { return Ok(None) };
        self.object_reader(&self.keys.snapshot_object(&manifest.id, name), Some(object)).await.map(Some)
    }

    /// The numbers of the numbered records in a folder, ascending; `key` spells their keys. Left alone is what is spelled
    /// otherwise, or so large that no writer got there.
    pub(crate) async fn numbers(&self, folder: &str, key: impl Fn(u64) -> String) -> Result<Vec<u64>> {
        let entries = self.repository.store().list(folder).await?;
        let number = |found: &str| {
            let number = found.strip_prefix(folder)?.strip_suffix(".json")?.parse().ok()?;
            (number < u64::MAX / 2 && key(number) == found).then_some(number)
        };
        let mut numbers: Vec<u64> = entries.iter().filter_map(|entry| number(&entry.key)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}
