//! A folder as an object store whose calls go wrong one at a time, as they are counted.

use std::fmt;
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallFault {
    /// Nothing is done.
    Fails,
    /// It takes a while.
    Delayed,
    /// It is done, and the answer gets lost.
    Unanswered,
    /// It is done twice, as by something in between that tries again, and the second answer is what comes.
    Twice,
    /// What is read ends before its end: bytes without a word, listings with an error.
    CutShort,
}

impl CallFault {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Fails, Self::Delayed, Self::Unanswered, Self::Twice, Self::CutShort];
}

/// How long a [`CallFault::Delayed`] call takes.
const DELAY: Duration = Duration::from_millis(400);

/// A folder behind calls that can go wrong.
#[derive(Clone, Debug)]
pub struct FaultyStore {
    inner: Arc<LocalFileSystem>,
    plan: Arc<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    /// Bytes that can still be written; none for no bounds.
    room: Mutex<Option<u64>>,
    calls: AtomicU64,
    /// Number of the call that goes wrong, counted from 0, how, and what it was once it has come.
    armed: Mutex<Option<(u64, CallFault, Option<String>)>>,
}

impl FaultyStore {
    /// A store in `folder`, which must exist.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn new(folder: &FilePath) -> anyhow::Result<Self> {
        let inner = LocalFileSystem::new_with_prefix(folder).context("a store in a folder")?;
        Ok(Self { inner: Arc::new(inner), plan: Arc::default() })
    }

    /// Counts from 0 again; call number `call` goes wrong. None lets all go well.
    pub fn arm(&self, fault: Option<(u64, CallFault)>) {
        self.plan.calls.store(0, Ordering::SeqCst);
        *self.plan.armed.lock().unwrap_or_else(PoisonError::into_inner) =
            fault.map(|(call, fault)| (call, fault, None));
    }

    /// From now on so many bytes can be written, as on a disk that is nearly full; none for no bounds. What is deleted
    /// gives room.
    pub fn set_room(&self, bytes: Option<u64>) {
        *self.plan.room.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }

    /// Calls since [`FaultyStore::arm`].
    pub fn calls(&self) -> u64 {
        self.plan.calls.load(Ordering::SeqCst)
    }

    /// The call that went wrong, in words; none when it has not come.
    pub fn struck(&self) -> Option<String> {
        self.plan.armed.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.2.clone()
    }
}

