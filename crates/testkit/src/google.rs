//! A server inside the test process that speaks the XML API of Google Cloud Storage.

mod account;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, StatusCode};
use s3s::{Body, HttpError, HttpResponse, S3Error, S3ErrorCode, s3_error};
use tempfile::TempDir;

use self::account::Account;
use crate::faults::{Fault, Faults};
use crate::http::{Answers, HttpServer};
use crate::objects::{Objects, refuse};

/// How often an object may change: once a second, <https://cloud.google.com/storage/quotas>.
const WRITES_APART: Duration = Duration::from_secs(1);
/// Where a machine of Google's asks for a token:
/// <https://cloud.google.com/compute/docs/access/authenticate-workloads#applications>.
const TOKEN_PATH: &str = "/computeMetadata/v1/instance/service-accounts/default/token";

static GENERATION: HeaderName = HeaderName::from_static("x-goog-generation");
static GENERATION_MATCH: HeaderName = HeaderName::from_static("x-goog-if-generation-match");

/// Google Cloud Storage on a free loopback port, without TLS, with its objects in a temporary folder.
///
/// It speaks the XML API (<https://cloud.google.com/storage/docs/xml-api/overview>), as far as the client that Hindsight uses
/// does: objects whole and in parts, ranges, copies, lists of version 2, generations and their preconditions. Most of
/// it reads as S3's, and is answered by the same backend, with the same limits of keys as an
/// [`S3Server`](crate::S3Server). What differs is done here:
///
/// - Who asks needs a token: one that is signed with the key of the one service account, or one that the server gave out
///   as the metadata server of a machine.
/// - `x-goog-if-generation-match` is atomic.
/// - What is not there cannot be deleted (404).
/// - If wanted, no object changes more than once a second ([`GoogleServer::limit_writes`]).
///
/// It was made from Google's documentation, and has never been compared with Google.
#[derive(Debug)]
pub struct GoogleServer {
    server: HttpServer<Google>,
    folder: TempDir,
}

