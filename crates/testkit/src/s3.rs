//! An S3 server inside the test process.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use hyper::{Method, Request};
use s3s::auth::SimpleAuth;
use s3s::{Body, HttpError, HttpResponse, S3Error, s3_error};
use tempfile::TempDir;

use crate::faults::{Fault, Faults};
use crate::http::{Answers, HttpServer};
use crate::objects::Objects;

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
    server: HttpServer<Signed>,
    folder: TempDir,
}

impl S3Server {
    /// Starts a server with one empty bucket.
    ///
    /// # Errors
    /// When no port, thread or folder can be had.
    pub fn start(bucket: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hindsight-s3-").tempdir()?;
        std::fs::create_dir(folder.path().join(bucket))?;
        let auth = SimpleAuth::from_single(S3_ACCESS_KEY, S3_SECRET_KEY);
        let server = HttpServer::start(Signed(Objects::new(folder.path(), Some(auth))?))?;
        Ok(Self { server, folder })
    }

    /// Breaks all connections, and refuses new ones.
    pub fn stop(&self) {
        self.server.stop();
    }

    /// Takes connections again, on the same port.
    ///
    /// # Errors
    /// When the port cannot be had for some seconds: another process may have an outgoing connection there.
    pub fn go_on(&self) -> Result<()> {
        self.server.go_on()
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
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
        self.server.answers().0.faults()
    }
}

/// Objects for who signs as S3 wants it.
#[derive(Debug)]
struct Signed(Objects);

impl Answers for Signed {
    async fn answer(self: Arc<Self>, request: Request<Body>) -> Result<HttpResponse, HttpError> {
        self.0.answer(request, error, |request| self.serve(request)).await
    }
}

impl Signed {
    async fn serve(&self, request: Request<Body>) -> Result<HttpResponse, HttpError> {
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            return self.0.call(request).await;
        }
        let _writing = self.0.lock(request.uri().path()).await;
        self.0.call(request).await
    }
}

fn error(fault: Fault) -> S3Error {
    match fault {
        Fault::Denied => s3_error!(AccessDenied, "Access Denied"),
        Fault::Busy => s3_error!(SlowDown, "injected fault"),
        _ => s3_error!(InternalError, "injected fault"),
    }
}
