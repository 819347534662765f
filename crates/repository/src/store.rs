//! The object store behind a repository, by keys, with errors that name them.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use hindsight_format::PutIfAbsent;
use object_store::path::Path;
use object_store::{
    Error as StoreError, GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
};

use crate::error::{Error, Provider, Result};
use crate::folder::Folder;

/// Largest record that is read whole.
const MAX_RECORD: u64 = 64 << 20;
/// How long to wait, where the store lets several creators win, until all of them have written.
const SETTLE: Duration = Duration::from_secs(1);
const CREATE_ATTEMPTS: u32 = 5;
const TAIL_ATTEMPTS: u32 = 3;

/// An object found by listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
}

/// The store, rooted at the repository's prefix.
#[derive(Clone)]
pub(crate) struct Store {
    inner: Arc<dyn ObjectStore>,
    /// The folder that it is, where it is one.
    folder: Option<Arc<Folder>>,
    provider: Provider,
}

impl fmt::Debug for Store {
    /// The store's name only: its settings may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.inner)
    }
}

impl Store {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, folder: None, provider: Provider::Other }
    }

    /// The same, of a provider whose own words are wanted where it fails.
    pub(crate) fn of(self, provider: Provider) -> Self {
        Self { provider, ..self }
    }

    /// What a failure of it means.
    pub(crate) fn failed(&self, doing: &'static str, key: &str, error: &StoreError) -> Error {
        Error::store(self.provider, doing, key, error)
    }

    /// A store that is a folder, out of which nothing in it may lead.
    pub(crate) fn in_folder(inner: Arc<dyn ObjectStore>, root: PathBuf) -> Self {
        Self { folder: Some(Arc::new(Folder(root))), ..Self::new(inner) }
    }

    /// What is free on the disk that it is on.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        let found = rustix::fs::statvfs(&self.folder.as_ref()?.0).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn path(&self, key: &str) -> Result<Path> {
        let path = Path::parse(key).map_err(|error| Error::Refused(format!("{key:?} is no usable key: {error}")))?;
        if let Some(folder) = &self.folder {
            folder.check_way(key)?;
        }
        Ok(path)
    }

    /// A whole record; none when there is no such object.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let found = match self.inner.get(&self.path(key)?).await {
            Ok(found) => found,
            Err(error) => return missing_as_none(self.failed("read", key, &error)),
        };
        if found.meta.size > MAX_RECORD {
            return Err(Error::damaged(key, format!("a record of {} bytes cannot be right", found.meta.size)));
        }
        let size = found.meta.size;
        match found.bytes().await {
            // Trying again helps, which it does not with what is damaged.
            Ok(bytes) if (bytes.len() as u64) < size => Err(Error::cut_short(key, bytes.len(), size)),
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => missing_as_none(self.failed("read", key, &error)),
        }
    }

    /// The size of an object and its last `length` bytes. With the size that the object should have
    /// this takes one request. Ranges that count from the end would do without, but Azure and
    /// others do not know them.
    pub(crate) async fn tail(&self, key: &str, expected: Option<u64>, length: u64) -> Result<(u64, Bytes)> {
        let at = self.path(key)?;
        let fail = |error: &StoreError| self.failed("read", key, error);
        let head = async || Ok::<_, Error>(self.inner.head(&at).await.map_err(|error| fail(&error))?.size);
        let mut size = match expected {
            Some(size) if size > 0 => size,
            _ => head().await?,
        };
        for _ in 0..TAIL_ATTEMPTS {
            if size == 0 {
                return Ok((0, Bytes::new()));
            }
            let range = Some(GetRange::Bounded(size.saturating_sub(length)..size));
            size = match self.inner.get_opts(&at, GetOptions { range, ..GetOptions::default() }).await {
                Ok(found) if found.meta.size == size => {
                    return Ok((size, found.bytes().await.map_err(|error| fail(&error))?));
                }
                Ok(found) => found.meta.size,
                Err(error @ StoreError::NotFound { .. }) => return Err(fail(&error)),
                // The object may end before the range begins.
                Err(error) => match head().await? {
                    real if real == size => return Err(fail(&error)),
                    real => real,
                },
            };
        }
        Err(Error::damaged(key, "its size keeps changing"))
    }

    /// Some bytes of an object; fewer when it ends before.
    pub(crate) async fn range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let read = self.inner.get_range(&self.path(key)?, range).await;
        read.map_err(|error| self.failed("read", key, &error))
    }

    /// Writes, whether or not the object exists.
    pub(crate) async fn put(&self, key: &str, payload: PutPayload) -> Result<()> {
        let written = self.inner.put(&self.path(key)?, payload).await;
        written.map(drop).map_err(|error| self.failed("write", key, &error))
    }

    pub(crate) async fn upload(&self, key: &str) -> Result<Box<dyn MultipartUpload>> {
        let begun = self.inner.put_multipart(&self.path(key)?).await;
        begun.map_err(|error| self.failed("write", key, &error))
    }

    /// Asks the store to write an object that does not exist. `false`: it does.
    pub(crate) async fn try_create(&self, key: &str, bytes: Bytes) -> Result<bool> {
        match self.inner.put_opts(&self.path(key)?, bytes.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(false),
            Err(error) => Err(self.failed("create", key, &error)),
        }
    }

    /// Creates an object that does not exist, and says whether it was this call that did. Callers
    /// write bytes that no other writes: an answer that got lost is then told apart from a lost
    /// race by reading what is there.
    pub(crate) async fn create(&self, key: &str, bytes: Bytes, ability: PutIfAbsent) -> Result<bool> {
        for attempt in 0..CREATE_ATTEMPTS {
            let created = match ability {
                PutIfAbsent::Atomic | PutIfAbsent::Racy => self.try_create(key, bytes.clone()).await?,
                PutIfAbsent::Absent => match self.get(key).await? {
                    Some(_) => false,
                    None => self.put(key, bytes.clone().into()).await.map(|()| true)?,
                },
            };
            match (created, ability) {
                (true, PutIfAbsent::Atomic) => return Ok(true),
                (true, _) => tokio::time::sleep(SETTLE).await,
                (false, _) => {}
            }
            match self.get(key).await? {
                Some(found) => return Ok(found == bytes),
                // Amazon S3 also answers with a conflict while another request is under way that
                // may come to nothing.
                None => tokio::time::sleep(Duration::from_millis(50 << attempt)).await,
            }
        }
        Err(Error::Exists { key: key.to_owned() })
    }

    /// Deletes; what is not there is deleted already.
    pub(crate) async fn delete(&self, key: &str) -> Result<()> {
        match self.inner.delete(&self.path(key)?).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("delete", key, &error)),
        }
    }

    /// Deletes many, in no particular order.
    pub(crate) async fn delete_all(&self, keys: Vec<String>) -> Result<()> {
        futures::stream::iter(keys)
            .map(|key| async move { self.delete(&key).await })
            .buffer_unordered(16)
            .try_collect()
            .await
    }

    /// All objects under a folder, by key.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<Entry>> {
        match self.look_in(folder, Folder::files).await? {
            Some(files) => Ok(sorted(files)),
            None => self.collect(folder, self.inner.list(Some(&self.path(folder)?))).await,
        }
    }

    /// Objects under a folder whose key is greater than `after`, by key.
    pub(crate) async fn list_after(&self, folder: &str, after: &str) -> Result<Vec<Entry>> {
        if let Some(mut files) = self.look_in(folder, Folder::files).await? {
            files.retain(|entry| entry.key.as_str() > after);
            return Ok(sorted(files));
        }
        let (prefix, offset) = (self.path(folder)?, self.path(after)?);
        let mut found = self.collect(folder, self.inner.list_with_offset(Some(&prefix), &offset)).await?;
        // Not every store takes "after" as S3 does: the JSON API of Google, for one, begins with the key itself.
        found.retain(|entry| entry.key.as_str() > after);
        Ok(found)
    }

    /// What looks into a folder of the repository, where that is one.
    async fn look_in<T: Send + 'static>(
        &self,
        key: &str,
        look: impl FnOnce(&Folder, &str) -> Result<T> + Send + 'static,
    ) -> Result<Option<T>> {
        let Some(root) = self.folder.clone() else { return Ok(None) };
        self.path(key)?;
        let named = key.to_owned();
        let looking = tokio::task::spawn_blocking(move || look(&root, &named)).await;
        looking.map_err(|_| Error::cut_off("list", key))?.map(Some)
    }

    /// Files of writes that came to nothing under a folder, by what they would be keys of: a process that dies while it
    /// writes leaves them, and no listing shows them. Only where the store is a folder.
    pub(crate) async fn staged(&self, folder: &str) -> Result<Vec<Entry>> {
        Ok(self.look_in(folder, Folder::staged).await?.unwrap_or_default())
    }

    /// Deletes what [`Store::staged`] found.
    pub(crate) async fn delete_staged(&self, entries: Vec<Entry>) -> Result<()> {
        let Some(root) = self.folder.clone() else { return Ok(()) };
        let deleting = tokio::task::spawn_blocking(move || root.delete_staged(&entries)).await;
        deleting.map_err(|_| Error::cut_off("delete", "what was not written to its end"))?
    }

    async fn collect(
        &self,
        folder: &str,
        listing: futures::stream::BoxStream<'static, object_store::Result<object_store::ObjectMeta>>,
    ) -> Result<Vec<Entry>> {
        let entries = listing.map_ok(|meta| Entry { key: meta.location.to_string(), size: meta.size }).try_collect();
        Ok(sorted(entries.await.map_err(|error| self.failed("list", folder, &error))?))
    }

    /// Names of the folders directly in a folder, sorted.
    pub(crate) async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        self.look_in(folder, Folder::check_folder).await?;
        let found = self.inner.list_with_delimiter(Some(&self.path(folder)?)).await;
        let found = found.map_err(|error| self.failed("list", folder, &error))?;
        let mut names: Vec<_> =
            found.common_prefixes.iter().filter_map(|prefix| Some(prefix.filename()?.to_owned())).collect();
        names.sort_unstable();
        Ok(names)
    }
}

fn missing_as_none(error: Error) -> Result<Option<Bytes>> {
    if error.is_missing() { Ok(None) } else { Err(error) }
}

fn sorted(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    entries
}
