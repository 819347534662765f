//! Settings: flags, then the environment, then `hindsight.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hindsight_repository::{GoogleOptions, RepositorySpec, S3Options, default_url};
use secrecy::SecretString;
use serde::Deserialize;

use crate::args::Globals;
use crate::engines;
use crate::exit::Failure;
use crate::uri::DatabaseUri;

const FILE: &str = "hindsight.toml";

/// Everything that verbs need to know before they begin.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The database, if one was named.
    pub(crate) uri: Option<DatabaseUri>,
    /// The repository.
    pub(crate) repository: RepositorySpec,
    /// Files with private keys for a sealed repository.
    pub(crate) identity: Vec<PathBuf>,
    /// Where the agent offers its metrics.
    pub(crate) metrics_listen: Option<String>,
    /// The cluster that was named.
    pub(crate) cluster: Option<String>,
    /// What the user should hear about the settings.
    pub(crate) warnings: Vec<String>,
    /// Clusters that the file names.
    known: Vec<String>,
}

/// `hindsight.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    repository: Option<String>,
    identity: Option<PathBuf>,
    metrics_listen: Option<String>,
    s3: S3Options,
    google: GoogleOptions,
    clusters: BTreeMap<String, FileCluster>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileCluster {
    uri: SecretString,
}

impl Settings {
    /// Puts together what the flags, the environment (`variable`) and the file say.
    pub(crate) fn gather(globals: Globals, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let path = find_file(globals.settings, &variable)?;
        let file = path.as_deref().map(read).transpose()?.unwrap_or_default();
        let mut cluster = globals.cluster.or_else(|| variable("HINDSIGHT_CLUSTER"));
        let given = globals
            .uri
            .or_else(|| variable("HINDSIGHT_URI").map(SecretString::from))
            .or_else(|| variable("PBM_MONGODB_URI").map(SecretString::from));
        let known: Vec<_> = file.clusters.keys().cloned().collect();
        // A file that names one cluster means that one, unless another database is given.
        if let ([only], None, None) = (known.as_slice(), &cluster, &given) {
            cluster = Some(only.clone());
        }
        let warnings = path.iter().filter_map(|path| readable_by_others(path, &file)).collect();
        let filed = |name: &String| file.clusters.get(name).map(|cluster| cluster.uri.clone());
        let uri = given.or_else(|| cluster.as_ref().and_then(filed)).map(DatabaseUri::new).transpose()?;
        let url = globals.repository.or_else(|| variable("HINDSIGHT_REPOSITORY")).or(file.repository);
        let repository = RepositorySpec { url: url.unwrap_or_else(default_url), s3: file.s3, google: file.google };
        let mut identity = globals.identity;
        if identity.is_empty() {
            identity.extend(variable("HINDSIGHT_IDENTITY").map(PathBuf::from).or(file.identity));
        }
        let metrics_listen = variable("HINDSIGHT_METRICS_LISTEN").or(file.metrics_listen);
        Ok(Self { uri, repository, identity, metrics_listen, cluster, warnings, known })
    }

    /// No database was named: the ways to do so.
    pub(crate) fn no_uri(&self) -> Failure {
        let what = "no connection string of a database was given";
        let failure = match (self.cluster.as_deref(), self.known.as_slice()) {
            (Some(name), [_, ..]) => {
                Failure::usage(format!("{what}: {FILE} has no cluster {name:?}, only {}", self.known.join(", ")))
            }
            (None, [_, ..]) => {
                return Failure::usage(what)
                    .hint(format!("name one of the clusters in {FILE} with --cluster: {}", self.known.join(", ")));
            }
            _ => Failure::usage(what),
        };
        failure.hint(format!(
            "give --uri {}, or the same in HINDSIGHT_URI or under [clusters.NAME] in hindsight.toml",
            engines::shapes()
        ))
    }
}

/// The file that was named, which must exist; or the first of the usual ones that does.
fn find_file(named: Option<PathBuf>, variable: &impl Fn(&str) -> Option<String>) -> Result<Option<PathBuf>, Failure> {
    if let Some(path) = named.or_else(|| variable("HINDSIGHT_SETTINGS").map(PathBuf::from)) {
        return Ok(Some(path));
    }
    let home = || Some(PathBuf::from(variable("HOME")?).join(".config"));
    let config = variable("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home);
    let usual = [Some(PathBuf::from(FILE)), config.map(|folder| folder.join("hindsight").join(FILE))];
    Ok(usual.into_iter().flatten().find(|path| path.exists()))
}

fn read(path: &Path) -> Result<File, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("the settings file {} cannot be read: {error}", path.display())))?;
    parse(&text).map_err(|why| Failure::usage(format!("the settings file {} cannot be used: {why}", path.display())))
}

/// Reads the file. The reasons of a refusal never repeat a value, which may be a secret: the
/// parser's own message would show the whole line.
fn parse(text: &str) -> Result<File, String> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let line =
            error.span().map(|span| 1 + text.as_bytes().iter().take(span.start).filter(|b| **b == b'\n').count());
        let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        let message = error.message().lines().next().unwrap_or_default();
        let why = match message.rsplit_once("expected ") {
            _ if message.starts_with("unknown field") || message.starts_with("missing field") => message.to_owned(),
            Some((_, expected)) => format!("expected {expected}"),
            None => "it is not valid TOML".to_owned(),
        };
        format!("{place}{why}")
    })
}