impl GoogleServer {
    /// Starts a server with one empty bucket.
    ///
    /// # Errors
    /// When no port, thread, key or folder can be had.
    pub fn start(bucket: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hindsight-google-").tempdir()?;
        let root = folder.path().join("buckets");
        std::fs::create_dir_all(root.join(bucket))?;
        let google = Google {
            objects: Objects::new(&root, None)?,
            account: Account::new()?,
            versions: Mutex::default(),
            limits_writes: AtomicBool::default(),
        };
        let server = Self { server: HttpServer::start(google)?, folder };
        std::fs::write(server.key_file(), server.key())?;
        Ok(server)
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// The key of the service account, as the JSON that Google gives its owner; it names the server too.
    pub fn key(&self) -> String {
        self.server.answers().account.key(&self.endpoint()).to_string()
    }

    /// A file with [`GoogleServer::key`].
    pub fn key_file(&self) -> PathBuf {
        self.folder.path().join("key.json")
    }

    /// The environment that makes a client of another process use this server, with the key of the account.
    pub fn env(&self) -> [(&'static str, String); 2] {
        let key = self.key_file().display().to_string();
        [("GOOGLE_APPLICATION_CREDENTIALS", key), ("GOOGLE_BASE_URL", self.endpoint())]
    }

    /// The environment as on a machine of Google's that has the account: no key, but somebody to ask for tokens.
    pub fn env_of_machine(&self) -> [(&'static str, String); 2] {
        [("GCE_METADATA_HOST", self.server.address()), ("GOOGLE_BASE_URL", self.endpoint())]
    }

    /// Whether objects may change once a second only: further writes are answered with 429.
    pub fn limit_writes(&self, limit: bool) {
        self.server.answers().limits_writes.store(limit, Ordering::SeqCst);
    }

    /// The file that holds an object.
    pub fn file(&self, bucket: &str, key: &str) -> PathBuf {
        self.folder.path().join("buckets").join(bucket).join(key)
    }

    /// Makes requests fail, and counts them.
    pub fn faults(&self) -> &Faults {
        self.server.answers().objects.faults()
    }
}

#[derive(Debug)]
struct Google {
    objects: Objects,
    account: Account,
    /// By path in the folder. What was deleted is kept, without a generation.
    versions: Mutex<HashMap<PathBuf, Version>>,
    limits_writes: AtomicBool,
}

#[derive(Debug)]
struct Version {
    generation: Option<u64>,
    since: Instant,
}

impl Answers for Google {
    async fn answer(self: Arc<Self>, request: Request<Body>) -> Result<HttpResponse, HttpError> {
        if request.uri().path() == TOKEN_PATH {
            return self.give_token(request).await;
        }
        self.objects.answer(request, error, |request| self.serve(request)).await
    }
}

impl Google {
    async fn give_token(&self, request: Request<Body>) -> Result<HttpResponse, HttpError> {
        // So that no page that somebody visits there gets one.
        if request.headers().get("Metadata-Flavor").is_none_or(|flavor| flavor != "Google") {
            return refuse(request, s3_error!(AccessDenied, "Missing Metadata-Flavor:Google header.")).await;
        }
        Ok(HttpResponse::new(Body::from(self.account.give_token().to_string())))
    }

    async fn serve(&self, mut request: Request<Body>) -> Result<HttpResponse, HttpError> {
        if !self.account.accepts(request.headers()) {
            return refuse(request, unauthenticated()).await;
        }
        request.headers_mut().remove(AUTHORIZATION);
        if let Some(source) = request.headers_mut().remove("x-goog-copy-source") {
            request.headers_mut().insert("x-amz-copy-source", source);
        }
        let Some(path) = self.objects.file(request.uri()) else {
            return refuse(request, s3_error!(InvalidURI)).await;
        };
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            let response = self.objects.call(request).await?;
            return Ok(with_generation(response, self.generation(&path)));
        }
        let _writing = self.objects.lock(request.uri().path()).await;
        let change = Change::of(request.method(), request.uri().query().unwrap_or_default());
        if let Err(error) = self.allows(change, &path, request.headers()) {
            return refuse(request, error).await;
        }
        request.headers_mut().remove(&GENERATION_MATCH);
        let response = self.objects.call(request).await?;
        if change == Change::None || !response.status().is_success() {
            return Ok(response);
        }
        self.note(change, &path);
        Ok(with_generation(response, self.generation(&path)))
    }

    /// Whether a change may be made, by the rules that are Google's own.
    fn allows(&self, change: Change, path: &Path, headers: &HeaderMap) -> Result<(), S3Error> {
        let condition = headers.get(&GENERATION_MATCH).map(|wanted| wanted.to_str().ok()?.parse::<u64>().ok());
        match (change, condition) {
            (Change::None, None) => return Ok(()),
            // The client asks for none where there are parts: what Google makes of them is not guessed here.
            (Change::None | Change::Whole, Some(_)) | (_, Some(None)) => return Err(s3_error!(InvalidArgument)),
            _ => {}
        }
        if self.limits_writes.load(Ordering::SeqCst)
            && self.versions().get(path).is_some_and(|version| version.since.elapsed() < WRITES_APART)
        {
            return Err(slow_down("Changing object too quickly, please slow down"));
        }
        let there = self.generation(path);
        if condition.flatten().is_some_and(|wanted| wanted != there.unwrap_or(0)) {
            return Err(s3_error!(
                PreconditionFailed,
                "At least one of the pre-conditions you specified did not hold."
            ));
        }
        if change == Change::Deleted && there.is_none() {
            return Err(s3_error!(NoSuchKey, "The specified key does not exist."));
        }
        Ok(())
    }

    fn note(&self, change: Change, path: &Path) {
        let mut versions = self.versions();
        // Google's are the time in microseconds; these grow, whatever the clock does.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let last = versions.values().filter_map(|version| version.generation).max().unwrap_or(0);
        let generation = u64::try_from(now).unwrap_or(0).max(last + 1);
        let generation = (change != Change::Deleted).then_some(generation);
        versions.insert(path.to_owned(), Version { generation, since: Instant::now() });
    }

    fn generation(&self, path: &Path) -> Option<u64> {
        self.versions().get(path)?.generation
    }

    fn versions(&self) -> MutexGuard<'_, HashMap<PathBuf, Version>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a request changes when it succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// No object: it begins or gives up an upload, or brings a part.
    None,
    /// It stores an object.
    Stored,
    /// It makes an object out of parts.
    Whole,
    /// It deletes one.
    Deleted,
}

impl Change {
    fn of(method: &Method, query: &str) -> Self {
        let of_upload = query.contains("uploadId=");
        match *method {
            Method::PUT if !of_upload => Self::Stored,
            Method::POST if of_upload => Self::Whole,
            Method::DELETE if !of_upload => Self::Deleted,
            _ => Self::None,
        }
    }
}

fn with_generation(mut response: HttpResponse, generation: Option<u64>) -> HttpResponse {
    if let (true, Some(generation)) = (response.status().is_success(), generation) {
        response.headers_mut().insert(GENERATION.clone(), HeaderValue::from(generation));
    }
    response
}

fn error(fault: Fault) -> S3Error {
    match fault {
        Fault::Denied => s3_error!(AccessDenied, "Access denied."),
        Fault::Busy => slow_down("injected fault"),
        _ => s3_error!(InternalError, "injected fault"),
    }
}

/// The answer to too many requests, which is another status than with S3: <https://cloud.google.com/storage/docs/gcs429>.
fn slow_down(why: &'static str) -> S3Error {
    let mut error = S3Error::with_message(S3ErrorCode::SlowDown, why);
    error.set_status_code(StatusCode::TOO_MANY_REQUESTS);
    error
}

/// As seen in <https://github.com/googleapis/google-cloud-go/issues/9262>.
fn unauthenticated() -> S3Error {
    let code = S3ErrorCode::Custom("AuthenticationRequired".into());
    let mut error = S3Error::with_message(code, "Authentication required.");
    error.set_status_code(StatusCode::UNAUTHORIZED);
    error
}
