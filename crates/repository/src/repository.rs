//! A repository: opening it, making it, and what is in it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use hindsight_format::{
    ClusterDescriptor, FORMAT_VERSION, Keys, PutIfAbsent, RepositoryDescriptor, SEALED_FORMAT_VERSION,
};
use jiff::Timestamp;
use object_store::ObjectStore;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cluster::ClusterRepository;
use crate::error::{Error, Result};
use crate::leases::Observation;
use crate::probe::{CheckReport, probe, warning};
use crate::record;
use crate::seal::{self, Identity, Recipient, Sealing};
use crate::spec::{Location, Patience, RepositorySpec};
use crate::store::Store;
use crate::writer::PartSizes;

/// Records that are read at the same time.
pub(crate) const READ_AT_ONCE: usize = 16;

/// An open repository. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Repository {
    inner: Arc<Inner>,
    /// Private keys for what is sealed.
    identity: Option<Arc<Identity>>,
}

#[derive(Debug)]
struct Inner {
    url: String,
    descriptor: RepositoryDescriptor,
    store: Store,
    quick: Store,
    sizes: PartSizes,
    /// Where everything is sealed.
    sealing: Option<Sealing>,
    /// When states of leases were seen first, by the key of the lease's folder.
    observations: Mutex<HashMap<String, Observation>>,
}

impl Repository {
    /// Opens a repository; none when there is none yet. Never writes.
    pub async fn open(spec: &RepositorySpec) -> Result<Option<Self>> {
        let location = Location::of(spec)?;
        let Some(quick) = location.connect(Patience::Short).await? else { return Ok(None) };
        Self::open_at(&location, quick).await
    }

    /// Opens a repository, or makes one: tries out the store first, and refuses it with the missing
    /// permission or setting when it cannot be used.
    pub async fn open_or_create(spec: &RepositorySpec) -> Result<Self> {
        if let Some(open) = Self::open(spec).await? {
            return Ok(open);
        }
        let location = Location::of(spec)?;
        location.make_folder()?;
        let missing = || Error::Url { url: location.url.clone(), why: "its folder vanished".to_owned() };
        let quick = location.connect(Patience::Short).await?.ok_or_else(missing)?;
        Self::create(&quick, &location.url, &[]).await?;
        Self::open_at(&location, quick).await?.ok_or_else(|| Error::Missing { key: Keys::REPOSITORY.to_owned() })
    }

    /// Makes a repository where there is none; sealed to `recipients` when there are some.
    pub async fn make(spec: &RepositorySpec, recipients: &[Recipient]) -> Result<Self> {
        let refuse = |open: &Self| Error::Refused(format!("{} is a repository already, {}", open.url(), open.nature()));
        if let Some(open) = Self::open(spec).await? {
            return Err(refuse(&open));
        }
        let location = Location::of(spec)?;
        location.make_folder()?;
        let missing = || Error::Url { url: location.url.clone(), why: "its folder vanished".to_owned() };
        let quick = location.connect(Patience::Short).await?.ok_or_else(missing)?;
        let made = Self::create(&quick, &location.url, recipients).await?;
        let open = Self::open_at(&location, quick).await?;
        let open = open.ok_or_else(|| Error::Missing { key: Keys::REPOSITORY.to_owned() })?;
        if made { Ok(open) } else { Err(refuse(&open)) }
    }

    /// Tries out the store of a repository that may not exist yet. Writes and removes a few small
    /// objects, but makes no repository.
    pub async fn try_out(spec: &RepositorySpec) -> Result<CheckReport> {
        let location = Location::of(spec)?;
        location.make_folder()?;
        match location.connect(Patience::Short).await? {
            Some(store) => Ok(probe(&store, &location.url).await),
            None => Err(Error::Url { url: location.url, why: "its folder vanished".to_owned() }),
        }
    }

    /// A repository in a store that the caller made, as [`Repository::open_or_create`]: for tests
    /// that let a store misbehave.
    pub async fn over(store: Arc<dyn ObjectStore>, url: &str) -> Result<Self> {
        Self::over_sized(store, url, &[], PartSizes::default()).await
    }

