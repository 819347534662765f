//! Objects in a folder behind a protocol like that of S3, with faults.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use hyper::{Request, Uri};
use object_store::path::Path as Key;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError, HttpResponse, S3Error, s3_error};
use tokio::sync::OwnedMutexGuard;

use crate::faults::{Fault, Faults, S3Op};

/// Buckets that are folders in one folder, objects that are files in those.
pub(crate) struct Objects {
    root: PathBuf,
    service: S3Service,
    faults: Faults,
    /// One lock for each path that was ever written to.
    keys: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Objects").field("faults", &self.faults).finish_non_exhaustive()
    }
}

impl Objects {
    /// The objects in `root`, for requests signed with the key in `auth`; where there is none, for all.
    pub(crate) fn new(root: &Path, auth: Option<SimpleAuth>) -> Result<Self> {
        let root = root.canonicalize()?;
        let backend = s3s_fs::FileSystem::new(&root).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let mut service = S3ServiceBuilder::new(backend);
        // With it goes a check that refuses what is not signed.
        if let Some(auth) = auth {
            service.set_auth(auth);
        }
        Ok(Self { root, service: service.build(), faults: Faults::default(), keys: Mutex::default() })
    }

    /// The file that a request is about; that of a bucket is a folder.
    pub(crate) fn file(&self, uri: &Uri) -> Option<PathBuf> {
        Some(self.root.join(Key::from_url_path(uri.path()).ok()?.as_ref()))
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Answers as the faults say (errors are what `error` makes of them), else as `serve` does.
    pub(crate) async fn answer<F>(
        &self,
        request: Request<Body>,
        error: fn(Fault) -> S3Error,
        serve: impl FnOnce(Request<Body>) -> F,
    ) -> Result<HttpResponse, HttpError>
    where
        F: Future<Output = Result<HttpResponse, HttpError>>,
    {
        let fault = self.faults.strike(S3Op::of(request.method(), request.uri()), request.uri());
        self.faults.wait_while_hanging().await;
        match fault {
            None => serve(request).await,
            Some(fault @ (Fault::Denied | Fault::Error | Fault::Busy)) => refuse(request, error(fault)).await,
            Some(Fault::LostAnswer) => {
                serve(request).await?;
                Err(HttpError::new("the answer is lost".into()))
            }
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                serve(request).await
            }
        }
    }

    /// Hands a request on to the backend. Writes to one key should come one after another, under [`Objects::lock`]: the
    /// backend looks whether an object exists, and then writes it.
    pub(crate) async fn call(&self, request: Request<Body>) -> Result<HttpResponse, HttpError> {
        let Some(file) = self.file(request.uri()) else { return refuse(request, s3_error!(InvalidURI)).await };
        let bucket = file.strip_prefix(&self.root).ok().and_then(|path| path.components().next());
        // Of these the backend has ideas of its own: that buckets are made when they are needed, that folders are objects, and
        // that an upload that is over is somebody else's.
        if bucket.is_none_or(|bucket| !self.root.join(bucket).is_dir()) {
            return refuse(request, s3_error!(NoSuchBucket, "The specified bucket does not exist.")).await;
        }
        if S3Op::of(request.method(), request.uri()) == S3Op::Get && file.is_dir() {
            return refuse(request, s3_error!(NoSuchKey, "The specified key does not exist.")).await;
        }
        if request.uri().query().and_then(upload_in).is_some_and(|id| !self.knows_upload(id)) {
            return refuse(request, s3_error!(NoSuchUpload, "The specified upload does not exist.")).await;
        }
        self.service.call(request).await
    }

    fn knows_upload(&self, id: &str) -> bool {
        self.root.join(format!(".upload-{id}.json")).is_file()
    }

    /// Waits for other writes to a path.
    pub(crate) async fn lock(&self, path: &str) -> OwnedMutexGuard<()> {
        let key = {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.entry(path.to_owned()).or_default().clone()
        };
        key.lock_owned().await
    }
}

fn upload_in(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("uploadId="))
}

/// Answers with an error, after reading what the client is still sending: else it may see a broken connection instead.
pub(crate) async fn refuse(request: Request<Body>, error: S3Error) -> Result<HttpResponse, HttpError> {
    use futures::StreamExt as _;
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.next().await {}
    error.to_http_response().map_err(|error| HttpError::new(error.into()))
}
