//! Which repository: its URL, and the object store that the URL means.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};
use url::Url;

use crate::error::{Error, Provider, Result, one_line};
use crate::google::GoogleOptions;
use crate::s3::S3Options;
use crate::store::Store;

/// Which repository to use, and how to reach it.
#[derive(Clone, Debug, Default)]
pub struct RepositorySpec {
    /// `file:///path`, a plain path, `s3://bucket/prefix`, `az://container/prefix` or
    /// `gs://bucket/prefix`. Never with credentials in it.
    pub url: String,
    /// For `s3://`.
    pub s3: S3Options,
    /// For `gs://`.
    pub google: GoogleOptions,
}

impl RepositorySpec {
    /// The repository at `url`, reached as the environment says.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// Its URL, as shown to people; none where it cannot be one.
    pub fn shown(&self) -> Option<String> {
        Location::of(self).ok().map(|location| location.url)
    }
}

/// The repository used when none is named: a folder in the user's data directory
/// (`$XDG_DATA_HOME` or `~/.local/share`, XDG Base Directory Specification).
pub fn default_url() -> String {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/share")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"));
    file_url(&data.join("hindsight"))
}

fn file_url(path: &Path) -> String {
    Url::from_file_path(path).map_or_else(|()| format!("file://{}", path.display()), String::from)
}

/// How long to go on trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// While somebody waits to hear whether the store can be used at all.
    Short,
    /// While data are written or read: a store may be away for a while.
    Long,
}

impl Patience {
    pub(crate) fn retry(self) -> RetryConfig {
        let (max_retries, seconds) = match self {
            Self::Short => (2, 15),
            Self::Long => (12, 180),
        };
        RetryConfig { backoff: BackoffConfig::default(), max_retries, retry_timeout: Duration::from_secs(seconds) }
    }

    /// Longest time that one request may take, body included.
    pub(crate) fn request_timeout(self) -> &'static str {
        match self {
            Self::Short => "20 seconds",
            Self::Long => "300 seconds",
        }
    }
}

/// Where a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Folder(PathBuf),
    S3 { bucket: String, prefix: String },
    Azure { container: String, prefix: String },
    Google { bucket: String, prefix: String },
}

/// A spec that was understood: the place, and the URL as shown to people.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    pub(crate) url: String,
    pub(crate) place: Place,
    s3: S3Options,
    google: GoogleOptions,
}

impl Location {
    pub(crate) fn of(spec: &RepositorySpec) -> Result<Self> {
        let place = parse(&spec.url)?;
        let with_prefix = |scheme: &str, bucket: &str, prefix: &str| match prefix {
            "" => format!("{scheme}://{bucket}"),
            _ => format!("{scheme}://{bucket}/{prefix}"),
        };
        let url = match &place {
            Place::Folder(path) => file_url(path),
            Place::S3 { bucket, prefix } => with_prefix("s3", bucket, prefix),
            Place::Azure { container, prefix } => with_prefix("az", container, prefix),
            Place::Google { bucket, prefix } => with_prefix("gs", bucket, prefix),
        };
        Ok(Self { url, place, s3: spec.s3.clone(), google: spec.google.clone() })
    }

    /// The object store, rooted at the prefix. `None`: the folder does not exist.
    pub(crate) async fn connect(&self, patience: Patience) -> Result<Option<Store>> {
        let fail = |error: object_store::Error| Error::Url { url: self.url.clone(), why: one_line(&error.to_string()) };
        match &self.place {
            Place::Folder(path) => {
                // new_with_prefix wants the folder to exist, and says so in its own words.
                match std::fs::metadata(path) {
                    Ok(found) if found.is_dir() => {}
                    Ok(_) => return Err(self.refused("it is a file, not a folder")),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(self.refused(&error.to_string())),
                }
                let store = LocalFileSystem::new_with_prefix(path).map_err(fail)?.with_fsync(true);
                Ok(Some(Store::in_folder(Arc::new(store.with_automatic_cleanup(true)), path.clone())))
            }
            Place::S3 { bucket, prefix } => {
                let store = self.s3.connect(bucket, patience).await?;
                Ok(Some(Store::new(under(store, prefix))))
            }
            Place::Azure { container, prefix } => {
                let store = MicrosoftAzureBuilder::from_env()
                    .with_container_name(container)
                    .with_config(AzureConfigKey::Client(ClientConfigKey::Timeout), patience.request_timeout())
                    .with_retry(patience.retry())
                    .build();
                let store = under(Arc::new(store.map_err(fail)?), prefix);
                Ok(Some(Store::new(store).of(Provider::Azure)))
            }
            Place::Google { bucket, prefix } => {
                let store = self.google.connect(bucket, patience)?;
                Ok(Some(Store::new(under(store, prefix)).of(Provider::Google)))
            }
        }
    }