    /// The same, sealed where it is made.
    pub async fn over_sealed(store: Arc<dyn ObjectStore>, url: &str, recipients: &[Recipient]) -> Result<Self> {
        Self::over_sized(store, url, recipients, PartSizes::default()).await
    }

    pub(crate) async fn over_sized(
        store: Arc<dyn ObjectStore>,
        url: &str,
        recipients: &[Recipient],
        sizes: PartSizes,
    ) -> Result<Self> {
        let store = Store::new(store);
        if store.get(Keys::REPOSITORY).await?.is_none() {
            Self::create(&store, url, recipients).await?;
        }
        match store.get(Keys::REPOSITORY).await? {
            Some(bytes) => Self::new(url.to_owned(), store.clone(), store, &bytes, sizes),
            None => Err(Error::Missing { key: Keys::REPOSITORY.to_owned() }),
        }
    }

    async fn open_at(location: &Location, quick: Store) -> Result<Option<Self>> {
        let Some(bytes) = quick.get(Keys::REPOSITORY).await? else { return Ok(None) };
        let Some(store) = location.connect(Patience::Long).await? else { return Ok(None) };
        Self::new(location.url.clone(), store, quick, &bytes, PartSizes::default()).map(Some)
    }

    fn new(url: String, store: Store, quick: Store, descriptor: &Bytes, sizes: PartSizes) -> Result<Self> {
        let descriptor = read_descriptor(descriptor)?;
        let sealing = match descriptor.sealed_to.as_slice() {
            [] => None,
            some => Some(Sealing::new(seal::recipients(Keys::REPOSITORY, some)?)),
        };
        let inner = Inner { url, descriptor, store, quick, sizes, sealing, observations: Mutex::default() };
        Ok(Self { inner: Arc::new(inner), identity: None })
    }

    /// Tries out the store and writes the descriptor. `false`: another one was first.
    async fn create(store: &Store, url: &str, recipients: &[Recipient]) -> Result<bool> {
        let recipients = if recipients.is_empty() { Vec::new() } else { seal::choice(recipients)? };
        let report = probe(store, url).await;
        if let Some(step) = report.failure() {
            let way_out = if step.hint.is_empty() { String::new() } else { format!(" ({})", step.hint) };
            let why = format!("trying to {} there failed: {}{way_out}", step.name, step.why);
            return Err(Error::Url { url: url.to_owned(), why });
        }
        let put_if_absent = report.put_if_absent.unwrap_or(PutIfAbsent::Absent);
        if put_if_absent != PutIfAbsent::Atomic {
            let (why, hint) = warning(put_if_absent);
            tracing::warn!(url, "{why}: {hint}");
        }
        let descriptor = RepositoryDescriptor {
            format: if recipients.is_empty() { FORMAT_VERSION } else { SEALED_FORMAT_VERSION },
            id: format!("{:032x}", rand::random::<u128>()),
            created_at: Timestamp::now(),
            created_by: env!("CARGO_PKG_VERSION").to_owned(),
            put_if_absent,
            sealed_to: recipients.iter().map(ToString::to_string).collect(),
        };
        let bytes = record::encode(Keys::REPOSITORY, &descriptor)?;
        store.create(Keys::REPOSITORY, bytes, put_if_absent).await
    }

    /// Tries out the store and the descriptor, step by step.
    pub async fn check(&self) -> CheckReport {
        let since = Instant::now();
        let stored = self.inner.quick.get(Keys::REPOSITORY).await.and_then(|bytes| {
            let bytes = bytes.ok_or_else(|| Error::Missing { key: Keys::REPOSITORY.to_owned() })?;
            read_descriptor(&bytes).map(drop)
        });
        let mut open = CheckReport { url: self.inner.url.clone(), steps: Vec::new(), put_if_absent: None };
        open.push("open", since, stored);
        let mut report = probe(&self.inner.quick, &self.inner.url).await;
        report.steps.splice(0..0, open.steps);
        report
    }

    /// Its URL, as shown to people.
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// Bytes that can still be stored on its disk; none where nobody knows, as for object stores.
    pub fn free_bytes(&self) -> Option<u64> {
        self.store().free_bytes()
    }

