//! What can go wrong with a repository, in one line each, and whether trying again can help.

use std::error::Error as StdError;
use std::io;

use hindsight_format::{ClusterIdentity, ConfigError, NameError};
use serde::Serialize;
use thiserror::Error;

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, Error)]
pub enum Error {
    /// The URL of the repository cannot be used.
    #[error("{url:?} cannot be used as a repository: {why}")]
    Url {
        /// The URL, without anything secret.
        url: String,
        /// What is wrong, and what is expected.
        why: String,
    },
    /// Settings or credentials of the store that cannot be used.
    #[error("the settings of the repository's store cannot be used: {0}")]
    Settings(String),
    /// The object is not there. Someone may have merged or deleted it meanwhile.
    #[error("{key} is missing from the repository")]
    Missing {
        /// Key of the object.
        key: String,
    },
    /// The object is there already.
    #[error("{key} exists already in the repository")]
    Exists {
        /// Key of the object.
        key: String,
    },
    /// The object's bytes are not what was written.
    #[error("{key} is damaged: {why}")]
    Damaged {
        /// Key of the object.
        key: String,
        /// What is wrong, with the byte offset where there is one.
        why: String,
    },
    /// Written by a newer program.
    #[error("{key} has format {found}, this program knows formats up to {known}: use a newer hindsight")]
    NewerFormat {
        /// Key of the object.
        key: String,
        /// Format found.
        found: u32,
        /// Newest format known.
        known: u32,
    },
    /// The name is taken by a different cluster.
    #[error(
        "the repository keeps another cluster under the name {name:?} ({} {}), this one is {} {}: \
         choose another --cluster name or another repository",
        stored.engine, stored.id, found.engine, found.id
    )]
    OtherCluster {
        /// Name of the cluster in the repository.
        name: String,
        /// Identity in the repository.
        stored: ClusterIdentity,
        /// Identity of the cluster at hand.
        found: ClusterIdentity,
    },
    /// Sealed, and no private key is at hand that opens it.
    #[error("{}", sealed_text(what, sealed_to, given.as_deref()))]
    Sealed {
        /// Key of the object, or what else it is.
        what: String,
        /// The public keys to which it is sealed, as far as that is known without opening it.
        sealed_to: Vec<String>,
        /// The public keys of the identities that were given; none when none was.
        given: Option<Vec<String>>,
    },
    /// A name that must not become part of a key.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A setting that was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store refused or failed.
    #[error("cannot {doing} {key}: {}", failure.describe())]
    Store {
        /// What was tried: `read`, `write`, `create`, `list`, `delete`.
        doing: &'static str,
        /// Key of the object, or the folder.
        key: String,
        /// Why it failed.
        failure: Failure,
    },
    /// Something that the caller asked for makes no sense, such as merging slices that do not meet.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// Whether doing the same again later can succeed without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store { failure, .. } => {
                matches!(failure.kind, FailureKind::Unreachable | FailureKind::Busy | FailureKind::Other)
            }
            _ => false,
        }
    }

    /// Whether an object that was expected is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }

    /// Whether an object is there, and its bytes are not what this program can read.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::NewerFormat { .. })
    }

    pub(crate) fn damaged(key: &str, why: impl Into<String>) -> Self {
        Self::Damaged { key: key.to_owned(), why: why.into() }
    }

    pub(crate) fn store(provider: Provider, doing: &'static str, key: &str, error: &object_store::Error) -> Self {
        let failure = Failure::of(provider, doing, error);
        match failure.kind {
            FailureKind::NotFound => Self::Missing { key: key.to_owned() },
            _ => Self::Store { doing, key: key.to_owned(), failure },
        }
    }

    /// The operating system failed, where a folder is used without the library.
    pub(crate) fn local(doing: &'static str, key: &str, error: io::Error) -> Self {
        let error = object_store::Error::Generic { store: "folder", source: error.into() };
        Self::store(Provider::Other, doing, key, &error)
    }

    /// The answer of the store ended before its end.
    pub(crate) fn cut_short(key: &str, length: usize, size: u64) -> Self {
        let (kind, hint) = (FailureKind::Unreachable, hint(FailureKind::Unreachable, Provider::Other, "read", ""));
        let why = format!("the answer broke off after {length} of {size} bytes");
        Self::Store { doing: "read", key: key.to_owned(), failure: Failure { kind, why, hint } }
    }

    /// Nothing came of it for so long.
    pub(crate) fn unanswered(doing: &'static str, key: &str, seconds: u64) -> Self {
        let (kind, hint) = (FailureKind::Unreachable, hint(FailureKind::Unreachable, Provider::Other, doing, ""));
        let failure = Failure { kind, why: format!("no answer within {seconds} s"), hint };
        Self::Store { doing, key: key.to_owned(), failure }
    }

    /// Whether it is for want of room.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Store { failure, .. } if failure.kind == FailureKind::Full)
    }

    /// Work on another thread that ended early: it panicked, or the program is shutting down.
    pub(crate) fn cut_off(doing: &'static str, key: &str) -> Self {
        let failure =
            Failure { kind: FailureKind::Other, why: "the work was cut off".to_owned(), hint: "try again".to_owned() };
        Self::Store { doing, key: key.to_owned(), failure }
    }
}