impl Plan {
    /// Takes room on the disk.
    fn take(&self, bytes: usize) -> Result<()> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        match (*room).map(|room| room.checked_sub(bytes as u64)) {
            Some(None) => {
                let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
                Err(Error::Generic { store: "faulty", source: full.into() })
            }
            Some(left) => {
                *room = left;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Gives room back.
    fn give(&self, bytes: u64) {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        *room = (*room).map(|room| room + bytes);
    }

    /// Counts a call, and tells what is to go wrong with it.
    fn next(&self, what: &str, location: &str) -> Option<CallFault> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let (call, fault, struck) = armed.as_mut()?;
        if *call != number {
            return None;
        }
        *struck = Some(format!("{fault:?}: {what} {location}"));
        Some(*fault)
    }

    /// Does something with the fault that the next call is to have.
    async fn call<T, F: Future<Output = Result<T>>>(
        &self,
        what: &str,
        location: &str,
        act: impl Fn() -> F,
    ) -> Result<T> {
        match self.next(what, location) {
            None | Some(CallFault::CutShort) => act().await,
            Some(CallFault::Fails) => Err(lost("refused")),
            Some(CallFault::Delayed) => {
                tokio::time::sleep(DELAY).await;
                act().await
            }
            Some(CallFault::Unanswered) => {
                act().await?;
                Err(lost("the answer is lost"))
            }
            Some(CallFault::Twice) => {
                act().await?;
                act().await
            }
        }
    }
}

fn lost(why: &str) -> Error {
    Error::Generic { store: "faulty", source: format!("error sending request: {why}").into() }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let act = async || {
            self.plan.take(payload.content_length())?;
            self.inner.put_opts(location, payload.clone(), opts.clone()).await
        };
        self.plan.call("put", location.as_ref(), act).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let act = || self.inner.put_multipart_opts(location, opts.clone());
        let upload = self.plan.call("begin upload", location.as_ref(), act).await?;
        Ok(Box::new(FaultyUpload { inner: upload, plan: self.plan.clone(), location: location.to_string() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let read = async || self.inner.get_opts(location, options.clone()).await;
        match self.plan.next(if head { "head" } else { "get" }, location.as_ref()) {
            None | Some(CallFault::Twice) => read().await,
            Some(CallFault::Fails | CallFault::Unanswered) => Err(lost("no answer")),
            Some(CallFault::Delayed) => {
                tokio::time::sleep(DELAY).await;
                read().await
            }
            Some(CallFault::CutShort) => {
                let found = read().await?;
                if head {
                    return Ok(found);
                }
                let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
                let bytes = found.bytes().await?;
                let half = bytes.slice(..bytes.len() / 2);
                let payload = GetResultPayload::Stream(futures::stream::iter([Ok(half)]).boxed());
                Ok(GetResult { payload, meta, range, attributes, extensions: Default::default() })
            }
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, plan) = (self.inner.clone(), self.plan.clone());
        let delete = move |location: Path| {
            let (inner, plan) = (inner.clone(), plan.clone());
            async move {
                let act = || async {
                    plan.give(inner.head(&location).await.map_or(0, |found| found.size));
                    let one = futures::stream::iter([Ok(location.clone())]).boxed();
                    inner.delete_stream(one).try_collect::<Vec<_>>().await.map(drop)
                };
                plan.call("delete", location.as_ref(), act).await.map(|()| location.clone())
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let text = prefix.map(ToString::to_string).unwrap_or_default();
        let whole = self.inner.list(prefix);
        match self.plan.next("list", &text) {
            None | Some(CallFault::Twice | CallFault::Delayed) => whole,
            Some(CallFault::Fails | CallFault::Unanswered) => futures::stream::iter([Err(lost("no answer"))]).boxed(),
            Some(CallFault::CutShort) => {
                whole.take(1).chain(futures::stream::iter([Err(lost("the listing broke off"))])).boxed()
            }
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let text = prefix.map(ToString::to_string).unwrap_or_default();
        self.plan.call("list folders of", &text, || self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.plan.call("copy", from.as_ref(), || self.inner.copy_opts(from, to, options.clone())).await
    }
}

/// An upload in parts; completing it twice is not asked for, as no store takes that.
#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    plan: Arc<Plan>,
    location: String,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let fault = self.plan.next("put part", &self.location);
        let room = self.plan.take(data.content_length());
        let part = self.inner.put_part(data);
        Box::pin(async move {
            match fault {
                Some(CallFault::Fails) => return Err(lost("refused")),
                Some(CallFault::Delayed) => tokio::time::sleep(DELAY).await,
                _ => {}
            }
            room?;
            part.await?;
            if fault == Some(CallFault::Unanswered) { Err(lost("the answer is lost")) } else { Ok(()) }
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let fault = self.plan.next("complete upload", &self.location);
        match fault {
            Some(CallFault::Fails) => return Err(lost("refused")),
            Some(CallFault::Delayed) => tokio::time::sleep(DELAY).await,
            _ => {}
        }
        let done = self.inner.complete().await?;
        if fault == Some(CallFault::Unanswered) { Err(lost("the answer is lost")) } else { Ok(done) }
    }

    async fn abort(&mut self) -> Result<()> {
        match self.plan.next("abort upload", &self.location) {
            Some(CallFault::Fails) => Err(lost("refused")),
            _ => self.inner.abort().await,
        }
    }
}
