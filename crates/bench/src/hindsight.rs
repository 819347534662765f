//! The product as its users run it: the `hindsight` binary with a repository in a folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use hindsight_repository::{ClusterRepository, Repository, RepositorySpec};
use hindsight_testkit::S3Server;
use tempfile::TempDir;

use crate::child::{self, Ended, Running};
use crate::server::Server;

/// Name of the cluster in the repository.
const CLUSTER: &str = "bench";

/// The binary and a repository, which is removed when this is dropped.
#[derive(Debug)]
pub struct Hindsight {
    program: PathBuf,
    folder: TempDir,
    /// Instead of the folder: a URL, and what the environment says of it.
    store: Option<(String, Vec<(&'static str, String)>)>,
}

impl Hindsight {
    /// The binary with a new repository.
    pub fn new(program: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hindsight-bench-").tempdir()?;
        Ok(Self { program: program.to_owned(), folder, store: None })
    }

    /// The same binary with another new repository.
    pub fn another(&self) -> Result<Self> {
        Self::new(&self.program)
    }

    /// The same binary with a repository in a bucket of an S3 server.
    pub fn on_s3(&self, server: &S3Server, bucket: &str) -> Result<Self> {
        Ok(Self { store: Some((format!("s3://{bucket}"), server.env().to_vec())), ..self.another()? })
    }

    /// Builds the release binary of this workspace.
    pub fn build() -> Result<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--release", "--package", "hindsight"]).current_dir(&root);
        if !build.status()?.success() {
            bail!("hindsight could not be built");
        }
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        Ok(target.join("release/hindsight"))
    }

    /// Starts the program on a server. `servers` are those whose processor time is counted.
    pub fn start(&self, on: &Server, arguments: &[&str]) -> Result<Running> {
        self.start_at(&on.uri(), &[on.pid()], arguments)
    }

    /// The same on whatever answers at a connection string.
    pub fn start_at(&self, uri: &str, servers: &[u32], arguments: &[&str]) -> Result<Running> {
        let mut command = Command::new(&self.program);
        command.args(["--uri", uri, "--cluster", CLUSTER, "--repository"]);
        match &self.store {
            Some((url, environment)) => command.arg(url).envs(environment.iter().cloned()),
            None => command.arg(self.path()),
        };
        command.args(arguments);
        child::start(command, servers)
    }

    /// Runs the program on a server to its end.
    pub async fn run(&self, on: &Server, arguments: &[&str]) -> Result<Ended> {
        self.start(on, arguments)?.end().await
    }

    /// Where the repository is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What the repository keeps of the cluster.
    pub async fn cluster(&self) -> Result<ClusterRepository> {
        let repository = Repository::open(&RepositorySpec::new(self.path().display().to_string())).await?;
        Ok(repository.context("there is no repository")?.cluster(CLUSTER)?)
    }

    /// Name of the newest snapshot.
    pub async fn newest_snapshot(&self) -> Result<String> {
        let newest = self.cluster().await?.snapshots().await?.pop();
        Ok(newest.context("there is no snapshot")?.id)
    }

    /// Removes all snapshots.
    pub async fn forget_snapshots(&self) -> Result<()> {
        let cluster = self.cluster().await?;
        for id in cluster.snapshot_ids_in_use().await? {
            cluster.delete_snapshot(&id).await?;
        }
        Ok(())
    }

    /// Bytes of all files whose path has `part` in it.
    pub fn stored_bytes(&self, part: &str) -> Result<u64> {
        let (mut bytes, mut folders) = (0, vec![self.path().to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                match entry.file_type()?.is_dir() {
                    true => folders.push(entry.path()),
                    false if entry.path().to_string_lossy().contains(part) => bytes += entry.metadata()?.len(),
                    false => {}
                }
            }
        }
        Ok(bytes)
    }
}