    /// Makes the folder of a local repository, readable by its owner only: it will hold all that
    /// the databases hold.
    pub(crate) fn make_folder(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let Place::Folder(path) = &self.place else { return Ok(()) };
        let made = match path.parent() {
            Some(parent) => std::fs::create_dir_all(parent),
            None => Ok(()),
        };
        match made.and_then(|()| std::fs::DirBuilder::new().mode(0o700).create(path)) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(self.refused(&format!(
                "the folder cannot be made: {error}; give the user that runs hindsight the right to, \
                 or choose another --repository"
            ))),
            Ok(()) => Ok(()),
        }
    }

    fn refused(&self, why: &str) -> Error {
        Error::Url { url: self.url.clone(), why: why.to_owned() }
    }
}

fn under(store: Arc<dyn ObjectStore>, prefix: &str) -> Arc<dyn ObjectStore> {
    if prefix.is_empty() { store } else { Arc::new(PrefixStore::new(store, prefix)) }
}

fn parse(text: &str) -> Result<Place> {
    let refuse = |shown: &str, why: &str| Err(Error::Url { url: shown.to_owned(), why: why.to_owned() });
    if text.is_empty() {
        return refuse("", "it is empty; expected a path or file://, s3://, az:// or gs://");
    }
    let Some((scheme, rest)) = text.split_once("://") else { return folder(text) };
    // What is before an '@' may be a password: nothing of the text is shown until that is ruled out.
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let secret = authority.contains('@');
    let shown =
        if secret { format!("{scheme}://…") } else { text.split(['?', '#']).next().unwrap_or(text).to_owned() };
    if secret {
        return refuse(
            &shown,
            "it contains credentials, which would end up in logs and process lists; remove them and set \
             AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the store's own variables",
        );
    }
    if rest.contains(['?', '#']) {
        return refuse(&shown, "it has a '?' or '#' part; settings of the store go into variables or hindsight.toml");
    }
    if scheme == "file" {
        if !rest.starts_with('/') {
            return refuse(&shown, "a file URL needs three slashes: file:///path");
        }
        let path = Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
        return path.map_or_else(|| refuse(&shown, "its path cannot be read"), |path| Ok(Place::Folder(path)));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_matches('/').to_owned();
    let named = !bucket.is_empty() && bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !named {
        return refuse(&shown, "a bucket's or container's name should follow the ://");
    }
    if object_store::path::Path::parse(&prefix).is_err() || prefix.contains('%') {
        return refuse(&shown, "the prefix after the bucket has empty or unusable parts");
    }
    let bucket = bucket.to_owned();
    match scheme {
        "s3" | "s3a" => Ok(Place::S3 { bucket, prefix }),
        "az" | "azure" | "abfs" => Ok(Place::Azure { container: bucket, prefix }),
        "gs" => Ok(Place::Google { bucket, prefix }),
        _ => refuse(&shown, "expected a path or file://, s3://, az:// or gs://"),
    }
}

fn folder(text: &str) -> Result<Place> {
    let home = text.strip_prefix("~/").and_then(|rest| Some(PathBuf::from(std::env::var_os("HOME")?).join(rest)));
    let path = home.unwrap_or_else(|| PathBuf::from(text));
    match std::path::absolute(&path) {
        Ok(path) => Ok(Place::Folder(path)),
        Err(error) => Err(Error::Url { url: text.to_owned(), why: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn urls_name_places() {
        let s3 = |bucket: &str, prefix: &str| Place::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() };
        assert_eq!(parse("s3://b").unwrap(), s3("b", ""));
        assert_eq!(parse("s3://my.b-1/a/b/").unwrap(), s3("my.b-1", "a/b"));
        assert_eq!(parse("file:///tmp/a%20b").unwrap(), Place::Folder("/tmp/a b".into()));
        assert_eq!(parse("/tmp/x").unwrap(), Place::Folder("/tmp/x".into()));
        assert!(matches!(parse("backups").unwrap(), Place::Folder(path) if path.is_absolute()));
        assert!(matches!(parse("gs://b/p").unwrap(), Place::Google { .. }));
        assert!(matches!(parse("az://c/p").unwrap(), Place::Azure { .. }));
        for (text, word) in [
            ("", "empty"),
            ("ftp://x/y", "expected"),
            ("s3://", "bucket"),
            ("s3:///prefix", "bucket"),
            ("s3://b/a//b", "prefix"),
            ("s3://b/../x", "prefix"),
            ("file://host/path", "three slashes"),
            ("s3://b/p?region=x", "variables"),
        ] {
            assert!(parse(text).unwrap_err().to_string().contains(word), "{text}");
        }
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_repeated() {
        for url in ["s3://AKIA:topsecret@bucket/x", "s3://topsecret@bucket", "az://c?sig=topsecret"] {
            let error = format!("{0} {0:?}", parse(url).unwrap_err());
            assert!(!error.contains("topsecret") && error.contains("variables") | error.contains("AWS_"), "{error}");
        }
    }

    #[test]
    fn the_default_is_a_folder() {
        assert!(default_url().starts_with("file:///") && default_url().ends_with("/hindsight"));
    }
}