/// A warning when others can read a file with secrets in it.
#[cfg(unix)]
fn readable_by_others(path: &Path, file: &File) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let password = |cluster: &FileCluster| DatabaseUri::new(cluster.uri.clone()).is_ok_and(|uri| uri.has_password());
    let secret = file.s3.secret_access_key.is_some() || file.s3.session_token.is_some();
    if !secret && !file.clusters.values().any(password) {
        return None;
    }
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    let path = path.display();
    (mode & 0o077 != 0).then(|| format!("{path} holds a secret, and others can read it: run chmod 600 {path}"))
}

#[cfg(not(unix))]
fn readable_by_others(_: &Path, _: &File) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;
    use secrecy::ExposeSecret;

    use super::*;
    use crate::args::Args;

    fn globals(line: &str) -> Globals {
        Args::try_parse_from(format!("hindsight list {line}").split_whitespace()).unwrap().globals
    }

    fn gather(line: &str, variables: &[(&str, &str)]) -> Result<Settings, Failure> {
        Settings::gather(globals(line), |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, text).unwrap();
        let flag = format!("--settings {}", path.display());
        (folder, flag)
    }

    const TWO: &str = "repository = 's3://b/p'\n[s3]\nendpoint = 'http://x'\n\
                       [clusters.a]\nuri = 'mongodb://a'\n[clusters.b]\nuri = 'mongodb://u:p@b'\n";

    #[test]
    fn flags_come_before_the_environment_and_that_before_the_file() {
        let (_folder, flag) = file(TWO);
        let uri = |settings: &Settings| settings.uri.as_ref().map(|uri| uri.expose().to_owned());
        let settings = gather(&flag, &[]).unwrap();
        assert_eq!((uri(&settings), settings.repository.url.as_str()), (None, "s3://b/p"));
        assert!(settings.no_uri().hint.unwrap().contains("a, b"));
        let settings = gather(&format!("{flag} --cluster b"), &[("HINDSIGHT_REPOSITORY", "/x")]).unwrap();
        assert_eq!((uri(&settings).unwrap().as_str(), settings.repository.url.as_str()), ("mongodb://u:p@b", "/x"));
        let variables = [("PBM_MONGODB_URI", "mongodb://pbm"), ("HINDSIGHT_SETTINGS", "/none")];
        let settings = gather(&format!("{flag} --cluster b --repository /y"), &variables).unwrap();
        assert_eq!((uri(&settings).unwrap().as_str(), settings.repository.url.as_str()), ("mongodb://pbm", "/y"));
        let variables = [variables[0], ("HINDSIGHT_URI", "mongodb://own")];
        assert_eq!(uri(&gather(&flag, &variables).unwrap()).unwrap(), "mongodb://own");
        assert_eq!(
            uri(&gather(&format!("{flag} --mongodb-uri mongodb://f"), &variables).unwrap()).unwrap(),
            "mongodb://f"
        );
    }

    #[test]
    fn the_only_cluster_of_the_file_is_meant_when_nothing_is_named() {
        let (_folder, flag) = file("[clusters.a]\nuri = 'mongodb://a'\n");
        let settings = gather(&flag, &[]).unwrap();
        assert_eq!(settings.cluster.as_deref(), Some("a"));
        let settings = gather(&flag, &[("HINDSIGHT_URI", "mongodb://other")]).unwrap();
        assert_eq!(settings.cluster, None);
    }

    #[test]
    fn what_the_file_may_not_say_is_refused_without_repeating_secrets() {
        for (text, word) in [
            ("[s3]\nsecret_acces_key = 'topsecret'\n", "line 2: unknown field `secret_acces_key`"),
            ("[s3]\nsecret_access_key = ['topsecret']\n", "expected"),
            ("[s3]\npath_style = 'topsecret'\n", "expected a boolean"),
            ("[clusters.a]\nurl = 'mongodb://u:topsecret@h'\n", "unknown field `url`"),
            ("[clusters.a]\nuri = 'mongodb://u:topsecret@h\n", "line 2"),
            ("nope = 1\n", "unknown field `nope`"),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(word) && !why.contains("topsecret"), "{why}");
        }
    }

    #[test]
    #[cfg(unix)]
    fn a_file_with_secrets_that_others_can_read_is_warned_about() {
        use std::os::unix::fs::PermissionsExt;
        let mode = |flag: &str, mode| {
            let path = flag.strip_prefix("--settings ").unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let (_folder, flag) = file(TWO);
        mode(&flag, 0o644);
        assert!(gather(&flag, &[]).unwrap().warnings[0].contains("chmod 600"));
        mode(&flag, 0o600);
        assert!(gather(&flag, &[]).unwrap().warnings.is_empty());
        let (_folder, flag) = file("[clusters.a]\nuri = 'mongodb://a'\n");
        mode(&flag, 0o644);
        assert!(gather(&flag, &[]).unwrap().warnings.is_empty());
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let file =
            parse("[s3]\nsecret_access_key = 'topsecret'\n[clusters.b]\nuri = 'mongodb://u:topsecret@b'\n").unwrap();
        assert!(file.clusters["b"].uri.expose_secret().contains("topsecret"));
        assert!(!format!("{file:?}").contains("topsecret"));
        assert!(!format!("{:?}", gather("--uri mongodb://u:topsecret@b", &[]).unwrap()).contains("topsecret"));
        assert!(!format!("{:?}", globals("--uri mongodb://u:topsecret@b")).contains("topsecret"));
    }
}