fn sealed_text(what: &str, sealed_to: &[String], given: Option<&[String]>) -> String {
    let to = sealed_to.join(", ");
    match given {
        None => format!("{what} is sealed to {to}, and no identity file was given"),
        Some(given) => {
            format!("{what} cannot be opened with the identity of {}: it is sealed to {to}", given.join(", "))
        }
    }
}

/// Whose store it is, where the way out of a failure has names of its own there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Provider {
    Azure,
    Google,
    /// A folder, or what speaks the protocol of S3.
    Other,
}

/// Why a store failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What kind of failure it is.
    pub kind: FailureKind,
    /// One line, without secrets.
    pub why: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

/// Kinds of failure of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No such object.
    NotFound,
    /// No such bucket, container or folder.
    NoBucket,
    /// The credentials may not do this.
    Permission,
    /// There are no credentials, or the store does not know them.
    Credentials,
    /// The disk is full or the quota used up.
    Full,
    /// Network, name or TLS trouble, or no answer in time.
    Unreachable,
    /// The store asks to slow down or has trouble of its own.
    Busy,
    /// The store lacks the ability.
    Unsupported,
    /// Anything else.
    Other,
}

impl Failure {
    fn describe(&self) -> String {
        if self.hint.is_empty() { self.why.clone() } else { format!("{} ({})", self.why, self.hint) }
    }

    /// Reads an error of the store. Its text goes no further than through [`one_line`], since the
    /// chain below it may quote whole replies and signed addresses.
    pub(crate) fn of(provider: Provider, doing: &'static str, error: &object_store::Error) -> Self {
        let text = chain_text(error);
        let answer = answer_in(error);
        let kind = kind_of(error, &text, answer.as_deref().unwrap_or(&text));
        Self { kind, why: summary(kind, &text), hint: hint(kind, provider, doing, &text) }
    }
}

/// What stands in the addresses of the metadata services, which are asked when nothing else gives credentials.
const UNASKED: [&str; 2] = ["169.254.169.254", "/computeMetadata/"];

/// Words of stores that do not take the credentials.
const BAD_CREDENTIALS: [&str; 7] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthenticationFailed",
    // Google's. The library says "unauthenticated" of single objects only, not of lists.
    "<Code>AuthenticationRequired</Code>",
    "status code: 401 Unauthorized",
];

/// Words of stores that have too much to do, or trouble of their own.
const BUSY: [&str; 5] = ["SlowDown", "InternalError", "status code: 429", "status code: 500", "status code: 503"];

/// `answer` is what the store said, where it did: only there can its words be looked for, as keys, ports and names of
/// uploads stand around it in `text` and may hold the same.
fn kind_of(error: &object_store::Error, text: &str, answer: &str) -> FailureKind {
    use object_store::Error as E;
    let has = |needle: &str| answer.contains(needle);
    let io = io_error(error);
    if has("NoSuchBucket") || has("ContainerNotFound") || has("The specified bucket does not exist") {
        FailureKind::NoBucket
    } else if UNASKED.iter().any(|needle| text.contains(needle)) || BAD_CREDENTIALS.iter().any(|needle| has(needle)) {
        FailureKind::Credentials
    } else if matches!(error, E::NotFound { .. }) {
        FailureKind::NotFound
    } else if matches!(error, E::PermissionDenied { .. }) || has("AccessDenied") {
        FailureKind::Permission
    } else if matches!(error, E::Unauthenticated { .. }) {
        FailureKind::Credentials
    } else if matches!(error, E::NotSupported { .. } | E::NotImplemented { .. }) {
        FailureKind::Unsupported
    } else if let Some(io) = io {
        match io.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => FailureKind::Permission,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::Full,
            io::ErrorKind::NotFound => FailureKind::NotFound,
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable => FailureKind::Unreachable,
            _ if has("error sending request") || has("HTTP error") => FailureKind::Unreachable,
            _ => FailureKind::Other,
        }
    } else if BUSY.iter().any(|needle| has(needle)) {
        FailureKind::Busy
    } else if has("error sending request") || has("timed out") || has("HTTP error") || has("dns error") {
        FailureKind::Unreachable
    } else {
        FailureKind::Other
    }
}

