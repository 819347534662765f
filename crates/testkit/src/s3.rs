//! An S3 server inside the test process.

mod faults;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::path::S3Path;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError, HttpResponse, S3Result, s3_error};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};

pub use faults::{Fault, Faults, S3Op};

/// How long its own port may be taken by others.
const PATIENCE: Duration = Duration::from_secs(10);

/// The one access key the server knows.
pub const S3_ACCESS_KEY: &str = "hindsight-test";
/// The secret of [`S3_ACCESS_KEY`].
pub const S3_SECRET_KEY: &str = "hindsight-test-secret";
/// The region to sign for.
pub const S3_REGION: &str = "us-east-1";

/// An S3 server on a free loopback port, path style, without TLS, with its objects in a temporary folder.
///
/// Signatures and checksums are verified (by the `s3s` crate). `If-None-Match: *` is atomic, for puts and for the end of
/// multipart uploads. Keys are paths in the folder, which sets limits real S3 doesn't have: there can't be both `a` and
/// `a/b`, and keys longer than about 150 bytes are refused; about 130 for multipart uploads into a bucket with a short name.
///
/// It runs on a thread of its own, so a test may block; it and its objects are gone when this value is dropped.
#[derive(Debug)]
pub struct S3Server {
    port: u16,
    shared: Arc<Shared>,
    /// Takes connections, and holds them; none while the server is stopped.
    accepting: Mutex<Option<JoinHandle<()>>>,
    folder: TempDir,
    runtime: Option<Runtime>,
}

impl S3Server {
    /// Starts a server with one empty bucket.
    ///
    /// # Errors
    /// When no port, thread or folder can be had.
    pub fn start(bucket: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hindsight-s3-").tempdir()?;
        std::fs::create_dir(folder.path().join(bucket))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };

        let root = folder.path().canonicalize()?;
        let backend = s3s_fs::FileSystem::new(&root).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let mut service = S3ServiceBuilder::new(backend);
        service.set_auth(SimpleAuth::from_single(S3_ACCESS_KEY, S3_SECRET_KEY));
        service.set_access(Access { root });
        let shared = Arc::new(Shared { service: service.build(), faults: Faults::default(), keys: Mutex::default() });
        let accepting = Mutex::new(Some(runtime.spawn(shared.clone().accept(listener))));
        Ok(Self { port, shared, accepting, folder, runtime: Some(runtime) })
    }

    /// Breaks all connections, and refuses new ones.
    pub fn stop(&self) {
        if let Some(accepting) = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take() {
            accepting.abort();
        }
    }

    /// Takes connections again, on the same port.
    ///
    /// # Errors
    /// When the port cannot be had for some seconds: another process may have an outgoing connection there.
    pub fn go_on(&self) -> Result<()> {
        let runtime = self.runtime.as_ref().context("the server is gone")?;
        let begun = Instant::now();
        let listener = loop {
            match std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)) {
                Ok(listener) => break listener,
                Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        listener.set_nonblocking(true)?;
        let _inside = runtime.enter();
        let accepting = runtime.spawn(self.shared.clone().accept(TcpListener::from_std(listener)?));
        *self.accepting.lock().unwrap_or_else(PoisonError::into_inner) = Some(accepting);
        Ok(())
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The environment that makes an S3 client of another process use this server.
    pub fn env(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ACCESS_KEY_ID", S3_ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", S3_SECRET_KEY.to_owned()),
            ("AWS_REGION", S3_REGION.to_owned()),
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// The file that holds an object, for tests that damage one.
    pub fn file(&self, bucket: &str, key: &str) -> PathBuf {
        self.folder.path().join(bucket).join(key)
    }

    /// Makes requests fail, and counts them.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("faults", &self.faults).finish_non_exhaustive()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What all connections share.
struct Shared {
    service: S3Service,
    faults: Faults,
    /// One lock for each path that was ever written to.
    keys: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Shared {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        // The loop ends with the runtime, or when the process is out of file descriptors.
        while let Ok((socket, _)) = listener.accept().await {
            let shared = self.clone();
            while connections.try_join_next().is_some() {}
            connections.spawn(async move {
                let answer = service_fn(move |request| shared.clone().answer(request));
                // An error here is a connection that was cut, by the client or by a fault.
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), answer).await;
            });
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<HttpResponse, HttpError> {
        let request = request.map(Body::from);
        let op = S3Op::of(request.method(), request.uri());
        let fault = self.faults.strike(op, request.uri());
        self.faults.wait_while_hanging().await;
        match fault {
            None => self.serve(request).await,
            Some(Fault::Denied) => refuse(request, s3_error!(AccessDenied, "Access Denied")).await,
            Some(Fault::Error) => refuse(request, s3_error!(InternalError, "injected fault")).await,
            Some(Fault::Busy) => refuse(request, s3_error!(SlowDown, "injected fault")).await,
            Some(Fault::LostAnswer) => {
                self.serve(request).await?;
                Err(HttpError::new("the answer is lost".into()))
            }
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                self.serve(request).await
            }
        }
    }

    /// Hands the request on to the server, writes to one key one after another: the file system backend looks whether an
    /// object exists, and then writes it.
    async fn serve(&self, request: Request<Body>) -> Result<HttpResponse, HttpError> {
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            return self.service.call(request).await;
        }
        let key = {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.entry(request.uri().path().to_owned()).or_default().clone()
        };
        let _writing = key.lock().await;
        self.service.call(request).await
    }
}

/// Answers with an error, after reading what the client is still sending: else it may see a broken connection instead.
async fn refuse(request: Request<Body>, error: s3s::S3Error) -> Result<HttpResponse, HttpError> {
    use futures::StreamExt as _;
    let mut body = request.into_body();
    while let Some(Ok(_)) = body.next().await {}
    error.to_http_response().map_err(|error| HttpError::new(error.into()))
}

/// Refuses what is not signed, and doesn't take a folder of the backend for an object.
struct Access {
    root: PathBuf,
}

#[async_trait::async_trait]
impl S3Access for Access {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if context.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "Signature is required"));
        }
        if let S3Path::Object { bucket, key } = context.s3_path()
            && matches!(context.s3_op().name(), "GetObject" | "HeadObject")
            && self.root.join(bucket.as_ref()).join(key.as_ref()).is_dir()
        {
            return Err(s3_error!(NoSuchKey));
        }
        Ok(())
    }
}