    /// What is stored about it.
    pub fn descriptor(&self) -> &RepositoryDescriptor {
        &self.inner.descriptor
    }

    /// The part of one cluster, which may have nothing in it yet.
    pub fn cluster(&self, name: &str) -> Result<ClusterRepository> {
        Ok(ClusterRepository::new(self.clone(), name, Keys::new(name)?))
    }

    /// All clusters that are registered, by name.
    pub async fn clusters(&self) -> Result<Vec<ClusterDescriptor>> {
        let names = self.store().folders(Keys::CLUSTERS).await?;
        futures::stream::iter(names.into_iter().filter_map(|name| self.cluster(&name).ok()))
            .map(|cluster| async move { cluster.descriptor().await })
            .buffered(READ_AT_ONCE)
            .try_filter_map(|found| async move { Ok(found) })
            .try_collect()
            .await
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }

    pub(crate) fn sealing(&self) -> Option<&Sealing> {
        self.inner.sealing.as_ref()
    }

    pub(crate) fn identity(&self) -> Option<&Arc<Identity>> {
        self.identity.as_ref()
    }

    /// The same repository, to be read with these private keys.
    #[must_use]
    pub fn with_identity(&self, identity: Identity) -> Self {
        Self { inner: self.inner.clone(), identity: Some(Arc::new(identity)) }
    }

    pub(crate) fn sizes(&self) -> PartSizes {
        self.inner.sizes
    }

    pub(crate) fn observations(&self) -> std::sync::MutexGuard<'_, HashMap<String, Observation>> {
        // What is in there stays right whatever happened to a thread that held it.
        self.inner.observations.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) async fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        match self.store().get(key).await? {
            Some(bytes) => record::decode(key, &bytes).map(Some),
            None => Ok(None),
        }
    }

    pub(crate) async fn write<T: Serialize>(&self, key: &str, value: &T) -> Result<()> {
        self.store().put(key, record::encode(key, value)?.into()).await
    }

    /// Creates a record; `false` when another one is there already.
    pub(crate) async fn create_record<T: Serialize>(&self, key: &str, value: &T) -> Result<bool> {
        let bytes = record::encode(key, value)?;
        self.store().create(key, bytes, self.inner.descriptor.put_if_absent).await
    }

    /// The records of these keys, in order, each read or told why not; those that vanish meanwhile are left out.
    pub(crate) async fn read_each<T: DeserializeOwned>(&self, keys: Vec<String>) -> Result<Vec<(String, Result<T>)>> {
        futures::stream::iter(keys)
            .map(|key| async move {
                match self.read(&key).await {
                    Ok(found) => Ok(found.map(|record| (key, Ok(record)))),
                    Err(error) if error.is_unreadable() => Ok(Some((key, Err(error)))),
                    Err(error) => Err(error),
                }
            })
            .buffered(READ_AT_ONCE)
            .try_filter_map(|found| async move { Ok(found) })
            .try_collect()
            .await
    }

    /// The same without those that cannot be read, for records that only explain or bear witness: nothing rests on
    /// them, and one that is damaged must not stand in the way of a restore.
    pub(crate) async fn read_readable<T: DeserializeOwned>(&self, keys: Vec<String>) -> Result<Vec<(String, T)>> {
        let readable = |(key, read): (String, Result<T>)| match read {
            Ok(record) => Some((key, record)),
            Err(error) => {
                tracing::warn!("passed over: {error}");
                None
            }
        };
        Ok(self.read_each(keys).await?.into_iter().filter_map(readable).collect())
    }
}

/// The descriptor may have the format of a sealed repository: no other record has it.
fn read_descriptor(bytes: &Bytes) -> Result<RepositoryDescriptor> {
    let descriptor: RepositoryDescriptor = record::decode_up_to(SEALED_FORMAT_VERSION, Keys::REPOSITORY, bytes)?;
    if descriptor.sealed_to.is_empty() == (descriptor.format == SEALED_FORMAT_VERSION) {
        let why = format!("a repository of format {} is sealed or not, and it says otherwise", descriptor.format);
        return Err(Error::damaged(Keys::REPOSITORY, why));
    }
    Ok(descriptor)
}