fn summary(kind: FailureKind, text: &str) -> String {
    let short = match kind {
        FailureKind::NoBucket => "the bucket or container does not exist",
        FailureKind::Permission if text.contains("(os error 30)") => "the file system is read-only",
        FailureKind::Permission => "permission denied",
        FailureKind::Full => "the disk is full or the quota is used up",
        FailureKind::Credentials if text.contains("169.254.169.254") || text.contains("/computeMetadata/") => {
            "no credentials were found"
        }
        FailureKind::Credentials if text.contains("SignatureDoesNotMatch") => {
            "the store does not accept the secret access key"
        }
        FailureKind::Credentials if text.contains("InvalidAccessKeyId") => "the store does not know the access key",
        FailureKind::Credentials if text.contains("Expired") => "the session token has expired",
        FailureKind::Credentials if text.contains("AuthenticationRequired") => {
            "the store does not accept the credentials"
        }
        _ => return one_line(text),
    };
    short.to_owned()
}

/// What a person can do about it.
fn hint(kind: FailureKind, provider: Provider, doing: &str, text: &str) -> String {
    let local = text.contains("os error");
    let (azure, google) = (provider == Provider::Azure, provider == Provider::Google);
    match kind {
        FailureKind::NoBucket => "create it, or correct the repository's URL or endpoint".to_owned(),
        FailureKind::Permission if local => {
            "give the user that runs hindsight the right to read and write that folder, or choose another --repository"
                .to_owned()
        }
        FailureKind::Permission if azure => {
            "give the account the role Storage Blob Data Contributor on the container".to_owned()
        }
        FailureKind::Permission if google => {
            format!("allow {} on the bucket, as the role Storage Object User does", permissions(doing))
        }
        FailureKind::Permission => format!("allow {} for the repository's prefix", actions(doing)),
        FailureKind::Credentials if azure => {
            "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or give the machine an identity".to_owned()
        }
        FailureKind::Credentials if google && text.contains("401 Unauthorized") => {
            "the key of the service account may have been deleted; the machine's clock must be right, too".to_owned()
        }
        FailureKind::Credentials if google => {
            "set GOOGLE_APPLICATION_CREDENTIALS, or give the machine a service account".to_owned()
        }
        FailureKind::Credentials => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role".to_owned()
        }
        FailureKind::Full => {
            "make room there (`cleanup` and `delete-backup` delete what is old), or choose another --repository"
                .to_owned()
        }
        FailureKind::Unreachable => "check the endpoint, the network, a proxy in between and TLS".to_owned(),
        FailureKind::Unsupported => "the store lacks this ability".to_owned(),
        FailureKind::NotFound | FailureKind::Busy | FailureKind::Other => String::new(),
    }
}

/// The permissions that an action needs, as Amazon S3 names them.
fn actions(doing: &str) -> &'static str {
    match doing {
        // Without the right to list, Amazon S3 answers "denied" also where there is nothing to read.
        "read" => "s3:GetObject and s3:ListBucket",
        "list" => "s3:ListBucket",
        "delete" => "s3:DeleteObject",
        _ => "s3:PutObject and s3:AbortMultipartUpload",
    }
}

/// The same as Google names them: <https://cloud.google.com/storage/docs/access-control/iam-xml>.
fn permissions(doing: &str) -> &'static str {
    match doing {
        "read" => "storage.objects.get",
        "list" => "storage.objects.list",
        "delete" => "storage.objects.delete",
        // What is there is replaced only with the right to delete it.
        _ => "storage.objects.create, storage.objects.delete and storage.multipartUploads.*",
    }
}

fn io_error(error: &object_store::Error) -> Option<&io::Error> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        next = error.source();
    }
    None
}

/// What the store answered, status and body, without the address that was asked; none when it did not.
fn answer_in(error: &object_store::Error) -> Option<String> {
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        if text.starts_with("Server returned ") {
            return Some(text);
        }
        next = error.source();
    }
    None
}

