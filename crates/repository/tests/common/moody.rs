//! A store that behaves as badly as it is told to.

use std::fmt;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mood {
    Fine,
    /// Creates replace what is there.
    NoCreate,
    /// Creates are not a kind of request that it knows.
    RefusesCreate,
    /// Creates look first, and write later.
    RacyCreate,
    /// Writes are done, but their answers get lost.
    LosesAnswers,
    /// Writes hang.
    Hangs,
    /// Writes are refused.
    ReadOnly,
}

const MOODS: [Mood; 7] = [
    Mood::Fine,
    Mood::NoCreate,
    Mood::RefusesCreate,
    Mood::RacyCreate,
    Mood::LosesAnswers,
    Mood::Hangs,
    Mood::ReadOnly,
];

/// A folder behind a changing mood.
#[derive(Clone, Debug)]
pub struct MoodyStore {
    inner: Arc<LocalFileSystem>,
    mood: Arc<AtomicU8>,
}

impl MoodyStore {
    pub fn new(folder: &FilePath, mood: Mood) -> Self {
        let inner = Arc::new(LocalFileSystem::new_with_prefix(folder).unwrap());
        Self { inner, mood: Arc::new(AtomicU8::new(mood as u8)) }
    }

    pub fn set(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }

    fn mood(&self) -> Mood {
        MOODS[usize::from(self.mood.load(Ordering::SeqCst))]
    }
}

impl fmt::Display for MoodyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "moody {}", self.inner)
    }
}

fn generic(why: &str) -> Error {
    Error::Generic { store: "moody", source: why.to_owned().into() }
}

#[async_trait]
impl ObjectStore for MoodyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        let create = opts.mode == PutMode::Create;
        match self.mood() {
            Mood::RefusesCreate if create => {
                return Err(Error::NotImplemented { operation: "create".into(), implementer: "moody".into() });
            }
            Mood::NoCreate if create => opts.mode = PutMode::Overwrite,
            Mood::RacyCreate if create => {
                if self.inner.head(location).await.is_ok() {
                    return Err(Error::AlreadyExists { path: location.to_string(), source: "moody".into() });
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                opts.mode = PutMode::Overwrite;
            }
            Mood::Hangs => std::future::pending().await,
            Mood::ReadOnly => {
                return Err(Error::PermissionDenied { path: location.to_string(), source: "AccessDenied".into() });
            }
            Mood::LosesAnswers => {
                self.inner.put_opts(location, payload, opts).await?;
                return Err(generic("error sending request: the answer is lost"));
            }
            _ => {}
        }
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