fn chain_text(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

/// Makes one line of a text, of bearable length, and blanks what follows the names under which
/// secrets travel in addresses.
pub(crate) fn one_line(text: &str) -> String {
    const SECRET: [&str; 4] = ["sig=", "Signature=", "Security-Token=", "Credential="];
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for name in SECRET {
        let mut from = 0;
        while let Some(found) = line.get(from..).and_then(|rest| rest.find(name)) {
            let start = from + found + name.len();
            let rest = line.get(start..).unwrap_or_default();
            let length = rest.find(['&', ' ', '"', ')']).unwrap_or(rest.len());
            line.replace_range(start..start + length, "…");
            from = start;
        }
    }
    if line.chars().count() > 400 {
        line = line.chars().take(400).chain(['…']).collect();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart() {
        let generic = |text: &str| object_store::Error::Generic { store: "S3", source: text.to_owned().into() };
        let io = |kind: io::ErrorKind| object_store::Error::Generic {
            store: "LocalFileSystem",
            source: io::Error::from(kind).into(),
        };
        let missing = |text: &str| object_store::Error::NotFound { path: "k".into(), source: text.to_owned().into() };
        for (error, kind) in [
            (missing("404"), FailureKind::NotFound),
            (missing("<Code>NoSuchBucket</Code>"), FailureKind::NoBucket),
            (generic("<Code>SlowDown</Code>"), FailureKind::Busy),
            (generic("Error performing GET http://169.254.169.254/latest"), FailureKind::Credentials),
            (generic("<Code>SignatureDoesNotMatch</Code>"), FailureKind::Credentials),
            (generic("Error performing list request: status code: 401 Unauthorized"), FailureKind::Credentials),
            (generic("GET http://a:1/computeMetadata/v1/token: error sending request"), FailureKind::Credentials),
            (generic("error sending request"), FailureKind::Unreachable),
            (generic("?"), FailureKind::Other),
            (io(io::ErrorKind::PermissionDenied), FailureKind::Permission),
            (io(io::ErrorKind::ReadOnlyFilesystem), FailureKind::Permission),
            (io(io::ErrorKind::StorageFull), FailureKind::Full),
            (io(io::ErrorKind::ConnectionRefused), FailureKind::Unreachable),
        ] {
            let failure = Failure::of(Provider::Other, "write", &error);
            assert_eq!(failure.kind, kind, "{error}");
            assert!(!failure.why.contains('\n'));
        }
        assert!(Error::store(Provider::Other, "read", "k", &missing("404")).is_missing());
        let no_bucket = Error::store(Provider::Other, "read", "k", &missing("NoSuchBucket"));
        assert!(!no_bucket.is_missing() && !no_bucket.is_retryable());
    }

    /// As the library tells of a request: its address, and then the answer, which is also the error below it.
    #[derive(Debug, Error)]
    #[error("Error performing PUT http://127.0.0.1:42905/SlowDown/AccessDenied?uploadId=a503 - {0}")]
    struct Asked(#[source] Box<dyn StdError + Send + Sync>);

    #[test]
    fn words_of_a_store_are_looked_for_in_its_answer_alone() {
        for (answer, kind) in [
            ("Server returned non-2xx status code: 404 Not Found: NoSuchUpload", FailureKind::Other),
            ("Server returned non-2xx status code: 429 Too Many Requests: ", FailureKind::Busy),
            ("Server returned non-2xx status code: 403 Forbidden: AccessDenied", FailureKind::Permission),
            ("Server returned error response: <Code>InternalError</Code>", FailureKind::Busy),
        ] {
            let error = object_store::Error::Generic { store: "S3", source: Box::new(Asked(answer.into())) };
            assert_eq!(Failure::of(Provider::Other, "write", &error).kind, kind, "{error}");
        }
    }

    #[test]
    fn the_way_out_is_that_of_the_store_whatever_its_bucket_is_called() {
        let path = "google-core.windows.net/GCS".to_owned();
        let denied = object_store::Error::PermissionDenied { path, source: "AccessDenied".into() };
        for (provider, words) in [
            (Provider::Other, "s3:PutObject"),
            (Provider::Azure, "Storage Blob Data Contributor"),
            (Provider::Google, "storage.objects.create"),
        ] {
            let failure = Failure::of(provider, "write", &denied);
            assert!(failure.hint.contains(words), "{failure:?}");
        }
    }

    #[test]
    fn texts_become_one_line_without_secrets() {
        let text = "GET https://a/b?sv=1&sig=abc%2F&X-Amz-Signature=00ff&z=1\n  failed (sig=q)";
        assert_eq!(one_line(text), "GET https://a/b?sv=1&sig=…&X-Amz-Signature=…&z=1 failed (sig=…)");
        assert_eq!(one_line(&"é".repeat(1000)).chars().count(), 401);
    }
}
